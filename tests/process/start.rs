//! Tests of starts that must fail. The process must exit with code 2, write one line that names the
//! problem and its solution, and change nothing on disk.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use countersign::proto::CreateSessionRequest;
use countersign_test_support::process::{Server, countersign, run, serve, without_settings};
use diesel::{Connection, RunQueryDsl, SqliteConnection, sql_query};
use futures_util::future::join_all;
use tempfile::TempDir;

/// Returns the mode and the content of everything in a folder except the lock file, which a refused
/// start may create.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let metadata = fs::metadata(&entry).unwrap();
        if metadata.is_dir() {
            files.extend(snapshot(&entry));
            files.insert(entry, (metadata.mode(), vec![]));
        } else if entry.extension().is_none_or(|extension| extension != "lock") {
            let content = fs::read(&entry).unwrap();
            files.insert(entry, (metadata.mode(), content));
        }
    }
    files
}

/// Checks that a command refuses to start, that its error contains each part of `says`, and that it
/// leaves the folder as it was.
#[track_caller]
pub fn refuses(command: &mut Command, folder: &Path, says: &[&str]) {
    let before = snapshot(folder);
    let run = run(command);
    let line = run.error(2);
    for part in says {
        assert!(line.contains(part), "{part:?} is missing in: {line}");
    }
    assert_eq!(run.stdout, "");
    let after = snapshot(folder);
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>(),
        "files were added or removed"
    );
    let changed: Vec<_> =
        before.iter().filter(|(path, file)| after[*path] != **file).map(|(path, _)| path).collect();
    assert!(changed.is_empty(), "{changed:?} changed");
}

