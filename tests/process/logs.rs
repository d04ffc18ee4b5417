//! Tests of the log. It is JSON if standard error is not a terminal, its first lines tell the
//! operator the address and the state of the service, and it never contains a secret.

use std::fs;

use countersign_test_support::process::{Server, run_with_input, serve};
use serde_json::Value;

#[test]
fn the_first_lines_say_where_the_service_listens_and_what_it_has_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let session =
        server.cli(["session", "create", "alice", "--json"]).json()["session"]["session_id"]
            .to_string();
    server.cli(["session", "revoke", session.trim_matches('"')]).ok();
    server.stop();

    let server =
        Server::launch(serve(folder.path()).env("COUNTERSIGN_ISSUER", "https://auth.example"));
    let lines: Vec<Value> =
        server.seen().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |message: &str| {
        lines.iter().find(|line| line["message"] == message).unwrap_or(&Value::Null)
    };
    assert_eq!(line("starting")["listen"], server.address().to_string());
    assert_eq!(line("starting")["http"], server.http().to_string());
    let database = folder.path().join("countersign.db");
    assert_eq!(line("starting")["database"], format!("sqlite://{}", database.display()));
    assert_eq!(line("starting")["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(line("starting")["issuer"], "https://auth.example");
    assert_eq!(line("blacklist loaded")["blacklist_entries"], 1);
    assert!(lines.iter().all(|line| line["level"] == "INFO"), "there are warnings: {lines:?}");
}

/// Makes good and bad calls of each method that handles secrets. Returns the secrets.
fn use_all(server: &Server) -> Vec<String> {
    let mut secrets = vec![];
    let mut create = || {
        let args =
            ["session", "create", "alice", "--claim", "pin=\"claim-that-is-secret\"", "--json"];
        let tokens = server.cli(args).json()["tokens"].take();
        let [access, refresh] =
            ["access_token", "refresh_token"].map(|name| tokens[name].as_str().unwrap().to_owned());
        secrets.extend([access.clone(), refresh.clone()]);
        (access, refresh)
    };
    let (access, refresh) = create();
    let forged = [&access, &refresh].map(|token| format!("{}AAAA", &token[..token.len() - 4]));
    let fails = |code: i32, args: &[&str]| {
        assert_eq!(server.cli(args.iter().copied()).code, Some(code), "{args:?}")
    };
    server.cli(["token", "validate", &access]).ok();
    fails(1, &["token", "validate", &forged[0]]);
    fails(1, &["token", "validate", &refresh]);
    let mut successor = refresh.clone();
    for _ in 0..3 {
        let refreshed = server.cli(["token", "refresh", &successor, "--json"]).json();
        successor = refreshed["tokens"]["refresh_token"].as_str().unwrap().to_owned();
    }
    fails(1, &["token", "refresh", &forged[1]]);
    fails(1, &["token", "refresh", &access]);
    fails(1, &["token", "refresh", &refresh]);
    fails(1, &["session", "revoke", "--token", &forged[0]]);
    fails(1, &["session", "show", &successor]);
    fails(1, &["session", "create", &access, "--policy", &refresh]);
    let (access, refresh) = create();
    run_with_input(&mut server.command(["session", "revoke", "--token", "-"]), &access).ok();
    fails(1, &["token", "refresh", &refresh]);
    secrets.extend(forged);
    secrets.extend([successor, "claim-that-is-secret".to_owned()]);
    secrets
}

#[test]
fn every_line_is_json_and_none_has_a_secret() {
    for level in ["info", "trace"] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::launch(serve(folder.path()).env("COUNTERSIGN_LOG__LEVEL", level));
        let mut secrets = use_all(&server);
        secrets
            .push(fs::read_to_string(folder.path().join("master.key")).unwrap().trim().to_owned());
        let lines = server.stop();
        for line in &lines {
            assert!(
                serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object()),
                "not JSON: {line}"
            );
            // The end of a token must not appear either, because it is the signature or the MAC.
            let leaked = secrets
                .iter()
                .find(|secret| line.contains(&secret[secret.len() - secret.len().min(40)..]));
            assert_eq!(leaked, None, "{line}");
        }
        assert!(
            lines.iter().any(|line| line.contains("used again after its grace")),
            "a reuse is logged"
        );
    }
}
