//! Converts messages of Watch to entries of the index and to rules. Anything that this version does
//! not understand is an error, because it might stop a token.

use std::{collections::BTreeSet, time::Duration};

use countersign_verification::{
    cut_off::{CutOff, CutOffKey, Scope},
    index::revoked_id,
    reach::Reach,
    revocation::{FeedEntry, RETENTION_MARGIN, Revoked, Seq},
    text::{ClientId, Subject, Tenant},
    time::Timestamp,
};

use super::Rules;
use crate::proto::{
    RevokedId, RevokedSessions, WatchRevocations, WatchRules,
    revoked_sessions::{Instant, Where},
};

/// A message cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the service has sent a message that this version of the library does not understand")]
pub(crate) struct NotUnderstood;

/// Converts revocations to entries of the index.
pub(crate) fn entries(
    revocations: WatchRevocations,
) -> impl Iterator<Item = Result<FeedEntry, NotUnderstood>> {
    let ids = revocations.ids.into_iter().map(|id| of_id(&id));
    ids.chain(revocations.sessions.into_iter().map(of_sessions))
}

fn of_id(revoked: &RevokedId) -> Result<FeedEntry, NotUnderstood> {
    let id = revoked.id.as_slice().try_into().map_err(|_| NotUnderstood)?;
    entry(revoked_id(id), revoked.expires_at)
}

