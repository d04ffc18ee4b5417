//! Opens a new database on an engine for each test.

use std::path::PathBuf;

use countersign::store::{Store, postgres::PostgresStore, sqlite::SqliteStore};
use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection,
    sql_query, sql_types::Text,
};
use tempfile::TempDir;
use tokio_postgres::NoTls;

/// A store, and the database that it uses, for queries that do not go through the store.
pub struct Database {
    store: Box<dyn Store>,
    location: Location,
}

enum Location {
    Sqlite { path: PathBuf, _home: TempDir },
    Postgres { url: String },
}

/// Queries that return all columns of each audit row as one JSON array, in the same form on both
/// engines.
const SQLITE_ROWS: &str = "SELECT json_array(at, lower(hex(id)), action, caller, peer, tenant, \
                           subject, lower(hex(session_id)), kid, reason, sessions, left_out, \
                           note, x_request_id) AS line FROM audit ORDER BY at, id";
const POSTGRES_ROWS: &str = "SELECT json_build_array((extract(epoch FROM at) * 1000000)::bigint, \
                             replace(id::text, '-', ''), action, caller, host(peer), tenant, \
                             subject, coalesce(replace(session_id::text, '-', ''), ''), kid, \
                             reason, sessions, left_out, note, x_request_id)::text AS line FROM \
                             audit ORDER BY at, id";

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

impl Database {
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Runs the script that is written for this engine.
    pub async fn execute(&self, on_postgres: &str, on_sqlite: &str) {
        match &self.location {
            Location::Sqlite { path, .. } => {
                let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
                connection.batch_execute(on_sqlite).unwrap();
            }
            Location::Postgres { url } => {
                countersign_test_support::postgres_server::execute(url, on_postgres).await
            }
        }
    }

    /// Reads the rows of the audit table directly, not through the store. Each row is an array of
    /// its columns, and the rows are in the order of their primary key.
    pub async fn audit(&self) -> Vec<serde_json::Value> {
        let lines: Vec<String> = match &self.location {
            Location::Sqlite { path, .. } => {
                let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
                let rows: Vec<Line> = sql_query(SQLITE_ROWS).load(&mut connection).unwrap();
                rows.into_iter().map(|row| row.line).collect()
            }
            Location::Postgres { url } => {
                let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
                tokio::spawn(connection);
                client
                    .query(POSTGRES_ROWS, &[])
                    .await
                    .unwrap()
                    .iter()
                    .map(|row| row.get(0))
                    .collect()
            }
        };
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub async fn sqlite() -> Database {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("countersign.db");
    let store = SqliteStore::open(&path).await.unwrap();
    Database { store: Box::new(store), location: Location::Sqlite { path, _home: home } }
}

pub async fn postgres() -> Database {
    let url = countersign_test_support::postgres_server::new_database().await;
    let store = PostgresStore::open(&countersign_test_support::postgres_server::options(&url))
        .await
        .unwrap();
    Database { store: Box::new(store), location: Location::Postgres { url } }
}
