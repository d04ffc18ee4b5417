//! Tests of revoked tenants: one entry stops the whole tenant, and its sessions end afterwards, in
//! batches.

use std::{sync::Arc, time::Duration};

use countersign::{
    domain::{
        cut_off::{CutOff, CutOffKey, Scope},
        ids::SessionId,
        live_policy::LivePolicies,
        policy::{Replay, SessionPolicy},
        refresh::{RefreshAttempt, RefreshRefusal},
        revocation::{BlacklistEntry, RETENTION_MARGIN, Revocation, RevocationTarget, Revoked},
        revoke::MOST_COUNTED,
        session::{EndReason, Ended, Session},
        text::Tenant,
        time::Timestamp,
    },
    store::{Created, CutOffEntry, EndedBatch, FeedEntry, Refreshed, Store},
};
use futures_util::future::join_all;

use crate::support::{
    LONGEST_TOKEN, after, assert_unchanged, attempt, create, create_all, end_covered, ended,
    entries, live_policy, read, record_expiries, revoke, revoke_session, revoke_tenant,
    revoke_token, rich_session, seconds, session, text, unlimited, walk,
};

fn acme() -> Tenant {
    text("acme")
}

fn key_of(tenant: &Tenant) -> CutOffKey {
    CutOffKey::created(Scope::Tenant(tenant.clone()))
}

fn acme_up_to(up_to: Timestamp) -> Revoked {
    Revoked::Sessions { key: key_of(&acme()), cut_off: CutOff::up_to(up_to) }
}

fn of_acme(n: u32) -> Session {
    Session { tenant: acme(), ..session(n) }
}

/// Returns the last instant that the only entry covers.
async fn up_to(store: &dyn Store) -> Timestamp {
    let entries = entries(store).await;
    match &entries[..] {
        [entry] => match &entry.revoked {
            Revoked::Sessions { key, cut_off } if *key == key_of(&acme()) => cut_off.up_to,
            other => panic!("expected a revocation of a tenant, not {other:?}"),
        },
        other => panic!("one entry, not {other:?}"),
    }
}

/// Returns whether a cut-off covers a session, as the index decides it.
fn covers(up_to: Timestamp, session: &Session) -> bool {
    session.id.created_millis() <= up_to.millis()
}

pub async fn a_revoked_tenant_has_one_entry_and_its_sessions_are_counted(store: &dyn Store) {
    let mut there = create_all(store, (1..=3).map(of_acme)).await;
    there.push(create(store, session(4)).await);
    let target = RevocationTarget::Tenant(acme());
    let outcome = revoke(store, target, after(10)).await.unwrap();

    assert_eq!((outcome.found, outcome.sessions), (true, 3));
    let entries = entries(store).await;
    assert_eq!(entries.len(), 1, "one entry, however many sessions there are");
    assert_eq!(outcome.position.seq, entries[0].seq);
    assert_eq!(entries[0].revoked, acme_up_to(up_to(store).await));
    assert!(up_to(store).await >= after(10));
    assert_unchanged(store, &there).await;
}

pub async fn no_more_sessions_are_counted_than_the_limit(store: &dyn Store) {
    create_all(store, (1..=u32::try_from(MOST_COUNTED).unwrap() + 1).map(of_acme)).await;
    let outcome = revoke_tenant(store, &acme(), after(10)).await;
    assert_eq!(outcome.sessions, MOST_COUNTED);
}

pub async fn the_default_tenant_can_be_revoked_like_any_other_tenant(store: &dyn Store) {
    let theirs = create(store, of_acme(1)).await;
    let ours = create(store, session(2)).await;
    let outcome = revoke_tenant(store, &Tenant::default(), after(3)).await;
    assert_eq!(outcome.sessions, 1);

    let tenants = store.unfinished().await.unwrap();
    assert_eq!(tenants.len(), 1);
    end_covered(store, &tenants[0], 10).await;
    assert_unchanged(store, &[theirs, ours.end(ended(after(3)))]).await;
}

