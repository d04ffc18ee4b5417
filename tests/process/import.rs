//! Tests of `countersign session import` and `session export`, also if one of the processes is
//! killed in the middle.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use countersign::{
    clock::{Clock, SystemClock},
    domain::legacy_token::LegacyTokenHash,
};
use countersign_test_support::process::{GRACE, Server, countersign, run, run_with_input};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The number of good lines of a long import, which takes many batches.
const MANY: usize = 6000;

/// Returns a line of a file to be imported.
fn line(n: usize) -> String {
    let created_at = SystemClock.now().minus(Duration::from_secs(60)).micros();
    let created_at = jiff::Timestamp::from_microsecond(created_at).unwrap();
    let hash = LegacyTokenHash::of(&format!("old-{n}"));
    // The JSON form of bytes is base64.
    let hash = serde_json::to_value(base64(hash.bytes())).unwrap();
    json!({
        "legacy_id": format!("s{n}"),
        "tenant": "acme",
        "subject": format!("subject {}", n % 100),
        "created_at": created_at.to_string(),
        "legacy_refresh_token_hash": hash,
    })
    .to_string()
}

fn base64(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};

    STANDARD.encode(bytes)
}

/// A server, and a file with many sessions and a bad line after each 1000 of them.
struct Setup {
    server: Server,
    folder: TempDir,
    file: PathBuf,
    bad: Vec<usize>,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut text, mut bad, mut number) = (String::new(), vec![], 0);
        for n in 0..MANY {
            writeln!(text, "{}", line(n)).unwrap();
            number += 1;
            if n % 1000 == 999 {
                writeln!(text, "{{\"legacy_id\": \"bad\", \"canary\": 1}}").unwrap();
                number += 1;
                bad.push(number);
            }
        }
        let file = folder.path().join("sessions.ndjson");
        fs::write(&file, text).unwrap();
        let server = Server::launch(&mut accepting(&folder.path().join("data"), "127.0.0.1:0"));
        Self { server, folder, file, bad }
    }

    fn command(&self) -> Command {
        let mut command = self.server.command(["session", "import", "--json"]);
        command.arg(&self.file);
        command
    }

    fn progress(&self) -> PathBuf {
        self.folder.path().join("sessions.ndjson.progress")
    }

    /// Starts an import, and waits until a part of the file has been imported.
    fn begin(&self) -> Killed {
        let mut command = self.command();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while !self.progress().exists() {
            std::thread::yield_now();
        }
        Killed(Some(child))
    }

    /// Checks that each session is there once, and that each bad line was reported once.
    fn check(&self, totals: &Value) {
        let counted = self.server.cli(["session", "count", "--tenant", "acme", "--json"]).json();
        assert_eq!(counted["sessions"], MANY);
        let sum =
            totals["imported"].as_u64().unwrap() + totals["already_imported"].as_u64().unwrap();
        assert_eq!(sum, u64::try_from(MANY).unwrap(), "{totals}");
        let bad =
            fs::read_to_string(self.folder.path().join("sessions.ndjson.bad.ndjson")).unwrap();
        assert!(!bad.contains("canary"));
        let bad: Vec<Value> = bad.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(bad.iter().map(|bad| bad["line"].clone()).collect::<Vec<_>>(), self.bad);
        assert_eq!(totals["bad"], self.bad.len());
        assert!(!self.progress().exists(), "it is removed at the end");
    }
}

/// A child process that is killed when it is dropped.
struct Killed(Option<Child>);

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Returns a command that starts a service which accepts refresh tokens of another system.
fn accepting(data_dir: &Path, address: &str) -> Command {
    let mut command = countersign();
    command.args(["serve", "--listen", address, "--data-dir"]).arg(data_dir);
    command.env(GRACE, "0s").env("COUNTERSIGN_TOKENS__LEGACY_REFRESH_TOKENS", "true");
    command
}

#[test]
fn an_import_that_was_killed_goes_on_where_it_stopped() {
    let setup = Setup::new();
    drop(setup.begin());
    let before = fs::read_to_string(setup.progress()).unwrap();
    let before: Value = serde_json::from_str(&before).unwrap();
    assert!(before["lines"].as_u64().unwrap() < u64::try_from(MANY).unwrap(), "{before}");

    let ended = run(&mut setup.command());
    assert_eq!(ended.code, Some(1), "there are bad lines: {ended:?}");
    let totals: Value = serde_json::from_str(&ended.stdout).unwrap();
    setup.check(&totals["totals"]);

    // A client of the other system goes on with the refresh token that it has.
    let exchanged = setup.server.cli(["token", "refresh", "old-4242", "--json"]).json();
    let session = &exchanged["session"];
    assert_eq!([&session["subject"], &session["tenant"]], ["subject 42", "acme"]);
    let next = exchanged["tokens"]["refresh_token"].as_str().unwrap().to_owned();
    setup.server.cli(["token", "refresh", &next]).ok();
}

#[test]
fn an_import_goes_on_after_its_server_was_killed_and_started_again() {
    let mut setup = Setup::new();
    let mut importing = setup.begin();
    let address = setup.server.address().to_string();
    setup.server.kill();
    setup.server = Server::launch(&mut accepting(&setup.folder.path().join("data"), &address));
    let output = importing.0.take().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let totals: Value = serde_json::from_slice(&output.stdout).unwrap();
    setup.check(&totals["totals"]);
}

