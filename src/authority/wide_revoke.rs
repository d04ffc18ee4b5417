//! The parts of the use case Revoke that concern many sessions: targets by client or time, the dry
//! run and its confirmation, and the list of revocations with their progress.

use std::{collections::HashSet, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};

use super::{
    Authority,
    error::AuthorityError,
    revoke::{RevocationPlan, RevokeTarget},
    sessions_target::{Boundary, SessionsTarget},
};
use crate::{
    domain::{
        audit::{AuditAction, AuditRecord},
        caller::Actor,
        cut_off::{CutOff, CutOffKey},
        permission::Operation,
        revocation::RevocationTarget,
        time::Timestamp,
    },
    store::CutOffEntry,
    token::confirmation::{self, Confirmed},
};

/// The largest number of subjects in one revocation.
pub const MAX_SUBJECTS: usize = 1000;
/// The largest number of revocations in a list, and of identifiers in a request for one.
pub const MAX_LISTED: usize = 1000;
/// The longest text of a confirmation that is read.
pub const MAX_CONFIRMATION_BYTES: usize = 256;

/// The number of sessions that a dry run looks at. It takes some seconds at most.
const MOST_LOOKED_AT: i64 = 1_000_000;
/// The number of sessions that a dry run looks at in one query.
const LOOKED_AT_ONCE: i64 = 5000;
/// The time for which a confirmation is accepted.
const CONFIRMATION_TTL: Duration = Duration::from_secs(600);

/// The result of a dry run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRun {
    /// The number of live sessions that the revocation would end.
    pub sessions: i64,
    /// True if there may be more.
    pub is_lower_bound: bool,
    /// The confirmation, and the instant until which it is accepted, if the revocation needs one.
    pub confirmation: Option<(String, Timestamp)>,
}

impl Authority {
    /// Checks that the caller may revoke sessions by their client or a time.
    pub(super) fn plan_for_sessions(
        &self,
        by: &Actor,
        target: SessionsTarget,
        record: AuditRecord,
    ) -> Result<RevocationPlan, AuthorityError> {
        match target.scope.tenant() {
            Some(tenant) => self.check_whole_tenant(by, tenant)?,
            None if by.caller.may(Operation::RevokeEverywhere) => {}
            None => {
                let problem = "only the role admin without a limit to tenants or audiences may \
                               revoke sessions of all tenants";
                return Err(self.not_allowed(by, Operation::RevokeEverywhere, problem));
            }
        }
        let (key, up_to) = target.cut_off(record.at)?;
        let mut record = AuditRecord {
            action: AuditAction::SessionsRevoked,
            tenant: target.scope.tenant().cloned(),
            client_id: target.scope.client_id().cloned(),
            ..record
        };
        match target.boundary {
            Boundary::Now => {}
            Boundary::CreatedBefore(before) => record.created_before = Some(before),
            Boundary::AuthenticatedBefore(before) => record.authenticated_before = Some(before),
        }
        let target = RevocationTarget::Sessions { key, up_to };
        Ok(RevocationPlan::of_cut_off(target, vec![record]))
    }

    /// Checks the confirmation of a revocation in all tenants, and records the number of sessions
    /// that was confirmed. Other revocations must not have a confirmation.
    pub(super) fn check_confirmation(
        &self,
        by: &Actor,
        plan: &mut RevocationPlan,
        confirmation: &str,
        now: Timestamp,
    ) -> Result<(), AuthorityError> {
        let wrong = |problem: &str| Err(AuthorityError::field("confirmation", problem));
        let Some(about) = confirmed_target(by, &plan.target) else {
            return match confirmation.is_empty() {
                true => Ok(()),
                false => wrong("goes with sessions of all tenants only"),
            };
        };
        if confirmation.is_empty() {
            return wrong(
                "is required for sessions of all tenants: make the same request with dry_run, and \
                 give the confirmation in its answer",
            );
        }
        let ring = self.keeper.ring();
        match confirmation::read(confirmation, &about, |key| ring.refresh(key)) {
            Some(Confirmed { sessions, expires_at }) if now < expires_at => {
                plan.records.iter_mut().for_each(|record| record.sessions = Some(sessions));
                Ok(())
            }
            Some(_) => wrong("has expired: make the dry run again"),
            None => wrong(
                "is not that of a dry run of this request by this caller: make the same request \
                 with dry_run, and give the confirmation in its answer",
            ),
        }
    }