pub async fn a_tenant_revoked_twice_has_one_entry_at_a_new_feed_position(store: &dyn Store) {
    create(store, of_acme(1)).await;
    let first = revoke_tenant(store, &acme(), after(2)).await;
    let second = revoke_tenant(store, &acme(), after(3)).await;
    assert!(
        second.position.seq > first.position.seq,
        "a replica that waits for the second entry must see it in the feed: {first:?} {second:?}"
    );
    assert!(up_to(store).await >= after(3));
    assert_eq!(entries(store).await[0].seq, second.position.seq);

    let tenants = store.unfinished().await.unwrap();
    end_covered(store, &tenants[0], 10).await;
    assert_eq!(
        store.end_covered_sessions(tenants[0].clone(), walk(None), 10).await.unwrap(),
        None,
        "none is left"
    );
    assert_eq!(revoke_tenant(store, &acme(), after(4)).await.sessions, 0);
}

/// The outcome does not depend on whether the job has already ended the sessions.
pub async fn a_repeated_revocation_of_a_tenant_reports_a_change_only_for_new_sessions(
    store: &dyn Store,
) {
    create_all(store, [of_acme(1), of_acme(2)]).await;
    let revoke = async |at| {
        let outcome = revoke_tenant(store, &acme(), after(at)).await;
        assert!(outcome.wrote, "the entry is written again, for the caller to wait for");
        (outcome.changed, outcome.sessions)
    };
    assert_eq!(revoke(3).await, (true, 2));
    assert_eq!(revoke(3).await, (false, 0), "by the same clock");
    assert_eq!(revoke(4).await, (false, 0));
    assert_eq!(revoke(2).await, (false, 0), "by a clock that was set back");
    create(store, session(5)).await;
    assert_eq!(revoke(6).await, (false, 0), "the new session is in another tenant");

    create_all(store, [of_acme(7), of_acme(8)]).await;
    assert_eq!(revoke(9).await, (true, 2));
    assert_eq!(revoke(10).await, (false, 0));
    let over = create(store, of_acme(11)).await;
    revoke_session(store, &over, after(12)).await;
    assert_eq!(
        revoke(13).await,
        (true, 0),
        "the entry now covers a session that it did not cover before"
    );
    assert_eq!(revoke(13).await, (false, 0));
    for tenant in store.unfinished().await.unwrap() {
        end_covered(store, &tenant, 10).await;
    }
    assert_eq!(revoke(14).await, (false, 0));
    for tenant in store.unfinished().await.unwrap() {
        end_covered(store, &tenant, 10).await;
    }

    assert_eq!(store.delete_expired_revocations(after(100_000), 10).await.unwrap().deleted, 2);
    assert_eq!(revoke(15).await, (true, 0), "there was no entry");
    assert_eq!(revoke(15).await, (false, 0));
}

/// The engine may put the revocations into one transaction or into several.
pub async fn only_a_few_of_many_concurrent_revocations_of_a_tenant_report_a_change(
    store: &dyn Store,
) {
    create_all(store, (1..=5).map(of_acme)).await;
    let outcomes =
        join_all((0..64).map(|n| revoke(store, RevocationTarget::Tenant(acme()), after(10 + n))))
            .await;
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    let changes: Vec<_> = outcomes.iter().filter(|outcome| outcome.changed).collect();
    // Each revocation that began before the first one committed may find no entry yet.
    assert!((1..=8).contains(&changes.len()), "{changes:?}");
    for outcome in &outcomes {
        assert!(outcome.wrote, "{outcome:?}");
        assert_eq!(outcome.sessions, if outcome.changed { 5 } else { 0 }, "{outcome:?}");
    }
}

pub async fn ended_and_expired_sessions_of_a_revoked_tenant_are_not_counted(store: &dyn Store) {
    let over =
        create_all(store, [of_acme(1), Session { idle_expires_at: after(10), ..of_acme(2) }]).await;
    create(store, of_acme(3)).await;
    revoke_session(store, &over[0], after(4)).await;
    assert_eq!(revoke_tenant(store, &acme(), after(10)).await.sessions, 1);
}

