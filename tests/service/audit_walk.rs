//! Checks that every operation that changes something leaves an audit record in the log and in the
//! table.
//!
//! The operations are read from the service itself: its RPCs, its use cases, the functions of its
//! store and its background tasks. An operation that this file does not list fails the test until
//! somebody adds the records that it leaves.

use std::{collections::BTreeSet, fs, path::Path};

use countersign::{
    app,
    proto::{
        CreateSessionRequest, DESCRIPTORS, ListKeysRequest, RevokeKeyRequest, RotateKeyRequest,
        SessionsTarget, SubjectTarget, UpdateSessionRequest, key_service_client::KeyServiceClient,
        revoke_request::Target, sessions_target,
    },
};
use countersign_test_support::{
    log::{capture, logged},
    server::{Home, Server, eventually, of_token, request, request_under, revocation, seconds},
};
use prost::Message;
use prost_types::FileDescriptorSet;

use crate::{
    changes::again,
    import::{imported, old},
};

/// Settings under which keys rotate each day of the test's clock. Because `publish_ahead` is short,
/// the service looks for due rotations several times a second.
const SETTINGS: &str = r#"
[tokens]
max_access_token_ttl = "60s"
[policies.default]
access_token_ttl = "60s"
idle_timeout = "1h"
absolute_lifetime = "2h"
refresh_grace = "10s"
[policies.short]
access_token_ttl = "30s"
[policies.two]
max_sessions_per_subject = 2
[lease]
max_clock_skew = "100ms"
[keys]
publish_ahead = "4s"
jwks_max_age = "1s"
rotation = "1d"
refresh_rotation = "1d"
"#;

/// The records that an operation leaves.
enum Effect {
    /// The test expects no record of the operation, for this reason.
    Nothing(&'static str),
    /// The operation leaves records of these actions. The test causes them by this change.
    Records(&'static [&'static str], Change),
}

use Effect::{Nothing, Records};

/// A change that the test causes by calls, or by advancing the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Create,
    Import,
    CreateOneTooMany,
    ReuseRefreshToken,
    Reauthenticate,
    Update,
    Revoke,
    RotateKey,
    RevokeKey,
    RotateKeysBySchedule,
    ExpireAndSweep,
}

