//! Tests of guarantees that the SQLite engine gives beyond the contract: its file can be opened
//! again, belongs to one process, and is refused if it may be damaged.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use countersign::{
    domain::{
        audit::{AuditAction, AuditEntry, AuditRecord},
        ids::{AuditId, TokenId},
        key::{Key, KeyAlgorithm, RingVersion, SealedKey},
        policy::{OnQuota, OnRefresh, Replay, SessionPolicy},
        refresh::RefreshAttempt,
        revocation::{RETENTION_MARGIN, RevocationTarget},
        session::{RequestFingerprint, Session},
        text::Tenant,
        who::Who,
    },
    store::{
        Created, Creation, Refreshed, Store, StoreError,
        ring::RingChange,
        sqlite::{SqliteStore, backup::back_up, error::OpenError, open::check_whole},
    },
};
use diesel::{
    Connection, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection,
    dsl::sql,
    sql_types::{BigInt, Text},
};
use tempfile::TempDir;

use crate::support::{
    after, assert_unchanged, attempt, create, create_all, entries, list, query, read, read_feed,
    record_expiries, revoke, revoke_session, revoke_tenant, revoke_token, rich_session, rotate,
    search, seconds, session, take_back_migrations, text, unlimited,
};

fn home() -> (TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("countersign.db");
    (home, path)
}

async fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path).await.unwrap()
}

async fn refusal(path: &Path) -> OpenError {
    match SqliteStore::open(path).await {
        Ok(store) => panic!("{store:?} must not open"),
        Err(error) => error,
    }
}

/// If the error called a locked file damaged, an operator might delete the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_tool_has_locked_is_not_reported_as_damaged() {
    let (_home, path) = home();
    drop(open(&path).await);
    let mut tool = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    tool.batch_execute(
        "PRAGMA busy_timeout = 5000; PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE",
    )
    .unwrap();
    let refused = refusal(&path).await;
    assert!(matches!(refused, OpenError::Other { .. }), "{refused:?}");
    drop(tool);
    open(&path).await;
}

