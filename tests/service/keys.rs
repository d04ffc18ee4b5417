//! Tests of the keys, which are published before they are used, rotated by schedule and by hand,
//! revoked and dropped, and of the endpoints that publish them.

use std::time::Duration;

use countersign::{
    clock::Clock,
    proto::{InactiveReason, KeyPurpose, KeyState},
};
use countersign_test_support::{
    forge::{claims, header, parts},
    http_client::{Answer, ask, get},
    server::{Home, Server, eventually, in_time, request, request_under, seconds},
};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Settings under which keys rotate within minutes, and an access token is valid for longer than
/// its key signs. The service looks for due rotations every tenth of `publish_ahead`, in real time.
const FAST: &str = r#"
[tokens]
max_access_token_ttl = "600s"
[policies.default]
access_token_ttl = "600s"
[policies.short]
access_token_ttl = "60s"
idle_timeout = "300s"
absolute_lifetime = "600s"
[lease]
max_clock_skew = "100ms"
[keys]
publish_ahead = "4s"
jwks_max_age = "1s"
rotation = "200s"
refresh_rotation = "300s"
"#;

/// Returns the key that a token names in its header.
fn kid(token: &str) -> String {
    header(token)["kid"].as_str().unwrap().to_owned()
}

/// Returns the reason in the details of an error.
fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

pub async fn the_next_key_is_published_before_it_signs_and_the_previous_key_is_accepted_afterwards()
{
    let server = Home::new(FAST).await.start().await;
    let [first, second] =
        [server.signing(KeyState::Active).await.kid, server.signing(KeyState::Pending).await.kid];
    assert_eq!(server.published().await.len(), 2, "the next key is published");
    let before = server.sign_in("alice").await;
    assert_eq!(kid(&before.access), first);

    server.clock.advance(seconds(200));
    server.becomes_active(&second).await;
    let third = server.signing(KeyState::Pending).await.kid;
    let mut expected = [first.clone(), second.clone(), third.clone()];
    expected.sort();
    eventually("the key after the next is published", async || {
        let mut published = server.published().await;
        published.sort();
        (published == expected).then_some(())
    })
    .await;
    let after = server.sign_in("alice").await;
    assert_eq!(kid(&after.access), second);
    for token in [&before.access, &after.access] {
        assert_eq!(server.verdict(token).await, Ok(()));
    }
    let server = server.restart().await;
    assert_eq!(server.verdict(&before.access).await, Ok(()));
    assert_eq!(server.signing(KeyState::Active).await.kid, second);

    // The first key is dropped once its last token has expired by the clock of every verifier.
    server.clock.advance(seconds(199));
    assert_eq!(server.signing(KeyState::Retired).await.kid, first);
    for _ in 0..4 {
        server.clock.advance(seconds(150));
        tokio::task::yield_now().await;
    }
    eventually("the retired key is dropped", async || {
        (!server.published().await.contains(&first)).then_some(())
    })
    .await;
    assert_eq!(server.verdict(&before.access).await, Err(InactiveReason::UnknownKey));
}

pub async fn a_rotation_by_hand_is_refused_until_every_verifier_may_know_the_next_key() {
    let server = Server::start().await;
    let next = server.signing(KeyState::Pending).await.kid;
    let early = server.rotate(KeyPurpose::AccessToken, false).await.unwrap_err();
    assert_eq!((early.code(), reason(&early).as_str()), (Code::FailedPrecondition, "KEY_TOO_NEW"));
    assert!(early.message().contains(&next), "{early:?}");
    let wait = early.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(wait >= seconds(3600) && wait < seconds(3620), "{wait:?}");
    assert_eq!(server.signing(KeyState::Pending).await.kid, next, "nothing has changed");

    server.clock.advance(wait);
    let active = server.rotate(KeyPurpose::AccessToken, false).await.unwrap();
    assert_eq!((active.kid, active.state), (next.clone(), KeyState::Active.into()));
    assert_eq!(kid(&server.sign_in("alice").await.access), next);

    let mut forced = server.rotate(KeyPurpose::AccessToken, true).await;
    while let Ok(active) = forced {
        assert_eq!(kid(&server.sign_in("alice").await.access), active.kid);
        forced = server.rotate(KeyPurpose::AccessToken, true).await;
    }
    let too_many = forced.unwrap_err();
    assert_eq!(
        (too_many.code(), reason(&too_many).as_str()),
        (Code::ResourceExhausted, "TOO_MANY_KEYS")
    );
    assert_eq!(server.published().await.len(), 64);
}

