//! Tests of guarantees that the PostgreSQL engine gives beyond the contract: for several processes
//! on one database, and for a database that fails.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use countersign::{
    domain::{
        audit::AuditEntry,
        ids::{Incarnation, SessionId, TokenId},
        key::{Key, KeyAlgorithm, RingVersion, SealedKey},
        policy::{OnQuota, OnRefresh, Replay, SessionPolicy},
        refresh::RefreshAttempt,
        revocation::{RevocationTarget, Seq},
        search::{SessionQuery, SessionSearch},
        session::{RequestFingerprint, Session},
        text::Tenant,
    },
    store::{
        Created, Creation, Refreshed, Store, StoreError,
        postgres::{PostgresStore, connect::Options, open_error::OpenError},
        replicas::{FormerState, Newcomer, Register},
        ring::RingChange,
    },
};
use countersign_test_support::postgres_server::{
    GERMAN, Server, execute, lc_messages, new_database, number, options,
};
use futures_util::future::join_all;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::support::{
    Reader, after, assert_unchanged, attempt, create, create_all, entries, join, list, newcomer,
    on_device, query, read, revoke, revoke_session, rich_session, rotate, seconds, session,
    take_back_migrations, text, unlimited,
};

pub async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(&options(url)).await.unwrap()
}

async fn refusal(url: &str) -> OpenError {
    match PostgresStore::open(&options(url)).await {
        Ok(store) => panic!("{store:?} must not open"),
        Err(error) => error,
    }
}

/// Opens three stores on one new database, as three replicas would.
async fn replicas() -> (String, [PostgresStore; 3]) {
    let url = new_database().await;
    let stores = [open(&url).await, open(&url).await, open(&url).await];
    (url, stores)
}