/// Runs statements over a connection of its own, without the store.
fn execute(path: &Path, sql: &str) {
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    connection.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
    connection.batch_execute(sql).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_data_is_read_back_after_the_file_is_reopened() {
    let (_home, path) = home();
    let store = open(&path).await;
    let there = create_all(&store, (1..=3).map(rich_session)).await;
    revoke_session(&store, &there[0], after(10)).await;
    let rotated = rotate(&store, &there[1], after(10)).await;
    revoke_tenant(&store, &text::<Tenant>("acme"), after(10)).await;
    let token = TokenId::new([9; 16]);
    revoke_token(&store, &there[2], token, after(1)).await;
    let until = after(1).plus(seconds(60)).plus(RETENTION_MARGIN).plus(Duration::from_micros(1));
    let swept = store.delete_expired_revocations(until, 10).await.unwrap();
    let purge_watermark = swept.purge_watermark;
    assert_eq!(swept.deleted, 1);
    let key = SealedKey {
        key: Key::new("k".to_owned(), KeyAlgorithm::Hs256, after(0)),
        sealed: vec![1, 2, 3],
    };
    let change = RingChange { version: RingVersion(0), put: vec![key.clone()], drop: vec![] };
    store.change_ring(change).await.unwrap().unwrap();
    let sessions = store.sessions(query(search(&text("acme")))).await.unwrap();
    let entries_before = entries(&store).await;
    let tenants = store.unfinished().await.unwrap();
    assert_eq!((sessions.found.len(), entries_before.len(), tenants.len()), (3, 3, 1));

    drop(store);
    let store = open(&path).await;
    assert_eq!(store.sessions(query(search(&text("acme")))).await.unwrap(), sessions);
    assert_unchanged(&store, &[rotated]).await;
    assert_eq!(entries(&store).await, entries_before);
    assert_eq!(store.unfinished().await.unwrap(), tenants);
    assert_eq!(
        read_feed(&store, countersign::domain::revocation::Seq::default(), 1).await.purge_watermark,
        purge_watermark
    );
    let ring = store.ring().await.unwrap();
    assert_eq!((ring.version, ring.keys), (RingVersion(1), vec![key]));
    let outcome = revoke_session(&store, &there[2], after(11)).await;
    assert!(
        Some(outcome.position.seq) > entries_before.last().map(|entry| entry.seq),
        "the sequence numbers continue: {outcome:?}"
    );
}

/// The previous store of the same process may still be closing its connections.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_can_be_reopened_immediately_many_times() {
    let (_home, path) = home();
    for n in 0..50 {
        let store = open(&path).await;
        create(&store, session(n)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_open_cannot_be_opened_a_second_time() {
    let (_home, path) = home();
    let store = open(&path).await;
    let there = create(&store, session(1)).await;
    assert!(matches!(refusal(&path).await, OpenError::InUse(refused) if refused == path));
    assert_unchanged(&store, &[there]).await;
    drop(store);
    open(&path).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_database_is_reported_as_damaged_and_not_changed() {
    for garbage in [b"xy".to_vec(), b"not a database ".repeat(1000), vec![0; 4096]] {
        let (_home, path) = home();
        fs::write(&path, &garbage).unwrap();
        let refused = refusal(&path).await;
        assert!(matches!(refused, OpenError::Damaged { .. }), "{refused:?}");
        assert_eq!(fs::read(&path).unwrap(), garbage);
    }
}

/// Creates a database of many pages, and moves its write-ahead log into the file.
async fn populated(path: &Path) {
    let store = open(path).await;
    create_all(&store, (0..200).map(rich_session)).await;
    drop(store);
    execute(path, "PRAGMA wal_checkpoint(TRUNCATE)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_page_is_found_and_the_file_is_not_changed() {
    const PAGE: usize = 4096;
    let (_home, path) = home();
    populated(&path).await;
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / PAGE / 2 * PAGE;
    bytes[middle..middle + PAGE].fill(0xa5);
    fs::write(&path, &bytes).unwrap();
    // The lock file has no record, as after an upgrade. The store cannot tell whether the file was
    // closed cleanly, so it checks the file.
    fs::write(path.with_extension("db.lock"), "").unwrap();

    let refused = refusal(&path).await;
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused:?}");
    assert!(fs::read(&path).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_database_is_reported_as_damaged() {
    let (_home, path) = home();
    populated(&path).await;
    let length = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
    let refused = refusal(&path).await;
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_sets_the_replay_mode_of_existing_sessions_to_grace() {
    let (_home, path) = home();
    let until_used = Session {
        policy: SessionPolicy { replay: Replay::UntilUsed, ..session(1).policy },
        ..session(1)
    };
    create(&open(&path).await, until_used).await;
    for script in take_back_migrations("sqlite", "0005") {
        execute(&path, &script);
    }

    let policy = read(&open(&path).await, &session(1)).await.policy;
    assert_eq!((policy.replay, policy.replay_limit), (Replay::Grace, seconds(86_400)));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_the_version_without_fingerprints_can_be_repeated_after_the_upgrade() {
    let (_home, path) = home();
    let request = |n| Session { request_id: Some(text("r")), ..session(n) };
    let before = create(&open(&path).await, request(1)).await;
    for script in take_back_migrations("sqlite", "0004") {
        execute(&path, &script);
    }

    let store = open(&path).await;
    let again = Session { request_fingerprint: Some(RequestFingerprint([7; 32])), ..request(2) };
    assert_eq!(
        store.create_session(unlimited(again)).await.unwrap(),
        Created::Repeated(Box::new(before))
    );
    create(&store, rich_session(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_of_a_newer_version_is_refused_and_left_as_it_was() {
    let (_home, path) = home();
    drop(open(&path).await);
    execute(&path, "INSERT INTO __diesel_schema_migrations (version) VALUES ('99991231')");
    execute(&path, "PRAGMA wal_checkpoint(TRUNCATE)");
    let bytes = fs::read(&path).unwrap();
    let refused = refusal(&path).await;
    assert!(
        matches!(&refused, OpenError::Newer { migration, .. } if migration == "99991231"),
        "{refused:?}"
    );
    assert!(fs::read(&path).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_directory_is_an_io_error_and_is_not_created() {
    let (home, _) = home();
    let path = home.path().join("nowhere").join("countersign.db");
    let refused = refusal(&path).await;
    let OpenError::Io { source, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
    assert!(!path.parent().unwrap().exists(), "the directory was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_files_are_private_to_their_owner() {
    let (home, path) = home();
    let store = open(&path).await;
    create(&store, session(1)).await;
    let mut names = vec![];
    for file in fs::read_dir(home.path()).unwrap().map(Result::unwrap) {
        names.push(file.file_name().into_string().unwrap());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{names:?}");
    }
    names.sort();
    let all = ["countersign.db", "countersign.db-shm", "countersign.db-wal", "countersign.db.lock"];
    assert_eq!(names, all, "the write-ahead log contains sessions, too");
}

/// A session must not end, and a token must not be replaced, unless the blacklist entry is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_blacklist_entry_fails_changes_nothing() {
    let (_home, path) = home();
    let store = open(&path).await;
    let mut strict = rich_session(9);
    strict.policy.on_refresh = OnRefresh::RevokeAccessToken;
    let there = create_all(&store, [session(1), session(2), strict]).await;
    let rotated = rotate(&store, &there[0], after(3)).await;
    let unharmed = [rotated.clone(), there[1].clone(), there[2].clone()];
    execute(
        &path,
        "CREATE TRIGGER broken BEFORE INSERT ON blacklist BEGIN SELECT RAISE(ABORT, 'blacklist is \
         broken'); END",
    );

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

    execute(&path, "DROP TRIGGER broken");
    store.create_session(evicting).await.unwrap();
    assert_eq!(entries(&store).await.len(), 2, "the creation works again once the fault is gone");
}

/// If a row has values that this service never writes, the store returns an error. It does not
/// guess values for the session.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_row_is_an_error() {
    let (_home, path) = home();
    let store = open(&path).await;
    let there: Session = create(&store, session(1)).await;
    for damage in [
        "claims = '[]'",
        "on_refresh = 'perhaps'",
        "generation = -1",
        "ended_at = 1",
        "lineage_secret = x'00'",
    ] {
        let undo =
            format!("CREATE TABLE kept AS SELECT * FROM sessions; UPDATE sessions SET {damage}");
        execute(&path, &undo);
        let read = store.session(there.id).await;
        assert!(matches!(read, Err(StoreError::Damaged(_))), "{damage}: {read:?}");
        execute(
            &path,
            "DELETE FROM sessions; INSERT INTO sessions SELECT * FROM kept; DROP TABLE kept",
        );
        assert_unchanged(&store, std::slice::from_ref(&there)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_another_program_is_refused_and_left_as_it_was() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("other.db");
    SqliteConnection::establish(path.to_str().unwrap())
        .unwrap()
        .batch_execute("CREATE TABLE photos (id)")
        .unwrap();
    let before = fs::read(&path).unwrap();
    assert!(matches!(SqliteStore::open(&path).await, Err(OpenError::Foreign(_))));
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// An operator who edits the database may damage rows of keys. The other keys must stay usable.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_keys_are_reported_and_the_others_stay_usable() {
    let (_home, path) = home();
    let store = open(&path).await;
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
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    let edits = "UPDATE signing_keys SET algorithm = 'none' WHERE kid = 'a'; \
                 UPDATE signing_keys SET purpose = 'refresh_token' WHERE kid = 'b'";
    connection.batch_execute(edits).unwrap();
    let ring = store.ring().await.unwrap();
    assert_eq!((ring.keys, ring.damaged), (vec![key("c")], vec!["a".to_owned(), "b".to_owned()]));
}

/// Returns the number of free pages of a database, and the number of all its pages.
fn pages(path: &Path) -> (i64, i64) {
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    connection.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
    let mut value = |pragma| sql::<BigInt>(pragma).get_result(&mut connection).unwrap();
    (value("PRAGMA freelist_count"), value("PRAGMA page_count"))
}

/// Fills a database, and deletes all but 100 sessions.
async fn mostly_empty(path: &Path) -> SqliteStore {
    let store = open(path).await;
    let creations = (0..1500).map(|n| store.create_session(unlimited(rich_session(n))));
    for created in futures_util::future::join_all(creations).await {
        created.unwrap();
    }
    record_expiries(&store, after(1_000_000)).await;
    assert_eq!(store.delete_old_sessions(after(1_000_000), 1400).await.unwrap(), 1400);
    store
}

/// Releases all free space. Returns the number of calls that this took.
async fn release(store: &SqliteStore) -> usize {
    let mut calls = 1;
    while store.release_space().await.unwrap() {
        calls += 1;
    }
    calls
}

#[tokio::test(flavor = "multi_thread")]
async fn the_space_of_deleted_rows_is_released_in_bounded_steps() {
    let (_home, path) = home();
    let store = mostly_empty(&path).await;
    assert!(release(&store).await > 1, "one call released all pages");
    let (free, all) = pages(&path);
    assert!(free * 8 <= all, "{free} of {all}");
    drop(store);
    execute(&path, "PRAGMA wal_checkpoint(TRUNCATE)");
    assert_eq!(fs::metadata(&path).unwrap().len(), u64::try_from(all * 4096).unwrap());
    check_whole(&path).unwrap();
    let store = open(&path).await;
    assert_eq!(list(&store, query(search(&rich_session(0).tenant))).await.len(), 100);
}

/// People read the file with the sqlite3 shell, which shows bytes and numbers of the tables.
#[tokio::test(flavor = "multi_thread")]
async fn the_views_show_identifiers_and_instants_as_texts() {
    let (_home, path) = home();
    let store = open(&path).await;
    let device = rich_session(1).device;
    let there = create(&store, Session { device, ..session(1) }).await;
    revoke_session(&store, &there, after(5)).await;
    let record = AuditRecord::new(AuditAction::SessionRevoked, after(5), Who::Service, None);
    let id = AuditId::new(after(5), 1, [5; 6]);
    let entry = AuditEntry { id, record: record.about(&there), left_out: 0 };
    store.append_audit(vec![entry]).await.unwrap();
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    let mut read = |columns: &str, view: &str| -> String {
        let statement = format!("(SELECT {columns} FROM {view})");
        diesel::select(sql::<Text>(&statement)).get_result(&mut connection).unwrap()
    };
    let (id, at) = (there.id, "2023-11-14T22:13:25.000Z");
    assert_eq!(
        read("session_id || ' ' || created_at || ' ' || ended_at", "readable_sessions"),
        format!("{id} 2023-11-14T22:13:21.000Z {at}")
    );
    assert_eq!(read("device_id", "readable_sessions"), *there.device.id);
    assert_eq!(read("id || ' ' || revoked_at", "readable_blacklist"), format!("{id} {at}"));
    assert_eq!(read("session_id || ' ' || at", "readable_audit"), format!("{id} {at}"));
}

/// SQLite rewrites the entry of an index if a statement sets a column of it, even to the value that
/// the column has. So a refresh sets none but the instant by which the sweeper finds the session.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_sets_no_column_of_the_other_indexes() {
    let (_home, path) = home();
    let store = open(&path).await;
    let device = rich_session(1).device;
    let there = create(&store, Session { device: device.clone(), ..session(1) }).await;
    execute(
        &path,
        "CREATE TRIGGER indexed
        BEFORE UPDATE OF id, tenant, subject, device_id, is_over, request_id ON sessions
        BEGIN
            SELECT raise(ABORT, 'an indexed column is set');
        END",
    );
    let same = RefreshAttempt { device: Some(device), ..attempt(&there, after(2)) };
    let refreshed = store.refresh_session(same).await.unwrap();
    let Refreshed::Rotated { session, .. } = refreshed else { panic!("{refreshed:?}") };
    rotate(&store, &session, after(3)).await;
}

/// A file of an older version can release space only after the whole file was rewritten, and a
/// start must not rewrite it.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_an_older_version_releases_space_after_it_was_restored_from_a_backup() {
    let (home, path) = home();
    drop(open(&path).await);
    execute(&path, "PRAGMA auto_vacuum = NONE; VACUUM");
    let store = mostly_empty(&path).await;
    release(&store).await;
    let (free, all) = pages(&path);
    assert!(free * 2 > all, "{free} of {all}");
    let backup = home.path().join("backup.db");
    back_up(&path, &backup).unwrap();
    let restored = open(&backup).await;
    restored.delete_old_sessions(after(1_000_000), 100).await.unwrap();
    release(&restored).await;
    let (free, all) = pages(&backup);
    assert!(free * 8 <= all, "{free} of {all}");
}
