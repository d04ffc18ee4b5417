//! A database of its own for each test, per engine.

use std::any::Any;

use countersign::store::{Store, postgres::PostgresStore, sqlite::SqliteStore};

/// A store, and what has to outlive it.
pub struct Database {
    store: Box<dyn Store>,
    _home: Box<dyn Any>,
}

impl Database {
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }
}

pub async fn sqlite() -> Database {
    let home = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&home.path().join("countersign.db")).await.unwrap();
    Database { store: Box::new(store), _home: Box::new(home) }
}

pub async fn postgres() -> Database {
    let url = crate::postgres_server::new_database().await;
    let store = PostgresStore::open(&crate::postgres_server::options(&url)).await.unwrap();
    Database { store: Box::new(store), _home: Box::new(()) }
}