/// Waits for an event, and fails if it takes too long.
pub async fn in_time<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), event)
        .await
        .expect("the event did not come in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_starts_run_each_migration_once() {
    let url = new_database().await;
    let options = options(&url);
    for opened in join_all((0..8).map(|_| PostgresStore::open(&options))).await {
        assert_eq!(opened.unwrap().ring().await.unwrap().keys, []);
    }
    let made = number(&url, "SELECT count(*) FROM __diesel_schema_migrations").await;
    let folders = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/postgres"))
        .unwrap()
        .count();
    assert_eq!(made, i64::try_from(folders).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_during_a_migration_leaves_no_change() {
    let url = new_database().await;
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    let half = "BEGIN; SELECT pg_advisory_xact_lock(1129539438); CREATE TABLE sessions (half int)";
    client.batch_execute(half).await.unwrap();
    let opening = tokio::spawn({
        let url = url.clone();
        async move { open(&url).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!opening.is_finished(), "the opening must wait for the migration under way");
    driver.abort();
    drop(client);
    create(&opening.await.unwrap(), session(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_sets_the_replay_mode_of_existing_sessions_to_grace() {
    let url = new_database().await;
    let strict = Session {
        policy: SessionPolicy { replay: Replay::UntilUsed, ..session(1).policy },
        ..session(1)
    };
    create(&open(&url).await, strict).await;
    for script in take_back_migrations("postgres", "0008") {
        execute(&url, &script).await;
    }

    let policy = read(&open(&url).await, &session(1)).await.policy;
    assert_eq!((policy.replay, policy.replay_limit), (Replay::Grace, seconds(86_400)));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_the_version_without_fingerprints_can_be_repeated_after_the_upgrade() {
    let url = new_database().await;
    let request = |n| Session { request_id: Some(text("r")), ..session(n) };
    let before = create(&open(&url).await, request(1)).await;
    for script in take_back_migrations("postgres", "0007") {
        execute(&url, &script).await;
    }

    let store = open(&url).await;
    let again = Session { request_fingerprint: Some(RequestFingerprint([7; 32])), ..request(2) };
    assert_eq!(
        store.create_session(unlimited(again)).await.unwrap(),
        Created::Repeated(Box::new(before))
    );
    create(&store, rich_session(3)).await;
}

/// A sweep must not wait for another transaction that has locked a session, and must look at that
/// session again later.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_skips_a_locked_session_and_a_later_sweep_looks_at_it_again() {
    let url = new_database().await;
    let store = open(&url).await;
    let expired = create(&store, session(1)).await;
    // The session `live` was refreshed. A sweep looks at it when its first expiry has passed,
    // although it has not expired.
    let live = rotate(&store, &create(&store, session(2)).await, after(500)).await;
    let late = create(&store, session(3)).await;
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    client
        .batch_execute(&format!("BEGIN; SELECT FROM sessions WHERE id = '{}' FOR UPDATE", live.id))
        .await
        .unwrap();

    let about = |entries: &[AuditEntry]| {
        entries.iter().map(|entry| entry.record.session_id.unwrap()).collect::<Vec<_>>()
    };
    for recorded in [vec![expired.id, late.id], vec![]] {
        let batch = in_time(store.record_expiries(after(1000), 10, true)).await.unwrap();
        assert_eq!((about(&batch.entries), batch.is_last), (recorded, true));
    }
    client.batch_execute("ROLLBACK").await.unwrap();
    drop(client);
    driver.await.unwrap().unwrap();
    assert_eq!(store.record_expiries(after(1000), 10, true).await.unwrap().entries, []);
    let batch = store.record_expiries(after(2000), 10, true).await.unwrap();
    assert_eq!(about(&batch.entries), [live.id]);
}

/// Lets `count` replicas of a name join and leave. Their identifiers are numbered from `first`.
async fn end_replicas(store: &PostgresStore, name: &str, count: u32, first: u32) {
    let members = store.members().unwrap();
    for n in first..first + count {
        let [a, b, c, d] = n.to_be_bytes();
        let incarnation = Incarnation::new([8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, a, b, c, d]);
        join(store, Newcomer { name: name.to_owned(), ..newcomer(incarnation) }).await;
        members.leave(incarnation).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn former_replicas_are_listed_for_a_day_and_in_a_bounded_number() {
    let url = new_database().await;
    let store = open(&url).await;
    let members = store.members().unwrap();
    end_replicas(&store, "steady", 1, 0).await;
    // A replica that restarts again and again must not displace former replicas with another name.
    end_replicas(&store, "crashing", 30, 1).await;
    let register = members.register().await.unwrap();
    let named = |register: &Register, name: &str| {
        register.former.iter().filter(|former| former.name == name).count()
    };
    assert_eq!([named(&register, "crashing"), named(&register, "steady")], [10, 1]);
    let last = &register.former[0];
    assert_eq!(
        (last.state, &*last.address, &*last.version),
        (FormerState::Left, "192.0.2.7:50051", "1.2.3")
    );
    assert!(last.ended_at >= last.joined_at);
    for n in 0..100 {
        end_replicas(&store, &format!("pod-{n}"), 1, 100 + n).await;
    }
    let register = members.register().await.unwrap();
    assert_eq!((register.former.len(), &*register.former[0].name), (100, "pod-99"));
    assert_eq!([named(&register, "pod-0"), named(&register, "steady")], [1, 0]);

    execute(
        &url,
        "UPDATE former_replicas SET ended_at = ended_at - interval '1 day' WHERE name <> 'pod-7'",
    )
    .await;
    assert_eq!(
        members.register().await.unwrap().former.len(),
        1,
        "old ones are not listed, whether or not they are deleted"
    );
    assert_eq!(members.delete_former_replicas().await.unwrap(), 99);
    assert_eq!(number(&url, "SELECT count(*) FROM former_replicas").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_removed_even_if_it_cannot_be_recorded_as_a_former_replica() {
    let url = new_database().await;
    let store = open(&url).await;
    let members = store.members().unwrap();
    let gone = |byte| Incarnation::new([byte; 16]);
    for byte in [1, 2, 3] {
        join(&store, newcomer(gone(byte))).await;
    }
    assert!(!members.remove(gone(1), 7).await.unwrap(), "the row has another renewal number");
    assert!(members.remove(gone(1), 0).await.unwrap());
    let listed = async || members.register().await.unwrap().former;
    in_time(async { while listed().await.is_empty() {} }).await;
    let [former] = &*listed().await else { panic!("one was removed") };
    assert_eq!((former.incarnation, former.state), (gone(1), FormerState::Removed));
    execute(&url, "DROP TABLE former_replicas").await;
    assert!(members.remove(gone(2), 0).await.unwrap());
    members.leave(gone(3)).await.unwrap();
    assert_eq!(number(&url, "SELECT count(*) FROM replicas").await, 0);
}

/// Replicas of a newer version write to the same table, and may write states that this version does
/// not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_former_replica_in_a_state_that_this_version_does_not_know_is_not_listed() {
    let url = new_database().await;
    let store = open(&url).await;
    end_replicas(&store, "known", 1, 0).await;
    end_replicas(&store, "unknown", 1, 1).await;
    execute(&url, "UPDATE former_replicas SET state = 'paused' WHERE name = 'unknown'").await;
    let register = store.members().unwrap().register().await.unwrap();
    let names: Vec<_> = register.former.iter().map(|former| &*former.name).collect();
    assert_eq!(names, ["known"]);
}

/// A process that leaves is about to end. It must not wait for the whole time limit of a statement.
#[tokio::test(flavor = "multi_thread")]
async fn leaving_does_not_wait_long_for_a_database_that_does_not_answer() {
    let url = new_database().await;
    let store = open(&url).await;
    let members = store.members().unwrap();
    let incarnation = Incarnation::new([7; 16]);
    join(&store, newcomer(incarnation)).await;
    let (holder, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    holder.batch_execute("BEGIN; LOCK TABLE replicas IN SHARE MODE").await.unwrap();
    let left = members.leave(incarnation).await;
    assert!(
        matches!(&left, Err(StoreError::Unavailable(problem)) if problem == "it does not answer"),
        "{left:?}"
    );
    holder.batch_execute("ROLLBACK").await.unwrap();
    in_time(async { while number(&url, "SELECT count(*) FROM replicas").await > 0 {} }).await;
}

/// During a rolling upgrade, some replicas still have the previous version.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_the_version_without_addresses_can_still_join_sweep_and_leave() {
    let url = new_database().await;
    let store = open(&url).await;
    let sql = "INSERT INTO replicas (incarnation, name, version, holds_for, applied) SELECT \
               '00000000-0000-0000-0000-000000000001', 'old', '0.1.0', '2 s', seq FROM feed_head";
    execute(&url, sql).await;
    let members = store.members().unwrap();
    let register = members.register().await.unwrap();
    assert_eq!((&*register.members[0].name, &*register.members[0].address), ("old", ""));
    create(&store, session(1)).await;
    // This statement is the sweep of the previous version.
    let sql = "WITH due AS MATERIALIZED (SELECT id FROM sessions WHERE sweep_on < now() ORDER BY \
               sweep_on LIMIT 10 FOR UPDATE SKIP LOCKED), record AS (UPDATE sweeper SET \
               forgotten_until = now()) DELETE FROM sessions AS s USING due WHERE s.id = due.id";
    execute(&url, sql).await;
    execute(
        &url,
        "DELETE FROM replicas WHERE incarnation = '00000000-0000-0000-0000-000000000001'",
    )
    .await;
    let register = members.register().await.unwrap();
    assert_eq!((register.members.len(), register.former.len()), (0, 0));
    assert_eq!(number(&url, "SELECT count(*) FROM sessions").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_of_a_newer_version_is_refused_and_left_as_it_was() {
    let url = new_database().await;
    let there = create(&open(&url).await, session(1)).await;
    execute(&url, "INSERT INTO __diesel_schema_migrations (version) VALUES ('9999')").await;
    let refused = refusal(&url).await;
    assert!(
        matches!(&refused, OpenError::Newer { migration, .. } if migration == "9999"),
        "{refused:?}"
    );
    execute(&url, "DELETE FROM __diesel_schema_migrations WHERE version = '9999'").await;
    assert_unchanged(&open(&url).await, &[there]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_database_is_refused_in_one_line_without_the_password() {
    let url = new_database().await;
    execute(&url, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").await;
    let (server, _) = url.rsplit_once('/').unwrap();
    for (url, expected) in [
        (format!("{server}/latin"), "has the encoding LATIN1"),
        (format!("{server}/nowhere"), "(SQLSTATE 3D000)"),
        (
            "postgres://u:secret@127.0.0.1:1/d".to_owned(),
            "cannot be reached: error connecting to server",
        ),
        ("postgres://u:secret@h/d?sslmode=always".to_owned(), "sslmode \"always\" is not one of"),
        (
            "postgres://u:secret@h/d?sslmode=verify-ca&sslrootcert=/nowhere".to_owned(),
            "sslrootcert /nowhere: ",
        ),
        ("postgres://u:secret@h/d?nonsense=1".to_owned(), "nonsense"),
    ] {
        let refused = refusal(&url).await;
        let (line, all) = (refused.to_string(), format!("{refused:?}"));
        assert!(line.contains(expected) && !line.contains('\n'), "{line}");
        assert!(!line.contains("secret") && !all.contains("secret"), "{all}");
    }
}

/// YugabyteDB has the function that this test creates. By default, YugabyteDB runs READ COMMITTED
/// transactions at another isolation level.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_the_required_isolation_level_is_refused() {
    let url = new_database().await;
    let answer = async |level: &str| {
        let function = "CREATE OR REPLACE FUNCTION yb_get_effective_transaction_isolation_level() \
                        RETURNS text LANGUAGE sql AS";
        execute(&url, &format!("{function} $$SELECT '{level}'$$")).await;
    };
    answer("repeatable read").await;
    let refused = refusal(&url).await;
    assert!(
        matches!(&refused, OpenError::Isolation { level, .. } if level == "repeatable read"),
        "{refused:?}"
    );
    let line = refused.to_string();
    assert!(
        line.contains("--yb_enable_read_committed_isolation=true") && !line.contains('\n'),
        "{line}"
    );
    answer("read committed").await;
    create(&open(&url).await, session(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_refreshes_over_several_replicas_rotates_and_the_others_replay() {
    let (_, stores) = replicas().await;
    for n in 0..10 {
        let before = create(&stores[0], session(n)).await;
        let attempts = (0..64_u8).map(|n| {
            let mut attempt = attempt(&before, after(30));
            attempt.next_access_token_id = TokenId::new([n; 16]);
            stores[usize::from(n) % 3].refresh_session(attempt)
        });
        let mut rotated = vec![];
        let mut replayed = vec![];
        for outcome in join_all(attempts).await {
            match outcome.unwrap() {
                Refreshed::Rotated { session, .. } => rotated.push(session),
                Refreshed::Replayed { session, .. } => replayed.push(session),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((rotated.len(), replayed.len()), (1, 63));
        assert!(replayed.iter().all(|session| *session == rotated[0]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_request_ids_hold_across_several_replicas() {
    let (_, stores) = replicas().await;
    let outcomes = join_all((0..96).map(|n| {
        let creation = Creation {
            session: session(n),
            max_sessions: 5,
            on_quota: OnQuota::Refuse,
            legacy_token: None,
        };
        stores[n as usize % 3].create_session(creation)
    }))
    .await;
    let new = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Created::New { .. }))).count();
    assert_eq!(
        (new, list(&stores[1], query(SessionSearch::default())).await.len()),
        (5, 5),
        "{outcomes:?}"
    );

    let outcomes = join_all((0..96).map(|n| {
        let session =
            Session { subject: text("bob"), request_id: Some(text("r")), ..session(100 + n) };
        stores[n as usize % 3].create_session(unlimited(session))
    }))
    .await;
    let new = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Created::New { .. }))).count();
    let repeated =
        outcomes.iter().filter(|outcome| matches!(outcome, Ok(Created::Repeated(_)))).count();
    assert_eq!((new, repeated), (1, 95), "{outcomes:?}");

    let evictions = join_all((0..96).map(|n| {
        let session = Session { subject: text("carol"), ..session(200 + n) };
        stores[n as usize % 3].create_session(Creation {
            session,
            max_sessions: 5,
            on_quota: OnQuota::EvictOldest,
            legacy_token: None,
        })
    }));
    assert!(evictions.await.iter().all(|outcome| matches!(outcome, Ok(Created::New { .. }))));
    assert_eq!(entries(&stores[2]).await.len(), 91);
}

/// A reader that has reached a feed position has seen every entry before it, whichever replica
/// wrote the entry.
#[tokio::test(flavor = "multi_thread")]
async fn the_feed_has_no_gaps_while_several_replicas_write() {
    const EACH: u32 = 60;
    let (url, stores) = replicas().await;
    let sessions = create_all(&stores[0], (0..3 * EACH).map(session)).await;
    let done = AtomicBool::new(false);
    let mut reader = Reader::join(&stores[0]).await;
    let follower = async {
        let mut last = Seq::default();
        while !done.load(Ordering::Relaxed) || last.0 < i64::from(3 * EACH) {
            for entry in reader.read(last, 7).await.entries {
                assert_eq!(
                    entry.seq.0,
                    last.0 + 1,
                    "an entry was committed before an entry with a smaller number"
                );
                last = entry.seq;
            }
        }
    };
    let (stores, all) = (&stores, &sessions);
    let writers = (0..3 * EACH).map(|n| async move {
        revoke_session(&stores[n as usize % 3], &all[n as usize], after(500)).await;
    });
    let writing = async {
        join_all(writers).await;
        done.store(true, Ordering::Relaxed);
    };
    let both = futures_util::future::join(follower, writing);
    tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    assert_eq!(number(&url, "SELECT seq FROM feed_head").await, i64::from(3 * EACH));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_by_one_replica_wakes_the_others() {
    let (_, stores) = replicas().await;
    let there = create(&stores[0], session(1)).await;
    let mut hints = stores[2].revocation_hints();
    let seq = revoke_session(&stores[0], &there, after(2)).await.position.seq;
    in_time(hints.wait_for(|hint| *hint == seq)).await.unwrap();
}

/// A notification is only a hint that wakes the readers of the feed, so a false notification does
/// no harm.
#[tokio::test(flavor = "multi_thread")]
async fn any_notification_wakes_the_readers_of_the_feed() {
    let url = new_database().await;
    let store = open(&url).await;
    let there = create_all(&store, (1..9).map(session)).await;
    let mut hints = store.revocation_hints();
    // The store also polls the head of the feed. That may correct the false hint before the test
    // sees it, so the test repeats the notification.
    while hints.borrow_and_update().0 != 999_999 {
        execute(&url, "SELECT pg_notify('countersign_feed', '999999')").await;
        in_time(hints.changed()).await.unwrap();
    }
    for session in &there {
        execute(&url, "SELECT pg_notify('countersign_feed', 'nonsense')").await;
        let seq = revoke_session(&store, session, after(2)).await.position.seq;
        in_time(hints.wait_for(|hint| *hint == seq)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_notifies_other_processes() {
    let url = new_database().await;
    let store = open(&url).await;
    let there = create(&store, session(1)).await;
    let (client, mut connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) =
            std::future::poll_fn(|context| connection.poll_message(context)).await
        {
            if let AsyncMessage::Notification(notification) = message {
                let _ = sender.send(notification.payload().to_owned());
            }
        }
    });
    client.batch_execute("LISTEN countersign_feed").await.unwrap();
    let seq = revoke_session(&store, &there, after(2)).await.position.seq;
    while in_time(heard.recv()).await.unwrap() != seq.0.to_string() {}
}

/// The test terminates the listening connections again and again.
#[tokio::test(flavor = "multi_thread")]
async fn without_notifications_revocations_are_found_by_polling() {
    let (url, stores) = replicas().await;
    let there = create_all(&stores[0], (1..5).map(session)).await;
    let mut hints = stores[2].revocation_hints();
    for session in &there {
        execute(
            &url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND query = 'LISTEN countersign_feed'",
        )
        .await;
        let seq = revoke_session(&stores[0], session, after(2)).await.position.seq;
        in_time(hints.wait_for(|hint| *hint == seq)).await.unwrap();
    }
}

/// If the wait of a commit for its synchronous standby is cancelled, PostgreSQL only warns. The
/// commit is visible then, but it is lost if the primary is lost. The store must not acknowledge
/// such a commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_did_not_wait_for_its_standby_is_not_acknowledged() {
    let server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let url = server.url("postgres");
    let store = open(&url).await;
    let there = create(&store, session(1)).await;
    let standby = async |names: &str| {
        execute(&url, &format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await;
        execute(&url, "SELECT pg_reload_conf()").await;
    };
    standby("nobody").await;
    let writes = async {
        let revoked = revoke(&store, RevocationTarget::Session(there.id), after(2)).await;
        let rotated = store.refresh_session(attempt(&there, after(3))).await;
        let created = store.create_session(unlimited(session(2))).await;
        (revoked.map(drop), rotated.map(drop), created.map(drop))
    };
    let canceller = async {
        let waiting = "SELECT count(*) FROM (SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                       WHERE wait_event = 'SyncRep' OFFSET 0) AS cancelled";
        loop {
            number(&url, waiting).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (revoked, rotated, created) = tokio::select! {
        outcomes = in_time(writes) => outcomes,
        () = canceller => unreachable!(),
    };
    for outcome in [revoked, created] {
        assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    }
    // The revocation is visible when the refresh begins, so the refresh is refused. A refusal
    // writes nothing that could be lost.
    assert!(rotated.is_ok(), "{rotated:?}");

    standby("").await;
    revoke_session(&store, &there, after(4)).await;
    create(&store, session(3)).await;
}

/// If a refresh changed an indexed column, each refresh would cost six writes instead of one.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_changes_no_index() {
    let url = new_database().await;
    let store = open(&url).await;
    let device = rich_session(1).device;
    let mut current = create(&store, Session { device: device.clone(), ..session(1) }).await;
    for n in 2..52 {
        let attempt =
            RefreshAttempt { device: Some(device.clone()), ..attempt(&current, after(n)) };
        let refreshed = store.refresh_session(attempt).await.unwrap();
        let Refreshed::Rotated { session, .. } = refreshed else { panic!("{refreshed:?}") };
        current = *session;
    }
    for _ in 0..600 {
        if number(&url, "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'sessions'")
            .await
            >= 50
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let not_hot =
        "SELECT n_tup_upd - n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'sessions'";
    // While an old snapshot is in use, a page may be full of old row versions, so that the next
    // update goes to another page.
    let not_hot = number(&url, not_hot).await;
    assert!(not_hot < 10, "{not_hot} of 50 updates changed an index");
}

/// While the tables are empty, the planner takes all indexes to cost the same. A plan that is made
/// then must still be good later.
#[tokio::test(flavor = "multi_thread")]
async fn a_creation_looks_only_at_the_sessions_of_its_subject() {
    const SUBJECTS: u32 = 100;
    let url = new_database().await;
    let store = open(&url).await;
    let creations = (0..SUBJECTS).map(|n| {
        let session = Session { subject: text(format!("user {n}")), ..session(n) };
        store.create_session(Creation {
            session,
            max_sessions: 5,
            on_quota: OnQuota::Refuse,
            legacy_token: None,
        })
    });
    assert!(
        join_all(creations)
            .await
            .iter()
            .all(|outcome| matches!(outcome, Ok(Created::New { eviction: None })))
    );
    let inserted = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'sessions'";
    in_time(async {
        while number(&url, inserted).await < i64::from(SUBJECTS) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let read =
        "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname = 'sessions'";
    assert_eq!(number(&url, read).await, 0, "no subject has another session");
}

/// The index keeps the entries of evicted sessions until the next vacuum, which an old snapshot
/// delays. If each creation read all of them, this test would read 20,000 entries.
#[tokio::test(flavor = "multi_thread")]
async fn a_creation_at_the_limit_does_not_read_all_sessions_that_were_evicted_before() {
    const CREATIONS: u32 = 200;
    let url = new_database().await;
    let store = open(&url).await;
    let (snapshot, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    snapshot
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM sessions")
        .await
        .unwrap();
    for n in 0..CREATIONS {
        evicted_by(&store, up_to(3, n)).await;
    }
    // Connections report their statistics when they end.
    drop(store);
    let inserted = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'sessions'";
    in_time(async {
        while number(&url, inserted).await < i64::from(CREATIONS) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let read =
        "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'sessions_of_subject'";
    let read = number(&url, read).await;
    assert!(read < 50 * i64::from(CREATIONS), "{read}");
}

/// Where a few subjects have most sessions, the planner takes each subject to have a large share of
/// all sessions, and the same holds for devices. It must not read by primary key or by tenant for
/// that, through the sessions of all others.
#[tokio::test(flavor = "multi_thread")]
async fn work_for_one_subject_or_device_reads_no_sessions_of_others_even_if_few_have_most_sessions()
{
    const OTHERS: u32 = 2000;
    let url = new_database().await;
    let rows = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'sessions'";
    let read = "SELECT sum(idx_tup_read)::bigint
        FROM pg_stat_user_indexes
        WHERE indexrelname IN ('sessions_pkey', 'sessions_of_tenant')";
    // Connections report their statistics when they end.
    let read_once = async |inserted: u32| {
        in_time(async {
            while number(&url, rows).await < i64::from(inserted) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        number(&url, read).await
    };
    let store = open(&url).await;
    let alices = |n| Creation { session: on_device("phone", session(n)), ..up_to(3, n) };
    for n in 0..3 {
        evicted_by(&store, alices(n)).await;
    }
    let others = (0..OTHERS).map(|n| {
        let [a, b, c, d] = n.to_be_bytes();
        let id = SessionId::new(after(4), [0, 0, 0, 0, 0, 0, a, b, c, d]);
        let session = Session { id, subject: text("busy"), ..session(100 + n) };
        store.create_session(Creation {
            session: on_device("kiosk", session),
            max_sessions: 0,
            on_quota: OnQuota::Refuse,
            legacy_token: None,
        })
    });
    assert!(join_all(others).await.iter().all(Result::is_ok));
    drop(store);
    execute(&url, "ANALYZE sessions").await;
    let before = read_once(OTHERS + 3).await;

    let store = open(&url).await;
    for n in 5..8 {
        assert_eq!(evicted_by(&store, alices(n)).await.len(), 1);
    }
    for (live, found) in [(Some(true), 3), (Some(false), 3), (None, 6)] {
        let of_device =
            SessionSearch { device_id: Some(text("phone")), live, ..SessionSearch::default() };
        let of_device = SessionQuery { now: after(10), limit: 50, ..query(of_device) };
        assert_eq!(list(&store, of_device.clone()).await.len(), found);
        let counted = store.count_sessions(of_device).await.unwrap().found;
        assert_eq!(counted, i64::try_from(found).unwrap());
    }
    let of_alice = SessionSearch {
        subject: Some(text("alice")),
        live: Some(true),
        ..SessionSearch::default()
    };
    let of_alice = SessionQuery { now: after(10), ..query(of_alice) };
    assert_eq!(list(&store, of_alice).await.len(), 3);
    let all = RevocationTarget::Subject {
        tenant: Tenant::default(),
        subject: text("alice"),
        except: None,
    };
    assert_eq!(revoke(&store, all, after(10)).await.unwrap().sessions, 3);
    drop(store);
    let read = read_once(OTHERS + 6).await - before;
    assert!(read < i64::from(OTHERS) / 10, "{read} sessions were read by key or by tenant");
}

/// A session must not end, and a token must not be replaced, unless the blacklist entry is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_blacklist_entry_fails_changes_nothing() {
    let url = new_database().await;
    let store = open(&url).await;
    let mut strict = rich_session(9);
    strict.policy.on_refresh = OnRefresh::RevokeAccessToken;
    let there = create_all(&store, [session(1), session(2), strict]).await;
    let rotated = rotate(&store, &there[0], after(3)).await;
    let unharmed = [rotated.clone(), there[1].clone(), there[2].clone()];
    execute(
        &url,
        "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'blacklist \
         is broken'; END $$; CREATE TRIGGER broken BEFORE INSERT ON blacklist FOR EACH ROW \
         EXECUTE FUNCTION broken()",
    )
    .await;

    let reuse = RefreshAttempt { generation: 1, ..attempt(&rotated, after(100)) };
    assert!(store.refresh_session(reuse.clone()).await.is_err());
    assert!(store.refresh_session(attempt(&there[2], after(100))).await.is_err());
    assert!(revoke(&store, RevocationTarget::Session(there[1].id), after(100)).await.is_err());
    let evicting = Creation {
        session: session(100),
        max_sessions: 1,
        on_quota: OnQuota::EvictOldest,
        legacy_token: None,
    };
    assert!(store.create_session(evicting.clone()).await.is_err());
    assert_unchanged(&store, &unharmed).await;
    assert_eq!(store.session(session(100).id).await.unwrap(), None);
    assert_eq!(
        number(&url, "SELECT seq FROM feed_head").await,
        0,
        "a transaction that was rolled back uses no sequence number"
    );

    execute(&url, "DROP TRIGGER broken ON blacklist").await;
    store.create_session(evicting).await.unwrap();
    assert_eq!(entries(&store).await.len(), 2, "the creation works again once the fault is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_the_database_refuses_does_not_affect_concurrent_writes() {
    let url = new_database().await;
    let store = open(&url).await;
    execute(
        &url,
        "CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.subject = \
         'mallory' THEN RAISE 'not her'; END IF; RETURN NEW; END $$; CREATE TRIGGER picky BEFORE \
         INSERT OR UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION picky()",
    )
    .await;
    for (first, max_sessions) in [(0, 0), (1000, 200), (2000, 200)] {
        let outcomes = join_all((0..200).map(|n| {
            let subject = if n % 50 == 25 { "mallory" } else { "alice" };
            let session = Session { subject: text(subject), ..session(first + n) };
            store.create_session(Creation {
                session,
                max_sessions,
                on_quota: OnQuota::Refuse,
                legacy_token: None,
            })
        }))
        .await;
        for (n, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.is_err(), n % 50 == 25, "{n}: {outcome:?}");
        }
    }
    assert_eq!(number(&url, "SELECT count(*) FROM sessions").await, 3 * 196);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_fails_at_commit_is_not_acknowledged() {
    let url = new_database().await;
    let store = open(&url).await;
    let limited = |n| Creation {
        session: session(n),
        max_sessions: 500,
        on_quota: OnQuota::Refuse,
        legacy_token: None,
    };
    store.create_session(limited(0)).await.unwrap();
    execute(
        &url,
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'too late'; \
         END $$; CREATE CONSTRAINT TRIGGER late AFTER INSERT ON sessions DEFERRABLE INITIALLY \
         DEFERRED FOR EACH ROW EXECUTE FUNCTION late()",
    )
    .await;
    // If the commit is a separate statement and fails, the outcome of the transaction is unknown.
    for outcome in join_all((1..100).map(|n| store.create_session(limited(n)))).await {
        assert!(
            matches!(outcome, Err(StoreError::Unavailable(_) | StoreError::Refused(_))),
            "{outcome:?}"
        );
    }
    assert_eq!(number(&url, "SELECT count(*) FROM sessions").await, 1);
    execute(&url, "DROP TRIGGER late ON sessions").await;
    store.create_session(limited(100)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_waits_too_long_for_the_subject_lock_creates_nothing() {
    let url = new_database().await;
    let store = open(&url).await;
    let hasty = Options { statement_timeout: Duration::from_millis(200), ..options(&url) };
    let hasty = PostgresStore::open(&hasty).await.unwrap();
    // After this, both stores have prepared their statements.
    let limited = |session| Creation {
        session,
        max_sessions: 5,
        on_quota: OnQuota::Refuse,
        legacy_token: None,
    };
    for (n, store) in (0..).zip([&store, &store, &hasty, &hasty]) {
        store.create_session(limited(session(n))).await.unwrap();
    }

    // The first creation holds the subject lock while it waits for another transaction, which is
    // inserting a session for the same request.
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    let same_request = "BEGIN; INSERT INTO sessions SELECT (jsonb_populate_record(s, \
                        jsonb_build_object( 'id', gen_random_uuid(), 'request_id', 'r', \
                        'subject', 'bob'))).* FROM sessions AS s LIMIT 1";
    client.batch_execute(same_request).await.unwrap();
    let first = limited(Session { request_id: Some(text("r")), ..session(10) });
    let first = store.create_session(first);
    let second = async {
        while number(&url, &locks("locktype = 'transactionid' AND NOT granted")).await == 0 {
            tokio::task::yield_now().await;
        }
        let outcome = hasty.create_session(limited(session(11))).await;
        client.batch_execute("ROLLBACK").await.unwrap();
        outcome
    };
    let (first, second) = in_time(futures_util::future::join(first, second)).await;
    assert_eq!(first.unwrap(), Created::New { eviction: None });
    assert!(matches!(second, Err(StoreError::Unavailable(_))), "{second:?}");
    drop(client);
    driver.await.unwrap().unwrap();
    assert_eq!(hasty.session(session(11).id).await.unwrap(), None);
    assert_eq!(hasty.create_session(limited(session(12))).await.unwrap(), Created::QuotaExceeded);
    assert_eq!(number(&url, &locks("locktype = 'advisory'")).await, 0);
}

/// Returns a query that counts locks of this database alone, because other tests use other
/// databases of the server.
fn locks(which: &str) -> String {
    format!(
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE datname = \
         current_database() AND {which}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_on_new_connections() {
    let url = new_database().await;
    for n in 0..8 {
        let stores = [open(&url).await, open(&url).await];
        let outcomes = join_all((0..16).map(|m| {
            let (subject, max_sessions) = if m < 8 { ("limited", 3) } else { ("unlimited", 0) };
            let session =
                Session { subject: text(format!("{subject} {n}")), ..session(100 * n + m) };
            stores[m as usize % 2].create_session(Creation {
                session,
                max_sessions,
                on_quota: OnQuota::Refuse,
                legacy_token: None,
            })
        }))
        .await;
        let is_new =
            |outcome: &&Result<_, _>| matches!(outcome, Ok(Created::New { eviction: None }));
        assert_eq!(outcomes.iter().take(8).filter(is_new).count(), 3, "{outcomes:?}");
        assert_eq!(outcomes.iter().skip(8).filter(is_new).count(), 8, "{outcomes:?}");
    }
    assert_eq!(number(&url, "SELECT count(*) FROM sessions").await, 8 * 11);
}

/// Returns a creation of session `n` under a limit, with eviction of the oldest sessions.
fn up_to(max_sessions: u32, n: u32) -> Creation {
    Creation {
        session: session(n),
        max_sessions,
        on_quota: OnQuota::EvictOldest,
        legacy_token: None,
    }
}

/// Creates a session, and returns those that it evicts.
async fn evicted_by(store: &PostgresStore, creation: Creation) -> Vec<SessionId> {
    match store.create_session(creation).await.unwrap() {
        Created::New { eviction } => eviction.map_or(vec![], |eviction| eviction.sessions),
        other => panic!("{other:?}"),
    }
}

/// Opens two replicas. The first one remembers the oldest live session of a subject that has as
/// many sessions as its limit allows: 102, 103 and 104.
async fn replicas_of_a_full_subject() -> [PostgresStore; 2] {
    let (_, [first, second, _]) = replicas().await;
    for n in 100..=104 {
        evicted_by(&first, up_to(3, n)).await;
    }
    [first, second]
}

/// The clocks of two replicas are up to ten seconds apart here.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_a_replica_with_a_slow_clock_creates_later_can_be_the_oldest() {
    let [first, late] = replicas_of_a_full_subject().await;
    // The limit of this creation has room for one more.
    assert_eq!(evicted_by(&late, up_to(4, 93)).await, []);
    assert_eq!(evicted_by(&first, up_to(3, 105)).await, [93, 102].map(|n| session(n).id));
}

/// The time in an identifier is long ago if the creation took long, or if the clock of the replica
/// jumped.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_however_old_the_identifier_of_another_session_is() {
    let [first, other] = replicas_of_a_full_subject().await;
    assert_eq!(evicted_by(&other, up_to(3, 20)).await, [session(102).id]);
    assert_eq!(evicted_by(&first, up_to(3, 105)).await, [session(20).id]);
    assert_eq!(evicted_by(&first, up_to(3, 106)).await, [session(103).id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_older_than_the_remembered_one_is_overlooked_for_half_a_minute_at_most() {
    let [first, other] = replicas_of_a_full_subject().await;
    assert_eq!(evicted_by(&other, up_to(4, 20)).await, []);
    assert_eq!(
        evicted_by(&first, up_to(3, 133)).await,
        [session(102).id],
        "the engine reads no session before the remembered one"
    );
    assert_eq!(evicted_by(&first, up_to(3, 134)).await, [20, 103].map(|n| session(n).id));
}

/// At stricter isolation levels than READ COMMITTED, a statement that follows the lock would still
/// see the snapshot from before the lock.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_not_counted_at_isolation_levels_where_the_count_may_be_stale() {
    let url = new_database().await;
    let store = open(&url).await;
    create(&store, session(1)).await;
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    let count = format!(
        "SELECT sessions_in_turn(1, '{}', '{}', '2000-01-01 00:00:00Z', 49, 1)",
        &*session(1).tenant,
        &*session(1).subject
    );
    for (level, expected) in
        [("READ COMMITTED", Some(1)), ("REPEATABLE READ", None), ("SERIALIZABLE", None)]
    {
        client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).await.unwrap();
        let counted: Option<i64> = client.query_one(&count, &[]).await.unwrap().get(0);
        assert_eq!(counted, expected, "{level}");
        client.batch_execute("ROLLBACK").await.unwrap();
    }
    drop(client);
    driver.await.unwrap().unwrap();
}

/// If a row has values that this service never writes, the store returns an error. It does not
/// guess values for the session.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_row_is_an_error_only_for_calls_that_read_it() {
    let url = new_database().await;
    let store = open(&url).await;
    let there = create(&store, session(1)).await;
    let neighbours = create_all(&store, (10..20).map(session)).await;
    for damage in [
        "claims = '[]'",
        "on_refresh = 'perhaps'",
        "generation = -1",
        "ended_at = now()",
        "lineage_secret = '\\x00'",
        "idle_timeout = '1 month'",
        "scopes = '{NULL}'",
        "idle_expires_at = 'infinity', on_refresh = 'perhaps'",
    ] {
        let id = there.id;
        execute(&url, &format!("CREATE TABLE kept AS SELECT * FROM sessions WHERE id = '{id}'"))
            .await;
        execute(&url, &format!("UPDATE sessions SET {damage} WHERE id = '{id}'")).await;
        let read = store.session(id).await;
        assert!(matches!(read, Err(StoreError::Damaged(_))), "{damage}: {read:?}");

        let attempts = [&there].into_iter().chain(&neighbours).map(|there| {
            let stale = RefreshAttempt { generation: 7, ..attempt(there, after(30)) };
            store.refresh_session(stale)
        });
        for (n, outcome) in join_all(attempts).await.iter().enumerate() {
            let is_damaged_row = n == 0 && matches!(outcome, Err(StoreError::Damaged(_)));
            assert!(
                is_damaged_row || matches!(outcome, Ok(Refreshed::Refused(_))) && n > 0,
                "{damage}: {n}: {outcome:?}"
            );
        }
        execute(
            &url,
            &format!(
                "DELETE FROM sessions WHERE id = '{id}'; INSERT INTO sessions SELECT * FROM kept"
            ),
        )
        .await;
        execute(&url, "DROP TABLE kept").await;
        assert_unchanged(&store, std::slice::from_ref(&there)).await;
    }
    execute(&url, "UPDATE sessions SET idle_timeout = '1 day 01:00:00'").await;
    let timeout = read(&store, &there).await.policy.idle_timeout;
    assert_eq!(timeout, Duration::from_secs(25 * 3600), "a day counts as 24 hours");
}

/// Checks that an error reports the database as unavailable or overloaded.
fn assert_unavailable(error: &StoreError) {
    assert!(matches!(error, StoreError::Unavailable(_) | StoreError::Overloaded), "{error:?}");
}

/// Creates, refreshes and revokes sessions until `trouble` is over, and then checks that the
/// database holds every acknowledged write.
async fn assert_acknowledged_is_kept(store: &PostgresStore, trouble: impl Future<Output = ()>) {
    let done = AtomicBool::new(false);
    let failures = AtomicU32::new(0);
    let next = AtomicU32::new(0);
    let worker = || async {
        let mut live = vec![];
        let mut ended = vec![];
        while !done.load(Ordering::Relaxed) {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let fail = |error: StoreError| {
                assert_unavailable(&error);
                failures.fetch_add(1, Ordering::Relaxed);
            };
            let fresh = session(n);
            match store.create_session(unlimited(fresh.clone())).await {
                Ok(created) => assert_eq!(created, Created::New { eviction: None }),
                Err(error) => {
                    fail(error);
                    continue;
                }
            }
            let at = fresh.created_at;
            let rotated = match store.refresh_session(attempt(&fresh, at)).await {
                Ok(Refreshed::Rotated { session, .. }) => *session,
                Ok(other) => panic!("{other:?}"),
                Err(error) => {
                    fail(error);
                    continue;
                }
            };
            if n.is_multiple_of(2) {
                live.push(rotated);
                continue;
            }
            match revoke(store, RevocationTarget::Session(rotated.id), at).await {
                Ok(outcome) => {
                    assert_eq!(outcome.sessions, 1);
                    ended.push((rotated, outcome.position.seq));
                }
                Err(error) => fail(error),
            }
        }
        (live, ended)
    };
    let trouble = async {
        trouble.await;
        done.store(true, Ordering::Relaxed);
    };
    let (histories, ()) =
        futures_util::future::join(join_all((0..16).map(|_| worker())), trouble).await;

    let feed = entries(store).await;
    let mut seen = 0;
    for (live, ended) in histories {
        assert_unchanged(store, &live).await;
        for (before, seq) in ended {
            assert!(read(store, &before).await.ended.is_some());
            assert_eq!(feed.iter().filter(|entry| entry.seq == seq).count(), 1);
            seen += 1;
        }
    }
    assert!(
        seen > 10 && failures.load(Ordering::Relaxed) > 0,
        "the trouble had no effect: {seen} {failures:?}"
    );
    let numbers: Vec<_> = feed.iter().map(|entry| entry.seq.0).collect();
    assert_eq!(
        numbers,
        (1..=i64::try_from(feed.len()).unwrap()).collect::<Vec<_>>(),
        "no sequence number is lost or given out twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_connections_under_load_are_reported_as_unavailable_and_lose_no_acknowledged_write() {
    let url = new_database().await;
    let store = open(&url).await;
    let trouble = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            execute(
                &url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE datname = current_database() AND application_name = 'countersign'",
            )
            .await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    assert_acknowledged_is_kept(&store, trouble).await;
}

/// PostgreSQL waits for the lock of the table while it analyses the statement. If the connection is
/// terminated during that wait, the error has a position in the statement's text, as a syntax error
/// has.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_while_a_statement_is_analysed_is_reported_as_unavailable() {
    let url = new_database().await;
    let store = open(&url).await;
    let (locker, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    locker.batch_execute("BEGIN; LOCK TABLE sessions").await.unwrap();
    let waiting =
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'sessions'::regclass";
    let end = async {
        while number(&url, waiting).await < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        execute(&url, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted").await;
    };
    let (written, read, ()) = tokio::join!(
        store.create_session(unlimited(session(1))),
        store.session(session(2).id),
        in_time(end)
    );
    assert_unavailable(&written.unwrap_err());
    assert_unavailable(&read.unwrap_err());
    drop(locker);
    create(&store, session(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_recovers_by_itself_from_a_crash_of_the_server_and_loses_nothing() {
    let server = Box::leak(Box::new(tokio::task::spawn_blocking(Server::start).await.unwrap()));
    let server: &'static Server = server;
    let store = open(&server.url("postgres")).await;
    let there = create(&store, session(1_000_000)).await;
    let trouble = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            tokio::task::spawn_blocking(|| server.crash()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
            tokio::task::spawn_blocking(|| server.restart()).await.unwrap();
            let recovered = async {
                while store.session(there.id).await.is_err() {
                    tokio::task::yield_now().await;
                }
            };
            // The guarantee is one second, but a busy machine may take longer.
            tokio::time::timeout(Duration::from_secs(5), recovered)
                .await
                .expect("the store recovers by itself");
        }
        tokio::time::sleep(Duration::from_millis(400)).await;
    };
    assert_acknowledged_is_kept(&store, trouble).await;
}

/// The server continues a statement after its caller has gone, so the connection must count as used
/// until the server has finished.
#[tokio::test(flavor = "multi_thread")]
async fn abandoned_calls_do_not_add_connections() {
    let url = new_database().await;
    let store = open(&url).await;
    let there = create(&store, session(1)).await;
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    client.batch_execute("BEGIN; LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE").await.unwrap();
    for _ in 0..6 {
        let waiting = join_all((0..16).map(|_| store.session(there.id)));
        assert!(
            tokio::time::timeout(Duration::from_millis(200), waiting).await.is_err(),
            "all wait for the table"
        );
    }
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid \
                <> pg_backend_pid()";
    let connections = number(&url, open).await - 1;
    assert!(connections <= 17, "{connections} connections");
    client.batch_execute("ROLLBACK").await.unwrap();
    drop(client);
    driver.await.unwrap().unwrap();
    assert_unchanged(&store, &[there]).await;
}

/// If a transaction stayed open, a later write over the same connection would become part of it,
/// and would never be committed.
#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_call_leaves_no_open_transaction() {
    let url = new_database().await;
    let store = open(&url).await;
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    client.batch_execute("BEGIN; SELECT seq FROM feed_head FOR UPDATE").await.unwrap();
    let change = || RingChange { version: RingVersion(0), put: vec![], drop: vec![] };
    let waiting = join_all((0..8).map(|_| store.change_ring(change())));
    assert!(
        tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err(),
        "all wait for that row"
    );
    client.batch_execute("ROLLBACK").await.unwrap();
    drop(client);
    driver.await.unwrap().unwrap();

    let there = create_all(&store, (0..20).map(session)).await;
    assert_unchanged(&open(&url).await, &there).await;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND \
                state LIKE 'idle in%'";
    assert_eq!(number(&url, open).await, 0);
}

/// An operator who edits the database may damage rows of keys. The other keys must stay usable.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_keys_are_reported_and_the_others_stay_usable() {
    let url = new_database().await;
    let store = open(&url).await;
    let key = |kid: &str| SealedKey {
        key: Key::new(kid.to_owned(), KeyAlgorithm::EdDsa, after(0)),
        sealed: vec![1],
    };
    let put = ["a", "b", "c"].map(key).to_vec();
    store
        .change_ring(RingChange { version: RingVersion(0), put, drop: vec![] })
        .await
        .unwrap()
        .unwrap();
    let edits = "UPDATE signing_keys SET algorithm = 'none' WHERE kid = 'a'; \
                 UPDATE signing_keys SET purpose = 'refresh_token' WHERE kid = 'b'";
    execute(&url, edits).await;
    let mut ring = store.ring().await.unwrap();
    ring.damaged.sort();
    assert_eq!((ring.keys, ring.damaged), (vec![key("c")], vec!["a".to_owned(), "b".to_owned()]));
}

/// Opens a store on a server whose messages are in German, so that code that looks for English
/// words in them would fail.
async fn german() -> (Server, String, PostgresStore) {
    let start = || Server::start_with(|_| vec![lc_messages(GERMAN)]);
    let server = tokio::task::spawn_blocking(start).await.unwrap();
    let url = server.url("postgres");
    let store = open(&url).await;
    (server, url, store)
}

/// Connects a client that does not go through the store.
async fn outsider(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_deadlocks_is_retried_whatever_the_language_of_the_server() {
    let (_server, url, store) = german().await;
    let [first, second] = [1, 2].map(|n| session(n).id.to_string());
    let lock = |id: &str| format!("SELECT FROM sessions WHERE id = '{id}' FOR UPDATE");
    create_all(&store, [session(1), session(2)]).await;
    // The server checks for deadlocks once the store has waited for a second, but for this client
    // only after a minute. So the store's transaction is the one that fails.
    let client = outsider(&url).await;
    client.batch_execute("SET deadlock_timeout = '1min'").await.unwrap();
    client.batch_execute(&format!("BEGIN; {}", lock(&second))).await.unwrap();
    let subject = RevocationTarget::Subject {
        tenant: Tenant::default(),
        subject: text("alice"),
        except: None,
    };
    let locking = async {
        while number(&url, &locks("locktype IN ('transactionid', 'tuple') AND NOT granted")).await
            == 0
        {
            tokio::task::yield_now().await;
        }
        client.batch_execute(&lock(&first)).await.unwrap();
        client.batch_execute("COMMIT").await.unwrap();
    };
    let (revoked, ()) =
        in_time(futures_util::future::join(revoke(&store, subject, after(9)), locking)).await;
    revoked.unwrap();
    assert_eq!(number(&url, "SELECT count(*) FROM sessions WHERE ended_at IS NOT NULL").await, 2);
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    in_time(async { while number(&url, deadlocks).await == 0 {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_of_the_server_is_reported_as_unavailable_whatever_its_language() {
    let (_server, url, store) = german().await;
    let there = create(&store, session(1)).await;
    for setting in ["lock_timeout", "statement_timeout"] {
        execute(&url, &format!("ALTER DATABASE postgres SET {setting} = '300ms'")).await;
        let hasty = Options { statement_timeout: Duration::from_millis(300), ..options(&url) };
        let options = if setting == "lock_timeout" { options(&url) } else { hasty };
        let store = PostgresStore::open(&options).await.unwrap();
        let client = outsider(&url).await;
        client
            .batch_execute("BEGIN; LOCK TABLE sessions IN SHARE ROW EXCLUSIVE MODE")
            .await
            .unwrap();
        let created = store.create_session(unlimited(session(2))).await.map(drop);
        let refreshed = store.refresh_session(attempt(&there, after(3))).await.map(drop);
        for outcome in [created, refreshed] {
            let Err(StoreError::Unavailable(problem)) = outcome else {
                panic!("{setting}: {outcome:?}")
            };
            assert!(
                problem.contains("storniere Anfrage"),
                "the server does not speak German: {problem}"
            );
        }
        drop(client);
        execute(&url, &format!("ALTER DATABASE postgres RESET {setting}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sqlstate_of_an_error_decides_whether_a_write_is_retried_or_refused() {
    let url = new_database().await;
    let store = open(&url).await;
    execute(
        &url,
        "CREATE SEQUENCE attempts; CREATE FUNCTION failing() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM nextval('attempts'); RAISE EXCEPTION 'anything (SQLSTATE 42601)' USING \
         ERRCODE = NEW.subject; END $$; CREATE TRIGGER failing BEFORE INSERT ON sessions FOR EACH \
         ROW EXECUTE FUNCTION failing()",
    )
    .await;
    for (n, (code, attempts, is_transient)) in (0..).zip([
        ("40001", 2, true),
        ("40P01", 2, true),
        ("55P03", 1, true),
        ("57014", 1, true),
        ("57P01", 1, true),
        ("57P02", 1, true),
        ("57P03", 1, true),
        ("53000", 1, true),
        ("53100", 1, true),
        ("53200", 1, true),
        ("53300", 1, true),
        ("25006", 1, true),
        ("08006", 1, true),
        ("23514", 1, false),
        ("42501", 1, false),
        ("P0001", 1, false),
    ]) {
        execute(&url, "ALTER SEQUENCE attempts RESTART").await;
        let session = Session { subject: text(code), ..session(n) };
        let outcome = store.create_session(unlimited(session)).await;
        match &outcome {
            Err(StoreError::Unavailable(problem)) if is_transient => {
                assert!(problem.contains(code), "{problem}")
            }
            Err(StoreError::Refused(problem)) if !is_transient => {
                assert!(problem.contains(code), "{problem}")
            }
            _ => panic!("{code}: {outcome:?}"),
        }
        assert_eq!(number(&url, "SELECT last_value FROM attempts").await, attempts, "{code}");
    }
}
