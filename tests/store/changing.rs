//! Tests of changes: the store writes what [`SessionChange::decide`] decides, and nothing else.

use std::sync::Arc;

use countersign::{
    domain::{
        change::{
            ChangeDecision, ChangeKind, ChangeRefusal, NextTokens, Presented, Reauthentication,
            SessionChange, Update,
        },
        ids::{AuthenticationId, SessionId, TokenId},
        key::RefreshKeyId,
        live_policy::LivePolicies,
        revocation::{BlacklistEntry, RevocationTarget, Revoked},
        session::{
            Device, EndReason, IdentifiedRequest, LineageSecret, RequestFingerprint, Session,
        },
        time::Timestamp,
    },
    store::{Changed, FeedEntry, Refreshed, Store},
};
use futures_util::future::{Either, join_all};
use serde_json::json;

use crate::support::{
    after, assert_unchanged, attempt, claims, create, create_all, entries, factor_times,
    live_policy, metadata, read, revoke, rich_session, rotate, seconds, session, text, texts,
};

/// Returns a reauthentication in which every field has a value of its own. Its number makes its
/// secrets unique.
fn reauthentication(number: u8, at: Timestamp) -> Reauthentication {
    Reauthentication {
        presented: None,
        acr: text("urn:example:mfa"),
        amr: texts(&["pwd", "hwk", "a,b\"c"]),
        amr_verified_at: factor_times(&[("hwk", at), ("a,b\"c", at.minus(seconds(7)))]),
        at: Some(at),
        allow_weaker: true,
        acr_order: Arc::default(),
        claims: Some(claims(json!({ "roles": ["ops"], "ratio": 0.25 }))),
        scopes: texts(&["orders:read", "payments"]),
        device: Some(Device {
            user_agent: text("curl/8"),
            ip_address: text("192.0.2.1"),
            label: text("new"),
            id: text("device 2"),
        }),
        request: Some(IdentifiedRequest {
            id: text(format!("reauthentication {number}")),
            fingerprint: RequestFingerprint([number; 32]),
        }),
        next: NextTokens {
            access_token_id: TokenId::new([number; 16]),
            authentication_id: AuthenticationId::new([0x80 | number; 16]),
            secret: LineageSecret([number; 16]),
            key: RefreshKeyId([number; 8]),
        },
    }
}

fn change(session_id: SessionId, now: Timestamp, kind: ChangeKind) -> SessionChange {
    SessionChange {
        session_id,
        reach: Arc::default(),
        now,
        may_add: true,
        live_policies: Arc::default(),
        kind,
    }
}

fn reauthenticate(session: &Session, number: u8, now: Timestamp) -> SessionChange {
    let kind = ChangeKind::Reauthenticate(Box::new(reauthentication(number, now)));
    change(session.id, now, kind)
}

fn update(session: &Session, now: Timestamp, update: Update) -> SessionChange {
    change(session.id, now, ChangeKind::Update(Box::new(update)))
}

/// Returns the session and the entry of a change that is made.
fn decided(change: &SessionChange, session: &Session) -> (Session, Option<BlacklistEntry>) {
    let uncovered = |_: &Session| Ok::<_, std::convert::Infallible>(false);
    match change.decide(Some(session.clone()), uncovered) {
        Ok(ChangeDecision::Change { session, entry }) => (*session, entry),
        other => panic!("the change is made: {other:?}"),
    }
}

/// Makes a change, and checks that the store has written the session and the entry that the domain
/// decides on.
async fn assert_changes(store: &dyn Store, change: SessionChange, before: &Session) -> Session {
    let (expected, entry) = decided(&change, before);
    let entries_before = entries(store).await;
    let position = match store.change_session(change).await.unwrap() {
        Changed::Changed { session, position } => {
            assert_eq!(*session, expected);
            position
        }
        other => panic!("{other:?}"),
    };
    assert_unchanged(store, std::slice::from_ref(&expected)).await;
    let written: Vec<FeedEntry> =
        entries(store).await.into_iter().filter(|one| !entries_before.contains(one)).collect();
    let expected_entries: Vec<FeedEntry> = entry
        .into_iter()
        .zip(position)
        .map(|(entry, position)| FeedEntry {
            seq: position.seq,
            revoked: entry.revoked,
            tenant: Some(entry.tenant),
            expires_at: entry.expires_at,
        })
        .collect();
    assert_eq!(written, expected_entries);
    expected
}

