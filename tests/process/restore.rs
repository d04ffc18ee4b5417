//! Tests of backups and restores. A restore must not make tokens and sessions valid again that were
//! revoked after the backup.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use countersign_test_support::process::{Run, Server, countersign, run, serve};
use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query, sql_types::BigInt,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::start::refuses;

/// The folders and files of a test.
struct Site {
    folder: TempDir,
}

impl Site {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn database(&self) -> PathBuf {
        self.data().join("countersign.db")
    }

    fn start(&self) -> Server {
        Server::start(&self.data())
    }

    /// Runs a subcommand on the data directory, with a log that contains only warnings and the
    /// audit.
    fn cli(&self, arguments: &[&str]) -> Run {
        let mut command = countersign();
        command
            .args(arguments)
            .arg("--data-dir")
            .arg(self.data())
            .env("COUNTERSIGN_LOG__LEVEL", "warn");
        run(command.current_dir(self.folder.path()))
    }

    fn back_up(&self) {
        self.cli(&["backup", "backup.db"]).ok();
    }

    /// Kills a server, and writes its log to `serve.log`.
    fn keep_log(&self, mut server: Server) {
        server.kill();
        while server.comes("a line that never comes").is_some() {}
        fs::write(self.path("serve.log"), server.seen().join("\n")).unwrap();
    }

