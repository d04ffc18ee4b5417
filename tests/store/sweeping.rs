//! Tests of the deletion of rows that are no longer needed, a bounded number at a time.

use std::time::Duration;

use countersign::{
    domain::{
        ids::{SessionId, TokenId},
        refresh::RefreshRefusal,
        revocation::RevocationTarget,
        search::SessionSearch,
        session::Session,
        text::Tenant,
        time::Timestamp,
    },
    store::{FeedEntry, Refreshed, Store},
};

use crate::engines::Database;

use crate::support::{
    ALL, after, assert_unchanged, attempt, create, create_all, end_covered, entries, ids, list,
    purge_watermark, query, record_expiries, revoke, revoke_session, revoke_tenant, revoke_token,
    session, text,
};

const TICK: Duration = Duration::from_micros(1);
/// An instant at which everything that the tests write has expired.
const LATE: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn acme() -> Tenant {
    text("acme")
}

async fn sweep(store: &dyn Store) -> usize {
    store.delete_expired_revocations(LATE, ALL).await.unwrap().deleted
}

/// Revokes tokens whose entries expire one second after another. Returns the entries.
async fn revoke_tokens(store: &dyn Store, count: u8) -> Vec<FeedEntry> {
    let there = create(store, session(1)).await;
    for n in 0..count {
        let token = TokenId::new([n; 16]);
        revoke_token(store, &there, token, after(10 + u64::from(n))).await;
    }
    entries(store).await
}

pub async fn only_expired_entries_are_deleted(store: &dyn Store) {
    let written = revoke_tokens(store, 5).await;
    let edge = written[2].expires_at;
    assert_eq!(store.delete_expired_revocations(edge, ALL).await.unwrap().deleted, 2);
    assert_eq!(
        entries(store).await,
        written[2..],
        "the entry that expires exactly at this instant is kept"
    );
    assert_eq!(store.delete_expired_revocations(edge.plus(TICK), ALL).await.unwrap().deleted, 1);
    assert_eq!(entries(store).await, written[3..]);
}

pub async fn one_call_deletes_no_more_entries_than_the_limit(store: &dyn Store) {
    revoke_tokens(store, 5).await;
    for (deleted, left) in [(2, 3), (2, 1), (1, 0), (0, 0)] {
        assert_eq!(store.delete_expired_revocations(LATE, 2).await.unwrap().deleted, deleted);
        assert_eq!(entries(store).await.len(), left);
    }
}

pub async fn the_latest_expiry_of_all_deleted_entries_is_recorded(store: &dyn Store) {
    assert!(purge_watermark(store).await <= after(0), "nothing has been swept");
    store.delete_expired_revocations(LATE, ALL).await.unwrap();
    assert!(
        purge_watermark(store).await <= after(0),
        "a sweep that deletes nothing changes nothing"
    );

    let written = revoke_tokens(store, 3).await;
    for entry in &written {
        let swept = store.delete_expired_revocations(LATE, 1).await.unwrap();
        assert_eq!((swept.deleted, swept.purge_watermark), (1, entry.expires_at));
        assert_eq!(purge_watermark(store).await, entry.expires_at);
    }
    let there = create(store, session(2)).await;
    revoke_token(store, &there, TokenId::new([9; 16]), after(3)).await;
    store.delete_expired_revocations(LATE, ALL).await.unwrap();
    assert_eq!(
        purge_watermark(store).await,
        written[2].expires_at,
        "the purge watermark never goes back"
    );
}

/// Ends all sessions that unfinished entries cover.
async fn end_all_covered(store: &dyn Store) {
    for entry in store.unfinished().await.unwrap() {
        end_covered(store, &entry, ALL).await;
    }
}

/// Checks that the store keeps the tenant's entry until the tenant's sessions have been ended, and
/// deletes it in the first sweep after that.
async fn assert_entry_is_kept_until_sessions_end(store: &dyn Store) {
    assert_eq!(sweep(store).await, 0, "only the entry records that these sessions must be ended");
    end_all_covered(store).await;
    assert_eq!(sweep(store).await, 1);
    assert_eq!(store.unfinished().await.unwrap(), []);
}

