//! A database is restored by PostgreSQL's own programs. `countersign restore` then repeats the
//! revocations that were made after the dump.

use std::process::Command;

use countersign::proto::revoke_request::Target;
use countersign_test_support::{
    cluster::Cluster,
    ledger::{refresh, validate},
    postgres_server::{new_database, number, program},
    process::run,
};

use crate::replicas::{create, revoke};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_revoked_after_a_dump_stay_revoked_after_its_restore() {
    let url = new_database().await;
    let mut cluster = Cluster::start_by([url.as_str(); 2], &url, &[]).await;
    let mut clients = [cluster.replicas[0].sessions().await, cluster.replicas[1].sessions().await];
    let [revoked, of_subject, stays] = [
        create(&mut clients[0], "alice").await,
        create(&mut clients[1], "bob").await,
        create(&mut clients[0], "carol").await,
    ];
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump");
    let made = Command::new(program("pg_dump"))
        .args(["--format=custom", "--file"])
        .arg(&dump)
        .arg(&url)
        .status();
    assert!(made.unwrap().success());

    // Each replica revokes one session, so that the logs of both are needed.
    let id = |created: &countersign::proto::CreateSessionResponse| {
        created.session.clone().unwrap().session_id
    };
    assert_eq!(revoke(&mut clients[0], Target::SessionId(id(&revoked))).await, 1);
    let subject =
        countersign::proto::SubjectTarget { subject: "bob".to_owned(), ..Default::default() };
    assert_eq!(revoke(&mut clients[1], Target::Subject(subject)).await, 1);

    let logs = ["0.log", "1.log"].map(|name| folder.path().join(name));
    let options: Vec<_> = logs
        .iter()
        .flat_map(|log| ["--revocations-from".to_owned(), log.display().to_string()])
        .collect();
    let restore = |cluster: &Cluster| {
        let mut command = cluster.command(&["restore", "--json"]);
        run(command.args(&options).env("COUNTERSIGN_LOG__LEVEL", "error"))
    };
    for (index, log) in logs.iter().enumerate() {
        let replica = &mut cluster.replicas[index];
        let lines = replica.log().join("\n");
        assert!(lines.contains("_revoked\""), "{lines}");
        std::fs::write(log, lines).unwrap();
        if index == 1 {
            let refused = restore(&cluster);
            let says = "serves from this database: stop all replicas first";
            assert!(refused.code == Some(2) && refused.stderr.contains(says), "{refused:?}");
        }
        cluster.replicas[index].signal("TERM");
        tokio::task::block_in_place(|| cluster.replicas[index].exit());
    }
    let put_back = ["--clean", "--if-exists", "--single-transaction", "--dbname", &url];
    let restored = Command::new(program("pg_restore")).args(put_back).arg(&dump).status().unwrap();
    assert!(restored.success());
    assert_eq!(number(&url, "SELECT count(*) FROM sessions WHERE ended_at IS NULL").await, 3);
    // The dump contains the rows of the replicas, which count as gone only after their leases have
    // ended.
    let live = "SELECT count(*) FROM replicas WHERE renewed_at + holds_for > statement_timestamp()";
    countersign_test_support::cluster::becomes(&url, live, 0).await;

    let report = restore(&cluster).json();
    assert_eq!(
        (&report["sessions_ended"], &report["before"]),
        (&2.into(), &serde_json::Value::Null)
    );
    let audited = "SELECT count(*) FROM audit WHERE action = 'database_restored' AND sessions = 2";
    assert_eq!(number(&url, audited).await, 1);

    cluster.replicas = vec![cluster.spawn(&url, &[])];
    cluster.replicas[0].await_serving().await;
    let mut client = cluster.replicas[0].sessions().await;
    for ended in [&revoked, &of_subject, &stays] {
        assert!(!validate(&mut client, &ended.tokens.clone().unwrap().access_token).await.active);
    }
    let refreshed = refresh(&mut client, &stays.tokens.unwrap().refresh_token).await.unwrap();
    let tokens = refreshed.tokens.unwrap();
    assert!(validate(&mut client, &tokens.access_token).await.active);
    for ended in [revoked, of_subject] {
        refresh(&mut client, &ended.tokens.unwrap().refresh_token).await.unwrap_err();
    }

    // Without a log, it is still possible to end all sessions.
    cluster.replicas[0].signal("TERM");
    tokio::task::block_in_place(|| cluster.replicas[0].exit());
    let mut command = cluster.command(&["restore", "--end-all", "--json"]);
    let report = run(command.env("COUNTERSIGN_LOG__LEVEL", "error")).json();
    assert_eq!(report["sessions_ended"], 1);
    assert_eq!(number(&url, "SELECT count(*) FROM sessions WHERE ended_at IS NULL").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_and_restore_of_a_file_are_refused_and_the_error_names_the_right_program() {
    let url = new_database().await;
    let cluster = Cluster::new(&url);
    for (arguments, says) in
        [(["backup", "f"], "pg_dump --format=custom"), (["restore", "f"], "pg_restore")]
    {
        let refused = run(&mut cluster.command(&arguments));
        assert!(refused.error(2).contains(says), "{refused:?}");
    }
}
