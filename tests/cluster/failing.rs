//! The database fails under load. Every error must say that the database is unavailable and when to
//! retry, and once it is back, everything that was acknowledged must hold.

use std::sync::Arc;

use countersign_test_support::postgres_server::{Server, execute, new_database};
use tokio::time::Instant;

use crate::{
    load::{Load, Trouble},
    replicas::{Cluster, dice, rounds},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_recover_by_themselves_from_a_crash_of_the_database_and_lose_nothing() {
    let server = Arc::new(tokio::task::spawn_blocking(Server::start).await.unwrap());
    let order = async |order: fn(&Server)| {
        let server = server.clone();
        tokio::task::spawn_blocking(move || order(&server)).await.unwrap();
    };
    let cluster = Cluster::start(&server.url("postgres")).await;
    let mut dice = dice();
    let mut all = vec![];
    for round in 0..rounds(2) {
        let load =
            Load::start(&cluster, &format!("crash {round}"), &mut dice, |_| Trouble::Database)
                .await;
        load.all_answered(50).await;
        order(Server::crash).await;
        load.all_failed().await;
        order(Server::restart).await;
        let ready = Instant::now();
        load.all_answered(1).await;
        println!("every replica writes again {:?} after the database was ready", ready.elapsed());
        load.all_answered(50).await;
        let mut accounts = load.stop().await;
        cluster.verify(&mut accounts).await;
        all.extend(accounts);
    }
    cluster.verify(&mut all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_terminated_again_and_again_lose_nothing() {
    let cluster = Cluster::start(&new_database().await).await;
    let load = Load::start(&cluster, "terminated", &mut dice(), |_| Trouble::Database).await;
    for _ in 0..rounds(10) {
        load.all_answered(20).await;
        execute(
            &cluster.url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
    }
    load.all_answered(20).await;
    assert!(load.failures() > 0, "no call failed although connections were terminated");
    cluster.verify(&mut load.stop().await).await;
}