pub async fn a_revocation_of_a_tenant_covers_sessions_created_with_a_clock_ahead(
    store: &dyn Store,
) {
    let ahead = create(store, of_acme(100)).await;
    let further_elsewhere = create(store, session(200)).await;
    revoke_tenant(store, &acme(), after(10)).await;

    let up_to = up_to(store).await;
    assert!(covers(up_to, &ahead), "{up_to:?}");
    assert!(!covers(up_to, &further_elsewhere), "only the tenant's sessions count: {up_to:?}");
    let tenants = store.unfinished().await.unwrap();
    end_covered(store, &tenants[0], 10).await;
    assert!(read(store, &ahead).await.ended.is_some());
}

pub async fn a_later_revocation_by_a_clock_behind_covers_no_less_than_the_first(store: &dyn Store) {
    let before = create(store, of_acme(90)).await;
    revoke_tenant(store, &acme(), after(100)).await;
    let covered = up_to(store).await;
    record_expiries(store, after(100_000)).await;
    store.delete_old_sessions(after(100_000), 10).await.unwrap();
    assert_eq!(store.session(before.id).await.unwrap(), None);

    revoke_tenant(store, &acme(), after(10)).await;
    assert!(up_to(store).await >= covered);
}

pub async fn unfinished_revocations_of_tenants_are_listed_with_how_their_sessions_end(
    store: &dyn Store,
) {
    let there = create_all(store, [rich_session(1), session(2), session(3)]).await;
    revoke_session(store, &there[1], after(4)).await;
    revoke_token(store, &there[2], there[2].access_token_id, after(4)).await;
    assert_eq!(store.unfinished().await.unwrap(), []);

    let ended = Ended {
        at: after(5),
        reason: EndReason::AccountDisabled,
        note: text("unpaid, „letzte Mahnung“"),
    };
    let target = RevocationTarget::Tenant(acme());
    store
        .revoke(Revocation {
            target,
            ended: ended.clone(),
            room: usize::MAX,
            longest_token: LONGEST_TOKEN,
            fallback_entry: None,
        })
        .await
        .unwrap();
    let tenants = store.unfinished().await.unwrap();
    let up_to = tenants[0].cut_off.up_to;
    let FeedEntry { seq, expires_at, .. } = entries(store).await.pop().unwrap();
    let expected = CutOffEntry {
        seq,
        key: key_of(&acme()),
        cut_off: CutOff::up_to(up_to),
        ended,
        expires_at,
        ended_sessions: 0,
        unfinished: true,
    };
    assert_eq!(tenants, [expected]);
    assert!(entries(store).await.iter().any(|e| e.revoked == acme_up_to(up_to)));
}

