//! Tests of the partitions of the audit table on PostgreSQL. Each day has a partition, and old
//! partitions are dropped.

use std::time::Duration;

use countersign::{
    domain::time::Timestamp,
    store::{Store, postgres::PostgresStore},
};
use countersign_test_support::postgres_server::{execute, new_database, number, texts};
use futures_util::future::join_all;
use tokio_postgres::NoTls;

use crate::{
    audit::plain,
    postgres_only::{in_time, open},
    support::{ALL, START},
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// The first instant of 14 November 2023.
const FIRST_DAY: Timestamp = Timestamp::from_seconds(1_699_920_000);

fn day(n: u32) -> Timestamp {
    FIRST_DAY.plus(DAY * n)
}

/// Returns the first instant after today, by the clock of the database.
async fn tomorrow(url: &str) -> Timestamp {
    const SQL: &str = "SELECT extract(epoch FROM (date_trunc('day', now() AT TIME ZONE 'UTC') + \
                       interval '1 day') AT TIME ZONE 'UTC')::bigint";
    Timestamp::from_seconds(number(url, SQL).await)
}

/// Returns the names of the partitions for single days.
async fn days(url: &str) -> Vec<String> {
    let sql = "SELECT c.relname::text FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = \
               i.inhrelid WHERE i.inhparent = 'audit'::regclass AND c.relname ~ '^audit_[0-9]+$' \
               ORDER BY 1";
    texts(url, sql).await
}

/// Returns the name of the partition that holds each record, ordered by the time of the records.
async fn partition_of_each(url: &str) -> Vec<String> {
    texts(url, "SELECT tableoid::regclass::text FROM audit ORDER BY at, id").await
}

async fn count(url: &str) -> i64 {
    number(url, "SELECT count(*) FROM audit").await
}

async fn append(store: &PostgresStore, at: &[Timestamp]) {
    store.append_audit((0..).zip(at).map(|(n, at)| plain(n, *at)).collect()).await.unwrap();
}

/// Makes partitions for three days in the past, as if the service had run since then.
async fn make_days(url: &str) {
    let before = "ALTER TABLE audit DETACH PARTITION audit_before; ALTER TABLE audit ATTACH \
                  PARTITION audit_before FOR VALUES FROM (MINVALUE) TO ('2023-11-14 00:00:00+00')";
    execute(url, before).await;
    for (n, date) in ["2023-11-14", "2023-11-15", "2023-11-16"].into_iter().enumerate() {
        let name = date.replace('-', "");
        let (next, zone) = (15 + n, "00:00:00+00");
        let sql = format!(
            "CREATE TABLE audit_{name} PARTITION OF audit FOR VALUES FROM ('{date} {zone}') TO \
             ('2023-11-{next} {zone}')"
        );
        execute(url, &sql).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_deleted_with_the_partition_of_their_day_or_one_by_one_if_it_has_none() {
    let url = new_database().await;
    let store = open(&url).await;
    make_days(&url).await;
    // There is no partition for the fourth day.
    let at = [day(0), day(0).plus(HOUR), day(1).plus(HOUR), day(2), day(3), day(3).plus(HOUR)];
    let early = [day(0).minus(HOUR * 2), day(0).minus(HOUR)];
    append(&store, &[&early[..], &at].concat()).await;
    let (first, second, third) = ("audit_20231114", "audit_20231115", "audit_20231116");
    let before = "audit_before";
    let expected = [before, before, first, first, second, third, "audit_default", "audit_default"];
    assert_eq!(partition_of_each(&url).await, expected);

    for (until, deleted, left) in [
        (day(0).minus(HOUR), 1, 7),
        (day(0), 1, 6),
        (day(0).plus(HOUR * 23), 0, 6),
        (day(1), 2, 4),
        (day(1).plus(HOUR * 2), 0, 4),
        (day(3), 2, 2),
        (day(3).plus(HOUR), 1, 1),
    ] {
        assert_eq!(store.delete_old_audit(until, ALL).await.unwrap(), deleted, "{until:?}");
        assert_eq!(count(&url).await, left, "{until:?}");
    }
    let gone = format!(
        "SELECT count(*) FROM pg_tables WHERE tablename IN ('{before}', '{first}', '{second}', \
         '{third}')"
    );
    assert_eq!(number(&url, &gone).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_sweeps_create_the_next_partitions_and_drop_the_old_ones_once() {
    let url = new_database().await;
    let stores = [open(&url).await, open(&url).await, open(&url).await];
    make_days(&url).await;
    let tomorrow = tomorrow(&url).await;
    let at = [day(0), day(1), day(2), tomorrow, tomorrow.plus(DAY * 2), tomorrow.plus(DAY * 3)];
    append(&stores[0], &at).await;
    assert_eq!(
        partition_of_each(&url).await[3..],
        ["audit_default"; 3],
        "there is no partition yet"
    );

    let mut deleted = 0;
    while partition_of_each(&url).await.len() > 3 || days(&url).await.len() < 3 {
        let sweeps = join_all(stores.iter().map(|store| store.delete_old_audit(day(3), ALL))).await;
        deleted += sweeps.into_iter().map(Result::unwrap).sum::<usize>();
    }
    assert_eq!(deleted, 3);
    let days = days(&url).await;
    assert!(days.iter().all(|name| !name.starts_with("audit_2023")), "{days:?}");
    let moved = partition_of_each(&url).await;
    assert!(
        moved[..2].iter().all(|name| days.contains(name)),
        "{moved:?} are not in the partitions {days:?}"
    );
    assert_eq!(moved[2], "audit_default", "no partition is made so far ahead");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_jump_creates_no_partitions_and_drops_none_that_are_current() {
    let url = new_database().await;
    let store = open(&url).await;
    store.delete_old_audit(START, ALL).await.unwrap();
    let made = days(&url).await;
    assert!((3..=4).contains(&made.len()), "{made:?}");
    let tomorrow = tomorrow(&url).await;
    append(&store, &[START, tomorrow, tomorrow.plus(DAY * 30_000)]).await;
    assert_eq!(store.delete_old_audit(tomorrow.plus(DAY * 20_000), ALL).await.unwrap(), 1);
    assert_eq!((days(&url).await, count(&url).await), (made, 2));
}

/// A long-running read transaction must neither make writers wait nor make the sweep fail.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_in_use_are_left_for_the_next_sweep() {
    let url = new_database().await;
    let store = open(&url).await;
    make_days(&url).await;
    append(&store, &[day(0), day(3)]).await;
    let (reader, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    reader.batch_execute("BEGIN; SELECT count(*) FROM audit").await.unwrap();
    assert_eq!(
        in_time(store.delete_old_audit(day(4), ALL)).await.unwrap(),
        1,
        "the record in the default partition"
    );
    in_time(append(&store, &[day(1)])).await;
    assert_eq!(count(&url).await, 2);
    reader.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(store.delete_old_audit(day(4), ALL).await.unwrap(), 2);
}

/// Returns a database with the schema of the last version without partitions.
async fn before_partitions() -> String {
    let url = new_database().await;
    open(&url).await;
    execute(&url, include_str!("../../migrations/postgres/0011_audit_by_day/down.sql")).await;
    execute(&url, "DELETE FROM __diesel_schema_migrations WHERE version = '0011'").await;
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_to_partitions_keeps_records_rights_and_indexes() {
    let url = before_partitions().await;
    let insert = "INSERT INTO audit (at, id, left_out, action, caller, note) SELECT now() + n * \
                  interval '1 day', gen_random_uuid(), n + 1, 'key_rotated', 'countersign', '' \
                  FROM unnest(ARRAY[-90, -1, 0, 2]) AS n";
    execute(&url, insert).await;
    let role = format!("auditor_{}", url.rsplit_once('/').unwrap().1);
    let rights = format!(
        "CREATE ROLE {role}; ALTER DEFAULT PRIVILEGES GRANT UPDATE ON TABLES TO {role}; \
         GRANT SELECT ON audit TO {role}; CREATE INDEX ON audit (tenant, subject, at)"
    );
    execute(&url, &rights).await;
    let sum = "SELECT sum(left_out)::bigint FROM audit";
    let before = number(&url, sum).await;

    let store = open(&url).await;
    assert_eq!(
        partition_of_each(&url).await,
        ["audit_before", "audit_before", "audit_before", "audit_default"]
    );
    assert_eq!(number(&url, sum).await, before);
    let has = |right: &str| {
        format!("SELECT has_table_privilege('{role}', 'audit', '{right}')::int::bigint")
    };
    assert_eq!((number(&url, &has("SELECT")).await, number(&url, &has("UPDATE")).await), (1, 0));
    store.delete_old_audit(START, ALL).await.unwrap();
    let indexes = "SELECT count(*) FROM pg_indexes WHERE tablename ~ '^audit_2' AND indexdef LIKE \
                   '%(tenant, subject, at)'";
    assert_eq!(number(&url, indexes).await, i64::try_from(days(&url).await.len()).unwrap());
    assert_ne!(
        partition_of_each(&url).await[3],
        "audit_default",
        "the record was moved to its day"
    );
}

/// The start of a process must not wait until a large table is attached as a partition.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_of_the_previous_version_is_attached_after_the_store_has_opened() {
    let url = before_partitions().await;
    let insert = "INSERT INTO audit (at, id, left_out, action, caller, note) SELECT now() - n * \
                  interval '1 minute', gen_random_uuid(), 0, 'key_rotated', 'countersign', \
                  repeat('x', 100) FROM generate_series(1, 60000) AS n";
    execute(&url, insert).await;
    assert!(
        number(&url, "SELECT pg_relation_size('audit')").await > 8 << 20,
        "a smaller table is attached during the start"
    );
    let store = open(&url).await;
    // The records go to the default partition first, and are moved later.
    append(&store, &[day(0), day(1)]).await;
    in_time(async { while count(&url).await < 60_002 {} }).await;
    assert_eq!(number(&url, "SELECT count(*) FROM audit_before").await, 60_002);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_records_are_deleted_even_if_all_tables_are_published() {
    let url = new_database().await;
    let store = open(&url).await;
    make_days(&url).await;
    execute(&url, "CREATE PUBLICATION everything FOR ALL TABLES").await;
    append(&store, &[day(0).minus(HOUR), day(1), day(4)]).await;
    assert_eq!(store.delete_old_audit(day(4).plus(HOUR), ALL).await.unwrap(), 3);
}

/// During a rolling upgrade, replicas of the previous version continue to use statements that they
/// prepared before the migration.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_the_version_without_partitions_writes_and_sweeps() {
    let url = before_partitions().await;
    let (old, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let insert = "INSERT INTO audit (at, id, left_out, action, caller, note) SELECT at, id, 0, \
                  'key_rotated', 'countersign', '' FROM unnest( ARRAY[now() - interval '1 hour', \
                  now() + interval '3 days'], ARRAY['00000000-0000-0000-0000-000000000001'::uuid, \
                  '00000000-0000-0000-0000-000000000002']) AS given (at, id) ON CONFLICT (at, id) \
                  DO NOTHING";
    let delete = "WITH old AS MATERIALIZED (SELECT at, id FROM audit WHERE at < \
                  $1::text::timestamptz ORDER BY at, id LIMIT 10) DELETE FROM audit AS a USING \
                  old WHERE a.at = old.at AND a.id = old.id";
    let (insert, delete) = (old.prepare(insert).await.unwrap(), old.prepare(delete).await.unwrap());
    old.batch_execute("SET plan_cache_mode = force_generic_plan").await.unwrap();
    assert_eq!(old.execute(&insert, &[]).await.unwrap(), 2);
    assert_eq!(old.execute(&delete, &[&"infinity"]).await.unwrap(), 2);

    let store = open(&url).await;
    store.delete_old_audit(START, ALL).await.unwrap();
    assert_eq!(old.execute(&insert, &[]).await.unwrap(), 2);
    old.batch_execute("BEGIN").await.unwrap();
    assert_eq!(
        [old.execute(&insert, &[]).await.unwrap(), old.execute(&insert, &[]).await.unwrap()],
        [2, 0]
    );
    old.batch_execute("COMMIT").await.unwrap();
    assert_eq!(old.execute(&delete, &[&"infinity"]).await.unwrap(), 4);
    assert_eq!(count(&url).await, 0);
}
