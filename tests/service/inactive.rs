//! Tests of the reasons that Validate gives for inactive tokens. They also check that Validate
//! changes nothing. Forged tokens are tested in `bad_input/jwt.rs`.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::proto::{
    CreateSessionRequest,
    InactiveReason::{self, *},
    ValidateRequest,
};
use countersign_test_support::{
    forge::{Forge, parts},
    server::{START, Server, SignedIn, request},
};
use serde_json::json;

/// Checks that each of the tokens is inactive for the given reason, that Validate adds no row, and
/// that the tokens of the good session stay valid.
async fn each_is_inactive(server: &Server, good: &SignedIn, tokens: Vec<(String, InactiveReason)>) {
    let rows = server.rows().await;
    for (token, reason) in tokens {
        // The second answer might come from the cache of verified tokens.
        for time in ["first", "second"] {
            let start = &token[..token.len().min(300)];
            assert_eq!(server.verdict(&token).await, Err(reason), "{time} time: {start}");
        }
    }
    assert_eq!(server.rows().await, rows);
    assert_eq!(server.verdict(&good.access).await, Ok(()));
    assert!(server.refresh(&good.refresh).await.is_ok());
}

pub async fn the_validity_of_a_token_begins_and_ends_exactly_to_the_second() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    let forge = Forge::of(&server).await;
    let now = START.seconds();
    // Two replicas may be off by five seconds each, in opposite directions.
    let ahead = if server.home.config().database.is_shared() { 10 } else { 5 };
    for (changes, expected, why) in [
        (json!({ "iat": now + ahead, "exp": now + 600 }), Ok(()), "clocks may differ by this much"),
        (json!({ "iat": now + ahead + 1, "exp": now + 600 }), Err(NotYetValid), "and by no more"),
        (json!({ "nbf": now + ahead }), Ok(()), "the same for nbf"),
        (json!({ "nbf": now + ahead + 1 }), Err(NotYetValid), "the same for nbf"),
        (json!({ "exp": now + 3600 }), Ok(()), "the longest lifetime"),
        (json!({ "exp": now + 3601 }), Err(Malformed), "a longer one"),
        (json!({ "iat": now - 3599, "exp": now + 1 }), Ok(()), "the last second"),
        (json!({ "iat": now - 600, "exp": now }), Err(Expired), "the second after the last one"),
    ] {
        assert_eq!(server.verdict(&forge.resign(&good.access, changes)).await, expected, "{why}");
    }
}

pub async fn a_bit_flipped_anywhere_makes_a_token_inactive() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    let mut tokens = vec![];
    for part in 0..3 {
        let bytes = URL_SAFE_NO_PAD.decode(parts(&good.access)[part]).unwrap();
        for position in (0..bytes.len() * 8).step_by(if part == 1 { 37 } else { 5 }) {
            let mut flipped = bytes.clone();
            flipped[position / 8] ^= 1 << (position % 8);
            let mut changed = parts(&good.access).map(str::to_owned);
            changed[part] = URL_SAFE_NO_PAD.encode(flipped);
            tokens.push((part, changed.join(".")));
        }
    }
    let rows = server.rows().await;
    for (part, token) in tokens {
        let verdict = server.verdict(&token).await;
        match part {
            // A flipped bit in the header may change the key, the algorithm or the type that it
            // names, or make it unreadable.
            0 => assert!(
                matches!(verdict, Err(Malformed | BadSignature | UnknownKey | WrongType)),
                "{verdict:?}"
            ),
            _ => assert_eq!(verdict, Err(BadSignature), "part {part}: {token}"),
        }
    }
    assert_eq!(server.rows().await, rows);
    assert_eq!(server.verdict(&good.access).await, Ok(()));
}

pub async fn a_refresh_token_is_not_accepted_as_an_access_token() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    let token = good.refresh.clone();
    each_is_inactive(&server, &good, vec![(token, WrongType), ("cs_rt_".to_owned(), WrongType)])
        .await;
}

pub async fn a_token_of_another_service_with_the_same_issuer_is_rejected_for_its_unknown_key() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    let other = Server::start().await.sign_in("alice").await;
    each_is_inactive(&server, &good, vec![(other.access, UnknownKey)]).await;
}

pub async fn each_demand_that_a_token_does_not_meet_has_its_own_reason() {
    let server = Server::start().await;
    let good = server
        .create(CreateSessionRequest {
            audience: ["https://a.test", "https://b.test"].map(str::to_owned).to_vec(),
            scopes: ["read", "write"].map(str::to_owned).to_vec(),
            acr: "urn:mfa".to_owned(),
            ..request("alice")
        })
        .await
        .unwrap();
    let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let demand = |audience: &str, scopes: &[&str], acr_values: &[&str]| ValidateRequest {
        access_token: good.access.clone(),
        audience: audience.to_owned(),
        scopes: texts(scopes),
        acr_values: texts(acr_values),
        ..Default::default()
    };
    for (request, expected) in [
        (demand("", &[], &[]), Ok(())),
        (demand("https://b.test", &["write"], &["urn:pwd", "urn:mfa"]), Ok(())),
        (demand("https://c.test", &[], &[]), Err(WrongAudience)),
        (demand("https://a.tes", &[], &[]), Err(WrongAudience)),
        (demand("", &["read", "admin"], &[]), Err(InsufficientScope)),
        (demand("", &["rea"], &[]), Err(InsufficientScope)),
        (demand("", &["read write"], &[]), Err(InsufficientScope)),
        (demand("", &[], &["urn:hardware"]), Err(StepUpRequired)),
        (demand("https://c.test", &["admin"], &["urn:hardware"]), Err(WrongAudience)),
        (demand("", &["admin"], &["urn:hardware"]), Err(InsufficientScope)),
    ] {
        assert_eq!(
            server.demand(request.clone()).await,
            expected,
            "{:?} {:?}",
            request.scopes,
            request.acr_values
        );
    }
    server.revoke(countersign_test_support::server::of_token(&good.access)).await.unwrap();
    assert_eq!(
        server.demand(demand("https://c.test", &[], &[])).await,
        Err(Revoked),
        "a revocation is reported before an unmet demand"
    );
}