pub async fn covered_sessions_end_in_batches_and_later_sessions_do_not_end(store: &dyn Store) {
    let at = after(10);
    let with_id = |millis: u64, random| Session {
        id: SessionId::new(at.plus(Duration::from_millis(millis)), [random; 10]),
        ..of_acme(10)
    };
    let up_to =
        create_all(store, (1..=6).map(of_acme).chain([with_id(0, 0), with_id(0, 0xff)])).await;
    revoke_tenant(store, &acme(), at).await;
    let later = create_all(store, [with_id(1, 0), of_acme(11)]).await;
    let elsewhere = create_all(store, [session(1 << 16), session(2 << 16)]).await;
    let entries_before = entries(store).await;
    let tenants = store.unfinished().await.unwrap();

    let first = store.end_covered_sessions(tenants[0].clone(), walk(None), 3).await.unwrap();
    assert_eq!(
        first,
        Some(EndedBatch { last: up_to[2].id, sessions: 3 }),
        "the call returns the last session of the batch"
    );
    let first = first.map(|batch| batch.last);
    assert_unchanged(store, &up_to[3..]).await;
    let second = store.end_covered_sessions(tenants[0].clone(), walk(first), 3).await.unwrap();
    assert_eq!(second, Some(EndedBatch { last: up_to[5].id, sessions: 3 }));
    assert_unchanged(store, &up_to[6..]).await;

    assert_eq!(
        end_covered(store, &tenants[0], 3).await,
        2,
        "the last batch, and the empty one after it"
    );
    let ended: Vec<_> =
        up_to.into_iter().map(|session| session.end(tenants[0].ended.clone())).collect();
    assert_unchanged(store, &ended).await;
    assert_unchanged(store, &later).await;
    assert_unchanged(store, &elsewhere).await;
    let stops = |entries: &[FeedEntry]| {
        entries.iter().map(|entry| entry.revoked.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        stops(&entries(store).await),
        stops(&entries_before),
        "the tenant's entry stops their tokens"
    );
}

pub async fn a_tenant_revocation_does_not_change_sessions_that_had_ended_before(store: &dyn Store) {
    let expired = create(store, Session { idle_expires_at: after(10), ..of_acme(1) }).await;
    let revoked = create(store, of_acme(2)).await;
    revoke_session(store, &revoked, after(3)).await;
    let revoked = read(store, &revoked).await;

    let ended = Ended { at: after(10), reason: EndReason::AccountDisabled, note: text("later") };
    let target = RevocationTarget::Tenant(acme());
    store
        .revoke(Revocation {
            target,
            ended,
            room: usize::MAX,
            longest_token: LONGEST_TOKEN,
            fallback_entry: None,
        })
        .await
        .unwrap();
    for tenant in store.unfinished().await.unwrap() {
        end_covered(store, &tenant, 10).await;
    }
    assert_unchanged(store, &[expired, revoked]).await;
}

/// If a replica's clock was ahead when it refreshed a session, the tokens of that session expire
/// later. The entry must be kept until they have expired.
pub async fn the_entry_is_kept_as_long_as_any_token_of_its_sessions_could_be_valid(
    store: &dyn Store,
) {
    let mut sessions = create_all(store, [of_acme(1), of_acme(2)]).await;
    sessions.push(
        create(
            store,
            Session {
                refreshed_at: after(90_000),
                idle_expires_at: after(90_600),
                expires_at: after(99_000),
                policy: SessionPolicy { replay: Replay::UntilUsed, ..of_acme(3).policy },
                ..of_acme(3)
            },
        )
        .await,
    );
    revoke_tenant(store, &acme(), after(10)).await;
    let tenants = store.unfinished().await.unwrap();
    end_covered(store, &tenants[0], 2).await;
    let kept_until = entries(store).await[0].expires_at;
    let needed =
        sessions.iter().map(|session| BlacklistEntry::expiry_for(session, after(10))).max();
    assert_eq!(
        Some(kept_until),
        needed,
        "the entry is kept no longer, however long a replay may last"
    );
}

/// The limits of a session may have become stricter after it got its tokens.
pub async fn the_entry_is_kept_as_long_as_tokens_that_were_issued_under_earlier_limits(
    store: &dyn Store,
) {
    let mut long = of_acme(1);
    long.policy.access_token_ttl = LONGEST_TOKEN * 2;
    long.policy.idle_timeout = LONGEST_TOKEN * 2;
    (long.idle_expires_at, long.expires_at) = (after(50_000), after(50_000));
    let long = create(store, long).await;
    let mut strict = live_policy(&long);
    strict.session.access_token_ttl = seconds(20);
    strict.session.idle_timeout = seconds(20);
    let attempt = RefreshAttempt {
        live_policies: Arc::new(LivePolicies::among([&strict])),
        ..attempt(&long, after(5))
    };
    store.refresh_session(attempt).await.unwrap();
    revoke_tenant(store, &acme(), after(10)).await;
    let tenants = store.unfinished().await.unwrap();
    end_covered(store, &tenants[0], 2).await;
    let needed = long.last_token_expiry(after(5)).plus(RETENTION_MARGIN);
    assert!(needed > after(10).plus(LONGEST_TOKEN * 2), "the stricter limits do not show it");
    assert_eq!(entries(store).await[0].expires_at, needed);
}

/// The job still works with the entry as it was before the newer revocation.
pub async fn a_late_job_does_not_undo_a_newer_revocation_of_the_tenant(store: &dyn Store) {
    let (idle_expires_at, expires_at) = (after(99_000), after(99_000));
    let policy = SessionPolicy { replay: Replay::UntilUsed, ..of_acme(1).policy };
    let [first, second] = [of_acme(1), of_acme(5)].map(|session| Session {
        policy: policy.clone(),
        idle_expires_at,
        expires_at,
        ..session
    });
    create(store, first).await;
    revoke_tenant(store, &acme(), after(2)).await;
    let before = store.unfinished().await.unwrap().remove(0);
    let second = create(store, second).await;
    let newer = Ended { at: after(10), reason: EndReason::Compromised, note: text("newer") };
    let (target, fallback_entry) = (RevocationTarget::Tenant(acme()), None);
    let order = Revocation {
        target,
        ended: newer.clone(),
        room: usize::MAX,
        longest_token: LONGEST_TOKEN,
        fallback_entry,
    };
    store.revoke(order).await.unwrap();
    store.end_covered_sessions(before.clone(), walk(None), 10).await.unwrap();
    assert!(
        entries(store).await[0].expires_at > before.expires_at,
        "the entry is kept for as long as the first session needs it"
    );
    assert_eq!(up_to(store).await, after(10));
    let refreshed = store.refresh_session(attempt(&second, after(11))).await.unwrap();
    assert_eq!(refreshed, Refreshed::Refused(RefreshRefusal::Ended));
    for entry in store.unfinished().await.unwrap() {
        end_covered(store, &entry, 10).await;
    }
    assert_eq!(read(store, &second).await.ended, Some(newer));
    let kept_until = entries(store).await[0].expires_at;
    revoke_tenant(store, &acme(), after(12)).await;
    assert!(
        entries(store).await[0].expires_at >= kept_until,
        "a repeated revocation does not make the entry expire earlier either"
    );
}

/// The database may have lost sessions whose access tokens are still valid.
pub async fn a_tenant_without_known_sessions_can_be_revoked(store: &dyn Store) {
    create(store, session(1)).await;
    for changed in [true, false] {
        let outcome = revoke_tenant(store, &acme(), after(2)).await;
        assert_eq!((outcome.found, outcome.sessions, outcome.changed), (true, 0, changed));
        assert_eq!(up_to(store).await, after(2));
        assert!(entries(store).await[0].expires_at >= after(2).plus(LONGEST_TOKEN));
    }
}

pub async fn no_session_is_created_or_refreshed_under_a_revocation_of_its_tenant(
    store: &dyn Store,
) {
    let before = create(store, of_acme(1)).await;
    revoke_tenant(store, &acme(), after(10)).await;
    let up_to = up_to(store).await;

    let refreshed = store.refresh_session(attempt(&before, after(11))).await.unwrap();
    assert_eq!(
        refreshed,
        Refreshed::Refused(RefreshRefusal::Ended),
        "the session is refused although the job has not ended it yet"
    );
    assert_unchanged(store, &[before]).await;

    let behind = of_acme(5);
    let created = store.create_session(unlimited(behind.clone())).await.unwrap();
    assert_eq!(created, Created::Revoked { up_to });
    assert_eq!(store.session(behind.id).await.unwrap(), None);
    create(store, of_acme(11)).await;
}

pub async fn all_sessions_end_in_batches_up_to_an_instant(store: &dyn Store) {
    let there =
        create_all(store, [session(1), of_acme(2), session(3), of_acme(4), session(5)]).await;
    let over = revoke_session(store, &there[0], after(6)).await;
    assert!(over.changed);
    let over = read(store, &there[0]).await;
    let entries_before = entries(store).await.len();
    let ended = ended(after(10));
    let (mut last, mut sessions) = (None, vec![]);
    while let Some(batch) = store.end_all_sessions(ended.clone(), after(4), last, 3).await.unwrap()
    {
        last = Some(batch.last);
        sessions.push(batch.sessions);
    }
    assert_eq!((sessions, last), (vec![2, 1], Some(there[3].id)));
    let mut expected: Vec<_> =
        there.iter().map(|session| session.clone().end(ended.clone())).collect();
    (expected[0], expected[4]) = (over, there[4].clone());
    assert_unchanged(store, &expected).await;
    assert_eq!(entries(store).await.len(), entries_before, "and no entries are added");
    let all = Timestamp::from_micros(i64::MAX);
    assert_eq!(
        store.end_all_sessions(ended, all, last, 3).await.unwrap().map(|batch| batch.sessions),
        Some(1)
    );
}