pub async fn tokens_of_a_revoked_key_are_inactive_and_their_sessions_stay_live() {
    let server = Server::start().await;
    let [leaked, next] =
        [server.signing(KeyState::Active).await.kid, server.signing(KeyState::Pending).await.kid];
    let session = server.sign_in("alice").await;
    assert_eq!(server.verdict(&session.access).await, Ok(()), "the token is in the cache");

    let revoked = server.revoke_key(&leaked).await.unwrap();
    assert_eq!((revoked.kid.as_str(), revoked.state()), (leaked.as_str(), KeyState::Revoked));
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
    assert!(!server.published().await.contains(&leaked));
    let again = server.revoke_key(&leaked).await.unwrap();
    assert_eq!(again, revoked, "a second revocation changes nothing");

    let refreshed = server.refresh(&session.refresh).await.unwrap().now;
    assert_eq!(kid(&refreshed.access), next);
    assert_eq!(server.verdict(&refreshed.access).await, Ok(()));

    let server = server.restart().await;
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
    assert_eq!(server.verdict(&refreshed.access).await, Ok(()));
    let pending = server.signing(KeyState::Pending).await.kid;
    server.revoke_key(&pending).await.unwrap();
    assert_ne!(server.signing(KeyState::Pending).await.kid, pending, "there is always a next key");

    let unknown = server.revoke_key("nobody").await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "KEY_NOT_FOUND"));
    for wrong in ["", &"x".repeat(129)] {
        assert_eq!(reason(&server.revoke_key(wrong).await.unwrap_err()), "INVALID_FIELD");
    }
}

pub async fn a_refresh_moves_its_session_to_the_newest_key_and_old_keys_stay_for_other_sessions() {
    let server = Home::new(FAST).await.start().await;
    let purpose = KeyPurpose::RefreshToken;
    let [first, second] = [
        server.find(purpose, KeyState::Active).await.kid,
        server.find(purpose, KeyState::Pending).await.kid,
    ];
    let mover = server.sign_in("mover").await;
    // The session `short` ends after five idle minutes.
    let short = server.create(request_under("short", "short")).await.unwrap();
    let stayer = server.sign_in("stayer").await;
    server.rotate(purpose, true).await.unwrap();
    assert_eq!(server.lineage(&mover.id()).await.key.to_string(), first);
    let moved = server.refresh(&mover.refresh).await.unwrap().now;
    assert_eq!(server.lineage(&mover.id()).await.key.to_string(), second);
    assert!(
        server.refresh(&mover.refresh).await.unwrap().replayed,
        "the previous token is accepted within its grace"
    );
    let moved = server.refresh(&moved.refresh).await.unwrap().now;

    // After these 250 seconds no replica can make a token with the first key any more, so the key
    // is dropped as soon as no session needs it.
    server.clock.advance(seconds(250));
    server.refresh(&short.refresh).await.unwrap();
    for _ in 0..5 {
        let mut asked = server.store.holders_asked();
        server.clock.advance(seconds(3600));
        in_time("the service looks for sessions that need the key", asked.changed()).await.unwrap();
    }
    assert!(server.ring().await.iter().any(|key| key.kid == first), "the stayer needs it");
    let stayed = server.refresh(&stayer.refresh).await.unwrap().now;
    assert_ne!(server.lineage(&stayer.id()).await.key.to_string(), first);
    // The service looks once an hour for sessions that need the key. If it finds none, it keeps the
    // key for the longest grace, in which a client may still repeat a refresh.
    let mut asked = server.store.holders_asked();
    server.clock.advance(seconds(3600));
    in_time("the service looks for sessions that need the key", asked.changed()).await.unwrap();
    // The scheduled rotation runs a few times within this second, and must not drop the key.
    tokio::time::sleep(seconds(1)).await;
    assert!(
        server.ring().await.iter().any(|key| key.kid == first),
        "a client may still repeat a refresh with a token of this key"
    );
    eventually("the key that nobody needs is dropped", async || {
        server.clock.advance(seconds(900));
        tokio::time::sleep(Duration::from_millis(400)).await;
        (!server.ring().await.iter().any(|key| key.kid == first)).then_some(())
    })
    .await;
    for session in [moved, stayed] {
        server.refresh(&session.refresh).await.unwrap();
    }
}

