//! Tests of migrations and of the rights that roles need. The role that owns the tables may differ
//! from the role that uses them.

use std::time::Duration;

use countersign::{
    app::{self, AppError},
    config::{Config, DatabaseFlags, Flags},
    domain::{
        audit::{AuditAction, AuditEntry, AuditRecord},
        ids::AuditId,
        time::Timestamp,
        who::Who,
    },
    store::postgres::open_error::OpenError,
};
use countersign_test_support::postgres_server::{execute, new_database, number, try_execute};

use crate::{config, in_time};

fn without_migrating(url: &str) -> Config {
    let flags = Flags {
        database_url: Some(url.to_owned()),
        data_dir: Some(tempfile::tempdir().unwrap().keep()),
        database: Some(DatabaseFlags { migrate: false }),
        ..Flags::default()
    };
    Config::load(None, &flags).unwrap()
}

/// The statements by which docs/postgresql.md grants the service's role its rights.
const GRANTS: &str = "GRANT USAGE ON SCHEMA public TO USER; ALTER DEFAULT PRIVILEGES FOR ROLE \
                      postgres IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO \
                      USER";

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_create_tables_can_use_those_that_another_role_created() {
    let url = new_database().await;
    let folder = tempfile::tempdir().unwrap();
    let user = url.rsplit_once('/').unwrap().1.to_owned();
    execute(&url, &format!("REVOKE ALL ON SCHEMA public FROM PUBLIC; CREATE ROLE {user} LOGIN"))
        .await;
    execute(&url, &GRANTS.replace("USER", &user)).await;
    let restricted = url.replace("postgres@", &format!("{user}@"));

    let refused = app::open_store(&without_migrating(&restricted)).await.map(drop).unwrap_err();
    let AppError::Postgres(OpenError::Older { migration, .. }) = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(migration, "0001");
    assert!(refused.to_string().contains("countersign migrate"), "{refused}");

    let made = app::migrate(&config(&url, folder.path())).await.unwrap();
    assert_eq!(made.first().map(String::as_str), Some("0001"));
    assert_eq!(app::migrate(&config(&url, folder.path())).await.unwrap(), Vec::<String>::new());
    for config in [without_migrating(&restricted), config(&restricted, folder.path())] {
        let store = app::open_store(&config).await.unwrap();
        assert_eq!(store.ring().await.unwrap().keys, []);
    }
}

/// The test executes the commands that the errors name.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_for_a_missing_right_has_the_grant_command_that_gives_it() {
    let url = new_database().await;
    let folder = tempfile::tempdir().unwrap();
    let user = url.rsplit_once('/').unwrap().1.to_owned();
    execute(&url, &format!("REVOKE ALL ON SCHEMA public FROM PUBLIC; CREATE ROLE {user} LOGIN"))
        .await;
    let restricted = url.replace("postgres@", &format!("{user}@"));
    let execute_advice = async |refused: AppError, reason: &str| {
        let line = refused.to_string();
        let has_ways = ["`countersign migrate`", "--no-migrate", "docs/postgresql.md"]
            .iter()
            .all(|way| line.contains(way));
        assert!(line.contains(reason) && has_ways && !line.contains('\n'), "{line}");
        let grant = line
            .split('`')
            .find(|command| command.starts_with("GRANT "))
            .unwrap_or_else(|| panic!("{line}"));
        execute(&url, grant).await;
    };
    let migrate = async || app::migrate(&config(&restricted, folder.path())).await;
    execute_advice(migrate().await.unwrap_err(), "no schema has been selected to create in").await;
    execute(&url, &format!("REVOKE CREATE ON SCHEMA public FROM {user}")).await;
    execute_advice(migrate().await.unwrap_err(), "permission denied for schema public").await;
    migrate().await.unwrap();

    // If another role owns the tables, the role needs rights to use them, and cannot migrate them.
    let url = new_database().await;
    app::migrate(&config(&url, folder.path())).await.unwrap();
    execute(&url, &format!("GRANT USAGE ON SCHEMA public TO {user}")).await;
    let restricted = url.replace("postgres@", &format!("{user}@"));
    let open = async || app::open_store(&without_migrating(&restricted)).await;
    let refused = open().await.map(drop).unwrap_err().to_string();
    assert!(refused.contains("permission denied for table"), "{refused}");
    let grant = refused.split('`').find(|command| command.starts_with("GRANT ")).unwrap();
    execute(&url, grant).await;
    assert_eq!(open().await.unwrap().ring().await.unwrap().keys, []);
    execute(&url, "DELETE FROM __diesel_schema_migrations WHERE version = '0008'").await;
    let refused = app::migrate(&config(&restricted, folder.path())).await.unwrap_err().to_string();
    assert!(
        refused.contains("must be owner of") && refused.contains("as their owner"),
        "{refused}"
    );
}

