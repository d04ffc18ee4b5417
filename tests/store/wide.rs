//! Tests of wide revocations: by client, by time of creation, by time of authentication, and of
//! several subjects.

use std::time::Duration;

use countersign::{
    domain::{
        cut_off::{CutOffKey, Scope},
        revocation::{Revocation, RevocationTarget},
        session::Session,
        text::{ClientId, Tenant},
        time::Timestamp,
    },
    store::{CountedBatch, CutOffEntry, Store, Walk},
};

use crate::support::{
    ALL, LONGEST_TOKEN, START, after, assert_unchanged, create, create_all, end_covered, ended,
    entries, read, revoke, session, text, walk,
};

fn acme() -> Tenant {
    text("acme")
}

fn web() -> ClientId {
    text("web")
}

fn of(tenant: &str, client: &str, n: u32) -> Session {
    Session { tenant: text(tenant), client_id: text(client), ..session(n) }
}

fn authenticated(at: Timestamp, session: Session) -> Session {
    let mut session = session;
    session.authentication.at = at;
    session
}

/// Returns the target of a revocation of the sessions that exist.
fn existing(scope: Scope) -> RevocationTarget {
    RevocationTarget::Sessions { key: CutOffKey::created(scope), up_to: None }
}

/// Returns the target of a revocation of the sessions whose user authenticated before an instant.
fn authenticated_before(scope: Scope, before: Timestamp) -> RevocationTarget {
    RevocationTarget::Sessions {
        key: CutOffKey::authenticated(scope).unwrap(),
        up_to: Some(before.minus(Duration::from_micros(1))),
    }
}