pub async fn refresh_tokens_of_a_revoked_key_are_refused_and_access_tokens_stay_valid() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let leaked = server.find(KeyPurpose::RefreshToken, KeyState::Active).await.kid;
    server.revoke_key(&leaked).await.unwrap();
    assert_eq!(
        reason(&server.refresh(&session.refresh).await.err().unwrap()),
        "REFRESH_TOKEN_INVALID"
    );
    assert_eq!(server.verdict(&session.access).await, Ok(()), "access tokens have another key");
    let next = server.sign_in("alice").await;
    server.refresh(&next.refresh).await.unwrap();
}

pub async fn a_new_algorithm_takes_effect_at_the_next_rotation_and_older_tokens_stay_valid() {
    let mut server = Home::new(FAST).await.start().await;
    let mut tokens = vec![server.sign_in("alice").await.access];
    for algorithm in ["ES256", "RS256", "EdDSA"] {
        let home = server.stop().await;
        server = home
            .with(&FAST.replace("[keys]", &format!("[keys]\nalgorithm = \"{algorithm}\"")))
            .start()
            .await;
        server.clock.advance(seconds(10));
        eventually("the next key has the new algorithm", async || {
            (server.signing(KeyState::Pending).await.algorithm == algorithm).then_some(())
        })
        .await;
        server.clock.advance(seconds(10));
        server.rotate(KeyPurpose::AccessToken, false).await.unwrap();
        let token = server.sign_in("alice").await.access;
        assert_eq!(header(&token)["alg"], algorithm);
        tokens.push(token);
    }
    for token in &tokens {
        assert_eq!(server.verdict(token).await, Ok(()));
        assert_eq!(server.verdict(token).await, Ok(()), "and from the cache");
    }
    // The signature of one key is not valid under another.
    let [head, ..] = parts(&tokens[1]);
    let [_, payload, signature] = parts(&tokens[2]);
    let mixed = format!("{head}.{payload}.{signature}");
    assert_eq!(server.verdict(&mixed).await, Err(InactiveReason::BadSignature));
}

pub async fn the_public_keys_are_served_with_an_etag_and_a_max_age() {
    let server = Server::start().await;
    let Answer { status, head, body } = get(server.http, "/.well-known/jwks.json").await;
    assert_eq!(status, 200);
    for line in ["content-type: application/jwk-set+json", "cache-control: public, max-age=300"] {
        assert!(head.contains(line), "{head}");
    }
    let set: Value = serde_json::from_str(&body).unwrap();
    for key in set["keys"].as_array().unwrap() {
        let members: Vec<_> = key.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, ["alg", "crv", "kid", "kty", "use", "x"]);
        assert_eq!([&key["alg"], &key["use"]], [&json!("EdDSA"), &json!("sig")]);
    }
    let jwks =
        server.keys().get_jwks(countersign::proto::GetJwksRequest {}).await.unwrap().into_inner();
    assert_eq!((jwks.jwks, jwks.max_age.unwrap().seconds), (body, 300));

    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let ask_again = format!(
        "GET /.well-known/jwks.json HTTP/1.1\r\nhost: test\r\nif-none-match: {tag}\r\nconnection: \
         close\r\n\r\n"
    );
    let known = ask(server.http, &ask_again).await;
    assert_eq!((known.status, known.body.as_str()), (304, ""));
    assert!(known.head.contains("max-age=300") && known.head.contains(tag), "{}", known.head);
    server.rotate(KeyPurpose::AccessToken, true).await.unwrap();
    assert_eq!(ask(server.http, &ask_again).await.status, 200, "the keys have changed");
}

