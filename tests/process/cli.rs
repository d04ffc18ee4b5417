//! Tests of each subcommand against a running server: exit codes, JSON, tables, errors, help.

use std::{collections::BTreeSet, process::Stdio};

use countersign_test_support::process::{Run, Server, countersign, run, run_with_input};
use serde_json::Value;

/// Starts a server, and returns it with its directory, which must live as long as the server.
fn server() -> (Server, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Server::start(folder.path()), folder)
}

/// Creates a session, and returns its identifier, access token and refresh token.
fn create(server: &Server, args: &[&str]) -> [String; 3] {
    let created =
        server.cli(["session", "create", "--json"].into_iter().chain(args.iter().copied())).json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let tokens = &created["tokens"];
    [
        text(&created["session"]["session_id"]),
        text(&tokens["access_token"]),
        text(&tokens["refresh_token"]),
    ]
}

/// Returns the names of the members of an object.
fn names(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Returns the sessions that are live.
fn live<'a>(server: &Server, sessions: &[&'a str]) -> Vec<&'a str> {
    let show =
        |id: &str| server.cli(["session", "show", id, "--json"]).json()["session"]["state"].take();
    sessions.iter().copied().filter(|id| show(id) == "SESSION_STATE_LIVE").collect()
}

/// Splits a line of a table into its columns, which two spaces or more separate.
fn columns(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

#[test]
fn create_prints_the_session_and_its_tokens() {
    let (server, _folder) = server();
    let args = [
        "session",
        "create",
        "alice",
        "--tenant",
        "acme",
        "--client-id",
        "web",
        "--scope",
        "read",
        "--scope",
    ];
    let args = args
        .into_iter()
        .chain(["write", "--label", "phone", "--claim", "level=3", "--acr", "urn:mfa"]);
    let table = server.cli(args.clone()).ok();
    let pairs: Vec<_> = table.lines().map(columns).collect();
    for expected in [
        ["subject", "alice"],
        ["tenant", "acme"],
        ["client", "web"],
        ["scopes", "read write"],
        ["acr", "urn:mfa"],
        ["device", "phone"],
        ["state", "live"],
    ] {
        assert!(pairs.contains(&expected.to_vec()), "{expected:?} is missing in\n{table}");
    }
    assert!(table.contains("access token") && table.contains("refresh token  cs_rt_"), "{table}");

    let created = server.cli(args.chain(["--json"])).json();
    assert_eq!(names(&created), BTreeSet::from(["session", "tokens"]));
    assert_eq!(created["session"]["claims"], serde_json::json!({ "level": 3.0 }));
    for name in
        ["access_token", "access_token_expires_at", "refresh_token", "refresh_token_expires_at"]
    {
        assert!(!created["tokens"][name].as_str().unwrap().is_empty(), "{name}");
    }
    assert_eq!(created["tokens"]["token_type"], "Bearer");
}

#[test]
fn a_repeated_request_id_creates_no_second_session() {
    let (server, _folder) = server();
    let [first, again] = [(); 2].map(|()| create(&server, &["alice", "--request-id", "once"]));
    assert_eq!([&first[0], &first[2]], [&again[0], &again[2]]);
    assert_eq!(
        server.cli(["session", "list", "--json"]).json()["sessions"].as_array().unwrap().len(),
        1
    );
}

#[test]
fn list_shows_the_newest_sessions_first_and_the_option_for_the_next_page() {
    let (server, _folder) = server();
    assert_eq!(server.cli(["session", "list"]).ok(), "no sessions\n");
    let ids = ["phone", "laptop", "tablet"]
        .map(|label| create(&server, &["alice", "--label", label])[0].clone());
    create(&server, &["bob"]);
    server.cli(["session", "revoke", &ids[1], "--reason", "compromised"]).ok();

    let table = server.cli(["session", "list", "--subject", "alice"]).ok();
    let rows: Vec<_> = table.lines().map(columns).collect();
    assert_eq!(rows[0], ["SESSION", "SUBJECT", "STATE", "CREATED", "REFRESHED", "DEVICE"]);
    assert_eq!(rows[1..].iter().map(|row| row[0]).collect::<Vec<_>>(), [&ids[2], &ids[1], &ids[0]]);
    assert_eq!(rows[2][1..3], ["alice", "ended compromised"]);
    assert_eq!([rows[3][2], rows[3][5]], ["live", "phone"]);

    let ended = server.cli(["session", "list", "--state", "ended", "--json"]).json();
    assert_eq!(names(&ended), BTreeSet::from(["sessions", "next_page_token"]));
    assert_eq!(ended["sessions"].as_array().unwrap().len(), 1);

    let first = server.cli(["session", "list", "--subject", "alice", "--page-size", "2"]).ok();
    let token = first
        .lines()
        .last()
        .unwrap()
        .strip_prefix("more: --page-token ")
        .expect("the last line names the token of the next page");
    let args = ["session", "list", "--subject", "alice", "--page-size", "2", "--page-token", token];
    let second = server.cli(args).ok();
    assert!(
        second.contains(&ids[0]) && !second.contains(&ids[1]) && !second.contains("more:"),
        "{second}"
    );
}

#[test]
fn sessions_and_records_of_the_audit_are_found_by_their_properties() {
    let (server, _folder) = server();
    let mobile =
        ["alice", "--client-id", "mobile", "--ip-address", "192.0.2.7", "--device-id", "d 7"];
    let mobile = create(&server, &mobile);
    let web = create(&server, &["alice", "--client-id", "web"]);
    server.cli(["session", "revoke", &web[0], "--reason", "compromised", "--note", "lost"]).ok();
    let list = |args: &[&str]| {
        let all = [&["session", "list", "--json", "--created-from", "1h"], args].concat();
        let found = server.cli(all).json();
        let ids = found["sessions"].as_array().unwrap().iter();
        ids.map(|session| session["session_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(&[]), [web[0].clone(), mobile[0].clone()]);
    assert_eq!(list(&["--oldest-first"]), [mobile[0].clone(), web[0].clone()]);
    assert_eq!(list(&["--client-id", "mobile"]), [mobile[0].clone()]);
    assert_eq!(list(&["--device-network", "192.0.2.0/24"]), [mobile[0].clone()]);
    assert_eq!(list(&["--device-id", "d 7"]), [mobile[0].clone()]);
    assert_eq!(list(&["--end-reason", "compromised"]), [web[0].clone()]);
    assert_eq!(list(&["--created-by", "nobody"]), Vec::<String>::new());
    assert_eq!(server.cli(["session", "count"]).ok(), "2\n");
    assert_eq!(server.cli(["session", "count", "--state", "live"]).ok(), "1\n");
    assert_eq!(server.cli(["session", "count", "--device-id", "d 7"]).ok(), "1\n");
    assert_eq!(server.cli(["session", "count", "--device-id", "d 8"]).ok(), "0\n");
    for (option, value) in [("--created-from", "yesterday"), ("--end-reason", "bored")] {
        let refused = server.cli(["session", "list", option, value]);
        assert!(refused.error(2).contains(option), "{option}");
    }

    // A record is in the table a moment after the call.
    let table = (0..500)
        .map(|_| server.cli(["audit", "list", "--session", &web[0], "--from", "1h"]).ok())
        .find(|table| table.lines().count() == 3)
        .expect("the records are in the table");
    let rows: Vec<_> = table.lines().map(columns).collect();
    assert_eq!(rows[0], ["TIME", "ACTION", "CALLER", "FROM", "CONCERNS", "REASON", "NOTE"]);
    let concerns = format!("alice {}", web[0]);
    assert_eq!(
        rows[1][1..],
        ["session_revoked", "anybody", "127.0.0.1", &concerns, "compromised", "lost"]
    );
    assert_eq!(rows[2][1..5], ["session_created", "anybody", "127.0.0.1", &concerns]);
    let none = server.cli(["audit", "list", "--caller", "nobody"]).ok();
    assert_eq!(none, "no records\n");
}

#[test]
fn show_says_how_a_session_ended_and_why() {
    let (server, _folder) = server();
    let [id, ..] = create(&server, &["alice"]);
    let revoke = ["session", "revoke", &id, "--reason", "administrative", "--note", "ticket 7"];
    assert!(server.cli(revoke).ok().starts_with("revoked 1 session"));
    let table = server.cli(["session", "show", &id]).ok();
    for line in [["state", "ended"], ["end reason", "administrative"], ["end note", "ticket 7"]] {
        assert!(table.lines().any(|row| columns(row) == line), "{line:?} is missing in\n{table}");
    }
    let session = &server.cli(["session", "show", &id, "--json"]).json()["session"];
    assert_eq!(
        [&session["state"], &session["end_reason"]],
        ["SESSION_STATE_ENDED", "END_REASON_ADMINISTRATIVE"]
    );
    let unset: Vec<_> =
        session.as_object().unwrap().iter().filter(|(_, value)| value.is_null()).collect();
    assert_eq!(unset, [], "a field is there with its value, or with its default");
    let documented = [
        "session_id",
        "subject",
        "tenant",
        "client_id",
        "audience",
        "scopes",
        "claims",
        "acr",
        "amr",
        "amr_verified_at",
        "authenticated_at",
        "device",
        "metadata",
        "policy",
        "created_at",
        "created_by",
        "refreshed_at",
        "idle_expires_at",
        "expires_at",
        "state",
        "ended_at",
        "end_reason",
        "end_note",
        "etag",
    ];
    assert_eq!(names(session), BTreeSet::from(documented));
}

#[test]
fn methods_have_times_and_validate_demands_recent_ones_and_shows_metadata() {
    const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";
    let (server, _folder) = server();
    let time = "2026-01-01T00:00:00Z";
    let old = format!("pwd@{time}");
    let [id, access, _] = create(
        &server,
        &["alice", "--amr", &old, "--amr", "otp", "--metadata", "ticket=T-7", "--device-id", "d 7"]
            .into_iter()
            .chain(["--user-agent", AGENT])
            .collect::<Vec<_>>(),
    );
    let table = server.cli(["session", "show", &id]).ok();
    let amr = format!("{old} otp");
    for line in [["amr", &*amr], ["device", "Firefox 128 on Linux"], ["device id", "d 7"]] {
        assert!(table.lines().any(|row| columns(row) == line), "{line:?} is missing in\n{table}");
    }
    let list = server.cli(["session", "list"]).ok();
    assert!(list.contains("Firefox 128 on Linux"), "{list}");

    let validate = |more: &[&str]| {
        server.cli(["token", "validate", &access].into_iter().chain(more.iter().copied()))
    };
    let table = validate(&["--amr", "pwd", "--amr", "otp", "--metadata"]).ok();
    for line in [["amr", &*amr], ["metadata", "{\"ticket\":\"T-7\"}"]] {
        assert!(table.lines().any(|row| columns(row) == line), "{line:?} is missing in\n{table}");
    }
    assert!(!validate(&[]).ok().contains("T-7"));
    let refused = validate(&["--amr", "pwd@5m"]);
    assert_eq!((refused.code, refused.stdout.contains("STEP_UP_REQUIRED")), (Some(1), true));
    let session = &server.cli(["session", "show", &id, "--json"]).json()["session"];
    let recent = format!("hwk@{}", session["created_at"].as_str().unwrap());
    let [_, recent, _] = create(&server, &["bob", "--amr", &recent]);
    server.cli(["token", "validate", &recent, "--amr", "hwk@5m"]).ok();
    for (wrong, problem) in [("hwk@yesterday", "instant"), ("hwk@", "instant")] {
        let wrong = server.cli(["session", "create", "alice", "--amr", wrong]);
        assert_eq!(
            (wrong.code, wrong.stderr.contains(problem)),
            (Some(2), true),
            "{}",
            wrong.stderr
        );
    }
    let wrong = validate(&["--amr", "hwk@soon"]);
    assert_eq!(
        (wrong.code, wrong.stderr.contains("time span")),
        (Some(2), true),
        "{}",
        wrong.stderr
    );
}

#[test]
fn revoke_ends_the_sessions_that_it_names_and_no_others() {
    let (server, _folder) = server();
    let revoke = |args: &[&str]| {
        let revoked = server
            .cli(["session", "revoke", "--json"].into_iter().chain(args.iter().copied()))
            .json();
        let documented = ["revoked_sessions", "effective_at", "revocation_ids"];
        assert_eq!(names(&revoked), BTreeSet::from(documented));
        revoked["revoked_sessions"].as_i64().unwrap()
    };
    let alice = [(); 6].map(|()| create(&server, &["alice"]));
    let [bob, ..] = create(&server, &["bob"]);
    let [of_acme, ..] = create(&server, &["alice", "--tenant", "acme"]);
    let ids: Vec<&str> =
        alice.iter().map(|[id, ..]| id.as_str()).chain([bob.as_str(), of_acme.as_str()]).collect();

    assert_eq!(revoke(&[ids[0]]), 1);
    assert_eq!(revoke(&[ids[0]]), 0, "the session has already ended");
    assert_eq!(live(&server, &ids), ids[1..]);

    let [_, access, refresh] = &alice[1];
    assert_eq!(revoke(&["--token", access, "--token-only"]), 0);
    assert_eq!(live(&server, &ids), ids[1..], "the session lives on");
    assert_eq!(server.cli(["token", "validate", access]).code, Some(1));
    let by_input = run_with_input(
        &mut server.command(["session", "revoke", "--token", "-"]),
        &format!("{refresh}\n"),
    );
    assert!(by_input.ok().starts_with("revoked 1 session"));
    assert_eq!(revoke(&["--token", &alice[2][1]]), 1);
    assert_eq!(live(&server, &ids), ids[3..]);

    assert_eq!(revoke(&["--subject", "alice", "--except", ids[4]]), 2);
    assert_eq!(live(&server, &ids), [ids[4], ids[6], ids[7]]);

    assert_eq!(revoke(&["--all-of-tenant", "acme"]), 1);
    assert_eq!(server.cli(["session", "revoke", "--all-of-tenant", ""]).code, Some(0));
    for [_, access, _] in &alice {
        assert_eq!(server.cli(["token", "validate", access]).code, Some(1));
    }
}

/// The test needs no server, because the command checks the claim before it sends anything.
#[test]
fn a_claim_with_an_integer_of_2_to_the_53rd_or_more_is_refused() {
    for claim in [
        "user_id=9007199254740993",
        "user_id=-9007199254740992",
        "user_id=1e16",
        "user_id=[1,{\"a\":9007199254740993}]",
    ] {
        let refused = run(countersign().args(["session", "create", "bob", "--claim", claim]));
        assert_eq!(refused.code, Some(2), "{claim}");
        for words in ["--claim", "2^53", "string", "user_id"] {
            assert!(refused.stderr.contains(words), "{claim}: {}", refused.stderr);
        }
    }
}

#[test]
fn revoke_needs_exactly_one_target() {
    for args in [
        &[][..],
        &["x", "--subject", "alice"],
        &["--client", "web", "--subject", "alice"],
        &["--all-tenants", "--tenant", "acme"],
        &["--all-tenants", "--all-of-tenant", "acme"],
        &[
            "--created-before",
            "2026-01-05T08:00:00Z",
            "--authenticated-before",
            "2026-01-05T08:00:00Z",
        ],
        &["--client", "web", "--sessions", "3"],
        &["x", "--dry-run"],
        &["x", "--watch"],
    ] {
        let run = run(countersign().args(["session", "revoke"]).args(args));
        assert_eq!(run.code, Some(2), "{args:?}");
    }
}

#[test]
fn revoke_counts_many_sessions_asks_before_it_ends_all_and_shows_the_progress() {
    let (server, folder) = server();
    let revoke = |args: &[&str]| server.cli(["session", "revoke"].iter().chain(args).copied());
    let web = [(); 3].map(|()| create(&server, &["alice", "--client-id", "web"]));
    let app = create(&server, &["alice", "--client-id", "app"]);
    assert_eq!(revoke(&["--client", "web", "--dry-run"]).ok(), "would revoke 3 sessions\n");
    let watched = revoke(&["--client", "web", "--watch"]).ok();
    assert!(watched.starts_with("revoked the sessions, effective since"), "{watched}");
    let last = "all sessions are ended; 3 were marked as ended in the background\n";
    assert!(watched.contains(" of 3 sessions\n") && watched.ends_with(last), "{watched}");
    let ids: Vec<&str> = web.iter().chain([&app]).map(|[id, ..]| id.as_str()).collect();
    assert_eq!(live(&server, &ids), ids[3..]);

    let subjects = ["bob", "carol", "dora"].map(|name| create(&server, &[name]));
    let file = folder.path().join("subjects");
    std::fs::write(&file, "bob\n\ncarol\n").unwrap();
    revoke(&["--subjects-file", file.to_str().unwrap(), "--watch"]).ok();
    let ids: Vec<&str> = subjects.iter().map(|[id, ..]| id.as_str()).collect();
    assert_eq!(live(&server, &ids), ids[2..]);

    for (args, problem) in [
        (&["--all-tenants"][..], "2 sessions of all tenants: repeat the command with --sessions 2"),
        (&["--all-tenants", "--sessions", "1"], "2 sessions, more than the 1 of --sessions"),
    ] {
        let refused = revoke(args);
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains(problem), "{}", refused.stderr);
    }
    assert_eq!(server.cli(["token", "validate", &app[1]]).code, Some(0));
    revoke(&["--all-tenants", "--sessions", "2"]).ok();
    assert_eq!(server.cli(["token", "validate", &app[1]]).code, Some(1));
}

#[test]
fn validate_exits_with_0_for_an_active_token_and_else_with_1() {
    let (server, _folder) = server();
    let [id, access, refresh] =
        create(&server, &["alice", "--scope", "read", "--claim", "level=3"]);
    let active = server.cli(["token", "validate", &access]).ok();
    for line in [["active", "yes"], ["session", &id], ["subject", "alice"], ["scopes", "read"]] {
        assert!(active.lines().any(|row| columns(row) == line), "{line:?} is missing in\n{active}");
    }
    let json =
        run_with_input(&mut server.command(["token", "validate", "-", "--json"]), &access).json();
    assert_eq!(
        [&json["active"], &json["claims"]["level"]],
        [&Value::from(true), &Value::from(3.0)]
    );

    let inactive = |args: &[&str], reason: &str| {
        let run = server.cli(["token", "validate"].into_iter().chain(args.iter().copied()));
        assert_eq!(
            (run.code, run.stderr.as_str()),
            (Some(1), ""),
            "{args:?}: an answer, not an error"
        );
        assert_eq!(
            run.stdout.lines().map(columns).collect::<Vec<_>>(),
            [["active", "no"], ["reason", reason]]
        );
    };
    inactive(&["garbage"], "MALFORMED");
    inactive(&[&refresh], "WRONG_TYPE");
    inactive(&[&access, "--scope", "write"], "INSUFFICIENT_SCOPE");
    inactive(&[&access, "--audience", "elsewhere"], "WRONG_AUDIENCE");
    inactive(&[&access, "--acr", "urn:mfa"], "STEP_UP_REQUIRED");
    server.cli(["session", "revoke", &id]).ok();
    inactive(&[&access], "REVOKED");
}

#[test]
fn refresh_prints_the_new_tokens_and_says_if_they_are_a_replay() {
    let (server, _folder) = server();
    let [id, _, refresh] = create(&server, &["alice"]);
    let first = server.cli(["token", "refresh", &refresh, "--json"]).json();
    assert_eq!(names(&first), BTreeSet::from(["session", "tokens", "replayed"]));
    assert_eq!(
        [&first["session"]["session_id"], &first["replayed"]],
        [&Value::from(id), &Value::from(false)]
    );
    let again = run_with_input(&mut server.command(["token", "refresh", "-"]), &refresh).ok();
    assert!(again.starts_with("this token had been exchanged a moment ago"), "{again}");
    assert!(again.contains(first["tokens"]["refresh_token"].as_str().unwrap()), "{again}");
}

#[test]
fn decode_shows_a_token_without_a_server() {
    let (server, _folder) = server();
    let [id, access, refresh] = create(&server, &["alice", "--claim", "level=3"]);
    drop(server);
    let decode = |token: &str| run(countersign().args(["token", "decode", token]));
    let shown = decode(&access).ok();
    assert!(shown.contains("not checked") && shown.contains("\"typ\": \"at+jwt\""), "{shown}");
    assert!(
        shown.contains(&format!("\"sid\": \"{id}\"")) && shown.contains("\"level\": 3"),
        "{shown}"
    );
    let shown = decode(&refresh).ok();
    assert!(
        shown.contains("not checked") && shown.contains(&id) && shown.contains("generation"),
        "{shown}"
    );
    for garbage in ["garbage", "cs_rt_garbage", "a.b.c", ""] {
        let refused = decode(garbage);
        assert!(refused.error(1).starts_with("not a"), "{garbage}: {refused:?}");
        assert_eq!(refused.stdout, "", "{garbage}");
    }
}

#[test]
fn health_exits_with_0_if_the_server_serves_and_else_with_1() {
    let (server, _folder) = server();
    assert_eq!(server.cli(["health"]).ok(), "SERVING\n");
    assert_eq!(server.cli(["health", "--json"]).json(), serde_json::json!({ "status": "SERVING" }));
    assert_eq!(
        server.cli(["health", "--service", "countersign.v1.SessionService"]).ok(),
        "SERVING\n"
    );
    assert_eq!(server.cli(["health", "--service", "unknown"]).code, Some(1));
    let mut without_server = server.command(["health"]);
    drop(server);
    assert!(run(&mut without_server).error(1).contains("is `countersign serve` running there?"));
}

/// `tests/cluster/listing.rs` tests the command with replicas.
#[test]
fn replica_list_on_sqlite_says_that_there_are_no_replicas() {
    let folder = tempfile::tempdir().unwrap();
    let list = |args: &[&str]| {
        run(countersign().args(["replica", "list"]).args(args).current_dir(folder.path()))
    };
    assert_eq!(list(&[]).ok(), "no replicas: one process at a time serves from SQLite\n");
    assert_eq!(
        list(&["--json"]).json(),
        serde_json::json!({ "replicas": null, "head": null, "settled": null })
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no file is created");
}

#[test]
fn an_error_is_one_line_with_its_reason() {
    let (server, _folder) = server();
    let [id, _, refresh] = create(&server, &["alice"]);
    server.cli(["session", "revoke", &id]).ok();
    let unknown = "0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22";
    let fails = |args: &[&str], reason: &str| {
        let run: Run = server.cli(args.iter().copied());
        assert!(run.error(1).ends_with(&format!("({reason})")), "{run:?}");
        assert_eq!(run.stdout, "");
    };
    fails(&["session", "show", unknown], "SESSION_NOT_FOUND");
    fails(&["session", "show", "nonsense"], "INVALID_FIELD");
    fails(&["session", "revoke", unknown], "SESSION_NOT_FOUND");
    fails(&["session", "revoke", "--token", "garbage"], "INVALID_FIELD");
    fails(&["session", "create", "alice", "--policy", "nowhere"], "INVALID_FIELD");
    fails(&["session", "create", "alice", "--claim", "sub=\"bob\""], "INVALID_FIELD");
    fails(&["token", "refresh", "garbage"], "REFRESH_TOKEN_INVALID");
    fails(&["token", "refresh", &refresh], "SESSION_REVOKED");
}

#[test]
fn every_command_has_help_without_placeholder_text() {
    let mut todo = vec![vec![]];
    let mut subcommands = 0;
    while let Some(subcommand) = todo.pop() {
        let help = run(countersign().args(&subcommand).arg("--help")).ok();
        let leftover =
            ["TODO", "FIXME", "XXX", "lorem"].into_iter().find(|word| help.contains(word));
        assert!(
            help.contains("Usage: countersign") && leftover.is_none(),
            "{subcommand:?}: {help}"
        );
        let commands =
            help.split_once("Commands:").map(|(_, rest)| rest.split("\n\n").next().unwrap_or(rest));
        for line in commands.unwrap_or_default().lines().filter(|line| !line.trim().is_empty()) {
            let (name, about) =
                line.trim().split_once(' ').unwrap_or_else(|| panic!("{line:?} says nothing"));
            assert!(!about.trim().is_empty(), "{line}");
            if name != "help" {
                todo.push([subcommand.as_slice(), &[name.to_owned()]].concat());
            }
        }
        subcommands += 1;
    }
    assert!(
        subcommands >= 18,
        "all subcommands and their groups have been looked at: {subcommands}"
    );
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = run(countersign().args(["completions", shell])).ok();
        assert!(
            script.contains("countersign") && script.contains("page-token"),
            "{shell}: {script}"
        );
    }
}

/// In `countersign … | head`, the reader closes the pipe before the command has written everything.
/// That is not a failure of the command.
#[test]
fn a_command_succeeds_although_the_reader_of_its_output_has_closed_the_pipe() {
    let mut command = countersign();
    command.args(["config", "print"]).stderr(Stdio::piped());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).output().unwrap();
    assert_eq!(
        (output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()),
        (Some(0), "")
    );

    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command.stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("countersign: standard output: "));
}