/// Returns the only unfinished entry.
async fn unfinished(store: &dyn Store) -> CutOffEntry {
    let mut entries = store.unfinished().await.unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

/// Counts the sessions that a cut-off would end, a few at a time.
async fn count(store: &dyn Store, entry: &CutOffEntry, now: Timestamp) -> i64 {
    let (mut last, mut sessions) = (None, 0);
    loop {
        let (key, cut_off) = (entry.key.clone(), entry.cut_off);
        let counted = store.count_covered(key, cut_off, now, last, 2).await.unwrap();
        let Some(CountedBatch { last: next, looked_at, sessions: more }) = counted else {
            return sessions;
        };
        assert!((1..=2).contains(&looked_at) && more <= looked_at, "{counted:?}");
        (last, sessions) = (Some(next), sessions + more);
    }
}

pub async fn a_cut_off_of_a_client_ends_only_its_sessions_and_counts_them(store: &dyn Store) {
    let theirs = create_all(store, (1..=5).map(|n| of("acme", "web", n))).await;
    let expired = Session { idle_expires_at: after(9), ..of("acme", "web", 6) };
    let expired = create(store, expired).await;
    let others =
        create_all(store, [of("acme", "app", 7), of("acme", "", 8), of("globex", "web", 9)]).await;

    let outcome = revoke(store, existing(Scope::Client(acme(), web())), after(10)).await.unwrap();
    assert_eq!((outcome.found, outcome.changed, outcome.sessions), (true, true, 0));
    assert_unchanged(store, &theirs).await;
    let later = create(store, of("acme", "web", 11)).await;
    let entry = unfinished(store).await;
    assert_eq!(count(store, &entry, after(10)).await, 5);
    end_covered(store, &entry, 2).await;
    let over: Vec<_> = theirs.into_iter().map(|session| session.end(ended(after(10)))).collect();
    assert_unchanged(store, &over).await;
    assert_unchanged(store, &others).await;
    assert_unchanged(store, &[expired, later]).await;
    assert_eq!(entries(store).await.len(), 1, "one entry, however many sessions there are");

    let again = revoke(store, existing(Scope::ClientEverywhere(web())), after(12)).await.unwrap();
    assert!(again.changed);
    let entry = unfinished(store).await;
    assert_eq!(count(store, &entry, after(12)).await, 2, "those of both tenants");
    end_covered(store, &entry, 2).await;
    assert_unchanged(store, &others[..2]).await;
    assert!(read(store, &others[2]).await.ended.is_some());
}

pub async fn a_cut_off_by_authentication_ends_earlier_authentications_in_all_tenants(
    store: &dyn Store,
) {
    let just_before = after(3).minus(Duration::from_micros(1));
    let early =
        [authenticated(START, of("acme", "web", 5)), authenticated(just_before, session(6))];
    let early = create_all(store, early).await;
    let late = [authenticated(after(3), of("acme", "web", 4)), authenticated(after(4), session(7))];
    let late = create_all(store, late).await;

    revoke(store, authenticated_before(Scope::Everywhere, after(3)), after(10)).await.unwrap();
    let entry = unfinished(store).await;
    assert_eq!(count(store, &entry, after(10)).await, 2);
    end_covered(store, &entry, 1).await;
    let over: Vec<_> = early.into_iter().map(|session| session.end(ended(after(10)))).collect();
    assert_unchanged(store, &over).await;
    assert_unchanged(store, &late).await;
}

pub async fn a_batch_looks_at_no_more_sessions_than_it_may(store: &dyn Store) {
    let sessions = create_all(store, (1..=6).map(|n| of("acme", "app", n))).await;
    create(store, of("acme", "web", 7)).await;
    for scope in [Scope::Client(acme(), web()), Scope::ClientEverywhere(web())] {
        revoke(store, existing(scope), after(10)).await.unwrap();
    }
    for entry in store.unfinished().await.unwrap() {
        let batch = store.end_covered_sessions(entry.clone(), walk(None), 3).await.unwrap();
        let batch = batch.unwrap();
        assert_eq!((batch.last, batch.sessions), (sessions[2].id, 0), "{entry:?}");
    }
}

pub async fn the_progress_of_a_cut_off_lasts_until_the_same_sessions_are_revoked_again(
    store: &dyn Store,
) {
    create_all(store, (1..=5).map(|n| of("acme", "web", n))).await;
    let target = existing(Scope::Client(acme(), web()));
    assert_eq!(store.cut_offs().await.unwrap(), []);
    revoke(store, target.clone(), after(10)).await.unwrap();
    let progress = async || {
        let cut_offs = store.cut_offs().await.unwrap();
        cut_offs.iter().map(|e| (e.ended_sessions, e.unfinished)).collect::<Vec<_>>()
    };
    assert_eq!(progress().await, [(0, true)]);
    let entry = unfinished(store).await;
    store.end_covered_sessions(entry.clone(), walk(None), 2).await.unwrap();
    assert_eq!(progress().await, [(2, true)]);
    revoke(store, target.clone(), after(10)).await.unwrap();
    assert_eq!(progress().await, [(2, true)], "a repetition does not begin anew");
    end_covered(store, &unfinished(store).await, 2).await;
    assert_eq!(progress().await, [(5, false)]);
    create(store, of("acme", "web", 11)).await;
    revoke(store, target, after(12)).await.unwrap();
    assert_eq!(progress().await, [(0, true)]);

    revoke(
        store,
        RevocationTarget::Subject { tenant: acme(), subject: text("alice"), except: None },
        after(13),
    )
    .await
    .unwrap();
    assert_eq!(progress().await.len(), 1, "its sessions ended at once");
}

/// A session may be created while the entry that covers it is being written. The job may then have
/// passed its place already.
pub async fn a_wide_entry_is_deleted_only_after_a_walk_that_began_after_its_expiry(
    store: &dyn Store,
) {
    revoke(store, authenticated_before(Scope::Everywhere, after(3)), after(10)).await.unwrap();
    let entry = unfinished(store).await;
    end_covered(store, &entry, ALL).await;
    create(store, authenticated(after(5), of("acme", "web", 5))).await;
    revoke(store, existing(Scope::Client(acme(), web())), after(21)).await.unwrap();

    let late = after(100_000);
    assert_eq!(store.delete_expired_revocations(late, ALL).await.unwrap().deleted, 0);
    for (n, entry) in store.unfinished().await.unwrap().into_iter().enumerate() {
        let mut walk = Walk { began_at: entry.expires_at, after: None };
        if n == 0 {
            walk.began_at = entry.expires_at.minus(Duration::from_micros(1));
        }
        while let Some(batch) = store.end_covered_sessions(entry.clone(), walk, ALL).await.unwrap()
        {
            walk.after = Some(batch.last);
        }
    }
    assert_eq!(store.unfinished().await.unwrap(), []);
    assert_eq!(
        store.delete_expired_revocations(late, ALL).await.unwrap().deleted,
        1,
        "the other walk began too early"
    );
    let mut walk = Walk { began_at: late, after: None };
    let entry = unfinished(store).await;
    while let Some(batch) = store.end_covered_sessions(entry.clone(), walk, ALL).await.unwrap() {
        walk.after = Some(batch.last);
    }
    assert_eq!(store.delete_expired_revocations(late, ALL).await.unwrap().deleted, 1);
}

pub async fn several_subjects_are_revoked_together_or_not_at_all(store: &dyn Store) {
    let names = ["alice", "bob", "carol"];
    let sessions = (1..=6).map(|n| Session { subject: text(names[n as usize % 3]), ..session(n) });
    let sessions = create_all(store, sessions).await;
    let subjects = |names: &[&str]| RevocationTarget::Subjects {
        tenant: Tenant::default(),
        subjects: names.iter().map(|name| text(*name)).collect(),
    };
    let order = |target, room| Revocation {
        target,
        ended: ended(after(10)),
        room,
        longest_token: LONGEST_TOKEN,
        fallback_entry: None,
    };
    let refused = store.revoke(order(subjects(&names), 2)).await.unwrap();
    assert!(refused.full && !refused.wrote);
    assert_eq!(entries(store).await, []);

    let outcome = store.revoke(order(subjects(&names[..2]), 2)).await.unwrap();
    assert_eq!((outcome.full, outcome.wrote, outcome.changed), (false, true, true));
    let written = entries(store).await;
    assert_eq!(written.len(), 2);
    assert_eq!(outcome.position.seq, written[1].seq, "the caller waits for the last entry");
    for entry in store.unfinished().await.unwrap() {
        end_covered(store, &entry, ALL).await;
    }
    for session in &sessions {
        let is_over = read(store, session).await.ended.is_some();
        assert_eq!(is_over, *session.subject != *"carol", "{session:?}");
    }
    assert!(!store.revoke(order(subjects(&names[..2]), 0)).await.unwrap().changed);
}
