//! Tests of a full or read-only disk, and of the sweeper.

use std::{path::Path, process::Command};

use countersign::proto::{
    CreateSessionRequest, GetSessionRequest, InactiveReason, RevokeRequest, SessionState, Tokens,
    revoke_request::Target,
};
use countersign_test_support::{
    ledger::{Client, reason, refresh, validate},
    process::{Server, countersign, run, serve, without_settings},
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Returns a command that starts the service in a process whose files may not grow beyond 512 KiB.
/// To the service, the limit looks like a full disk.
fn serve_on_a_small_disk(data_dir: &Path) -> Command {
    let mut command = Command::new("sh");
    without_settings(&mut command);
    // `ulimit -f` counts blocks of 512 bytes, or of 1024 in some shells.
    let script = "ulimit -f 1024; exec \"$@\"";
    command.args(["-c", script, "sh"]).arg(serve(data_dir).get_program());
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir);
    command.env(countersign_test_support::process::GRACE, "0s");
    command
}

async fn create(client: &mut Client, subject: String) -> Result<(String, Tokens), Status> {
    let request = CreateSessionRequest { subject, ..Default::default() };
    let created = client.create_session(request).await?.into_inner();
    Ok((created.session.unwrap().session_id, created.tokens.unwrap()))
}

async fn revoke(client: &mut Client, session_id: &str) -> Result<(), Status> {
    let target = Some(Target::SessionId(session_id.to_owned()));
    client.revoke(RevokeRequest { target, ..Default::default() }).await.map(drop)
}

async fn state(client: &mut Client, session_id: &str) -> Result<SessionState, Status> {
    let request = GetSessionRequest { session_id: session_id.to_owned() };
    Ok(client.get_session(request).await?.into_inner().session.unwrap().state())
}

#[track_caller]
fn assert_store_unavailable(status: &Status) {
    assert_eq!(
        (status.code(), reason(status).as_str()),
        (Code::Unavailable, "STORE_UNAVAILABLE"),
        "{status:?}"
    );
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_writes_are_refused_and_everything_acknowledged_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::launch(&mut serve_on_a_small_disk(folder.path()));
    let mut client = server.sessions().await;

    let (revoked, its_tokens) = create(&mut client, "revoked".to_owned()).await.unwrap();
    revoke(&mut client, &revoked).await.unwrap();
    let mut live = vec![];
    let full = loop {
        assert!(live.len() < 10_000, "the disk does not fill up");
        match create(&mut client, format!("subject {}", live.len())).await {
            Ok(session) => live.push(session),
            Err(status) => break status,
        }
    };
    assert_store_unavailable(&full);
    let failed = server.line("a store operation failed");
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains("disk I/O error: free space"), "no advice: {failed}");
    // Smaller writes may still find room for a while.
    let full = loop {
        let (_, tokens) = live.last_mut().unwrap();
        match refresh(&mut client, &tokens.refresh_token).await {
            Ok(refreshed) => *tokens = refreshed.tokens.unwrap(),
            Err(status) => break status,
        }
    };
    assert_store_unavailable(&full);
    let mut ended = vec![(revoked, its_tokens)];
    let full = loop {
        let (id, _) = live.first().expect("revocations find room without end");
        match revoke(&mut client, id).await {
            Ok(()) => ended.push(live.remove(0)),
            Err(status) => break status,
        }
    };
    assert_store_unavailable(&full);

    for (_, tokens) in &live {
        assert!(validate(&mut client, &tokens.access_token).await.active);
    }
    for (_, tokens) in &ended {
        let answer = validate(&mut client, &tokens.access_token).await;
        assert_eq!(answer.inactive_reason(), InactiveReason::Revoked);
    }
    assert_eq!(server.cli(["health"]).ok(), "SERVING\n");
    drop(client);
    server.stop();

    let server = Server::start(folder.path());
    let mut client = server.sessions().await;
    for (id, tokens) in &live {
        // The revocation that was refused may or may not have been committed, but the token and
        // the session must agree.
        let active = validate(&mut client, &tokens.access_token).await.active;
        assert_eq!(active, state(&mut client, id).await.unwrap() == SessionState::Live);
    }
    for (id, tokens) in live.iter().skip(1) {
        let refreshed = refresh(&mut client, &tokens.refresh_token).await;
        refreshed.unwrap_or_else(|status| panic!("session {id}: {status:?}"));
    }
    for (id, tokens) in &ended {
        assert!(!validate(&mut client, &tokens.access_token).await.active);
        assert_eq!(state(&mut client, id).await.unwrap(), SessionState::Ended);
    }
}