/// Returns a folder in which a service has created `sessions` sessions and then stopped gracefully.
pub async fn used(sessions: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let client = server.sessions().await;
    let creations = (0..sessions).map(|number| {
        let mut client = client.clone();
        async move {
            let request =
                CreateSessionRequest { subject: format!("subject {number}"), ..Default::default() };
            client.create_session(request).await.unwrap()
        }
    });
    join_all(creations).await;
    drop(client);
    server.stop();
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_in_use_is_refused_and_its_owner_keeps_serving() {
    let folder = tempfile::tempdir().unwrap();
    // Sweeps and the audit table are off, because they would change the database file during the
    // test.
    let mut command = serve(folder.path());
    command
        .env("COUNTERSIGN_SWEEPER__SCHEDULE", "0 0 30 2 *")
        .env("COUNTERSIGN_AUDIT__TABLE", "false");
    let server = Server::launch(&mut command);
    server.cli(["session", "create", "alice"]).ok();
    refuses(
        &mut serve(folder.path()),
        folder.path(),
        &["countersign.db is in use by another process", "stop that one"],
    );
    server.cli(["session", "create", "bob"]).ok();
}

#[test]
fn a_file_that_is_not_a_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("countersign.db");
    fs::write(&file, b"no database ".repeat(1000)).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    refuses(
        &mut serve(folder.path()),
        folder.path(),
        &["countersign.db is damaged", "restore it from a backup"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_with_a_damaged_page_is_refused() {
    let folder = used(300).await;
    let path = folder.path().join("countersign.db");
    let mut content = fs::read(&path).unwrap();
    let pages = content.len() / 4096;
    assert!(pages > 20, "{pages}");
    let check = || {
        let mut command = countersign();
        command.args(["database", "check", "--data-dir"]).arg(folder.path());
        command
    };
    assert!(run(&mut check()).ok().contains("is in order"));
    content[pages / 2 * 4096..][..4096].fill(0xff);
    fs::write(&path, content).unwrap();
    let says = ["countersign.db is damaged", "restore it from a backup"];
    refuses(&mut check(), folder.path(), &says);
    // Without the record in the lock file, the service does not know that the database was closed
    // properly, so it checks all pages.
    let lock = folder.path().join("countersign.db.lock");
    let record = fs::read(&lock).unwrap();
    fs::write(&lock, "").unwrap();
    refuses(&mut serve(folder.path()), folder.path(), &says);
    fs::write(&lock, record).unwrap();
    Server::start(folder.path());
}

#[test]
fn a_start_after_a_crash_checks_the_whole_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("countersign.db");
    Server::start(folder.path()).stop();
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    // The service does not read this table itself.
    let filler = "CREATE TABLE own AS WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 99)
        SELECT i, zeroblob(3000) AS filler FROM n";
    sql_query(filler).execute(&mut connection).unwrap();
    drop(connection);
    let mut content = fs::read(&path).unwrap();
    let last = content.len() - 20 * 4096;
    content[last..][..4096].fill(0xff);
    fs::write(&path, content).unwrap();
    let mut server = Server::start(folder.path());
    server.cli(["session", "create", "alice"]).ok();
    server.kill();
    let refused = run(&mut serve(folder.path()));
    assert!(refused.error(2).contains("countersign.db is damaged"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_database_is_refused() {
    let folder = used(300).await;
    let path = folder.path().join("countersign.db");
    let content = fs::read(&path).unwrap();
    fs::write(&path, &content[..content.len() / 2]).unwrap();
    refuses(
        &mut serve(folder.path()),
        folder.path(),
        &["countersign.db is damaged", "restore it from a backup"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_key_that_is_damaged_readable_by_others_missing_or_wrong_is_refused() {
    let folder = used(1).await;
    let path = folder.path().join("master.key");
    let good = fs::read(&path).unwrap();
    let refused = |says: &[&str]| refuses(&mut serve(folder.path()), folder.path(), says);

    fs::write(&path, &good[..good.len() / 2]).unwrap();
    refused(&["master.key", "damaged", "restore it from a backup"]);

    fs::copy(used(0).await.path().join("master.key"), &path).unwrap();
    refused(&["master key", "restore"]);

    fs::write(&path, &good).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    refused(&["master.key has mode 0644", "chmod 600"]);

    fs::remove_file(&path).unwrap();
    refused(&["master.key does not exist", "restore it from a backup"]);

    fs::write(&path, &good).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    Server::start(folder.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_a_newer_version_is_refused() {
    let folder = used(1).await;
    let path = folder.path().join("countersign.db");
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    sql_query("INSERT INTO __diesel_schema_migrations (version) VALUES ('9999')")
        .execute(&mut connection)
        .unwrap();
    drop(connection);
    refuses(
        &mut serve(folder.path()),
        folder.path(),
        &["countersign.db", "newer countersign (migration 9999)", "run"],
    );
}

#[test]
fn a_directory_that_may_not_be_written_is_refused() {
    // Root may write everywhere, so the child runs as another user, who needs a copy of the binary
    // in a folder that this user may read.
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("countersign");
    // Another process makes the copy. If this process wrote the copy, a test that forks at the same
    // time would inherit the open file, and the copy could not be executed (ETXTBSY).
    let copied =
        Command::new("cp").arg(env!("CARGO_BIN_EXE_countersign")).arg(&binary).status().unwrap();
    assert!(copied.success());
    fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, Permissions::from_mode(0o555)).unwrap();
    for dir in [data.clone(), data.join("below")] {
        let mut command = Command::new(&binary);
        without_settings(&mut command);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&dir).current_dir("/");
        if fs::metadata(&binary).unwrap().uid() == 0 {
            command.uid(65_534).gid(65_534);
        }
        refuses(&mut command, &data, &[dir.to_str().unwrap(), "Permission denied"]);
    }
}

#[test]
fn a_data_directory_that_is_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data");
    fs::write(&file, "mine").unwrap();
    refuses(&mut serve(&file), folder.path(), &["data directory", file.to_str().unwrap()]);
}

#[test]
fn a_port_in_use_is_refused_before_any_file_is_created() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, setting) in
        [("--listen", "(setting listen)"), ("--http-listen", "(setting http_listen)")]
    {
        let mut command = countersign();
        command.env("COUNTERSIGN_LISTEN", "127.0.0.1:0");
        command.args(["serve", flag, &address, "--data-dir"]).arg(folder.path().join("data"));
        refuses(
            &mut command,
            folder.path(),
            &[&format!("cannot listen on {address}"), "in use", setting],
        );
    }
}

#[test]
fn wrong_settings_are_refused_before_any_file_is_created() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let file = folder.path().join("countersign.toml");
    let flag =
        |flags: &[&str], says: &[&str]| refuses(serve(&data).args(flags), folder.path(), says);
    flag(&["--config", "/nowhere/c.toml"], &["configuration file /nowhere/c.toml", "No such file"]);
    flag(
        &["--database-url", "mysql://u:hidden@h/d"],
        &["setting database_url", "use sqlite://PATH"],
    );

    let listen = |address: &str, says: &[&str]| {
        let mut command = countersign();
        refuses(
            command.args(["serve", "--listen", address, "--data-dir"]).arg(&data),
            folder.path(),
            says,
        );
    };
    listen("0.0.0.0:0", &["setting listen", "0.0.0.0:0", "127.0.0.1", "--insecure"]);
    listen("[::]:0", &["setting listen", "--insecure"]);
    listen("here", &["setting listen", "\"here\"", "like 127.0.0.1:50051"]);

    let variable = |name: &str, value: &str, says: &[&str]| {
        refuses(serve(&data).env(name, value), folder.path(), says);
    };
    variable(
        "COUNTERSIGN_TOKENS__LEWAY",
        "3s",
        &["COUNTERSIGN_TOKENS__LEWAY", "did you mean leeway?"],
    );
    variable(
        "COUNTERSIGN_TOKENS__LEEWAY",
        "soon",
        &["COUNTERSIGN_TOKENS__LEEWAY", "tokens.leeway", "\"soon\""],
    );
    variable("COUNTERSIGN_TOKENS__LEEWAY", "2h", &["tokens.leeway", "at most 1m"]);
    variable(
        "COUNTERSIGN_TLS",
        "[\"c.pem\",\"c.key\"]",
        &["COUNTERSIGN_TLS", "setting tls", "must be a section"],
    );
    variable(
        "COUNTERSIGN_REFLECTION",
        "1",
        &["COUNTERSIGN_REFLECTION", "setting reflection", "auto, on, off"],
    );
    variable("COUNTERSIGN_LOG__LEVEL", "!!", &["setting log.level", "\"!!\"", "info"]);

    let content = |content: &str, says: &[&str]| {
        fs::write(&file, content).unwrap();
        refuses(
            serve(&data).arg("--config").arg(&file),
            folder.path(),
            &[says, &[file.to_str().unwrap()]].concat(),
        );
    };
    content("isuer = 'x'", &["unknown setting isuer", "did you mean issuer?"]);
    content("[log]\nformat = 'xml'", &["setting log.format", "auto, text, json"]);
    content("a\nb = [", &["line 1"]);
}

#[test]
fn an_unknown_flag_is_refused_with_the_nearest_known_one() {
    let run = run(countersign().args(["serve", "--data-dri", "x"]));
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("--data-dri") && run.stderr.contains("--data-dir"), "{run:?}");
}

/// After a crash the write-ahead log is beside the database. A refused start must not change the
/// write-ahead log either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_start_after_a_crash_leaves_the_write_ahead_log_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.cli(["session", "create", "alice"]).ok();
    server.kill();
    assert!(folder.path().join("countersign.db-wal").metadata().unwrap().len() > 0);
    let path = folder.path().join("master.key");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    refuses(&mut serve(folder.path()), folder.path(), &["master.key has mode 0644", "chmod 600"]);
}

/// If the service created the file, a typing error in the setting would create a new key in a place
/// where nobody looks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_key_file_that_a_setting_names_is_never_created() {
    const SETTING: &str = "COUNTERSIGN_KEYS__MASTER_KEY_FILE";
    let (new, old) = (tempfile::tempdir().unwrap(), used(1).await);
    for folder in [new.path(), old.path()] {
        let data = if folder == new.path() { folder.join("data") } else { folder.to_owned() };
        for path in ["other.key".to_owned(), folder.join("other.key").display().to_string()] {
            let says = [
                "setting keys.master_key_file: ",
                &path,
                "does not exist",
                "openssl rand -base64 32",
            ];
            refuses(serve(&data).current_dir(folder).env(SETTING, &path), folder, &says);
        }
        let mut check = countersign();
        check
            .args(["config", "check", "--data-dir"])
            .arg(&data)
            .env(SETTING, "other.key")
            .current_dir(folder);
        refuses(&mut check, folder, &["setting keys.master_key_file: other.key does not exist"]);
    }
    for args in [&["sweep"][..], &["key", "reseal"]] {
        let mut command = countersign();
        command
            .args(args)
            .arg("--data-dir")
            .arg(old.path())
            .env(SETTING, "other.key")
            .current_dir(old.path());
        refuses(
            &mut command,
            old.path(),
            &["setting keys.master_key_file: other.key does not exist"],
        );
    }
    // A file that exists is used. Its path is relative to the working directory.
    fs::rename(old.path().join("master.key"), old.path().join("other.key")).unwrap();
    Server::launch(serve(old.path()).current_dir(old.path()).env(SETTING, "other.key")).stop();
    assert!(!old.path().join("master.key").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_migrate_the_schema_must_be_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    fs::create_dir(&data_dir).unwrap();
    fs::set_permissions(&data_dir, Permissions::from_mode(0o755)).unwrap();
    let unmigrated = || {
        let mut command = serve(&data_dir);
        command.arg("--no-migrate");
        command
    };
    refuses(&mut unmigrated(), &data_dir, &["migration", "`countersign migrate`", "--no-migrate"]);

    let migrate = || run(countersign().args(["migrate", "--data-dir"]).arg(&data_dir));
    assert!(migrate().ok().starts_with("made migration "));
    assert_eq!(migrate().ok(), "the schema was up to date\n");
    let server = Server::launch(&mut unmigrated());
    server.cli(["session", "create", "alice"]).ok();
    server.stop();
}

/// The exit code lets scripts distinguish this failure from a wrong configuration.
#[test]
fn serve_exits_with_3_if_the_database_cannot_be_reached_in_time() {
    for (timeout, code, says) in [("0s", 2, "cannot be reached"), ("300ms", 3, "gave up after")] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = serve(folder.path());
        // No server listens on this port.
        command.args(["--database-url", "postgres://u@127.0.0.1:1/d"]);
        let refused = run(command.env("COUNTERSIGN_DATABASE__STARTUP_TIMEOUT", timeout));
        let last = refused.stderr.lines().last().unwrap_or_default();
        assert_eq!((refused.code, last.contains(says)), (Some(code), true), "{refused:?}");
        let warnings = refused.stderr.lines().filter(|line| line.contains("trying again")).count();
        assert_eq!(warnings, usize::from(code == 3), "not just one warning: {refused:?}");
    }
}