pub async fn the_metadata_name_the_address_of_the_public_keys() {
    let home = Home::new("issuer = 'https://auth.test/one'").await;
    let server = home.start().await;
    for path in ["", "/one"] {
        let answer =
            get(server.http, &format!("/.well-known/oauth-authorization-server{path}")).await;
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
        let metadata: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(metadata["issuer"], "https://auth.test/one");
        assert_eq!(metadata["jwks_uri"], "https://auth.test/one/.well-known/jwks.json");
        assert_eq!(metadata["response_types_supported"], json!([]));
    }
    assert_eq!(get(server.http, "/one/.well-known/jwks.json").await.status, 200);
    let token = server.sign_in("alice").await.access;
    assert_eq!(claims(&token)["iss"], "https://auth.test/one");
}

pub async fn key_rows_that_were_tampered_with_are_not_used_and_prevent_a_start() {
    let server = Server::start().await;
    let [active, pending] =
        [server.signing(KeyState::Active).await.kid, server.signing(KeyState::Pending).await.kid];
    let before = server.sign_in("alice").await;
    // The statement swaps the sealed secrets of the two keys.
    let swap = format!(
        "UPDATE signing_keys SET sealed = (SELECT sealed FROM signing_keys AS other WHERE \
         other.kid <> signing_keys.kid AND other.kid IN ('{active}', '{pending}')) WHERE kid IN \
         ('{active}', '{pending}')"
    );
    server.home.database.execute(&swap).await;
    // The rotation makes the service read the keys again.
    server.rotate(KeyPurpose::RefreshToken, true).await.unwrap();
    assert_eq!(server.verdict(&before.access).await, Ok(()));
    let after = server.sign_in("alice").await;
    assert_eq!(kid(&after.access), active, "the service uses the secret that it read before");
    assert_eq!(server.verdict(&after.access).await, Ok(()));

    // A service does not start with such rows.
    let home = server.stop().await;
    let server = home.launch(|_| ()).await;
    let error = server.running.await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&active) || error.contains(&pending), "{error}");
}

pub async fn a_key_whose_row_is_damaged_can_be_revoked() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let leaked = kid(&session.access);
    let damage = format!("UPDATE signing_keys SET algorithm = 'none' WHERE kid = '{leaked}'");
    server.home.database.execute(&damage).await;
    assert!(server.ring().await.iter().any(|key| key.kid == leaked), "the key is still listed");
    server.revoke_key(&leaked).await.unwrap();
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
    let refreshed = server.refresh(&session.refresh).await.unwrap().now;
    assert_ne!(kid(&refreshed.access), leaked);
    let server = server.restart().await;
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
    assert_eq!(server.verdict(&refreshed.access).await, Ok(()));
}

pub async fn no_key_with_valid_tokens_is_dropped_when_the_clock_leaps() {
    let server = Home::new(FAST).await.start().await;
    let before = server.sign_in("alice").await;
    let first = kid(&before.access);
    server.rotate(KeyPurpose::AccessToken, true).await.unwrap();
    let now = server.clock.now();
    server.clock.jump_to(now.plus(seconds(86_400)));
    // The scheduled rotation runs a few times within these seconds, and must not drop the key.
    tokio::time::sleep(seconds(2)).await;
    server.clock.jump_to(now);
    assert_eq!(server.verdict(&before.access).await, Ok(()));
    assert!(server.published().await.contains(&first));
    server.create(request("bob")).await.unwrap();
}