/// Returns a command that starts a shell, which runs `commands` and then starts the service.
fn serve_after(commands: &str, data_dir: &Path, shell: &[&str]) -> Command {
    let mut command = Command::new(shell[0]);
    without_settings(&mut command);
    command
        .args(&shell[1..])
        .args(["-c", &format!("{commands}; exec \"$@\""), "sh"])
        .arg(serve(data_dir).get_program());
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir);
    command
}

#[test]
fn a_start_without_free_disk_space_is_refused_with_the_remedy() {
    for blocks in [8, 64] {
        let folder = tempfile::tempdir().unwrap();
        let refused = run(&mut serve_after(&format!("ulimit -f {blocks}"), folder.path(), &["sh"]));
        let line = refused.error(2);
        assert!(
            line.contains("countersign.db") && line.contains("disk I/O error: free space"),
            "{line}"
        );
    }
    // Only root may mount, and in some containers not even root.
    const MOUNTING: [&str; 3] = ["unshare", "--mount", "sh"];
    let may_mount = Command::new(MOUNTING[0])
        .args(&MOUNTING[1..])
        .args(["-c", "mount -t tmpfs none /tmp"])
        .status();
    if !may_mount.is_ok_and(|status| status.success()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().display();
    for size in ["4k", "16k", "100k"] {
        let mount = format!("mount -t tmpfs -o mode=700,size={size} none {data}");
        let refused = run(&mut serve_after(&mount, folder.path(), &MOUNTING));
        let line = refused.error(2);
        assert!(
            line.contains("countersign.db") && line.contains(": free space on its disk"),
            "{size}: {line}"
        );
    }
    Server::start(folder.path()).stop();
    let mount = format!("mount --bind {data} {data} && mount -o remount,ro,bind {data}");
    let refused = run(&mut serve_after(&mount, folder.path(), &MOUNTING));
    assert!(refused.error(2).contains("mount their file system for writing"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sweeper_of_a_running_service_deletes_ended_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::launch(
        serve(folder.path())
            .env("COUNTERSIGN_SWEEPER__SCHEDULE", "* * * * * *")
            .env("COUNTERSIGN_SWEEPER__SESSION_RETENTION", "0s"),
    );
    let mut client = server.sessions().await;
    let (live, _) = create(&mut client, "live".to_owned()).await.unwrap();
    let (ended, tokens) = create(&mut client, "ended".to_owned()).await.unwrap();
    revoke(&mut client, &ended).await.unwrap();
    assert_eq!(server.line("swept")["sessions"], 1);
    assert_eq!(reason(&state(&mut client, &ended).await.unwrap_err()), "SESSION_NOT_FOUND");
    assert_eq!(state(&mut client, &live).await.unwrap(), SessionState::Live);
    // The blacklist entry stays until the token would have expired, which is after this test.
    let answer = validate(&mut client, &tokens.access_token).await;
    assert_eq!(answer.inactive_reason(), InactiveReason::Revoked);
}

#[test]
fn sweep_works_if_the_service_is_stopped_and_is_refused_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let sweep = |args: &[&str]| {
        let mut command = countersign();
        command.args(["sweep", "--data-dir"]).arg(folder.path()).args(args);
        run(command.env("COUNTERSIGN_SWEEPER__SESSION_RETENTION", "0s"))
    };
    let server = Server::start(folder.path());
    for subject in ["alice", "alice", "bob"] {
        server.cli(["session", "create", subject]).ok();
    }
    server.cli(["session", "revoke", "--subject", "alice"]).ok();
    assert!(sweep(&[]).error(2).contains("in use by another process"));
    server.stop();
    assert_eq!(
        sweep(&["--json"]).json(),
        serde_json::json!({ "revocations": 0, "sessions": 2, "audit": 0, "expired": 0 })
    );
    assert_eq!(
        sweep(&[]).ok(),
        "deleted 0 blacklist rows, 0 sessions and 0 audit records; recorded 0 expired sessions\n"
    );
    let server = Server::start(folder.path());
    let left = server.cli(["session", "list", "--json"]).json();
    assert_eq!(left["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(left["sessions"][0]["subject"], "bob");
}
