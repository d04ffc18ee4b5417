//! Tests of failures in the environment of the service. The table says where each failure is
//! tested. Failures that only PostgreSQL has are tested in `operation_on_postgres.rs`.
//!
//! | failure | tested in |
//! |---|---|
//! | the database is down | `service/postgres_only.rs`: `calls_report_a_crashed_database_server_and_validate_still_answers`; `service/faults.rs`: `calls_report_a_failing_database_and_validate_still_answers`; `cluster/failing.rs` |
//! | it is slow, or silent | `cluster/slow.rs`; `cluster/stuck.rs`; `service/faults.rs`: `writes_wait_for_a_locked_database_while_reads_and_validate_go_on` |
//! | it is full | `process/disk.rs`: `on_a_full_disk_writes_are_refused_and_everything_acknowledged_stays`; `operation_on_postgres.rs` |
//! | it is corrupt | `process/start.rs`: `a_file_that_is_not_a_database_is_refused` and the two after it; a single row: `service/faults.rs`, `process/keys.rs` |
//! | the pool is exhausted | `operation_on_postgres.rs`; `cluster/stuck.rs`: `reads_whose_callers_give_up_do_not_add_connections` |
//! | a call is cancelled in the middle of its transaction | `cluster/cancelled.rs`; `service/faults.rs`: `a_revocation_whose_caller_leaves_at_any_moment_takes_effect_fully_or_not_at_all` |
//! | the wall clock jumps by an hour | `service/clock.rs`; `cluster/lapsed.rs`; `process/pauses.rs` |
//! | `kill -9` at any instant | `process/crash.rs`; `cluster/killed.rs` |
//! | a second process on the same file | `process/start.rs`: `a_directory_in_use_is_refused_and_its_owner_keeps_serving` |
//! | a key file that is truncated, readable by others, missing, or of another service | `process/start.rs`: `a_master_key_that_is_damaged_readable_by_others_missing_or_wrong_is_refused`; of TLS: `process/tls.rs`: `a_bad_certificate_or_key_ends_the_start_with_one_line_that_names_the_setting` |
//! | a certificate that has expired, or expires while the service runs | `process/tls.rs` |
//! | two processes that migrate at once | below; `store/postgres_only.rs`: `concurrent_starts_run_each_migration_once`; `cluster/starting.rs` |
//! | a binary older than the schema | `process/start.rs`: `a_database_of_a_newer_version_is_refused`; `store/postgres_only.rs`: `the_schema_of_a_newer_version_is_refused_and_left_as_it_was` |
//! | invalid settings | below; `process/start.rs`: `wrong_settings_are_refused_before_any_file_is_created`; `process/settings.rs` |

use countersign_test_support::process::{Server, countersign, run, serve};
use std::{fs, thread};

/// One process migrates the file. Each other process either reports that the file is in use or
/// finds the schema up to date.
#[test]
fn concurrent_migrations_of_one_file_succeed_or_report_that_it_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let migrate = || run(countersign().args(["migrate", "--data-dir"]).arg(folder.path()));
    let runs = thread::scope(|scope| {
        let runs: Vec<_> = (0..8).map(|_| scope.spawn(migrate)).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
    });
    let made = runs.iter().filter(|run| run.stdout.starts_with("made migration ")).count();
    assert_eq!(made, 1, "{runs:?}");
    for run in &runs {
        if run.code == Some(0) {
            assert!(
                run.stderr.is_empty()
                    && (run.stdout.starts_with("made ") || run.stdout.contains("up to date")),
                "{run:?}"
            );
        } else {
            assert!(run.error(2).contains("in use by another process: stop that one"), "{run:?}");
        }
    }
    assert_eq!(migrate().ok(), "the schema was up to date\n");
    let server = Server::launch(serve(folder.path()).arg("--no-migrate"));
    server.cli(["session", "create", "alice"]).ok();
    server.stop();
}

