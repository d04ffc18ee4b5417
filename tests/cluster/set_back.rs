//! The database is set back to an older state under running replicas, by a dump that is restored: its
//! history keeps its name, and positions in the feed are given out a second time.

use std::process::Command;

use crate::{
    cluster::Replica,
    postgres_server::{new_database, number, program, texts},
    replicas::{Cluster, eventually, is_active_at, revoke_at_last, sign_in, try_sign_in},
    witness::Witness,
};

/// So long that a replica still has its lease when all is done.
const LONG_LEASE: [(&str, &str); 1] = [("COUNTERSIGN_LEASE__DURATION", "8s")];

/// Server processes of a replica that have been stopped, so that it hears nothing of the database.
struct Frozen(Vec<String>);

impl Frozen {
    /// Stops them while they hold no lock, for which a restore would wait.
    async fn processes_of(url: &str, replica: &Replica) -> Self {
        let name = replica.name();
        eventually("its processes hold no lock", async || {
            let pids = format!("SELECT pid::text FROM pg_stat_activity WHERE application_name = '{name}'");
            let frozen = Self(texts(url, &pids).await);
            signal("STOP", &frozen.0);
            let locks = format!(
                "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                 WHERE application_name = '{name}' AND relation IS NOT NULL"
            );
            (number(url, &locks).await == 0).then_some(frozen)
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_after_a_dump_was_restored_under_running_replicas_is_active_nowhere() {
    // The other replica is in the register that comes back, or is not.
    for is_in_the_dump in [true, false] {
        let url = new_database().await;
        let mut cluster = Cluster::start_by([url.as_str()], &url, &LONG_LEASE).await;
        let folder = tempfile::tempdir().unwrap();
        let dump = folder.path().join("dump");
        let make_dump = || {
            let made =
                Command::new(program("pg_dump")).args(["--format=custom", "--file"]).arg(&dump).arg(&url).status();
            assert!(made.unwrap().success());
        };
        if !is_in_the_dump {
            make_dump();
        }
        let mut other = cluster.spawn(&url, &LONG_LEASE);
        other.await_serving().await;
        cluster.replicas.push(other);
        if is_in_the_dump {
            make_dump();
        }
        let mut client = cluster.replicas[0].sessions().await;
        for _ in 0..8 {
            let token = sign_in(&mut client, "before").await.access_token;
            revoke_at_last(&mut client, &token).await;
        }

        let frozen = Frozen::processes_of(&url, &cluster.replicas[1]).await;
        let put_back = ["--clean", "--if-exists", "--single-transaction", "--dbname", &url];
        assert!(Command::new(program("pg_restore")).args(put_back).arg(&dump).status().unwrap().success());
        let tokens =
            eventually("sessions are created again", async || try_sign_in(&mut client, "after").await.ok()).await;
        assert!(is_active_at(&cluster.replicas[1], &tokens.access_token).await, "its lease is not over yet");
        let witness = Witness::of(&cluster.replicas[1..], &tokens.access_token).await;
        revoke_at_last(&mut client, &tokens.access_token).await;
        witness.acknowledged();
        witness.stop().await;
        drop(frozen);
    }
}
