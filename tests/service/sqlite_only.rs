//! Tests of the database file and its lock, which only SQLite has.

use countersign::app;
use countersign_test_support::{
    database::{Database, sqlite::connect},
    server::{Server, eventually},
};
use diesel::connection::SimpleConnection;

pub async fn a_second_service_on_the_same_folder_is_refused() {
    let server = Server::start().await;
    let error = app::open_store(&server.home.config()).await.err().unwrap().to_string();
    assert!(error.contains("in use by another process"), "{error}");
    assert_eq!(server.verdict(&server.sign_in("alice").await.access).await, Ok(()));
}

pub async fn a_database_locked_by_another_connection_is_not_reported_as_damaged() {
    let home = Server::start().await.stop().await;
    let Database::Sqlite(database) = &home.database else { panic!("a rule of SQLite") };
    let mut other = connect(&database.file.display().to_string());
    // SQLite refuses these statements until the service has closed all its connections.
    let hold = "PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE";
    eventually("the database is held", async || other.batch_execute(hold).ok()).await;
    let error = app::open_store(&home.config()).await.err().unwrap().to_string();
    assert!(error.contains("locked") && !error.contains("damaged"), "{error}");
    drop(other);
    home.start().await.sign_in("alice").await;
}
