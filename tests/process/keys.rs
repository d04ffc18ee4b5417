//! Tests of the command line for keys: importing a key, changing the master key, and keys that are
//! refused.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use countersign_test_support::process::{Run, Server, countersign, run, serve};
use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query, sql_types::BigInt,
};
use serde_json::Value;
use tempfile::TempDir;

const P256: &str = include_str!("../../src/keys/test_keys/p256_sec1.pem");
const RSA: &str = include_str!("../../src/keys/test_keys/rsa2048_pkcs1.pem");
const EXPONENT_3: &str = include_str!("../../src/keys/test_keys/rsa2048_e3.pem");
const WEAK: &str = include_str!("../../src/keys/test_keys/rsa1024.pem");

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// Returns the keys in the audit records of an action that a subcommand logged. Checks that the
/// table has these records too.
fn audited(run: &Run, data: &Path, action: &str) -> Vec<String> {
    let lines = run.stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let records =
        lines.filter(|line| line["target"] == "countersign::audit" && line["action"] == action);
    let logged: Vec<_> = records.map(|record| record["kid"].as_str().unwrap().to_owned()).collect();
    let mut database =
        SqliteConnection::establish(data.join("countersign.db").to_str().unwrap()).unwrap();
    for kid in &logged {
        let rows =
            format!("audit WHERE action = '{action}' AND caller = 'countersign' AND kid = '{kid}'");
        let count: Count = sql_query(format!("SELECT count(*) AS count FROM {rows}"))
            .get_result(&mut database)
            .unwrap();
        assert_eq!(count.count, 1, "{rows}");
    }
    logged
}

/// The variable for the level of the log.
const LEVEL: &str = "COUNTERSIGN_LOG__LEVEL";

/// Writes a file that only its owner may read, and returns its path.
fn private(path: &Path, text: &str) -> PathBuf {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    path.to_owned()
}

/// Writes a master key to a file, and returns its path.
fn master(folder: &Path, name: &str, byte: u8) -> PathBuf {
    use base64::{Engine, engine::general_purpose::STANDARD};
    private(&folder.join(name), &STANDARD.encode([byte; 32]))
}

/// Returns a command `countersign key` that works on a database.
fn key(data: &Path, args: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = countersign();
    command
        .arg("key")
        .args(args)
        .arg("--data-dir")
        .arg(data)
        .env(LEVEL, "warn")
        .envs(settings.iter().copied());
    command
}

fn create(server: &Server) -> Value {
    server.cli(["session", "create", "alice", "--json"]).json()
}

fn access(created: &Value) -> &str {
    created["tokens"]["access_token"].as_str().unwrap()
}

fn is_active(server: &Server, created: &Value) -> bool {
    server.cli(["token", "validate", access(created)]).code == Some(0)
}

/// Returns a command that starts the service with these settings.
fn with<'a>(data: &Path, settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Command {
    let mut command = serve(data);
    command.envs(settings);
    command
}

/// A data directory and two master keys in files.
struct Masters {
    folder: TempDir,
    data: PathBuf,
    files: [String; 2],
}

impl Masters {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = [("a", 1), ("b", 2)]
            .map(|(name, byte)| master(folder.path(), name, byte).to_str().unwrap().to_owned());
        Self { data: folder.path().join("data"), files, folder }
    }

    /// Returns the settings for one master key, with the other as the additional one if
    /// `has_previous`.
    fn settings(&self, current: usize, has_previous: bool) -> Vec<(&str, &str)> {
        let mut settings = vec![("COUNTERSIGN_KEYS__MASTER_KEY_FILE", &*self.files[current])];
        if has_previous {
            settings
                .push(("COUNTERSIGN_KEYS__ADDITIONAL_MASTER_KEY_FILE", &*self.files[1 - current]));
        }
        settings
    }
}

