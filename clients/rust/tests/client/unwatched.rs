//! Tests of the verifier that knows only the public keys. They document what it does not know.

use std::time::Duration;

use countersign_client::{Answer, Demands, InactiveReason, Verifier, proto::RotateKeyRequest};

use crate::site::{ISSUER, Site, check, clock, eventually, in_time, of_token, sign_in};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_accepts_a_revoked_token_until_it_expires() {
    let site = Site::new("");
    let _server = site.start();
    let (client, clock) = (site.client(), clock());
    let verifier = Verifier::local_unwatched(site.client(), ISSUER).clock(clock.clone()).start();
    in_time("the keys", verifier.ready()).await;
    let token = sign_in(&client, "alice").await;
    client.revoke(of_token(&token)).await.unwrap();
    let answer = verifier.verify(&token, &Demands::new()).await;
    assert!(answer.is_active(), "it knows nothing of revocations");
    let other =
        Verifier::local_unwatched(site.client(), "https://other.test").clock(clock.clone()).start();
    in_time("the keys", other.ready()).await;
    assert_eq!(check(&other, &token).inactive_reason(), Some(InactiveReason::WrongIssuer));
    clock.advance(Duration::from_secs(3000));
    assert_eq!(check(&verifier, &token).inactive_reason(), Some(InactiveReason::Expired));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_fetches_the_keys_again_for_a_token_of_a_new_key() {
    let site = Site::new("");
    let _server = site.start();
    let client = site.client();
    let verifier = Verifier::local_unwatched(site.client(), ISSUER).start();
    in_time("the keys", verifier.ready()).await;
    // After two rotations a token has a key that did not exist before.
    for _ in 0..2 {
        let request = RotateKeyRequest { force: true, purpose: 0 };
        client.rotate_key(request).await.unwrap();
    }
    let token = sign_in(&client, "alice").await;
    assert_eq!(check(&verifier, &token).inactive_reason(), Some(InactiveReason::UnknownKey));
    eventually("the keys are fetched", || check(&verifier, &token).is_active()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_cannot_be_fetched_again_are_used_for_a_limited_time() {
    let site = Site::new("");
    let mut server = site.start();
    let clock = clock();
    let verifier = Verifier::local_unwatched(site.client(), ISSUER)
        .clock(clock.clone())
        .keys_valid_for(Duration::from_secs(30))
        .start();
    in_time("the keys", verifier.ready()).await;
    let token = sign_in(&site.client(), "alice").await;
    server.kill();
    clock.advance(Duration::from_secs(29));
    assert!(check(&verifier, &token).is_active());
    clock.advance(Duration::from_secs(2));
    assert!(matches!(check(&verifier, &token), Answer::Unknown(_)));
}