fn of_sessions(revoked: RevokedSessions) -> Result<FeedEntry, NotUnderstood> {
    let RevokedSessions { r#where, subject, client_id, instant, spared_session_id, expires_at } =
        revoked;
    let (subject, client_id) = (text::<Subject>(subject)?, text::<ClientId>(client_id)?);
    let scope = match (r#where.ok_or(NotUnderstood)?, subject, client_id) {
        (Where::Tenant(name), subject, client_id) => {
            let tenant = Tenant::try_from(name).map_err(|_| NotUnderstood)?;
            match (subject, client_id) {
                (None, None) => Scope::Tenant(tenant),
                (Some(subject), None) => Scope::Subject(tenant, subject),
                (None, Some(client_id)) => Scope::Client(tenant, client_id),
                (Some(_), Some(_)) => return Err(NotUnderstood),
            }
        }
        (Where::AllTenants(true), None, None) => Scope::Everywhere,
        (Where::AllTenants(true), None, Some(client_id)) => Scope::ClientEverywhere(client_id),
        (Where::AllTenants(_), ..) => return Err(NotUnderstood),
    };
    let (key, up_to) = match instant.ok_or(NotUnderstood)? {
        Instant::CreatedUpTo(at) => (CutOffKey::created(scope), at),
        Instant::AuthenticatedUpTo(at) => {
            (CutOffKey::authenticated(scope).map_err(|_| NotUnderstood)?, at)
        }
    };
    let spared = match spared_session_id.as_str() {
        "" => None,
        id => Some(id.parse().map_err(|_| NotUnderstood)?),
    };
    let cut_off = CutOff { up_to: timestamp(Some(up_to))?, spared };
    entry(Revoked::Sessions { key, cut_off }, expires_at)
}

/// Makes an entry. The index keeps entries for somewhat longer than the tokens that they stop.
fn entry(
    revoked: Revoked,
    expires_at: Option<prost_types::Timestamp>,
) -> Result<FeedEntry, NotUnderstood> {
    let expires_at = timestamp(expires_at)?.plus(RETENTION_MARGIN);
    Ok(FeedEntry { seq: Seq::default(), revoked, tenant: None, expires_at })
}

fn text<T: TryFrom<String>>(text: String) -> Result<Option<T>, NotUnderstood> {
    match text.is_empty() {
        true => Ok(None),
        false => T::try_from(text).map(Some).map_err(|_| NotUnderstood),
    }
}

/// Converts rules for tokens.
pub(crate) fn rules(rules: WatchRules) -> Result<Rules, NotUnderstood> {
    Ok(Rules {
        issuer: rules.issuer,
        max_lifetime: duration(rules.max_lifetime)?,
        leeway: duration(rules.leeway)?,
        reach: Reach { tenants: limit(rules.tenants)?, audiences: limit(rules.audiences)? },
        lease_margin: duration(rules.lease_margin)?,
    })
}

fn limit<T: TryFrom<String> + Ord>(
    names: Vec<String>,
) -> Result<Option<BTreeSet<T>>, NotUnderstood> {
    if names.is_empty() {
        return Ok(None);
    }
    let read = names.into_iter().map(|name| T::try_from(name).map_err(|_| NotUnderstood));
    read.collect::<Result<_, _>>().map(Some)
}

/// Converts a span, which must not be missing or negative.
pub(crate) fn duration(span: Option<prost_types::Duration>) -> Result<Duration, NotUnderstood> {
    span.and_then(|span| span.try_into().ok()).ok_or(NotUnderstood)
}

/// Converts an instant, which must not be missing. Fractions of a microsecond are dropped.
pub(crate) fn timestamp(at: Option<prost_types::Timestamp>) -> Result<Timestamp, NotUnderstood> {
    let at = at.ok_or(NotUnderstood)?;
    let micros = i64::from(at.nanos) / 1_000;
    Ok(Timestamp::from_micros(Timestamp::from_seconds(at.seconds).micros().saturating_add(micros)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> prost_types::Timestamp {
        prost_types::Timestamp { seconds, nanos: 5_000_999 }
    }

    fn sessions() -> RevokedSessions {
        RevokedSessions {
            r#where: Some(Where::Tenant("acme".to_owned())),
            instant: Some(Instant::CreatedUpTo(at(7))),
            expires_at: Some(at(9)),
            ..Default::default()
        }
    }

    fn read(sessions: RevokedSessions) -> Result<CutOffKey, NotUnderstood> {
        let entry = of_sessions(sessions)?;
        assert_eq!(entry.expires_at, Timestamp::from_micros(69_005_000));
        match entry.revoked {
            Revoked::Sessions { key, cut_off } => {
                assert_eq!(cut_off.up_to, Timestamp::from_micros(7_005_000));
                Ok(key)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_kind_of_cut_off_is_read() {
        let tenant = Tenant::try_from("acme".to_owned()).unwrap();
        let subject = Subject::try_from("alice".to_owned()).unwrap();
        let client = ClientId::try_from("web".to_owned()).unwrap();
        let everywhere =
            || RevokedSessions { r#where: Some(Where::AllTenants(true)), ..sessions() };
        let of_client = |sessions| RevokedSessions { client_id: "web".to_owned(), ..sessions };
        let cases = [
            (sessions(), Scope::Tenant(tenant.clone())),
            (
                RevokedSessions { subject: "alice".to_owned(), ..sessions() },
                Scope::Subject(tenant.clone(), subject),
            ),
            (of_client(sessions()), Scope::Client(tenant, client.clone())),
            (everywhere(), Scope::Everywhere),
            (of_client(everywhere()), Scope::ClientEverywhere(client)),
        ];
        for (message, scope) in cases {
            assert_eq!(read(message.clone()), Ok(CutOffKey::created(scope.clone())));
            let instant = Some(Instant::AuthenticatedUpTo(at(7)));
            let by_authentication = RevokedSessions { instant, ..message };
            assert_eq!(
                read(by_authentication),
                CutOffKey::authenticated(scope).map_err(|_| NotUnderstood)
            );
        }
    }

    #[test]
    fn a_message_that_is_incomplete_or_contradicts_itself_is_not_understood() {
        let with = |change: fn(&mut RevokedSessions)| {
            let mut sessions = sessions();
            change(&mut sessions);
            sessions
        };
        for message in [
            with(|it| it.r#where = None),
            with(|it| it.r#where = Some(Where::AllTenants(false))),
            with(|it| it.instant = None),
            with(|it| it.expires_at = None),
            with(|it| it.spared_session_id = "x".to_owned()),
            with(|it| (it.subject, it.client_id) = ("a".to_owned(), "b".to_owned())),
            with(|it| it.subject = "a\nb".to_owned()),
            with(|it| {
                (it.subject, it.r#where) = ("a".to_owned(), Some(Where::AllTenants(true)));
            }),
        ] {
            assert_eq!(of_sessions(message.clone()), Err(NotUnderstood), "{message:?}");
        }
        for id in [
            RevokedId { id: vec![1; 15], expires_at: Some(at(9)) },
            RevokedId { id: vec![1; 16], expires_at: None },
        ] {
            assert_eq!(of_id(&id), Err(NotUnderstood));
        }
        assert!(rules(WatchRules::default()).is_err());
    }
}
