//! A dump is restored while replicas run, so the database is set back to an older state. The
//! timeline stays the same, so the same feed positions are given out a second time.

use std::{path::Path, process::Command};

use countersign::proto::{RevokeRequest, revoke_request::Target};
use countersign_test_support::{
    cluster::{RULE, Replica, becomes, in_time},
    ledger::reason,
    postgres_server::{execute, new_database, number, program, texts},
};

use crate::{
    replicas::{
        Cluster, SHORT_LEASE, eventually, is_active_at, revoke_with_retries, sign_in, try_sign_in,
    },
    witness::Witness,
};

/// A lease that is still valid at the end of a test.
const LONG_LEASE: [(&str, &str); 1] = [("COUNTERSIGN_LEASE__DURATION", "20s")];

/// PostgreSQL's server processes for a replica's connections, stopped by SIGSTOP. The replica gets
/// no answers from them until this value is dropped.
struct Frozen(Vec<String>);

impl Frozen {
    /// Stops the process of the connection that renews the lease, between two renewals; the other
    /// connections keep working.
    async fn renewals_of(url: &str, replica: &Replica) -> Self {
        Self::stop(url, replica, "AND query LIKE 'WITH mine AS%'").await
    }

    /// Stops the processes of all connections.
    async fn processes_of(url: &str, replica: &Replica) -> Self {
        Self::stop(url, replica, "").await
    }

    /// Stops the processes at a moment at which they hold no lock that the restore would wait for.
    async fn stop(url: &str, replica: &Replica, which: &str) -> Self {
        let name = replica.name();
        eventually("its processes hold no lock", async || {
            let pids = format!(
                "SELECT pid::text FROM pg_stat_activity WHERE application_name = '{name}' {which}"
            );
            let frozen = Self(texts(url, &pids).await);
            signal("STOP", &frozen.0);
            let locks = format!(
                "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                 WHERE application_name = '{name}' AND relation IS NOT NULL {which}"
            );
            (!frozen.0.is_empty() && number(url, &locks).await == 0).then_some(frozen)
        })
        .await
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal("CONT", &self.0);
    }
}

fn signal(name: &str, pids: &[String]) {
    let _ = Command::new("kill").args(["-s", name]).args(pids).status();
}

fn make_dump(url: &str, dump: &Path) {
    let made = Command::new(program("pg_dump"))
        .args(["--format=custom", "--file"])
        .arg(dump)
        .arg(url)
        .status();
    assert!(made.unwrap().success());
}