/// Returns the records that an operation leaves, or `None` for an unknown operation.
fn effect(operation: &str) -> Option<Effect> {
    Some(match operation {
        // The protocol.
        "rpc CreateSession" => Records(&["session_created"], Change::Create),
        "rpc ImportSessions" => Records(&["session_imported"], Change::Import),
        "rpc Refresh" => Records(&["refresh_reused"], Change::ReuseRefreshToken),
        "rpc Reauthenticate" => Records(&["session_reauthenticated"], Change::Reauthenticate),
        "rpc UpdateSession" => Records(&["session_updated"], Change::Update),
        "rpc Revoke" => Records(
            &["session_revoked", "subject_revoked", "tenant_revoked", "sessions_revoked"],
            Change::Revoke,
        ),
        "rpc RotateKey" => {
            Records(&["key_rotated", "key_published", "key_retired"], Change::RotateKey)
        }
        "rpc RevokeKey" => Records(&["key_revoked"], Change::RevokeKey),
        "rpc Validate"
        | "rpc BatchValidate"
        | "rpc GetSession"
        | "rpc ListSessions"
        | "rpc CountSessions"
        | "rpc ListRevocations"
        | "rpc ListAudit"
        | "rpc Watch"
        | "rpc GetJwks"
        | "rpc ListKeys" => Nothing("it reads"),

        // The use cases.
        "use case create_session" => {
            Records(&["session_evicted", "session_created"], Change::CreateOneTooMany)
        }
        "use case import_sessions" => Records(&["session_imported"], Change::Import),
        "use case refresh" => Records(&["refresh_reused"], Change::ReuseRefreshToken),
        "use case reauthenticate" => Records(&["session_reauthenticated"], Change::Reauthenticate),
        "use case update_session" => Records(&["session_updated"], Change::Update),
        "use case revoke" => Records(
            &["session_revoked", "subject_revoked", "tenant_revoked", "sessions_revoked"],
            Change::Revoke,
        ),
        "use case rotate_key" => Records(&["key_rotated"], Change::RotateKey),
        "use case revoke_key" => Records(&["key_revoked"], Change::RevokeKey),
        "use case rotate_what_is_due" => {
            Records(&["key_rotated", "key_dropped"], Change::RotateKeysBySchedule)
        }
        "use case sweep" | "use case sweep_by_own_clock" => {
            Records(&["session_expired"], Change::ExpireAndSweep)
        }
        "use case end_covered_sessions" => {
            Nothing("the revocation that covers the sessions was recorded")
        }
        "use case session"
        | "use case sessions"
        | "use case count_sessions"
        | "use case audit_records"
        | "use case metadata_of"
        | "use case revocations"
        | "use case dry_run"
        | "use case list_keys"
        | "use case validate"
        | "use case watch"
        | "use case next"
        | "use case sample_sizes" => Nothing("it reads"),
        "use case written" | "use case has_room" | "use case wait" | "use case write" => {
            Nothing("it writes the audit itself")
        }

        // The background tasks.
        "task the sweeper" => Records(&["session_expired"], Change::ExpireAndSweep),
        "task the rotation of the keys" => {
            Records(&["key_rotated", "key_dropped"], Change::RotateKeysBySchedule)
        }
        "task the task that ends revoked sessions" => {
            Nothing("the revocation that covers the sessions was recorded")
        }
        "task the reload of certificates and settings" => {
            Nothing("tests/process/tls.rs looks for its records")
        }
        "task the renewal of the lease" => {
            Nothing("it rewrites revocations that a failover lost; they were recorded before")
        }
        "task the reader of sizes" => Nothing("it reads"),
        "task the database engine" | "task the writer of the audit" => {
            Nothing("it only does what calls and other tasks ask for")
        }

        // The contract of the store.
        "store create_session" => Records(&["session_evicted"], Change::CreateOneTooMany),
        "store refresh_session" => Records(&["refresh_reused"], Change::ReuseRefreshToken),
        "store change_session" => Records(&["session_updated"], Change::Update),
        "store revoke" => Records(
            &["session_revoked", "subject_revoked", "tenant_revoked", "sessions_revoked"],
            Change::Revoke,
        ),
        "store change_ring" => Records(&["key_rotated"], Change::RotateKey),
        "store record_expiries" => Records(&["session_expired"], Change::ExpireAndSweep),
        "store end_all_sessions" => {
            Nothing("only `restore` calls it, and tests/process/audit.rs tests that")
        }
        "store end_covered_sessions" => {
            Nothing("the revocation that covers the sessions was recorded")
        }
        "store delete_expired_revocations"
        | "store delete_old_sessions"
        | "store delete_old_legacy_tokens"
        | "store delete_old_audit" => {
            Nothing("it deletes only what ended before, and the end was recorded")
        }
        "store release_space" => Nothing("it moves what is stored, and changes none of it"),
        "store audit" | "store count_sessions" => Nothing("it reads"),
        "store append_audit" => Nothing("it writes the audit itself"),
        "store session"
        | "store legacy_token"
        | "store sessions"
        | "store metadata_of"
        | "store unfinished"
        | "store cut_offs"
        | "store count_covered"
        | "store ring"
        | "store is_refresh_key_in_use"
        | "store newest"
        | "store sizes"
        | "store watched"
        | "store now" => Nothing("it reads"),
        "store begin_watching" | "store end_watching" => {
            Nothing("it records that there are watchers, which changes no session")
        }
        "store stopped" => Nothing("it waits"),
        _ => return None,
    })
}

fn source(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// Returns each part of a text that stands between `before` and the next `after`.
fn between<'a>(text: &'a str, before: &str, after: char) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split(after).next()).collect()
}

/// Returns every operation of the service, read from its protocol and its source.
fn operations() -> BTreeSet<String> {
    let mut operations = BTreeSet::new();
    let protocol = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let files = protocol.file.iter().filter(|file| file.package() == "countersign.v1");
    for method in files.flat_map(|file| &file.service).flat_map(|service| &service.method) {
        operations.insert(format!("rpc {}", method.name()));
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/authority");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        operations.extend(
            between(&text, "    pub async fn ", '(').iter().map(|name| format!("use case {name}")),
        );
    }
    let background = source("src/app/background.rs");
    operations
        .extend(between(&background, "spawn(\"", '"').iter().map(|name| format!("task {name}")));
    let store = source("src/store/mod.rs");
    let contract = store.split("pub trait Store").nth(1).unwrap();
    operations
        .extend(between(contract, "    async fn ", '(').iter().map(|name| format!("store {name}")));
    operations
}