#[test]
fn keys_are_resealed_under_another_master_key() {
    let masters = Masters::new();
    let server = Server::launch(&mut with(&masters.data, masters.settings(0, false)));
    let created = create(&server);
    server.stop();

    let refused = run(&mut key(&masters.data, &["reseal"], &masters.settings(1, false)));
    assert!(refused.error(2).contains("cannot be opened with this master key"), "{refused:?}");
    let server = Server::launch(&mut with(&masters.data, masters.settings(1, true)));
    assert!(is_active(&server, &created), "both master keys are known");
    let refused = run(&mut key(&masters.data, &["reseal"], &masters.settings(1, true)));
    assert!(refused.error(2).contains("in use by another process"), "{refused:?}");
    server.stop();
    let resealed = run(&mut key(&masters.data, &["reseal"], &masters.settings(1, true)));
    assert_eq!(audited(&resealed, &masters.data, "key_resealed").len(), 4);
    let resealed = resealed.ok();
    assert_eq!(resealed, "encrypted 4 keys anew; all keys are under the present master key\n");
    let again =
        run(&mut key(&masters.data, &["reseal", "--json"], &masters.settings(1, true))).json();
    assert_eq!(again["resealed"], 0);

    let server = Server::launch(&mut with(&masters.data, masters.settings(1, false)));
    assert!(is_active(&server, &created));
    server.stop();
    let refused = run(&mut with(&masters.data, masters.settings(0, false)));
    assert!(refused.error(2).contains("cannot be opened with this master key"), "{refused:?}");
    drop(masters.folder);
}

#[test]
fn a_reseal_that_is_killed_at_any_instant_loses_no_key() {
    let masters = Masters::new();
    let server = Server::launch(&mut with(&masters.data, masters.settings(0, false)));
    let created = create(&server);
    server.stop();
    let mut current = 0;
    for round in 0..12 {
        current = 1 - current;
        let mut child =
            key(&masters.data, &["reseal"], &masters.settings(current, true)).spawn().unwrap();
        sleep(Duration::from_millis(3 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let server = Server::launch(&mut with(&masters.data, masters.settings(current, true)));
        assert!(is_active(&server, &created), "round {round}");
        server.stop();
        run(&mut key(&masters.data, &["reseal"], &masters.settings(current, true))).ok();
        let server = Server::launch(&mut with(&masters.data, masters.settings(current, false)));
        assert!(is_active(&server, &created), "round {round}");
        server.stop();
    }
}

#[test]
fn an_imported_key_signs_after_the_next_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let es256 = [("COUNTERSIGN_KEYS__ALGORITHM", "ES256"), (LEVEL, "trace")];
    let mut server = Server::launch(&mut with(&data, es256));
    let before = create(&server);
    let mut seen = server.log().join("\n");
    server.stop();

    let file = private(&folder.path().join("own.pem"), P256);
    let path = file.to_str().unwrap();
    let imported = run(&mut key(&data, &["import", path, "--json"], &es256));
    seen += &format!("{imported:?}");
    let audited = audited(&imported, &data, "key_imported");
    // At this log level standard error has log lines, so only standard output is parsed.
    let imported: Value = serde_json::from_str(&imported.stdout).unwrap();
    assert_eq!(imported["state"], "KEY_STATE_PENDING", "as key list has it");
    let kid = imported["kid"].as_str().unwrap().to_owned();
    assert_eq!(audited, [kid.as_str()]);
    let again = run(&mut key(&data, &["import", path], &es256[..1]));
    assert!(again.error(2).contains(&format!("key {kid} is there already, pending")), "{again:?}");

    let mut server = Server::launch(&mut with(&data, es256));
    let early = server.cli(["key", "rotate"]);
    assert!(early.error(1).contains("KEY_TOO_NEW"), "{early:?}");
    let rotated = server.cli(["key", "rotate", "--force"]).ok();
    assert_eq!(rotated, format!("{kid} (ES256) makes all tokens now\n"));
    let after = create(&server);
    let header = server.cli(["token", "decode", access(&after), "--json"]).json();
    assert_eq!(header["header"]["kid"].as_str(), Some(&*kid), "{header}");
    assert!(is_active(&server, &before) && is_active(&server, &after));

    let table = server.cli(["key", "list"]).ok();
    let row = |kid: &str| {
        table
            .lines()
            .find(|line| line.starts_with(kid))
            .unwrap_or_else(|| panic!("{table}"))
            .to_owned()
    };
    assert!(row(&kid).contains(" access_token   ES256      active "), "{table}");
    let revoked = server.cli(["key", "revoke", &kid]).ok();
    assert!(revoked.starts_with(&format!("revoked {kid}, effective since 20")), "{revoked}");
    assert!(is_active(&server, &before) && !is_active(&server, &after));
    let unknown = server.cli(["key", "revoke", "nobody"]);
    assert!(unknown.error(1).contains("KEY_NOT_FOUND"), "{unknown:?}");
    for subcommand in [&["key", "list"][..], &["key", "list", "--json"], &["config", "print"]] {
        seen += &format!("{:?}", server.cli(subcommand.iter().copied()));
    }
    seen += &server.log().join("\n");
    server.stop();

    // No line of the private key may appear in any output.
    assert!(seen.contains("serving"), "the log is not empty");
    for line in P256.lines().filter(|line| !line.starts_with("-----")) {
        assert!(!seen.contains(&line[..line.len().min(24)]), "{line}");
    }
}

#[track_caller]
fn refused(run: &Run, says: &[&str]) {
    let line = run.error(2);
    for part in says {
        assert!(line.contains(part), "{part:?} is missing in: {line}");
    }
}

#[test]
fn keys_that_are_weak_damaged_or_readable_by_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let pem = private(&folder.path().join("own.pem"), RSA);
    let path = pem.to_str().unwrap().to_owned();
    let import = |settings: &[(&str, &str)]| run(&mut key(&data, &["import", &path], settings));
    refused(
        &import(&[("COUNTERSIGN_KEYS__ALGORITHM", "RS256")]),
        &["does not exist", "--data-dir"],
    );
    Server::start(&data).stop();

    refused(&import(&[]), &[&path, "RS256", "keys.algorithm is EdDSA"]);
    fs::set_permissions(&pem, Permissions::from_mode(0o644)).unwrap();
    refused(&import(&[]), &[&path, "mode 0644", "chmod 600"]);
    for (content, says) in [
        (WEAK, "RSA key of 1024 bits"),
        (EXPONENT_3, "public exponent 3, which must be odd, at least 65537"),
        ("hello", "no private key in PEM"),
        ("", "no private key in PEM"),
        (&RSA[..RSA.len() / 2], "no private key in PEM"),
    ] {
        private(&pem, content);
        refused(&import(&[]), &[&path, says]);
    }
    fs::remove_file(&pem).unwrap();
    refused(&import(&[]), &[&path, "No such file"]);
}

