//! Checks that no token, key or claim value gets into a log line, an error or a Debug print.

use std::{
    fmt::{Debug, Write},
    fs,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::{
    domain::legacy_token::LegacyTokenHash,
    keys::ring::Found,
    proto::{
        BatchValidateRequest, CreateSessionRequest, GetSessionRequest, ImportSessionsRequest,
        ImportedSession, ReauthenticateRequest, RefreshRequest, Session, UpdateSessionRequest,
        ValidateRequest, ValidateView, reauthenticate_request,
    },
    store::{Store, StoreError},
    token::access::{Expectations, Unverified},
};
use countersign_test_support::{
    forge::Forge,
    log::{capture, hidden, logged},
    server::{Server, of_token, request, seconds},
};
use prost_types::{FieldMask, Struct};
use serde_json::json;

use crate::import::old;

/// The value of a claim, unlike any other text in these tests.
const CANARY: &str = "canary-claim-value-8f2e61d07c";

fn print(seen: &mut String, what: &impl Debug) {
    writeln!(seen, "{what:?} {what:#?}").unwrap();
}

/// Checks that bytes do not appear in any form in which they might be printed.
fn hidden_bytes(seen: &str, name: &str, bytes: &[u8]) {
    let hex = bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    hidden(seen, name, &hex);
    hidden(seen, name, &hex.to_uppercase());
    for offset in 0..3 {
        // Base64 encodes three bytes at a time, so the text depends on where the secret starts.
        hidden(seen, name, &URL_SAFE_NO_PAD.encode(&bytes[offset..]));
    }
    hidden(seen, name, &format!("{bytes:?}"));
}

pub async fn logs_errors_and_debug_prints_hold_no_token_no_key_and_no_claim_value() {
    capture();
    let server = Server::start().await;
    let own = || Struct { fields: [("secret".to_owned(), CANARY.to_owned().into())].into() }.into();
    let create = |subject: &str| CreateSessionRequest {
        claims: Some(own()),
        metadata: Some(own()),
        ..request(subject)
    };
    let mut seen = String::new();
    let mut secrets = vec![];
    let mut keep = |name: &'static str, token: &str| secrets.push((name, token.to_owned()));

    // Calls that succeed.
    print(&mut seen, &tonic::Request::new(create("alice")));
    let created = server.client().create_session(create("alice")).await.unwrap();
    print(&mut seen, &created);
    let created = created.into_inner();
    let tokens = created.tokens.unwrap();
    keep("access token", &tokens.access_token);
    keep("refresh token", &tokens.refresh_token);
    let ask = ValidateRequest {
        access_token: tokens.access_token.clone(),
        view: ValidateView::Full.into(),
        ..Default::default()
    };
    print(&mut seen, &ask);
    print(&mut seen, &server.client().validate(ask.clone()).await.unwrap());
    let batch = BatchValidateRequest { requests: vec![ask.clone(), ask.clone()] };
    print(&mut seen, &batch);
    print(&mut seen, &server.client().batch_validate(batch).await.unwrap());
    let exchange =
        RefreshRequest { refresh_token: tokens.refresh_token.clone(), ..Default::default() };
    print(&mut seen, &exchange);
    let refreshed = server.client().refresh(exchange.clone()).await.unwrap();
    print(&mut seen, &refreshed);
    let next = refreshed.into_inner().tokens.unwrap();
    keep("next access token", &next.access_token);
    keep("next refresh token", &next.refresh_token);
    let session_id = created.session.unwrap().session_id;
    print(
        &mut seen,
        &server
            .client()
            .get_session(GetSessionRequest { session_id: session_id.clone() })
            .await
            .unwrap(),
    );
    let carol = server.client().create_session(create("carol")).await.unwrap().into_inner();
    let refresh_token = carol.tokens.unwrap().refresh_token;
    keep("refresh token before the reauthentication", &refresh_token);
    let again = ReauthenticateRequest {
        session: Some(reauthenticate_request::Session::RefreshToken(refresh_token)),
        claims: Some(own()),
        ..Default::default()
    };
    print(&mut seen, &again);
    print(&mut seen, &again.session);
    let again = server.client().reauthenticate(again).await.unwrap();
    print(&mut seen, &again);
    let again = again.into_inner();
    let tokens_again = again.tokens.unwrap();
    keep("access token after the reauthentication", &tokens_again.access_token);
    keep("refresh token after the reauthentication", &tokens_again.refresh_token);
    let update = UpdateSessionRequest {
        session_id: again.session.unwrap().session_id,
        update_mask: Some(FieldMask { paths: vec!["metadata".to_owned(), "claims".to_owned()] }),
        session: Some(Session { metadata: Some(own()), claims: Some(own()), ..Default::default() }),
        ..Default::default()
    };
    print(&mut seen, &update);
    print(&mut seen, &server.client().update_session(update).await.unwrap());
    let old_token = "old-refresh-token-51c07a9d";
    keep("refresh token of another system", old_token);
    let hash = LegacyTokenHash::of(old_token);
    let session = ImportedSession {
        claims: Some(own()),
        metadata: Some(own()),
        legacy_refresh_token_hash: hash.bytes().to_vec(),
        ..old("canary", "carol")
    };
    let import = ImportSessionsRequest { sessions: vec![session], ..Default::default() };
    print(&mut seen, &import);
    print(&mut seen, &server.client().import_sessions(import).await.unwrap());
    print(&mut seen, &server.store.legacy_token(hash).await.unwrap());
    print(&mut seen, &server.refresh(old_token).await.err().unwrap());
    print(&mut seen, &hash);
    let row = server.store.session(session_id.parse().unwrap()).await.unwrap().unwrap();
    print(&mut seen, &row);

    let forge = Forge::of(&server).await;
    let unverified = Unverified::parse(&tokens.access_token).unwrap();
    print(&mut seen, &unverified);
    let Found::Good(key) = forge.ring.verifying(&unverified.kid) else {
        panic!("the key is known")
    };
    let expected = Expectations { issuer: "https://auth.test", max_ttl: seconds(3600) };
    let verified = unverified.verify(key, &expected).unwrap();
    assert_eq!(verified.custom.to_map()["secret"], CANARY);
    print(&mut seen, &verified);

    // Calls that are refused, each with a genuine secret in it.
    let ahead = forge.refresh_token(&server, &session_id, |lineage| lineage.generation += 5).await;
    keep("refresh token of a generation to come", &ahead);
    let odd = forge.resign(&tokens.access_token, json!({ "exp": CANARY }));
    for token in [&odd, &tokens.access_token[1..], &tokens.access_token.replace('.', "-")] {
        let ask = ValidateRequest { access_token: token.to_owned(), ..Default::default() };
        print(&mut seen, &server.client().validate(ask).await.unwrap());
        print(&mut seen, &of_token(token));
        print(&mut seen, &of_token(token).target);
        print(&mut seen, &server.client().revoke(of_token(token)).await.unwrap_err());
    }
    for token in [
        &ahead,
        &tokens.access_token,
        &next.refresh_token[1..],
        &tokens.refresh_token.to_uppercase(),
    ] {
        print(&mut seen, &server.refresh(token).await.err().unwrap());
    }
    let reserved = CreateSessionRequest {
        claims: Some(
            Struct { fields: [("sub".to_owned(), CANARY.to_owned().into())].into() }.into(),
        ),
        ..request("mallory")
    };
    print(&mut seen, &server.client().create_session(reserved).await.unwrap_err());
    for failure in
        [StoreError::Unavailable("gone".to_owned()), StoreError::Refused("no".to_owned())]
    {
        server.store.fail_with(Some(failure));
        print(&mut seen, &server.client().create_session(create("bob")).await.unwrap_err());
        print(&mut seen, &server.refresh(&next.refresh_token).await.err().unwrap());
        print(&mut seen, &server.revoke(of_token(&next.access_token)).await.unwrap_err());
    }
    server.store.fail_with(None);
    server.clock.advance(seconds(60));
    print(&mut seen, &server.refresh(&tokens.refresh_token).await.err().unwrap());
    print(&mut seen, &server.revoke(of_token(&next.refresh_token)).await);

    let master_text = fs::read_to_string(server.home.master_key_file()).unwrap();
    let keys = server.store.ring().await.unwrap().keys;
    print(&mut seen, &keys);
    print(&mut seen, &server.home.config());
    let lineage_secret = row.lineage.secret.0;
    let seed_and_macs: Vec<_> =
        keys.iter().map(|key| (key.key.kid.clone(), forge.masters.open(key).unwrap())).collect();
    let home = server.stop().await;

    let log = logged();
    for line in [
        "starting",
        "stopped",
        "was used again after its grace",
        "never issued",
        "a store operation failed",
    ] {
        assert!(log.contains(line), "the log is captured: {line}");
    }
    seen.push_str(&log);
    for (name, token) in secrets {
        hidden(&seen, name, &token);
    }
    for (name, secret) in home.database.secrets() {
        hidden(&seen, name, secret);
    }
    hidden(&seen, "claim value", CANARY);
    hidden(&seen, "claim value in base64", &URL_SAFE_NO_PAD.encode(CANARY));
    hidden(&seen, "master key", master_text.trim());
    hidden_bytes(&seen, "lineage secret", &lineage_secret);
    hidden_bytes(&seen, "hash of the refresh token of another system", hash.bytes());
    for (kid, secret) in seed_and_macs {
        // The last 32 bytes are the secret itself. A PKCS #8 document has fixed bytes before it.
        hidden_bytes(&seen, &kid, &secret[secret.len() - 32..]);
    }
}
