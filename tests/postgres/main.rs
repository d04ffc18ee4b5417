//! The service on PostgreSQL: its master key, connections and migrations.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod connections;
mod migrations;

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use countersign::{
    app::{self, AppError, System},
    authority::sweep::Swept,
    clock::SystemClock,
    config::{Config, Flags},
    rng::SystemRng,
};
use countersign_test_support::postgres_server;

fn config(url: &str, data_dir: &Path) -> Config {
    let flags = Flags {
        database_url: Some(url.to_owned()),
        data_dir: Some(data_dir.to_owned()),
        ..Flags::default()
    };
    Config::load(None, &flags).unwrap()
}

/// Waits for an attempt, and fails if it takes too long. No attempt in these tests may take as long
/// as the time-out that it is configured with.
async fn in_time<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), event).await.expect("the attempt takes too long")
}

async fn sweep(config: &Config) -> Result<Swept, AppError> {
    let system = System::new(Arc::new(SystemClock), Arc::new(SystemRng::default()));
    app::sweep(config, system, false).await
}

/// A generated key would exist on one machine only. It would lock out all other machines, or be
/// lost with its container.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_master_key_is_an_error_and_is_never_generated() {
    let url = postgres_server::new_database().await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let refused = sweep(&config(&url, one.path())).await.unwrap_err();
    assert!(matches!(refused, AppError::MasterKeyMissing { .. }), "{refused:?}");
    let key = one.path().join("master.key");
    assert!(!key.exists());

    // The error names the command that creates a key.
    let line = refused.to_string();
    let command = line.split('`').nth(1).unwrap_or_else(|| panic!("a command: {line}"));
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success());
    assert_eq!(sweep(&config(&url, one.path())).await.unwrap(), Swept::default());

    let refused = sweep(&config(&url, two.path())).await.unwrap_err();
    assert!(matches!(refused, AppError::MasterKeyGone(_)), "{refused:?}");
    std::fs::copy(&key, two.path().join("master.key")).unwrap();
    sweep(&config(&url, two.path())).await.unwrap();
}