pub async fn the_entry_of_a_tenant_is_kept_until_its_sessions_have_ended(store: &dyn Store) {
    create_all(
        store,
        [session(1), session(2)].map(|session| Session { tenant: acme(), ..session }),
    )
    .await;
    revoke_tenant(store, &acme(), after(10)).await;
    assert_entry_is_kept_until_sessions_end(store).await;
}

/// An entry covers a session if the millisecond in the session's identifier is not after the
/// entry's. So the entry covers every session of its last millisecond.
pub async fn the_entry_of_a_tenant_is_kept_for_a_session_of_its_last_millisecond(
    store: &dyn Store,
) {
    let created_at = after(10).plus(Duration::from_micros(999));
    create(store, Session { tenant: acme(), created_at, ..session(10) }).await;
    revoke_tenant(store, &acme(), after(10)).await;
    assert_entry_is_kept_until_sessions_end(store).await;
}

pub async fn the_entry_of_a_tenant_is_kept_for_a_session_created_with_a_clock_ahead(
    store: &dyn Store,
) {
    let created_at = after(100).plus(Duration::from_micros(456));
    create(store, Session { tenant: acme(), created_at, ..session(100) }).await;
    revoke_tenant(store, &acme(), after(10)).await;
    assert_entry_is_kept_until_sessions_end(store).await;
}

/// Creates a session of the tenant acme and revokes it. A revocation of the tenant then finds no
/// session that must still be ended.
async fn create_revoked_session_of_acme(store: &dyn Store) {
    let over = create(store, Session { tenant: acme(), ..session(1) }).await;
    revoke_session(store, &over, after(2)).await;
}

pub async fn the_entry_of_a_tenant_is_not_kept_for_sessions_created_since(store: &dyn Store) {
    create_revoked_session_of_acme(store).await;
    revoke_tenant(store, &acme(), after(10)).await;
    let since = create(store, Session { tenant: acme(), ..session(11) }).await;
    let elsewhere = create(store, session(3)).await;
    end_all_covered(store).await;
    assert_eq!(sweep(store).await, 2);
    assert_unchanged(store, &[since, elsewhere]).await;
}

/// The creation time of the session is before the revocation, because the clock of its replica is
/// behind. But the time in its identifier is after the revocation, so the revocation does not cover
/// the session.
pub async fn the_entry_of_a_tenant_is_not_kept_for_a_later_session_created_with_a_clock_behind(
    store: &dyn Store,
) {
    create_revoked_session_of_acme(store).await;
    revoke_tenant(store, &acme(), after(10)).await;
    let id = SessionId::new(after(11), [0; 10]);
    let uncovered = create(store, Session { id, tenant: acme(), ..session(9) }).await;
    end_all_covered(store).await;
    assert_eq!(sweep(store).await, 2);
    assert_unchanged(store, &[uncovered]).await;
}

/// If a session was being created in another transaction while its tenant or subject was revoked,
/// the revocation could not see the session and marked its entry as finished.
pub async fn an_entry_is_kept_while_it_covers_a_live_session(
    store: &dyn Store,
    database: &Database,
) {
    create_all(store, [session(1), Session { tenant: acme(), ..session(2) }]).await;
    revoke_tenant(store, &acme(), after(10)).await;
    let subject = RevocationTarget::Subject {
        tenant: Tenant::default(),
        subject: text("alice"),
        except: None,
    };
    revoke(store, subject, after(10)).await.unwrap();
    let forget = "UPDATE blacklist SET unfinished = false; UPDATE sessions SET is_over = false, \
                  ended_at = NULL, end_reason = NULL";
    database.execute(forget, forget).await;
    assert_eq!(sweep(store).await, 0);
    assert_eq!(store.unfinished().await.unwrap().len(), 2);
    end_all_covered(store).await;
    assert_eq!(sweep(store).await, 2);
}