pub async fn a_reauthentication_writes_what_the_domain_decides_and_nothing_else(store: &dyn Store) {
    let others = create_all(store, [session(1), rich_session(2)]).await;
    let before = create(store, rich_session(3)).await;
    let first = assert_changes(store, reauthenticate(&before, 1, after(100)), &before).await;
    assert!(first.expires_at > before.expires_at, "its policy extends the session");
    let metadata = store.metadata_of(vec![before.id]).await.unwrap();
    assert_eq!(metadata[0].authentication_id, first.authentication.id);
    let mut kept = reauthentication(2, after(200));
    (kept.claims, kept.scopes, kept.device, kept.request) = (None, vec![], None, None);
    let kept = change(before.id, after(200), ChangeKind::Reauthenticate(Box::new(kept)));
    let second = assert_changes(store, kept, &first).await;
    assert_eq!((&second.claims, &second.scopes), (&first.claims, &first.scopes));
    let tokens: Vec<Revoked> = entries(store).await.into_iter().map(|one| one.revoked).collect();
    let of = |id: AuthenticationId| Revoked::Token(id.token_id());
    assert_eq!(
        tokens,
        [of(AuthenticationId::first_of(before.id)), of(first.authentication_id())],
        "each stops the tokens of the authentication before"
    );
    assert_unchanged(store, &others).await;
}

pub async fn a_reauthentication_writes_the_stricter_limits_that_reach_the_session(
    store: &dyn Store,
) {
    let before = create(store, rich_session(1)).await;
    let mut strict = live_policy(&before);
    strict.session.idle_timeout = seconds(500);
    strict.absolute_lifetime = seconds(900);
    let under = |session: &Session, now| SessionChange {
        live_policies: Arc::new(LivePolicies::among([&strict])),
        ..reauthenticate(session, 1, now)
    };
    let next = assert_changes(store, under(&before, after(100)), &before).await;
    assert_eq!(next.policy.reauthentication_lifetime, Some(seconds(900)));
    assert_eq!((next.extended_at, next.expires_at), (Some(after(100)), after(1000)));

    let idle = create(store, rich_session(2)).await;
    match store.change_session(under(&idle, after(503))).await.unwrap() {
        Changed::Ended { session, position } => {
            assert_eq!(session.ended.as_ref().unwrap().reason, EndReason::ExpiredIdle);
            assert_eq!(entries(store).await.pop().unwrap().seq, position.seq);
            assert_unchanged(store, &[next, *session]).await;
        }
        other => panic!("it was not refreshed in time: {other:?}"),
    }
}

pub async fn an_update_writes_what_the_domain_decides_and_nothing_else(store: &dyn Store) {
    let others = create_all(store, [session(1), rich_session(2)]).await;
    let before = create(store, rich_session(3)).await;
    let all = Update {
        revision: Some(before.revision),
        metadata: Some(metadata(json!({ "note": "seen \u{1f980}" }))),
        label: Some(text("Work laptop")),
        claims: Some(claims(json!({ "roles": [] }))),
        scopes: Some(texts(&["openid"])),
        revoke_access_tokens: Some(AuthenticationId::new([9; 16])),
    };
    let changed = assert_changes(store, update(&before, after(50), all), &before).await;
    let label = Update { label: Some(text("")), ..Update::default() };
    let next = assert_changes(store, update(&before, after(51), label.clone()), &changed).await;
    match store.change_session(update(&before, after(52), label)).await.unwrap() {
        Changed::Kept { session, position: None } => assert_eq!(*session, next),
        other => panic!("nothing changes: {other:?}"),
    }
    assert_eq!(entries(store).await.len(), 1);
    assert_unchanged(store, &others).await;
}

pub async fn only_the_refresh_token_of_the_last_reauthentication_can_be_exchanged(
    store: &dyn Store,
) {
    for first in [session(1), rich_session(2)] {
        let before = create(store, first).await;
        let (changed, _) = decided(&reauthenticate(&before, 1, after(10)), &before);
        store.change_session(reauthenticate(&before, 1, after(10))).await.unwrap();
        let refreshed = store.refresh_session(attempt(&before, after(11))).await.unwrap();
        assert!(matches!(refreshed, Refreshed::Refused(_)), "{refreshed:?}");
        let rotated = rotate(store, &changed, after(12)).await;
        assert_eq!(rotated.authentication, changed.authentication);
        assert_eq!(rotated.lineage.generation, 2);
    }
}

