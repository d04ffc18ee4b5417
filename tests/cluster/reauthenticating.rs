//! Reauthentications that race each other, a refresh and a revocation at other replicas.

use countersign::proto::{
    ReauthenticateRequest, RefreshResponse, RevokeRequest, Tokens, reauthenticate_request::Session,
    revoke_request::Target,
};
use countersign_test_support::{
    forge::claims,
    ledger::{Client, refresh, validate},
    postgres_server::new_database,
};
use futures_util::future::{join, join_all};
use tonic::Status;

use crate::replicas::{Cluster, in_time, sign_in};

const ROUNDS: usize = 60;

async fn reauthenticate(client: &Client, session: Session) -> Result<Tokens, Status> {
    let request = ReauthenticateRequest {
        session: Some(session),
        acr: "urn:example:mfa".to_owned(),
        ..Default::default()
    };
    let answer = client.clone().reauthenticate(request).await?;
    Ok(answer.into_inner().tokens.unwrap())
}

/// Returns whether each of these access tokens is active. All replicas must say the same.
async fn active(clients: &[Client], tokens: &[&Tokens]) -> Vec<bool> {
    join_all(tokens.iter().map(async |tokens| {
        let answers =
            join_all(clients.iter().map(async |client| {
                validate(&mut client.clone(), &tokens.access_token).await.active
            }))
            .await;
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        answers[0]
    }))
    .await
}

/// Returns whether each of these refresh tokens is accepted, one after the other.
async fn accepted(clients: &[Client], tokens: &[&Tokens]) -> Vec<bool> {
    let mut accepted = vec![];
    for tokens in tokens {
        accepted.push(refresh(&mut clients[0].clone(), &tokens.refresh_token).await.is_ok());
    }
    accepted
}

/// The reauthentication that the database makes second ends the tokens of the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_concurrent_reauthentications_one_has_the_last_word_and_its_tokens_alone_are_good() {
    let cluster = Cluster::start(&new_database().await).await;
    let clients = cluster.clients().await;
    for round in 0..ROUNDS {
        let first = sign_in(&mut clients[round % 3].clone(), "alice").await;
        let by_token = Session::RefreshToken(first.refresh_token.clone());
        let both = join(
            reauthenticate(&clients[(round + 1) % 3], by_token.clone()),
            reauthenticate(&clients[(round + 2) % 3], by_token),
        );
        let (one, other) = in_time("the reauthentications are answered", both).await;
        // The refresh token of the second one is no longer accepted if the first one came before.
        let tokens: Vec<_> = [one, other].into_iter().filter_map(Result::ok).collect();
        let [winner] = &tokens[..] else { panic!("one of the two is made, not {}", tokens.len()) };
        assert_eq!(active(&clients, &[&first, winner]).await, [false, true], "round {round}");
        assert_eq!(accepted(&clients, &[&first, winner]).await, [false, true], "round {round}");

        let second = sign_in(&mut clients[round % 3].clone(), "alice").await;
        let claims = claims(&second.access_token);
        let id = claims["sid"].as_str().unwrap().to_owned();
        let both = join(
            reauthenticate(&clients[(round + 1) % 3], Session::SessionId(id.clone())),
            reauthenticate(&clients[(round + 2) % 3], Session::SessionId(id)),
        );
        let (one, other) = in_time("the reauthentications are answered", both).await;
        let (one, other) = (one.unwrap(), other.unwrap());
        let good = active(&clients, &[&second, &one, &other]).await;
        assert!(!good[0] && good[1] != good[2], "round {round}: {good:?}");
        assert_eq!(accepted(&clients, &[&second, &one, &other]).await, good, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_races_a_reauthentication_leaves_no_good_token_beside_its_tokens() {
    let cluster = Cluster::start(&new_database().await).await;
    let clients = cluster.clients().await;
    let mut refreshed_first = 0;
    for round in 0..ROUNDS {
        let first = sign_in(&mut clients[round % 3].clone(), "alice").await;
        let claims = claims(&first.access_token);
        let id = Session::SessionId(claims["sid"].as_str().unwrap().to_owned());
        let mut refreshing = clients[(round + 1) % 3].clone();
        let both = join(
            refresh(&mut refreshing, &first.refresh_token),
            reauthenticate(&clients[(round + 2) % 3], id),
        );
        let (refreshed, again) = in_time("both calls are answered", both).await;
        let again = again.unwrap();
        assert_eq!(active(&clients, &[&first, &again]).await, [false, true], "round {round}");
        if let Ok(RefreshResponse { tokens: Some(refreshed), .. }) = refreshed {
            refreshed_first += 1;
            assert_eq!(active(&clients, &[&refreshed]).await, [false], "round {round}");
            assert_eq!(accepted(&clients, &[&refreshed]).await, [false], "round {round}");
        }
        assert_eq!(accepted(&clients, &[&first, &again]).await, [false, true], "round {round}");
    }
    println!("the refresh came first in {refreshed_first} of {ROUNDS} rounds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_of_a_reauthentication_that_races_a_revocation_is_active_after_its_answer() {
    let cluster = Cluster::start(&new_database().await).await;
    let clients = cluster.clients().await;
    let mut reauthenticated_first = 0;
    for round in 0..ROUNDS {
        let first = sign_in(&mut clients[round % 3].clone(), "alice").await;
        let claims = claims(&first.access_token);
        let id = claims["sid"].as_str().unwrap().to_owned();
        let target = Some(Target::SessionId(id.clone()));
        let mut revoking = clients[(round + 1) % 3].clone();
        let both = join(
            revoking.revoke(RevokeRequest { target, ..Default::default() }),
            reauthenticate(&clients[(round + 2) % 3], Session::SessionId(id)),
        );
        let (revoked, again) = in_time("both calls are answered", both).await;
        revoked.unwrap();
        assert_eq!(active(&clients, &[&first]).await, [false], "round {round}");
        if let Ok(again) = again {
            reauthenticated_first += 1;
            assert_eq!(active(&clients, &[&again]).await, [false], "round {round}");
            assert_eq!(accepted(&clients, &[&again]).await, [false], "round {round}");
        }
        assert_eq!(accepted(&clients, &[&first]).await, [false], "round {round}");
    }
    println!("the reauthentication came first in {reauthenticated_first} of {ROUNDS} rounds");
}
