//! Concurrent refreshes with one refresh token at several replicas.

use std::collections::HashSet;

use countersign_test_support::{
    ledger::{refresh, validate},
    postgres_server::new_database,
};
use futures_util::future::join_all;

use crate::replicas::{Cluster, in_time, sign_in};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_refreshes_over_all_replicas_rotates_and_the_others_repeat_its_answer() {
    let cluster = Cluster::start(&new_database().await).await;
    let mut clients = vec![];
    for n in 0..12 {
        clients.push(cluster.replicas[n % 3].sessions().await);
    }
    for n in 0..8 {
        let mut token = sign_in(&mut clients[n % 3], "alice").await.refresh_token;
        // The next refresh token is used in the same way, so that calls compete for three
        // generations.
        for _ in 0..3 {
            let calls = (0..64).map(|call| {
                let (mut client, token) = (clients[call % clients.len()].clone(), token.clone());
                tokio::spawn(async move { refresh(&mut client, &token).await.unwrap() })
            });
            let answers = in_time("refreshes are answered", join_all(calls)).await;
            let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
            assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1, "one rotates");
            let tokens: Vec<_> = answers.into_iter().map(|answer| answer.tokens.unwrap()).collect();
            let successors: HashSet<_> =
                tokens.iter().map(|tokens| &tokens.refresh_token).collect();
            assert_eq!(successors.len(), 1, "all answers contain the same next refresh token");
            assert!(!successors.contains(&token));
            for (call, tokens) in tokens.iter().enumerate() {
                let validated = validate(&mut clients[(call + 1) % 3], &tokens.access_token).await;
                assert!(validated.active, "any replica may have issued it: {validated:?}");
            }
            token = tokens[0].refresh_token.clone();
        }
    }
}