pub async fn a_repeated_reauthentication_returns_the_same_session_and_its_feed_position(
    store: &dyn Store,
) {
    let before = create(store, session(1)).await;
    let first = assert_changes(store, reauthenticate(&before, 1, after(10)), &before).await;
    let entries_before = entries(store).await;
    match store.change_session(reauthenticate(&before, 1, after(11))).await.unwrap() {
        Changed::Kept { session, position: Some(position) } => {
            assert_eq!(*session, first);
            assert!(position.seq >= entries_before[0].seq, "it waits for the first one's entry");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(entries(store).await, entries_before);
    let mut other = reauthentication(2, after(12));
    other.request.as_mut().unwrap().id = first.reauthentication.clone().unwrap().id;
    let other = change(before.id, after(12), ChangeKind::Reauthenticate(Box::new(other)));
    let refused = store.change_session(other).await.unwrap();
    assert_eq!(refused, Changed::Refused(ChangeRefusal::RequestIdReused));
    let rotated = rotate(store, &first, after(13)).await;
    let refused = store.change_session(reauthenticate(&before, 1, after(14))).await.unwrap();
    assert_eq!(refused, Changed::Refused(ChangeRefusal::RefreshedSince));
    assert_unchanged(store, &[rotated]).await;
}

pub async fn a_refused_change_changes_nothing(store: &dyn Store) {
    let there = create_all(store, [session(1), session(2)]).await;
    revoke(
        store,
        RevocationTarget::Subject {
            tenant: there[1].tenant.clone(),
            subject: there[1].subject.clone(),
            except: Some(there[0].id),
        },
        after(3),
    )
    .await
    .unwrap();
    let (before, ended) = (read(store, &there[0]).await, read(store, &there[1]).await);
    let entries_before = entries(store).await;
    let unknown = session(9);
    for (session, refusal) in [(&unknown, ChangeRefusal::Unknown), (&ended, ChangeRefusal::Ended)] {
        for change in [
            reauthenticate(session, 1, after(10)),
            update(session, after(10), Update { label: Some(text("x")), ..Update::default() }),
        ] {
            let refused = store.change_session(change).await.unwrap();
            assert_eq!(refused, Changed::Refused(refusal.clone()));
        }
    }
    assert_unchanged(store, &[before, ended]).await;
    assert_eq!(entries(store).await, entries_before);
}

pub async fn a_used_refresh_token_ends_its_session_also_at_a_reauthentication(store: &dyn Store) {
    let before = create(store, session(1)).await;
    let current = rotate(store, &before, after(20)).await;
    let mut presenting = reauthentication(1, after(40));
    presenting.presented = Some(Presented { generation: 1, secret: current.lineage.secret });
    let presenting = change(before.id, after(40), ChangeKind::Reauthenticate(Box::new(presenting)));
    let reused = store.change_session(presenting).await.unwrap();
    let Changed::Ended { position, .. } = reused else { panic!("{reused:?}") };
    let ended = read(store, &before).await.ended.unwrap();
    assert_eq!((ended.at, ended.reason), (after(40), EndReason::RefreshTokenReused));
    let entry = entries(store).await.pop().unwrap();
    assert_eq!((entry.seq, entry.revoked), (position.seq, Revoked::Session(before.id)));
}

pub async fn concurrent_changes_and_refreshes_of_a_session_leave_one_lineage(store: &dyn Store) {
    let before = create(store, session(1)).await;
    let (changes, refreshes) = (1..=16, 0..8);
    let all = changes
        .map(|number| Either::Left(reauthenticate(&before, number, after(10))))
        .chain(refreshes.map(|_| Either::Right(attempt(&before, after(10)))));
    let outcomes = join_all(all.map(async |one| match one {
        Either::Left(change) => match store.change_session(change).await.unwrap() {
            Changed::Changed { session, .. } => Some(*session),
            other => panic!("{other:?}"),
        },
        Either::Right(attempt) => match store.refresh_session(attempt).await.unwrap() {
            Refreshed::Rotated { session, .. } => Some(*session),
            _ => None,
        },
    }))
    .await;
    let last = read(store, &before).await;
    let mut made: Vec<Session> = outcomes.into_iter().flatten().collect();
    made.sort_by_key(|session| session.revision);
    let revisions: Vec<u32> = made.iter().map(|session| session.revision).collect();
    let count = u32::try_from(made.len()).unwrap();
    assert_eq!(revisions, (2..=count + 1).collect::<Vec<_>>(), "each follows another");
    assert_eq!(made.last(), Some(&last));
    // Every authentication but the last has an entry.
    let stopped: Vec<Revoked> = entries(store).await.into_iter().map(|one| one.revoked).collect();
    let former = std::iter::once(&before).chain(&made).map(Session::authentication_id);
    for former in former.filter(|id| *id != last.authentication_id()) {
        assert!(stopped.contains(&Revoked::Token(former.token_id())));
    }
    assert_eq!(stopped.len(), 16);
}
