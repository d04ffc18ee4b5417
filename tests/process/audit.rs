//! Checks that every subcommand that changes something leaves a record, in the log and in the
//! table.
//!
//! The subcommands are read from the help of the binary. A subcommand that this file does not know
//! fails the test.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use countersign_test_support::process::{Server, countersign, run, serve};
use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection,
    sql_query, sql_types::BigInt,
};
use serde_json::Value;
use tempfile::TempDir;

/// The records that a subcommand leaves.
enum Effect {
    /// The subcommand changes neither sessions nor keys of a database.
    Nothing,
    /// The subcommand calls this method of a running service, which tests/service/audit_walk.rs
    /// tests.
    Calls(&'static str),
    /// The subcommand leaves records of these actions.
    Records(&'static [&'static str]),
}

use Effect::{Calls, Nothing, Records};

/// Returns the records that a subcommand leaves, or `None` for an unknown subcommand.
fn effect(subcommand: &str) -> Option<Effect> {
    Some(match subcommand {
        // A new database gets its first keys.
        "serve" => Records(&["key_rotated", "key_published"]),
        "sweep" => Records(&["session_expired"]),
        "key import" => Records(&["key_imported", "key_dropped"]),
        "key reseal" => Records(&["key_resealed"]),
        "restore" => Records(&["database_restored", "key_revoked", "key_rotated", "key_published"]),
        "session create" => Calls("CreateSession"),
        "session revoke" => Calls("Revoke"),
        "session list" | "session export" => Calls("ListSessions"),
        "session import" => Calls("ImportSessions"),
        "session count" => Calls("CountSessions"),
        "audit list" => Calls("ListAudit"),
        "session show" => Calls("GetSession"),
        "session reauthenticate" => Calls("Reauthenticate"),
        "session update" => Calls("UpdateSession"),
        "token refresh" => Calls("Refresh"),
        "token validate" => Calls("Validate"),
        "key list" => Calls("ListKeys"),
        "key rotate" => Calls("RotateKey"),
        "key revoke" => Calls("RevokeKey"),
        "migrate" | "backup" | "database check" => Nothing,
        "token decode" | "caller new" | "replica list" | "health" | "doctor" | "top"
        | "config check" | "config print" | "completions" => Nothing,
        _ => return None,
    })
}

/// Returns the full names of all subcommands, such as `key import`.
fn subcommands() -> Vec<String> {
    let mut subcommands = vec![];
    let mut groups = vec![vec![]];
    while let Some(group) = groups.pop() {
        let help = run(countersign().args(&group).arg("--help")).ok();
        let Some((_, commands)) = help.split_once("\nCommands:\n") else {
            subcommands.push(group.join(" "));
            continue;
        };
        let commands = commands.lines().take_while(|line| !line.trim().is_empty());
        // The continuation of a description is indented further.
        let names = commands
            .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
        for name in
            names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help")
        {
            groups.push([group.clone(), vec![name.to_owned()]].concat());
        }
    }
    subcommands
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

fn database(data: &Path) -> SqliteConnection {
    SqliteConnection::establish(data.join("countersign.db").to_str().unwrap()).unwrap()
}

/// Writes a file that only its owner may read, and returns its path.
fn private(path: &Path, text: &str) -> String {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A folder with a database, for the subcommands that change one.
struct Workspace {
    folder: TempDir,
    data: std::path::PathBuf,
}

const P256: &str = include_str!("../../src/keys/test_keys/p256_sec1.pem");

impl Workspace {
    /// Runs a subcommand so that it changes something, and returns what it writes to standard
    /// error.
    fn perform(&self, subcommand: &str) -> String {
        let on_data = |args: &[&str]| -> Command {
            let mut command = countersign();
            command.args(args).arg("--data-dir").arg(&self.data);
            command.env("COUNTERSIGN_KEYS__ALGORITHM", "ES256");
            command
        };
        match subcommand {
            "serve" => {
                let server =
                    Server::launch(serve(&self.data).env("COUNTERSIGN_KEYS__ALGORITHM", "ES256"));
                server.cli(["session", "create", "alice"]).ok();
                server.stop().join("\n")
            }
            "sweep" => {
                let expired =
                    "UPDATE sessions SET idle_expires_at = idle_expires_at - 30 * 86400 * 1000000";
                database(&self.data).batch_execute(expired).unwrap();
                run(&mut on_data(&["sweep"])).stderr
            }
            "restore" => run(&mut on_data(&["restore", "--end-all"])).stderr,
            "key import" => {
                let file = private(&self.folder.path().join("own.pem"), P256);
                run(&mut on_data(&["key", "import", &file])).stderr
            }
            "key reseal" => {
                let old = self.data.join("master.key");
                let new = private(
                    &self.folder.path().join("new"),
                    "Y291bnRlcnNpZ24tdGVzdC1tYXN0ZXIta2V5LTMyYiE=\n",
                );
                let mut command = on_data(&["key", "reseal"]);
                command.env("COUNTERSIGN_KEYS__MASTER_KEY_FILE", new);
                run(command.env("COUNTERSIGN_KEYS__ADDITIONAL_MASTER_KEY_FILE", old)).stderr
            }
            other => panic!("{other} should leave records: add code here that makes it do so"),
        }
    }
}

#[test]
fn every_command_that_changes_something_leaves_an_audit_record() {
    let subcommands = subcommands();
    assert!(
        subcommands.len() >= 15 && subcommands.contains(&"key import".to_owned()),
        "too few subcommands are found: {subcommands:?}"
    );
    let unknown: Vec<_> =
        subcommands.iter().filter(|subcommand| effect(subcommand).is_none()).collect();
    assert!(unknown.is_empty(), "say in effect() which records they leave: {unknown:?}");
    let protocol = String::from_utf8_lossy(countersign::proto::DESCRIPTORS);
    let folder = tempfile::tempdir().unwrap();
    let workspace = Workspace { data: folder.path().join("data"), folder };
    // `serve` is first, because it creates the database and its keys for the others, and `key
    // reseal` is last.
    let mut changing: Vec<&str> = vec![];
    for subcommand in &subcommands {
        match effect(subcommand) {
            Some(Calls(function)) => {
                assert!(protocol.contains(function), "{subcommand}: {function}")
            }
            Some(Records(_)) => changing.push(subcommand),
            Some(Nothing) | None => {}
        }
    }
    changing.sort_by_key(|subcommand| (*subcommand != "serve", *subcommand == "key reseal"));
    for subcommand in changing {
        let Some(Records(actions)) = effect(subcommand) else { continue };
        let log = workspace.perform(subcommand);
        let lines: Vec<Value> =
            log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        for action in actions {
            let is_meant =
                |line: &&Value| line["target"] == "countersign::audit" && line["action"] == *action;
            let line = lines
                .iter()
                .find(is_meant)
                .unwrap_or_else(|| panic!("{subcommand}: no line of {action} in {log}"));
            let id = line["id"].as_str().unwrap().replace('-', "");
            let rows = format!("audit WHERE action = '{action}' AND lower(hex(id)) = '{id}'");
            let count: Count = sql_query(format!("SELECT count(*) AS count FROM {rows}"))
                .get_result(&mut database(&workspace.data))
                .unwrap();
            assert_eq!(count.count, 1, "{subcommand}: {rows}");
        }
    }
}