#[test]
fn every_rpc_use_case_task_and_store_function_has_a_known_effect() {
    let operations = operations();
    for kind in ["rpc ", "use case ", "task ", "store "] {
        let count = operations.iter().filter(|operation| operation.starts_with(kind)).count();
        assert!(count >= 5, "too few are found: {kind}{count}");
    }
    let unknown: Vec<_> =
        operations.iter().filter(|operation| effect(operation).is_none()).collect();
    assert!(unknown.is_empty(), "say in effect() which records they leave: {unknown:?}");
}

/// Counts the rows of an action in the table.
async fn count(server: &Server, action: &str) -> i64 {
    server.home.database.count(&format!("audit WHERE action = '{action}'")).await
}

/// Returns the identifiers of an action's records in the log, which all tests of this process
/// share.
fn logged_ids(action: &str) -> BTreeSet<String> {
    let action = format!("action=\"{action}\"");
    let log = logged();
    let lines =
        log.lines().filter(|line| line.contains("countersign::audit") && line.contains(&action));
    lines.flat_map(|line| between(line, " id=", ' ')).map(str::to_owned).collect()
}

/// Returns whether the table has a record of an action that is in the log, but not in `before`.
async fn is_recorded(server: &Server, action: &str, before: &BTreeSet<String>) -> bool {
    for id in logged_ids(action).difference(before) {
        let id_of_row = server.home.database.audit_id();
        let row =
            format!("audit WHERE action = '{action}' AND {id_of_row} = '{}'", id.replace('-', ""));
        if server.home.database.count(&row).await == 1 {
            return true;
        }
    }
    false
}

impl Change {
    async fn make(self, server: &Server) {
        let keys = || KeyServiceClient::new(server.channel.clone());
        match self {
            Self::Create => {
                server.sign_in("created").await;
            }
            Self::Import => {
                imported(server, old("imported", "imported")).await;
            }
            Self::CreateOneTooMany => {
                for _ in 0..3 {
                    server.create(request_under("two", "one too many")).await.unwrap();
                }
            }
            Self::ReuseRefreshToken => {
                let session = server.sign_in("reused").await;
                server.refresh(&session.refresh).await.unwrap();
                server.clock.advance(seconds(11));
                assert!(server.refresh(&session.refresh).await.is_err());
            }
            Self::Reauthenticate => {
                let session = server.sign_in("reauthenticated").await;
                server.client().reauthenticate(again(&session)).await.unwrap();
            }
            Self::Update => {
                let session = server.sign_in("updated").await;
                let request = UpdateSessionRequest {
                    session_id: session.id(),
                    revoke_access_tokens: true,
                    ..Default::default()
                };
                server.client().update_session(request).await.unwrap();
            }
            Self::Revoke => {
                server.revoke(of_token(&server.sign_in("revoked").await.access)).await.unwrap();
                let session = server.sign_in("revoked with others").await.session;
                let subject = SubjectTarget {
                    tenant: session.tenant,
                    subject: session.subject,
                    ..Default::default()
                };
                server.revoke(revocation(Target::Subject(subject))).await.unwrap();
                let other = CreateSessionRequest {
                    tenant: "globex".to_owned(),
                    ..request("revoked with all")
                };
                server.create(other).await.unwrap();
                server.revoke(revocation(Target::Tenant("globex".to_owned()))).await.unwrap();
                let sessions = SessionsTarget {
                    r#where: Some(sessions_target::Where::Tenant("globex".to_owned())),
                    client_id: "web".to_owned(),
                    instant: None,
                };
                server.revoke(revocation(Target::Sessions(sessions))).await.unwrap();
            }
            Self::RotateKey => {
                keys()
                    .rotate_key(RotateKeyRequest { force: true, ..Default::default() })
                    .await
                    .unwrap();
            }
            Self::RevokeKey => {
                let listed = keys().list_keys(ListKeysRequest {}).await.unwrap().into_inner().keys;
                keys().revoke_key(RevokeKeyRequest { kid: listed[0].kid.clone() }).await.unwrap();
            }
            Self::RotateKeysBySchedule => {
                // A key becomes active a day after the previous key, which is dropped once its
                // tokens have expired.
                for action in ["key_rotated", "key_dropped"] {
                    let before = count(server, action).await;
                    server.clock.advance(seconds(86_400));
                    eventually(action, async || {
                        (count(server, action).await > before).then_some(())
                    })
                    .await;
                }
            }
            Self::ExpireAndSweep => {
                let before = count(server, "session_expired").await;
                server.sign_in("expired").await;
                server.clock.advance(seconds(3600 + 120));
                let swept =
                    async || (count(server, "session_expired").await > before).then_some(());
                eventually("the expired session is swept", swept).await;
            }
        }
    }
}