    /// Counts the live sessions that a revocation would end, and changes nothing.
    pub async fn dry_run(
        &self,
        by: &Actor,
        target: RevokeTarget,
    ) -> Result<DryRun, AuthorityError> {
        let now = self.clock.now();
        let record = AuditRecord::by(by, AuditAction::SessionsRevoked, now);
        let plan = self.plan_for_many(by, target, record)?;
        let spared = match &plan.target {
            RevocationTarget::Subject { except, .. } => *except,
            _ => None,
        };
        let up_to = match &plan.target {
            RevocationTarget::Sessions { up_to: Some(up_to), .. } => *up_to,
            // A session may have been created by a clock that is ahead.
            _ => Timestamp::from_micros(i64::MAX),
        };
        let mut counting = Counting { left: MOST_LOOKED_AT, sessions: 0 };
        for key in plan.target.cut_off_keys() {
            let cut_off = CutOff { up_to, spared };
            if !self.count_covered(&key, cut_off, now, &mut counting).await? {
                break;
            }
        }
        self.wait_until_confirmed().await?;
        let confirmation = match confirmed_target(by, &plan.target) {
            None => None,
            Some(about) => Some(self.confirmation(&about, counting.sessions, now)?),
        };
        let is_lower_bound = counting.left <= 0;
        Ok(DryRun { sessions: counting.sessions, is_lower_bound, confirmation })
    }

    /// Counts the sessions that a cut-off covers. Returns false if not all of them were looked at.
    async fn count_covered(
        &self,
        key: &CutOffKey,
        cut_off: CutOff,
        now: Timestamp,
        counting: &mut Counting,
    ) -> Result<bool, AuthorityError> {
        let mut after = None;
        while counting.left > 0 {
            let limit = LOOKED_AT_ONCE.min(counting.left);
            let counted = self.store.count_covered(key.clone(), cut_off, now, after, limit).await?;
            let Some(batch) = counted else { return Ok(true) };
            after = Some(batch.last);
            counting.left -= batch.looked_at;
            counting.sessions += batch.sessions;
        }
        Ok(false)
    }

    /// Creates the confirmation of a dry run.
    fn confirmation(
        &self,
        about: &str,
        sessions: i64,
        now: Timestamp,
    ) -> Result<(String, Timestamp), AuthorityError> {
        let key_id = self.refresh_key()?;
        let ring = self.keeper.ring();
        let key = ring.refresh(key_id).ok_or(AuthorityError::Internal)?;
        let confirmed = Confirmed { sessions, expires_at: now.plus(CONFIRMATION_TTL) };
        Ok((confirmation::issue(confirmed, about, key_id, key), confirmed.expires_at))
    }

    /// Lists revocations of many sessions, the newest first: those that the caller may see and, if
    /// identifiers are given, that have one of these.
    pub async fn revocations(
        &self,
        by: &Actor,
        ids: &HashSet<String>,
    ) -> Result<Vec<CutOffEntry>, AuthorityError> {
        let entries = self.store.cut_offs().await?;
        let is_wanted = |entry: &CutOffEntry| {
            let is_in_reach = match entry.key.scope().tenant() {
                Some(tenant) => by.reach().has_tenant(tenant),
                None => by.reach().tenants.is_none(),
            };
            is_in_reach && (ids.is_empty() || ids.contains(&revocation_id(&entry.key)))
        };
        Ok(entries.into_iter().filter(is_wanted).take(MAX_LISTED).collect())
    }
}

/// The state of a count.
struct Counting {
    /// The number of sessions that may still be looked at.
    left: i64,
    /// The number of covered live sessions so far.
    sessions: i64,
}

/// Returns the text that a confirmation confirms, or none if the revocation needs no confirmation.
fn confirmed_target(by: &Actor, target: &RevocationTarget) -> Option<String> {
    match target {
        RevocationTarget::Sessions { key, up_to } if key.scope().tenant().is_none() => {
            let (caller, key) = (&*by.caller.name, key.borrowed());
            let up_to = up_to.map(Timestamp::micros);
            Some(format!("{caller}\0{}\0{}\0{up_to:?}", key.kind.as_str(), key.text()))
        }
        _ => None,
    }
}

/// Returns the identifier of a revocation: the first 16 bytes of SHA-256 over the identity of its
/// cut-off, in hexadecimal digits.
pub fn revocation_id(key: &CutOffKey) -> String {
    let key = key.borrowed();
    let hash = digest(&SHA256, format!("{}\0{}", key.kind.as_str(), key.text()).as_bytes());
    hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