#[test]
fn the_master_key_comes_from_exactly_one_source() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let folder = tempfile::tempdir().unwrap();
    let (data, text) = (folder.path().join("data"), STANDARD.encode([7; 32]));
    let variable = ("COUNTERSIGN_MASTER_KEY", &*text);
    let server = Server::launch(&mut with(&data, [variable]));
    let created = create(&server);
    server.stop();
    assert!(!data.join("master.key").exists(), "no master key file is created");
    refused(&run(&mut serve(&data)), &["master.key", "does not exist"]);

    // systemd gives the files of credentials a mode that lets their group read them.
    let credentials = folder.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    let credential = private(&credentials.join("countersign.master_key"), &text);
    fs::set_permissions(&credential, Permissions::from_mode(0o440)).unwrap();
    let server = Server::launch(&mut with(
        &data,
        [("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())],
    ));
    assert!(is_active(&server, &created));
    server.stop();

    let file = ("COUNTERSIGN_KEYS__MASTER_KEY_FILE", "elsewhere");
    refused(
        &run(&mut with(&data, [variable, file])),
        &["keys.master_key_file", "COUNTERSIGN_MASTER_KEY"],
    );
    refused(
        &run(&mut with(&data, [("COUNTERSIGN_MASTER_KEY", "hello")])),
        &["COUNTERSIGN_MASTER_KEY", "32 bytes"],
    );
    let previous = ("COUNTERSIGN_KEYS__ADDITIONAL_MASTER_KEY_FILE", "nowhere");
    refused(&run(&mut with(&data, [variable, previous])), &["nowhere", "does not exist"]);
    for (name, value, says) in [
        ("ALGORITHM", "HS256", "EdDSA, ES256, RS256"),
        ("ALGORITHM", "none", "EdDSA, ES256, RS256"),
        ("PUBLISH_AHEAD", "4m59s", "at least 5m"),
        ("JWKS_MAX_AGE", "0s", "at least 1s"),
        ("ROTATION", "1m", "at least"),
    ] {
        let name = format!("COUNTERSIGN_KEYS__{name}");
        refused(&run(&mut with(&data, [variable, (&name, value)])), &[says]);
    }
}
