//! Replicas are killed under load, one after the other, by `kill -9`. Calls to the other replicas
//! must not fail, and no acknowledged write may be lost.

use crate::{
    load::{Load, Trouble},
    replicas::{Cluster, dice, rounds},
};
use countersign_test_support::postgres_server::new_database;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_loses_no_acknowledged_write_and_does_not_affect_others() {
    let mut cluster = Cluster::start(&new_database().await).await;
    let mut dice = dice();
    let mut all = vec![];
    for round in 0..rounds(6) {
        let victim = dice.roll(3);
        let trouble = |replica| if replica == victim { Trouble::Death } else { Trouble::None };
        let load = Load::start(&cluster, &format!("kill {round}"), &mut dice, trouble).await;
        load.answered(victim, dice.roll(100)).await;
        cluster.kill(victim).await;
        for survivor in (0..3).filter(|replica| *replica != victim) {
            load.answered(survivor, 30).await;
        }
        let mut accounts = load.stop().await;
        cluster.replicas[victim] = cluster.spawn(&cluster.url, &[]);
        cluster.replicas[victim].await_serving().await;
        cluster.verify(&mut accounts).await;
        all.extend(accounts);
    }
    cluster.verify(&mut all).await;
}