/// Each change is made once, and must leave the records of all operations that it uses.
pub async fn every_operation_that_changes_something_leaves_its_audit_records() {
    capture();
    let server =
        Home::new(&format!("{SETTINGS}\n[sweeper]\nschedule = '* * * * * *'")).await.start().await;
    let mut changes: BTreeSet<(Change, String)> = BTreeSet::new();
    for operation in operations() {
        match effect(&operation) {
            Some(Records(actions, change)) => {
                changes.extend(actions.iter().map(|action| (change, (*action).to_owned())));
            }
            Some(Nothing(reason)) => assert!(!reason.is_empty()),
            None => {}
        }
    }
    let kinds: BTreeSet<Change> = changes.iter().map(|(change, _)| *change).collect();
    for change in kinds {
        let actions: Vec<&str> = changes
            .iter()
            .filter(|(of, _)| *of == change)
            .map(|(_, action)| action.as_str())
            .collect();
        let before: Vec<_> = actions.iter().map(|action| logged_ids(action)).collect();
        change.make(&server).await;
        for (action, before) in actions.iter().zip(&before) {
            eventually(&format!("{change:?}: log and table have {action}"), async || {
                is_recorded(&server, action, before).await.then_some(())
            })
            .await;
        }
    }
    server.stop().await;
}

/// Returns the audit line about the expiry of a session.
fn line_of_expiry(session: &str) -> Option<String> {
    let session = format!("session_id={session}");
    let is_meant =
        |line: &&str| line.contains("action=\"session_expired\"") && line.contains(&session);
    logged().lines().find(is_meant).map(str::to_owned)
}

pub async fn the_next_sweep_records_an_expired_session_with_the_time_of_its_expiry() {
    capture();
    let server = Server::start().await;
    let idle = server.create(request_under("short", "idle")).await.unwrap();
    let live = server.sign_in("live").await;
    let ended = server.create(request_under("short", "ended")).await.unwrap();
    server.revoke(of_token(&ended.access)).await.unwrap();
    let clock = server.clock.clone();
    let mut home = server.stop().await;
    let sweep = async |home: &Home| {
        let swept = app::sweep(&home.config(), home.system(), true).await.unwrap();
        home.database.released().await;
        swept.expired
    };
    clock.advance(seconds(301));
    assert_eq!(sweep(&home).await, 0, "a replica whose clock is behind may still refresh it");
    clock.advance(seconds(60));
    assert_eq!([sweep(&home).await, sweep(&home).await], [1, 0], "recorded once");
    let line = line_of_expiry(&idle.id()).unwrap();
    assert!(
        line.contains("reason=\"expired_idle\"") && line.contains(" at=2027-01-15T08:05:00.25Z"),
        "{line}"
    );
    assert_eq!([line_of_expiry(&live.id()), line_of_expiry(&ended.id())], [None, None]);
    let rows = "audit WHERE action = 'session_expired' AND caller = 'countersign' AND subject = \
                'idle' AND reason = 'expired_idle' AND sessions = 1";
    assert_eq!(home.database.count(rows).await, 1);
    assert_eq!(home.database.count("audit WHERE action = 'session_expired'").await, 1);

    // If the audit table is disabled, the line is still logged.
    home = home.with("[audit]\ntable = false");
    clock.advance(seconds(15 * 86_400));
    assert_eq!(sweep(&home).await, 1);
    assert!(line_of_expiry(&live.id()).is_some());
    assert_eq!(home.database.count("audit WHERE action = 'session_expired'").await, 1);
}