/// While a migration waits for the lock of a table, all writes to the table wait behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_does_not_wait_long_for_a_table_that_another_session_has_locked() {
    let url = new_database().await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(&url, folder.path());
    app::migrate(&config).await.unwrap();
    execute(&url, include_str!("../../migrations/postgres/0009_former_replicas/down.sql")).await;
    execute(&url, "DELETE FROM __diesel_schema_migrations WHERE version = '0009'").await;

    let (holder, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    holder.batch_execute("BEGIN; LOCK TABLE replicas IN ACCESS SHARE MODE").await.unwrap();
    let migrating = async { app::migrate(&config).await.unwrap_err().to_string() };
    let writing = async {
        const WAITING: &str =
            "SELECT count(*) FROM pg_locks WHERE relation = 'replicas'::regclass AND NOT granted";
        while number(&url, WAITING).await == 0 {
            tokio::task::yield_now().await;
        }
        execute(&url, "UPDATE replicas SET name = name").await;
    };
    let (refused, ()) = in_time(futures_util::future::join(migrating, writing)).await;
    for part in [
        "migrated to 0009",
        "SQLSTATE 55P03",
        "some session holds the table",
        "`countersign migrate` again",
    ] {
        assert!(refused.contains(part) && !refused.contains('\n'), "{refused}");
    }
    holder.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(app::migrate(&config).await.unwrap(), ["0009"]);
}

/// The rights are those that docs/postgresql.md describes.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_change_audit_records_can_write_and_sweep_them() {
    let url = new_database().await;
    let folder = tempfile::tempdir().unwrap();
    let user = url.rsplit_once('/').unwrap().1.to_owned();
    execute(&url, &format!("CREATE ROLE {user} LOGIN; {}", GRANTS.replace("USER", &user))).await;
    app::migrate(&config(&url, folder.path())).await.unwrap();
    execute(&url, &format!("REVOKE UPDATE ON audit FROM {user}")).await;

    let restricted = url.replace("postgres@", &format!("{user}@"));
    for table in ["audit", "audit_default"] {
        let changed = try_execute(&restricted, &format!("UPDATE {table} SET note = ''")).await;
        assert!(changed.is_err(), "the role can still change {table}");
    }
    let store = app::open_store(&without_migrating(&restricted)).await.unwrap();
    let at = Timestamp::from_seconds(1_700_000_000);
    let record = AuditRecord::new(AuditAction::KeyRotated, at, Who::Service, None);
    let entry = AuditEntry { id: AuditId::new(at, 1, [0; 6]), record, left_out: 0 };
    for _ in 0..2 {
        store.append_audit(vec![entry.clone()]).await.unwrap();
    }
    assert_eq!(store.delete_old_audit(at.plus(Duration::from_secs(1)), 10).await.unwrap(), 1);
    const DAYS: &str = "SELECT count(*) FROM pg_tables WHERE tablename ~ '^audit_[0-9]+$' AND \
                        tableowner ~ '_audit$'";
    assert_eq!(number(&url, DAYS).await, 0);

    // With the rights that the documentation names for this, the role also creates partitions.
    let text = include_str!("../../docs/postgresql.md");
    let recipe =
        text.split("```").find(|block| block.contains("CREATE ROLE countersign_audit;")).unwrap();
    let recipe = recipe
        .strip_prefix("sql\n")
        .unwrap()
        .replace("countersign_audit", &format!("{user}_audit"));
    let recipe =
        recipe.replace("countersign_owner", "postgres").replace("countersign_service", &user);
    execute(&url, &recipe).await;
    store.append_audit(vec![entry.clone()]).await.unwrap();
    assert_eq!(store.delete_old_audit(at.plus(Duration::from_secs(1)), 10).await.unwrap(), 1);
    assert!(number(&url, DAYS).await >= 3);
}

/// Executes the script in docs/postgresql.md for a default partition that has become large.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_script_sets_aside_a_large_default_partition() {
    let url = new_database().await;
    let folder = tempfile::tempdir().unwrap();
    let store = app::open_store(&config(&url, folder.path())).await.unwrap();
    let text = include_str!("../../docs/postgresql.md");
    let script =
        text.split("```").find(|block| block.contains("DETACH PARTITION audit_default;")).unwrap();
    execute(&url, script.strip_prefix("sql\n").unwrap()).await;
    store.delete_old_audit(Timestamp::from_seconds(0), 10).await.unwrap();
    let days =
        number(&url, "SELECT count(*) FROM pg_tables WHERE tablename ~ '^audit_[0-9]+$'").await;
    assert!(days >= 3, "{days}");
}