/// A setting, values that it cannot have, and the text by which the error names it.
const SETTINGS: &[(&str, &[&str], &str)] = &[
    (
        "limits.max_connections",
        &["0", "-1", "1000001", "many", "1.5", ""],
        "limits.max_connections",
    ),
    ("limits.max_http_connections", &["0", "99999999999999999999"], "limits.max_http_connections"),
    ("limits.listen_backlog", &["0", "-1", "1000001", "4294967296"], "limits.listen_backlog"),
    (
        "limits.max_streams_per_connection",
        &["0", "4294967296"],
        "limits.max_streams_per_connection",
    ),
    ("limits.max_request_bytes", &["0", "16383", "67108865"], "limits.max_request_bytes"),
    ("limits.max_batch_bytes", &["0", "1e6"], "limits.max_batch_bytes"),
    ("limits.max_metadata_bytes", &["1023", "1048577"], "limits.max_metadata_bytes"),
    ("limits.max_calls", &["0"], "limits.max_calls"),
    ("limits.max_reads", &["0"], "limits.max_reads"),
    ("limits.max_writes", &["0"], "limits.max_writes"),
    ("limits.max_calls_per_caller", &["0"], "limits.max_calls_per_caller"),
    ("limits.max_watchers", &["0", "-1", "1000001"], "limits.max_watchers"),
    ("watch.lease", &["0s", "499ms", "21s", "soon"], "watch.lease"),
    ("limits.calls_per_second_per_caller", &["-1", "often"], "limits.calls_per_second_per_caller"),
    ("limits.call_timeout", &["0s", "99ms", "25h", "-1s", "soon", "5"], "limits.call_timeout"),
    ("limits.handshake_timeout", &["0s", "2d"], "limits.handshake_timeout"),
    ("limits.idle_timeout", &["0s", "2d"], "limits.idle_timeout"),
    ("limits.keepalive_interval", &["0s", "2d"], "limits.keepalive_interval"),
    ("limits.keepalive_timeout", &["0s", "2d"], "limits.keepalive_timeout"),
    ("limits.max_conections", &["7"], "max_connections"),
    ("tokens.legacy_refresh_tokens", &["1", "'yes'"], "tokens.legacy_refresh_tokens"),
    ("tokens.acr_order", &["['a', 'a']", "['']", "a"], "tokens.acr_order"),
    ("tokens.leeway", &["-1s", "2h", "5"], "tokens.leeway"),
    ("tokens.max_access_token_ttl", &["0s", "99999999d"], "tokens.max_access_token_ttl"),
    ("sweeper.schedule", &["", "* *", "99 * * * *"], "sweeper.schedule"),
    ("sweeper.batch_size", &["0", "-5"], "sweeper.batch_size"),
    ("keys.algorithm", &["none", "HS256", "eddsa"], "keys.algorithm"),
    ("keys.rotation", &["1s", "soon"], "keys.rotation"),
    ("log.level", &["!!", "loud=9"], "log.level"),
    ("log.slow_calls", &["-1s", "soon", "5"], "log.slow_calls"),
    (
        "otlp.endpoint",
        &[
            "collector",
            "collector:4317",
            "ftp://a",
            "http://user:password@a",
            "https://user:password@a",
            "http://",
            "https://",
        ],
        "otlp.endpoint",
    ),
    ("otlp.sample_ratio", &["1.1", "-0.1", "often", "NaN"], "otlp.sample_ratio"),
    ("otlp.metrics_interval", &["999ms", "61m", "-1s", "soon", "5"], "otlp.metrics_interval"),
    ("otlp.protocol", &["", "udp", "https"], "otlp.protocol"),
    ("listen", &["", "here", "127.0.0.1", "127.0.0.1:99999"], "listen"),
    ("database_url", &["mysql://h/d", "sqlite", "postgres://"], "database_url"),
    ("issuer", &[""], "issuer"),
];

#[test]
fn an_invalid_setting_is_reported_in_one_line_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut wrong = vec![];
    for (setting, values, says) in SETTINGS {
        let variable = format!("COUNTERSIGN_{}", setting.replace('.', "__").to_uppercase());
        for value in *values {
            // `config check` reports the same errors as `serve`, but ends if there are none.
            let run = run(countersign()
                .args(["config", "check", "--data-dir"])
                .arg(&data)
                .env(&variable, value));
            let line = run.stderr.strip_prefix("countersign: ").unwrap_or_default();
            if run.code != Some(2) || line.lines().count() != 1 || !line.contains(says) {
                wrong.push(format!("{setting} = {value:?}: {run:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!fs::exists(&data).unwrap(), "no file is created");
}

/// Both `config check` and `serve` report the file, before anything is created.
#[test]
fn a_bad_file_with_authorities_of_the_collector_is_refused_with_setting_file_and_reason() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let file = folder.path().join("ca.pem");
    let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (content, endpoint, reason) in [
        (None, "https://a", "No such file"),
        (Some(""), "https://a", "holds no certificate in PEM"),
        (Some("-----BEGIN CERTIFICATE-----\n"), "https://a", "is not PEM"),
        (Some(certificate), "https://a", "invalid peer certificate"),
        (Some(certificate), "http://a", "needs an otlp.endpoint that begins with https://"),
    ] {
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        for command in [&["config", "check"][..], &["serve", "--listen", "127.0.0.1:0"]] {
            for protocol in ["grpc", "http"] {
                let run = run(countersign()
                    .args(command)
                    .arg("--data-dir")
                    .arg(&data)
                    .env("COUNTERSIGN_OTLP__ENDPOINT", endpoint)
                    .env("COUNTERSIGN_OTLP__PROTOCOL", protocol)
                    .env("COUNTERSIGN_OTLP__CA_FILE", &file));
                let line = run.error(2);
                assert!(line.starts_with("setting otlp.ca_file: "), "{line}");
                assert!(line.contains(reason), "{line}");
                let names_it = endpoint == "http://a" || line.contains(file.to_str().unwrap());
                assert!(names_it, "{line}");
            }
        }
    }
    assert!(!fs::exists(&data).unwrap(), "no file is created");
}