pub async fn an_entry_that_must_be_kept_does_not_count_towards_the_limit_of_a_sweep(
    store: &dyn Store,
) {
    create(store, Session { tenant: acme(), ..session(1) }).await;
    revoke_tenant(store, &acme(), after(2)).await;
    let later = create(store, session(100)).await;
    revoke_token(store, &later, later.access_token_id, after(500)).await;
    assert_eq!(
        store.delete_expired_revocations(LATE, 1).await.unwrap().deleted,
        1,
        "a smaller batch would make the sweeper stop"
    );
    assert_eq!(store.unfinished().await.unwrap().len(), 1);
}

pub async fn sequence_numbers_are_not_reused_after_the_newest_entries_are_deleted(
    store: &dyn Store,
) {
    let newest = revoke_tokens(store, 3).await.last().unwrap().seq;
    assert_eq!(sweep(store).await, 3);
    let there = create(store, session(2)).await;
    let outcome = revoke_session(store, &there, after(20)).await;
    assert!(
        outcome.position.seq > newest,
        "a replica that has read up to {newest:?} would miss {outcome:?}"
    );
}

pub async fn sessions_are_deleted_by_the_time_at_which_they_ended_or_expired(store: &dyn Store) {
    // The first session was ended long before it would have expired.
    let ended = create(
        store,
        Session { idle_expires_at: after(9000), expires_at: after(9000), ..session(1) },
    )
    .await;
    revoke_session(store, &ended, after(50)).await;
    // The second session went idle long before its absolute end.
    let idle = create(
        store,
        Session { idle_expires_at: after(60), expires_at: after(9000), ..session(2) },
    )
    .await;
    let edge = create(store, Session { idle_expires_at: after(70), ..session(3) }).await;
    let live = create(store, session(4)).await;
    let left = |expected: &[&Session]| ids(expected.iter().copied());
    let all = query(SessionSearch::default());

    record_expiries(store, after(80)).await;
    assert_eq!(
        store.delete_old_sessions(after(50), ALL).await.unwrap(),
        0,
        "no session was over before this instant"
    );
    assert_eq!(store.delete_old_sessions(after(50).plus(TICK), ALL).await.unwrap(), 1);
    assert_eq!(list(store, all.clone()).await, left(&[&live, &edge, &idle]));
    assert_eq!(store.delete_old_sessions(after(70), ALL).await.unwrap(), 1);
    assert_eq!(list(store, all).await, left(&[&live, &edge]));
    assert_unchanged(store, &[Session { expiry_recorded: true, ..edge }, live]).await;
}

/// The session had expired by the clock of the replica that recorded the expiry. Later revocations
/// do not end such a session, so it must never count as live again.
pub async fn a_session_whose_expiry_was_recorded_stays_expired_after_the_clock_goes_back(
    store: &dyn Store,
) {
    let there = create(store, session(1)).await;
    record_expiries(store, LATE).await;
    let refreshed = store.refresh_session(attempt(&there, after(5))).await.unwrap();
    assert_eq!(refreshed, Refreshed::Refused(RefreshRefusal::ExpiredIdle));
    let subject = RevocationTarget::Subject {
        tenant: Tenant::default(),
        subject: text("alice"),
        except: None,
    };
    assert_eq!(revoke(store, subject, after(6)).await.unwrap().sessions, 0);
    assert_eq!(revoke_session(store, &there, after(7)).await.sessions, 0);
    let refreshed = store.refresh_session(attempt(&there, after(8))).await.unwrap();
    assert_eq!(refreshed, Refreshed::Refused(RefreshRefusal::ExpiredIdle));
}

pub async fn one_call_deletes_no_more_sessions_than_the_limit(store: &dyn Store) {
    create_all(store, (1..=5).map(session)).await;
    record_expiries(store, LATE).await;
    for (deleted, left) in [(2, 3), (2, 1), (1, 0), (0, 0)] {
        assert_eq!(store.delete_old_sessions(LATE, 2).await.unwrap(), deleted);
        assert_eq!(list(store, query(SessionSearch::default())).await.len(), left);
    }
}