    fn names_in_data(&self) -> Vec<String> {
        let entries = fs::read_dir(self.data()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The identifier and the tokens of a new session.
struct Created {
    id: String,
    access: String,
    refresh: String,
}

fn create(server: &Server, arguments: &[&str]) -> Created {
    let created =
        server.cli(["session", "create", "--json"].iter().chain(arguments).copied()).json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Created {
        id: text(&created["session"]["session_id"]),
        access: text(&created["tokens"]["access_token"]),
        refresh: text(&created["tokens"]["refresh_token"]),
    }
}

fn is_active(server: &Server, access: &str) -> bool {
    server.cli(["token", "validate", access]).code == Some(0)
}

fn is_live(server: &Server, session: &Created) -> bool {
    server.cli(["session", "show", &session.id, "--json"]).json()["session"]["state"]
        == "SESSION_STATE_LIVE"
}

/// Refreshes, and returns whether the new access token is accepted.
fn can_refresh(server: &Server, session: &Created) -> bool {
    let refreshed = server.cli(["token", "refresh", &session.refresh, "--json"]);
    refreshed.code == Some(0)
        && is_active(server, refreshed.json()["tokens"]["access_token"].as_str().unwrap())
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

fn count(database: &Path, rows: &str) -> i64 {
    let mut connection = SqliteConnection::establish(database.to_str().unwrap()).unwrap();
    let count: Count = sql_query(format!("SELECT count(*) AS count FROM {rows}"))
        .get_result(&mut connection)
        .unwrap();
    count.count
}

#[test]
fn a_write_ahead_log_of_another_database_file_prevents_the_start() {
    let site = Site::new();
    let backup = site.path("backup.db");
    let server = site.start();
    create(&server, &["alice"]);
    site.back_up();
    // A copy that `countersign backup` made has a mark in the place of the stamp. A plain copy of
    // the file from an earlier run has an older stamp.
    let copies: [(&str, &dyn Fn()); 2] = [
        ("by VACUUM INTO", &|| {}),
        ("of the stopped service", &|| {
            fs::remove_file(&backup).unwrap();
            site.start().stop();
            fs::copy(site.database(), &backup).unwrap();
        }),
    ];
    let mut server = Some(server);
    for (name, copy) in copies {
        drop(server.take());
        copy();
        let mut crashed = site.start();
        for _ in 0..5 {
            create(&crashed, &["bob"]);
        }
        crashed.kill();
        assert!(fs::metadata(site.data().join("countersign.db-wal")).unwrap().len() > 32, "{name}");
        let intact = fs::read(site.database()).unwrap();

        // A crash alone is no reason to refuse the start, because it loses nothing.
        let files = ["countersign.db", "countersign.db-wal", "countersign.db.lock"];
        let other = site.path("elsewhere");
        fs::create_dir(&other).unwrap();
        for file in files.into_iter().chain(["master.key"]) {
            fs::copy(site.data().join(file), other.join(file)).unwrap();
        }
        let moved = Server::start(&other);
        assert!(
            count(&other.join("countersign.db"), "sessions WHERE subject = 'bob'") >= 5,
            "{name}"
        );
        moved.stop();
        fs::remove_dir_all(&other).unwrap();

        fs::copy(&backup, site.database()).unwrap();
        for command in [&mut serve(&site.data()), &mut countersign()] {
            if command.get_args().next().is_none() {
                command.args(["sweep", "--data-dir"]).arg(site.data());
            }
            refuses(
                command,
                &site.data(),
                &["-wal of the one before stayed", "countersign restore"],
            );
        }
        fs::write(site.database(), intact).unwrap();
        site.start().stop();
    }
}

#[test]
fn a_write_ahead_log_without_its_database_file_prevents_the_start() {
    let site = Site::new();
    let mut server = site.start();
    create(&server, &["alice"]);
    server.kill();
    let away = site.path("away.db");
    fs::rename(site.database(), &away).unwrap();
    refuses(&mut serve(&site.data()), &site.data(), &["does not exist, but its log"]);
    fs::rename(&away, site.database()).unwrap();
    assert_eq!(count(&site.database(), "sessions"), 1);
}

#[test]
fn a_restore_brings_the_sessions_of_the_backup_back_and_none_of_the_tokens() {
    let site = Site::new();
    let server = site.start();
    let before = create(&server, &["alice"]);
    let output = site.cli(&["backup", "backup.db"]).ok();
    assert!(output.contains("master key is not in it"), "{output}");
    assert!(site.cli(&["backup", "backup.db"]).error(2).contains("overwrites nothing"));
    let after = create(&server, &["bob"]);

    let error = site.cli(&["restore", "backup.db"]);
    assert!(error.error(2).contains("in use by another process"), "{error:?}");
    server.stop();
    let output = site.cli(&["restore", "backup.db"]).ok();
    assert!(output.contains("access tokens issued before now are refused"), "{output}");
    assert!(output.contains("sessions that ended after the backup live again"), "{output}");

    let server = site.start();
    assert!(
        !server
            .seen()
            .iter()
            .any(|line| line.contains("not the database file that was used here last"))
    );
    assert!(!is_active(&server, &before.access), "the token was issued before the restore");
    assert!(is_live(&server, &before));
    assert!(can_refresh(&server, &before));
    assert_eq!(
        server.cli(["session", "show", &after.id]).code,
        Some(1),
        "the session is not in the backup"
    );
    let aside =
        site.names_in_data().into_iter().find(|name| name.contains(".before-restore-")).unwrap();
    assert!(output.contains(&aside), "{output}");
    assert_eq!(count(&site.data().join(aside), "sessions"), 2);
    let audited = "audit WHERE action = 'database_restored' AND caller = 'countersign' AND note \
                   LIKE '%not known'";
    assert_eq!(count(&site.database(), audited), 1);
    assert!(count(&site.database(), "audit WHERE action = 'key_revoked'") >= 2);
}

#[test]
fn a_restore_ends_the_sessions_that_have_ended_according_to_the_log() {
    let site = Site::new();
    let server = site.start();
    let [by_id, of_subject, of_tenant, reused] =
        [&["alice"][..], &["bob"], &["carol", "--tenant", "acme"], &["dave"]]
            .map(|of| create(&server, of));
    let stays = create(&server, &["erin"]);
    // The following revocations are older than the backup. The last session was created after them.
    server.cli(["session", "revoke", "--subject", "frank"]).ok();
    create(&server, &["frank"]);
    server.cli(["session", "revoke", "--subject", "frank"]).ok();
    let anew = create(&server, &["frank"]);
    let refresh_key = |server: &Server| {
        let keys = server.cli(["key", "list", "--json"]).json();
        let is_active = |key: &&Value| {
            key["purpose"] == "KEY_PURPOSE_REFRESH_TOKEN" && key["state"] == "KEY_STATE_ACTIVE"
        };
        keys["keys"].as_array().unwrap().iter().find(is_active).unwrap()["kid"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let key = refresh_key(&server);
    site.back_up();

    server
        .cli(["session", "revoke", &by_id.id, "--reason", "compromised", "--note", "laptop stolen"])
        .ok();
    server.cli(["session", "revoke", "--subject", "bob"]).ok();
    server.cli(["session", "revoke", "--all-of-tenant", "acme"]).ok();
    server.cli(["session", "revoke", "--token", &reused.refresh]).ok();
    server.cli(["key", "revoke", &key]).ok();
    site.keep_log(server);

    let output =
        site.cli(&["restore", "backup.db", "--revocations-from", "serve.log", "--json"]).json();
    assert_eq!(output["ended_since_backup"], "from_log");
    assert_eq!(output["older_access_tokens"], "refused");
    assert_eq!(output["sessions_ended"], 4);
    let server = site.start();
    for ended in [&by_id, &of_subject, &of_tenant, &reused] {
        assert!(!is_live(&server, ended));
        assert!(!can_refresh(&server, ended));
    }
    for live in [&stays, &anew] {
        assert!(is_live(&server, live));
        assert!(!can_refresh(&server, live), "the key of its refresh token was revoked");
    }
    assert_ne!(refresh_key(&server), key);
    let shown = server.cli(["session", "show", &by_id.id]).ok();
    assert!(shown.contains("laptop stolen") && shown.contains("compromised"), "{shown}");
    assert_eq!(
        count(
            &site.database(),
            "audit WHERE action = 'session_revoked' AND caller = 'countersign'"
        ),
        2
    );
}

#[test]
fn with_accept_older_tokens_tokens_of_revoked_sessions_are_refused_only_if_the_log_is_given() {
    let site = Site::new();
    let server = site.start();
    let (revoked, stays) = (create(&server, &["alice"]), create(&server, &["bob"]));
    site.back_up();
    server.cli(["session", "revoke", &revoked.id]).ok();
    site.keep_log(server);
    for (log, comes_back) in [(&["--revocations-from", "serve.log"][..], false), (&[], true)] {
        let output =
            site.cli(&[&["restore", "backup.db", "--accept-older-tokens"], log].concat()).ok();
        let says = if comes_back {
            "accepted, also those revoked since"
        } else {
            "except those of sessions that the log"
        };
        assert!(output.contains(says), "{output}");
        let server = site.start();
        assert!(is_active(&server, &stays.access));
        assert_eq!(is_active(&server, &revoked.access), comes_back);
        server.stop();
    }
}

/// The backup has the earlier refresh token of a session that was reauthenticated after it.
#[test]
fn a_session_is_ended_by_the_log_only_if_it_was_reauthenticated_after_the_backup() {
    let site = Site::new();
    let server = site.start();
    let reauthenticate = |session: &Created| {
        server.cli(["session", "reauthenticate", &session.id, "--acr", "mfa"]).ok();
    };
    let (before, after) = (create(&server, &["alice"]), create(&server, &["bob"]));
    reauthenticate(&before);
    site.back_up();
    reauthenticate(&after);
    site.keep_log(server);
    site.cli(&["restore", "backup.db", "--revocations-from", "serve.log"]).ok();
    let server = site.start();
    assert!(is_live(&server, &before));
    assert!(!is_live(&server, &after) && !can_refresh(&server, &after));
}

#[test]
fn restore_with_end_all_ends_all_sessions_even_after_an_earlier_restore() {
    let site = Site::new();
    let server = site.start();
    let session = create(&server, &["alice"]);
    site.back_up();
    server.stop();
    let refused = site.cli(&["restore", "backup.db", "--end-all", "--accept-older-tokens"]);
    assert!(refused.error(2).contains("--accept-older-tokens"), "{refused:?}");
    site.cli(&["restore", "backup.db"]).ok();
    let output = site.cli(&["restore", "--end-all"]).ok();
    assert!(output.contains("all sessions have been ended (live sessions: 1)"), "{output}");
    let server = site.start();
    assert!(!is_live(&server, &session));
    assert!(!can_refresh(&server, &session));
    assert!(can_refresh(&server, &create(&server, &["alice"])), "new sessions work");
    let audited = "audit WHERE action = 'database_restored' AND sessions = 1";
    assert_eq!(count(&site.database(), audited), 1);
}

/// The backup contains none of these sessions, so only a blacklist entry for each session can
/// revoke its tokens.
#[test]
fn with_accept_older_tokens_revoked_sessions_newer_than_the_backup_stay_revoked() {
    let site = Site::new();
    let server = site.start();
    create(&server, &["alice"]);
    site.back_up();
    let [by_id, of_subject, of_tenant, stays] =
        [&["bob"][..], &["carol"], &["dave", "--tenant", "acme"], &["erin"]]
            .map(|of| create(&server, of));
    server.cli(["session", "revoke", &by_id.id]).ok();
    server.cli(["session", "revoke", "--subject", "carol"]).ok();
    server.cli(["session", "revoke", "--all-of-tenant", "acme"]).ok();
    site.keep_log(server);
    site.cli(&["restore", "backup.db", "--accept-older-tokens", "--revocations-from", "serve.log"])
        .ok();
    let server = site.start();
    for ended in [&by_id, &of_subject, &of_tenant] {
        assert!(!is_active(&server, &ended.access));
    }
    assert!(is_active(&server, &stays.access), "without an entry it would be accepted");
    let whose = "blacklist WHERE kind = 'session' AND subject IN ('bob', 'carol', 'dave')";
    assert_eq!(count(&site.database(), whose), 3);
}

#[test]
fn a_restore_ends_the_sessions_that_the_log_of_an_earlier_restore_says_it_ended() {
    let site = Site::new();
    let server = site.start();
    let session = create(&server, &["alice"]);
    site.back_up();
    server.stop();
    let first = site.cli(&["restore", "backup.db", "--end-all"]);
    fs::write(site.path("restore.log"), &first.stderr).unwrap();
    // The lines about revoked keys are left out, because they alone would make the tokens invalid.
    let lines = first.stderr.lines().filter(|line| line.contains("database_restored"));
    fs::write(site.path("restore.log"), lines.collect::<Vec<_>>().join("\n")).unwrap();
    let arguments =
        ["restore", "backup.db", "--accept-older-tokens", "--revocations-from", "restore.log"];
    site.cli(&arguments).ok();
    let server = site.start();
    assert!(!is_live(&server, &session));
    assert!(!is_active(&server, &session.access));
}

#[test]
fn restoring_a_bad_backup_is_refused_and_changes_nothing() {
    let site = Site::new();
    let server = site.start();
    create(&server, &["alice"]);
    site.back_up();
    server.stop();
    let good = fs::read(site.path("backup.db")).unwrap();
    let refuse = |name: &str, prepare: &dyn Fn(&Path), says: &str| {
        let (database, names) = (fs::read(site.database()).unwrap(), site.names_in_data());
        prepare(&site.path("backup.db"));
        let run = site.cli(&["restore", "backup.db"]);
        assert!(run.error(2).contains(says), "{name}: {run:?}");
        assert_eq!(fs::read(site.database()).unwrap(), database, "{name}");
        assert_eq!(site.names_in_data(), names, "{name}");
        fs::write(site.path("backup.db"), &good).unwrap();
        fs::set_permissions(site.path("backup.db"), Permissions::from_mode(0o600)).unwrap();
    };
    refuse("gone", &|backup| fs::remove_file(backup).unwrap(), "backup.db: No such file");
    refuse(
        "cut",
        &|backup| fs::write(backup, &good[..good.len() / 2]).unwrap(),
        "backup.db is damaged",
    );
    refuse(
        "foreign",
        &|backup| fs::write(backup, "text of another program, long enough").unwrap(),
        "backup.db",
    );
    refuse("empty", &|backup| fs::write(backup, "").unwrap(), "backup.db is an empty database");
    let with_log = |backup: &Path| fs::write(backup.with_extension("db-wal"), [1; 64]).unwrap();
    refuse("with a log", &with_log, "has a log beside it");
    fs::remove_file(site.path("backup.db-wal")).unwrap();
    let newer = |backup: &Path| {
        let mut connection = SqliteConnection::establish(backup.to_str().unwrap()).unwrap();
        let row = "INSERT INTO __diesel_schema_migrations (version) VALUES ('9999')";
        sql_query(row).execute(&mut connection).unwrap();
    };
    refuse("newer", &newer, "schema of a newer countersign");
    let master = site.data().join("master.key");
    let key = fs::read(&master).unwrap();
    let other_key =
        |_: &Path| fs::write(&master, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    refuse("of another master key", &other_key, "master key");
    fs::write(&master, key).unwrap();
    let log = site.path("serve.log");
    fs::write(&log, "no record\n").unwrap();
    let run = site.cli(&["restore", "backup.db", "--revocations-from", "serve.log"]);
    assert!(run.error(2).contains("serve.log has no record of the audit"), "{run:?}");
    site.cli(&["restore", "backup.db"]).ok();
}

/// A restore that is killed at any instant leaves the old or the new database complete, and can be
/// run again.
#[test]
fn a_restore_that_is_killed_loses_nothing() {
    let site = Site::new();
    let server = site.start();
    create(&server, &["alice"]);
    site.back_up();
    let mut server = server;
    create(&server, &["bob"]);
    server.kill();
    drop(server);
    let whole = site.path("whole");
    copy_folder(&site.data(), &whole);
    for round in 0..12 {
        fs::remove_dir_all(site.data()).unwrap();
        copy_folder(&whole, &site.data());
        let mut command = countersign();
        command
            .args(["restore", "backup.db", "--data-dir"])
            .arg(site.data())
            .current_dir(site.folder.path());
        let mut restore = command
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(15 * round));
        let _ = restore.kill();
        restore.wait().unwrap();

        // A start uses one of the two databases, or says that the restore must be run again.
        let mut server = Server::spawn(&mut serve(&site.data()));
        if server.listens() && server.comes("serving").is_some() {
            let listed = server.cli(["session", "list", "--subject", "bob", "--json"]).json();
            let has_bob = !listed["sessions"].as_array().is_none_or(Vec::is_empty);
            let has_aside =
                site.names_in_data().iter().any(|name| name.contains(".before-restore-"));
            assert!(has_bob || has_aside, "round {round}: {:?}", site.names_in_data());
            server.stop();
        } else {
            assert!(
                server.seen().last().unwrap().contains("countersign restore"),
                "{:?}",
                server.seen()
            );
        }
        site.cli(&["restore", "backup.db"]).ok();
        let server = site.start();
        assert!(server.cli(["session", "list", "--json"]).ok().contains("alice"), "round {round}");
    }
}

/// The test creates the files that a restore leaves behind if it is interrupted after it has moved
/// the old database aside.
#[test]
fn an_interrupted_restore_is_completed_by_the_next_one_even_through_a_link() {
    let site = Site::new();
    let server = site.start();
    create(&server, &["alice"]);
    site.back_up();
    server.stop();
    let elsewhere = site.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::set_permissions(&elsewhere, Permissions::from_mode(0o700)).unwrap();
    let file = elsewhere.join("sessions.db");
    let ready = elsewhere.join("sessions.db.restored");
    fs::rename(site.database(), &file).unwrap();
    symlink(&file, site.database()).unwrap();
    // The old database has been renamed, and the new one does not have its name yet.
    fs::rename(&file, elsewhere.join("sessions.db.before-restore-1")).unwrap();
    fs::copy(site.path("backup.db"), &ready).unwrap();

    let refused = |command: &mut Command| {
        refuses(command, &elsewhere, &["a restore was interrupted", "run the same"])
    };
    refused(&mut serve(&site.data()));
    refused(countersign().args(["sweep", "--data-dir"]).arg(site.data()));
    refused(countersign().args(["backup", "other.db", "--data-dir"]).arg(site.data()));
    // A restore that is refused leaves this state as it is.
    fs::write(site.path("bad.db"), "no database, but long enough to be looked at").unwrap();
    fs::set_permissions(site.path("bad.db"), Permissions::from_mode(0o600)).unwrap();
    site.cli(&["restore", "bad.db"]).error(2);
    refused(&mut serve(&site.data()));
    // A restore that fails later, after it has made the copy, also leaves this state as it is.
    let master = site.data().join("master.key");
    let key = fs::read(&master).unwrap();
    fs::write(&master, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    assert!(site.cli(&["restore", "backup.db"]).error(2).contains("master key"));
    fs::write(&master, key).unwrap();
    refused(&mut serve(&site.data()));

    site.cli(&["restore", "backup.db"]).ok();
    assert!(file.exists() && !ready.exists());
    let server = site.start();
    assert!(server.cli(["session", "list", "--json"]).ok().contains("alice"));
}

#[test]
fn the_old_database_is_moved_aside_under_an_unused_name() {
    let site = Site::new();
    let server = site.start();
    create(&server, &["alice"]);
    site.back_up();
    server.stop();
    // The restores run within one second, so the names of the old databases would be the same
    // without a counter.
    for _ in 0..3 {
        site.cli(&["restore", "backup.db"]).ok();
    }
    let aside = |name: &&String| name.contains(".before-restore-");
    assert_eq!(site.names_in_data().iter().filter(aside).count(), 3, "{:?}", site.names_in_data());
}

#[test]
fn links_to_a_backup_are_resolved_and_the_mode_of_the_file_is_checked() {
    let site = Site::new();
    let server = site.start();
    create(&server, &["alice"]);
    site.back_up();
    server.stop();
    let backup = site.path("backup.db");
    fs::create_dir(site.path("links")).unwrap();
    for (name, is_soft) in [("links/soft.db", true), ("links/hard.db", false)] {
        match is_soft {
            true => symlink(&backup, site.path(name)).unwrap(),
            false => fs::hard_link(&backup, site.path(name)).unwrap(),
        }
        site.cli(&["restore", name]).ok();
    }
    // The write-ahead log is looked for beside the file itself, not beside the link.
    fs::write(site.path("backup.db-wal"), [1; 64]).unwrap();
    assert!(
        site.cli(&["restore", "links/soft.db"]).error(2).contains("backup.db has a log beside it")
    );
    fs::remove_file(site.path("backup.db-wal")).unwrap();
    // A hard link to the database is recognised as the database.
    fs::hard_link(site.database(), site.path("links/database.db")).unwrap();
    assert!(
        site.cli(&["restore", "links/database.db"]).error(2).contains("is the database itself")
    );
    fs::remove_file(site.path("links/database.db")).unwrap();

    fs::set_permissions(&backup, Permissions::from_mode(0o660)).unwrap();
    let says = "backup.db has mode 0660, so others can change it: run `chmod 600";
    assert!(site.cli(&["restore", "backup.db"]).error(2).contains(says));
    fs::set_permissions(&backup, Permissions::from_mode(0o644)).unwrap();
    let restored = site.cli(&["restore", "backup.db"]);
    let says = "backup.db has mode 0644, so others can read it";
    assert!(restored.code == Some(0) && restored.stderr.contains(says), "{restored:?}");
}

#[test]
fn a_backup_that_was_copied_over_the_database_by_hand_is_reported() {
    let site = Site::new();
    let server = site.start();
    create(&server, &["alice"]);
    fs::write(site.path("backup.db.partial"), "of another backup").unwrap();
    assert!(
        site.cli(&["backup", "backup.db"])
            .error(2)
            .contains("backup.db.partial exists: another backup")
    );
    fs::remove_file(site.path("backup.db.partial")).unwrap();
    site.back_up();
    assert!(!site.path("backup.db.partial").exists());
    server.stop();
    // Without the lock file, the service has no record of the database that was used before.
    fs::remove_file(site.data().join("countersign.db.lock")).unwrap();
    fs::copy(site.path("backup.db"), site.database()).unwrap();
    let is_reported = |server: &mut Server| {
        server.await_serving();
        server
            .log()
            .iter()
            .any(|line| line.contains("is a copy that was made by `countersign backup`"))
    };
    assert!(is_reported(&mut Server::spawn(&mut serve(&site.data()))));
    site.cli(&["restore", "backup.db"]).ok();
    assert!(!is_reported(&mut Server::spawn(&mut serve(&site.data()))));
}

/// The steps are those that docs/operations.md describes.
#[test]
fn a_restore_can_be_undone() {
    let site = Site::new();
    let server = site.start();
    create(&server, &["alice"]);
    site.back_up();
    let mut server = server;
    let later = create(&server, &["bob"]);
    server.kill();
    site.cli(&["restore", "backup.db"]).ok();
    let aside = |name: &String| {
        name.contains(".before-restore-") && !name.ends_with("-wal") && !name.ends_with("-shm")
    };
    let aside = site.data().join(site.names_in_data().into_iter().find(aside).unwrap());
    let error = site.cli(&["restore", aside.to_str().unwrap()]);
    assert!(error.error(2).contains("has a log beside it"));
    let url = format!("sqlite://{}", aside.display());
    let mut backup = countersign();
    backup.args(["backup", "before.db", "--database-url", &url, "--data-dir"]).arg(site.data());
    run(backup.current_dir(site.folder.path()).env("COUNTERSIGN_LOG__LEVEL", "warn")).ok();
    site.cli(&["restore", "before.db", "--accept-older-tokens"]).ok();
    let server = site.start();
    assert!(is_active(&server, &later.access));
    assert!(can_refresh(&server, &later));
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
