//! Cut-offs: revocations of many sessions at once, by a time that each session has. A session and
//! its access tokens carry everything that decides whether a cut-off covers them.

pub use countersign_verification::cut_off::{
    Basis, Coverable, CutOff, CutOffKey, CutOffKind, KeyRef, Scope,
};

use super::{session::Session, time::Timestamp};

/// Names of wide kinds sort before this text, and names of all other kinds of blacklist entries
/// after it. So a database tells by one look into the index of the kinds that there are no wide
/// cut-offs.
pub const WIDE_BEFORE: &str = "b";

/// Returns whether a cut-off of this kind may cover sessions of many subjects that only a walk
/// through all sessions of a tenant, or of all tenants, finds. This is so for all kinds except those
/// that have an index of their sessions: tenants and subjects by creation.
pub const fn is_wide(kind: CutOffKind) -> bool {
    !matches!(kind, CutOffKind::Tenant | CutOffKind::Subject)
}

impl<'a> From<&'a Session> for Coverable<'a> {
    fn from(session: &'a Session) -> Self {
        Self {
            id: session.id,
            tenant: &session.tenant,
            subject: &session.subject,
            client_id: &session.client_id,
            authenticated_at: session.authentication.at,
        }
    }
}

/// The cut-offs that cover a session: the latest of each basis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Covering {
    /// The latest instant of those by creation.
    pub created_up_to: Option<Timestamp>,
    /// The latest instant of those by authentication.
    pub authenticated_up_to: Option<Timestamp>,
}

impl Covering {
    /// Chooses those cut-offs that cover a session. Each cut-off has the key that the session has
    /// for its kind.
    pub fn of<'a>(
        session: impl Into<Coverable<'a>>,
        cut_offs: impl IntoIterator<Item = (CutOffKind, CutOff)>,
    ) -> Self {
        let session = session.into();
        let mut covering = Self::default();
        for (kind, cut_off) in cut_offs {
            if cut_off.covers(kind, &session) {
                let latest = match kind.basis() {
                    Basis::Creation => &mut covering.created_up_to,
                    Basis::Authentication => &mut covering.authenticated_up_to,
                };
                *latest = (*latest).max(Some(cut_off.up_to));
            }
        }
        covering
    }

    /// Returns whether any cut-off covers the session.
    pub fn is_covered(&self) -> bool {
        self.created_up_to.is_some() || self.authenticated_up_to.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::session::tests::START, *};
    use crate::domain::ids::SessionId;

    #[test]
    fn only_the_names_of_wide_kinds_sort_before_the_limit() {
        let others = ["session", "token"].map(|name| (name, false));
        let kinds = CutOffKind::ALL.map(|kind| (kind.as_str(), is_wide(kind)));
        for (name, is_wide) in kinds.into_iter().chain(others) {
            assert_eq!(name < WIDE_BEFORE, is_wide, "{name}");
        }
    }

    #[test]
    fn the_latest_cut_off_of_each_basis_counts_if_it_covers_the_session() {
        let later = |seconds| CutOff::up_to(START.plus(Duration::from_secs(seconds)));
        let session = Coverable {
            id: SessionId::new(START, [0xff; 10]),
            tenant: "acme",
            subject: "alice",
            client_id: "web",
            authenticated_at: START,
        };
        let too_early = CutOff::up_to(START.minus(Duration::from_millis(1)));
        let covering = Covering::of(
            session,
            [
                (CutOffKind::Tenant, later(1)),
                (CutOffKind::Client, later(3)),
                (CutOffKind::Everywhere, too_early),
                (CutOffKind::AuthenticatedTenant, later(2)),
                (CutOffKind::AuthenticatedClient, too_early),
            ],
        );
        assert_eq!(
            covering,
            Covering {
                created_up_to: Some(later(3).up_to),
                authenticated_up_to: Some(later(2).up_to)
            }
        );
        assert!(covering.is_covered());
        assert!(!Covering::of(session, [(CutOffKind::Client, too_early)]).is_covered());
    }
}