#[test]
fn a_file_that_changed_during_its_import_is_refused_until_the_checkpoint_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"));
    let file = folder.path().join("s.ndjson");
    fs::write(&file, line(1)).unwrap();
    let path = file.to_str().unwrap();
    let progress = folder.path().join("s.ndjson.progress");
    fs::write(
        &progress,
        json!({
            "file_bytes": 1, "file_start": "", "lines": 1, "offset": 1, "bad_bytes": 0,
            "totals": {
                "imported": 1, "already_imported": 0, "expired": 0, "revoked": 0, "valid": 0,
                "bad": 0,
            },
        })
        .to_string(),
    )
    .unwrap();
    let refused = server.cli(["session", "import", path]);
    assert!(refused.error(2).contains("has changed since"), "{refused:?}");
    fs::remove_file(&progress).unwrap();
    let shown = server.cli(["session", "import", path]).ok();
    assert!(shown.starts_with("imported: 1, already imported: 0"), "{shown}");
    let shown = server.cli(["session", "import", path]).ok();
    assert!(shown.starts_with("imported: 0, already imported: 1"), "{shown}");
}

#[test]
fn a_dry_run_and_standard_input_report_like_an_import() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"));
    let file = folder.path().join("s.ndjson");
    fs::write(&file, format!("{}\n{}\nnonsense\n", line(1), line(2))).unwrap();
    let dry = server.cli(["session", "import", file.to_str().unwrap(), "--dry-run"]);
    assert!(dry.stdout.starts_with("valid: 2, expired: 0, bad lines: 1"), "{dry:?}");
    assert_eq!(dry.code, Some(1));
    let bad = fs::read_to_string(folder.path().join("s.ndjson.dry-run.bad.ndjson")).unwrap();
    let bad: Value = serde_json::from_str(&bad).unwrap();
    assert_eq!([&bad["line"], &bad["field"]], [&json!(3), &json!("")]);
    assert!(!folder.path().join("s.ndjson.progress").exists());
    assert_eq!(server.cli(["session", "count", "--tenant", "acme"]).ok(), "0\n");

    let text = format!("{}\n{}", line(1), line(2));
    let imported = run_with_input(&mut server.command(["session", "import", "-"]), &text).ok();
    assert!(imported.starts_with("imported: 2, already imported: 0"), "{imported}");
    let bad = run_with_input(&mut server.command(["session", "import", "-"]), "nonsense");
    assert_eq!(bad.code, Some(1));
    assert!(bad.stderr.contains("\"line\":1"), "{bad:?}");
    let missing = server.cli(["session", "import", "/no/such/file"]);
    assert!(missing.error(1).starts_with("/no/such/file: "), "{missing:?}");
}

#[test]
fn an_export_goes_on_after_its_last_complete_line_and_can_be_imported() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"));
    let create = |n: usize| {
        let subject = format!("subject {n}");
        let create = ["session", "create", &subject, "--tenant", "acme", "--scope", "read"];
        let create = create.into_iter().chain(["--claim", "level=3", "--metadata", "a=1"]);
        let created = server.cli(create.chain(["--json"])).json();
        created["session"]["session_id"].as_str().unwrap().to_owned()
    };
    let mut ids: BTreeSet<String> = (0..5).map(create).collect();
    server.cli(["session", "create", "other"]).ok();
    let file = folder.path().join("export.ndjson");
    let export = ["session", "export", file.to_str().unwrap(), "--tenant", "acme"];
    assert!(server.cli(export).ok().starts_with("exported 5 sessions"));
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let id = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["legacy_id"].as_str().unwrap().to_owned()
    };
    let exported: Vec<String> = lines.iter().map(|line| id(line)).collect();
    assert_eq!(exported, ids.iter().cloned().collect::<Vec<_>>(), "the oldest first");

    // The process was killed while it wrote the third line.
    fs::write(&file, format!("{}{}{}", lines[0], lines[1], &lines[2][..20])).unwrap();
    ids.insert(create(5));
    assert!(server.cli(export).ok().starts_with("exported 4 sessions"));
    let again = fs::read_to_string(&file).unwrap();
    assert!(again.starts_with(&text));
    assert_eq!(again.lines().map(id).collect::<BTreeSet<_>>(), ids);
    let foreign = server.cli(["session", "export", file.to_str().unwrap()]);
    assert!(foreign.error(2).contains("name another file"), "{foreign:?}");

    let other = Server::start(&folder.path().join("other"));
    let imported = other.cli(["session", "import", file.to_str().unwrap()]).ok();
    assert!(imported.starts_with("imported: 6,"), "{imported}");
    let listed = |server: &Server| {
        let list = server.cli(["session", "list", "--tenant", "acme", "--oldest-first", "--json"]);
        let mut sessions = list.json()["sessions"].take();
        for session in sessions.as_array_mut().unwrap() {
            let session = session.as_object_mut().unwrap();
            session.retain(|name, _| !["session_id", "etag"].contains(&name.as_str()));
        }
        sessions
    };
    let (before, mut after) = (listed(&server), listed(&other));
    // Sessions of one millisecond may be in another order.
    let order = |sessions: &Value| {
        let mut sessions = sessions.as_array().unwrap().clone();
        sessions.sort_by_key(|session| session["subject"].to_string());
        sessions
    };
    assert_eq!(order(&before), order(&after.take()));
}