fn put_back(url: &str, dump: &Path) {
    let arguments = ["--clean", "--if-exists", "--single-transaction", "--dbname", url];
    assert!(
        Command::new(program("pg_restore")).args(arguments).arg(dump).status().unwrap().success()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_after_the_restore_of_a_dump_holds_at_every_running_replica() {
    // The dump contains the row of the other replica in the first round, and does not contain it in
    // the second one.
    for is_in_the_dump in [true, false] {
        let url = new_database().await;
        let mut cluster = Cluster::start_by([url.as_str()], &url, &LONG_LEASE).await;
        let folder = tempfile::tempdir().unwrap();
        let dump = folder.path().join("dump");
        if !is_in_the_dump {
            make_dump(&url, &dump);
        }
        let mut other = cluster.spawn(&url, &LONG_LEASE);
        other.await_serving().await;
        cluster.replicas.push(other);
        if is_in_the_dump {
            make_dump(&url, &dump);
        }
        let mut client = cluster.replicas[0].sessions().await;
        for _ in 0..8 {
            let token = sign_in(&mut client, "before").await.access_token;
            revoke_with_retries(&mut client, &token).await;
        }

        let frozen = Frozen::processes_of(&url, &cluster.replicas[1]).await;
        put_back(&url, &dump);
        let tokens = eventually("sessions are created again", async || {
            try_sign_in(&mut client, "after").await.ok()
        })
        .await;
        assert!(
            is_active_at(&cluster.replicas[1], &tokens.access_token).await,
            "the lease of the other replica ended too early for this test"
        );
        let witness = Witness::of(&cluster.replicas[1..], &tokens.access_token).await;
        revoke_with_retries(&mut client, &tokens.access_token).await;
        witness.acknowledged();
        witness.stop().await;
        drop(frozen);
    }
}

const HEAD: &str = "SELECT seq FROM feed_head";

/// Makes a revocation that is committed but lost before its replica has read it, because a dump is
/// restored. Another entry then gets the same feed position. Returns whether the revocation is
/// acknowledged, and whether the token is active afterwards.
async fn revoke_and_lose_the_entry(settings: &[(&str, &str)]) -> (bool, bool) {
    let url = new_database().await;
    let cluster = Cluster::start_by([url.as_str()], &url, settings).await;
    let replica = &cluster.replicas[0];
    let mut client = replica.sessions().await;
    let token = sign_in(&mut client, "alice").await.access_token;
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump");
    make_dump(&url, &dump);
    // A replica that has not renewed since the dump could not notice the set-back.
    let renewals = "SELECT renewals FROM replicas";
    let before = number(&url, renewals).await;
    eventually("the replica renews", async || {
        (number(&url, renewals).await > before + 1).then_some(())
    })
    .await;

    let head = number(&url, HEAD).await;
    let frozen = Frozen::renewals_of(&url, replica).await;
    let message =
        RevokeRequest { target: Some(Target::Token(token.clone())), ..Default::default() };
    let mut caller = client.clone();
    let revoking = tokio::spawn(async move { caller.revoke(message).await });
    becomes(&url, HEAD, head + 1).await;
    put_back(&url, &dump);
    execute(&url, "UPDATE feed_head SET seq = seq + 1").await;
    assert_eq!(number(&url, HEAD).await, head + 1);
    let answer = in_time("the revocation is answered", revoking).await.unwrap();
    drop(frozen);

    let is_active = is_active_at(replica, &token).await;
    if let Err(status) = &answer {
        assert_eq!(reason(status), "STORE_UNAVAILABLE", "{status:?}");
        revoke_with_retries(&mut client, &token).await;
        assert!(!is_active_at(replica, &token).await, "the second revocation does not hold");
    }
    (answer.is_ok(), is_active)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_revocation_is_not_acknowledged_by_another_entry_at_its_position() {
    assert_eq!(revoke_and_lose_the_entry(&SHORT_LEASE).await, (false, true));
}

/// Lets two replicas apply an entry that is then lost because a dump is restored. Before the first
/// replica renews again, a revocation there gets the feed position of the lost entry. Returns
/// whether that revocation is acknowledged, and whether the token is active at the other replica,
/// which still has a lease.
async fn revoke_at_the_position_of_a_lost_entry(settings: &[(&str, &str)]) -> (bool, bool) {
    let url = new_database().await;
    let settings = [&LONG_LEASE[..], settings].concat();
    let cluster = Cluster::start_by([url.as_str(); 2], &url, &settings).await;
    let [replica, other] = &cluster.replicas[..] else { panic!("two replicas") };
    let mut client = replica.sessions().await;
    let token = sign_in(&mut client, "alice").await.access_token;
    let lost = sign_in(&mut client, "bob").await.access_token;
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("dump");
    make_dump(&url, &dump);
    let head = number(&url, HEAD).await;
    revoke_with_retries(&mut client, &lost).await;

    let frozen =
        [Frozen::renewals_of(&url, replica).await, Frozen::processes_of(&url, other).await];
    put_back(&url, &dump);
    assert_eq!(number(&url, HEAD).await, head);
    let message =
        RevokeRequest { target: Some(Target::Token(token.clone())), ..Default::default() };
    let answer = in_time("the revocation is answered", client.revoke(message)).await;
    assert_eq!(
        number(&url, HEAD).await,
        head + 1,
        "the new entry does not have the position of the lost one"
    );
    let is_active = is_active_at(other, &token).await;
    drop(frozen);
    if let Err(status) = &answer {
        assert_eq!(reason(status), "STORE_UNAVAILABLE", "{status:?}");
    }
    (answer.is_ok(), is_active)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_applied_before_a_restore_does_not_acknowledge_a_revocation_at_its_position() {
    assert_eq!(revoke_at_the_position_of_a_lost_entry(&[]).await, (false, true));
}

/// Shows that the two tests above can fail: replicas that break a rule on purpose acknowledge both
/// revocations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_broken_rule_is_found() {
    let broken = [(RULE, "epoch-not-compared")];
    assert_eq!(
        revoke_and_lose_the_entry(&[&SHORT_LEASE[..], &broken].concat()).await,
        (true, true)
    );
    let broken = [(RULE, "earlier-renewal-counts")];
    assert_eq!(revoke_at_the_position_of_a_lost_entry(&broken).await, (true, true));
}
