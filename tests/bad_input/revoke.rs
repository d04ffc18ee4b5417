//! Tests of revocations of targets that do not exist, that belong to others, or that are revoked
//! already. None of these revocations may fill the table. A token with the same `jti` as a revoked
//! token must be revoked too.
//!
//! Tested elsewhere: the effect of each revocation in `service/revoke.rs`; the permissions of each
//! role in `service/callers.rs`; invalid fields in `service/refusals.rs`.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::proto::{
    CreateSessionRequest, InactiveReason, RevokeExtent, RevokeRequest, SubjectTarget,
    revoke_request::Target,
};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tonic::Code;

use super::{
    harness::Harness,
    jwt::{ORDER_P256, subtract},
};
use countersign_test_support::{
    forge::{Forge, claims, parts},
    refusal::{Refusal, refused},
    server::{Home, Server, of_token, request, revocation, seconds},
};

/// The number of calls in the tests that repeat a call.
const TIMES: usize = 3000;
/// The number of calls under way at once.
const AT_ONCE: usize = 64;

/// A revocation, the key of its caller, and the expected answer: the number of sessions that it
/// ends, or the refusal.
struct Row {
    name: &'static str,
    by: String,
    order: RevokeRequest,
    expected: Result<i64, Refusal>,
}

fn token_only(token: &str) -> RevokeRequest {
    RevokeRequest { extent: RevokeExtent::TokenOnly.into(), ..of_token(token) }
}

fn subject(tenant: &str, subject: &str) -> RevokeRequest {
    let (tenant, subject) = (tenant.to_owned(), subject.to_owned());
    revocation(Target::Subject(SubjectTarget { tenant, subject, ..Default::default() }))
}

fn tenant(name: &str) -> RevokeRequest {
    revocation(Target::Tenant(name.to_owned()))
}

async fn revoke(harness: &Harness, by: &str, order: RevokeRequest) -> Result<i64, Refusal> {
    match harness.server.client_with(by).revoke(order).await {
        Ok(answer) => Ok(answer.into_inner().revoked_sessions),
        refusal => Err(refused(refusal)),
    }
}

/// Returns the token of a revocation, which must not be logged.
fn secret(order: &RevokeRequest) -> &str {
    match &order.target {
        Some(Target::Token(token)) => token,
        _ => "",
    }
}

pub async fn a_refused_revocation_adds_no_row_and_an_accepted_one_of_a_subject_or_tenant_adds_one()
{
    let harness = Harness::start().await;
    let server = &harness.server;
    let good = harness.sign_in("alice").await;
    let forge = Forge::of(server).await;
    let other = Server::start().await.sign_in("alice").await;
    let now = claims(&good.access)["iat"].as_i64().unwrap();
    let unknown = "0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22";
    let expired = |token: &str| forge.resign(token, json!({ "iat": now - 600, "exp": now - 60 }));
    let gone = forge.resign(&good.access, json!({ "sid": unknown }));
    let mut tampered = good.access.clone();
    tampered.truncate(tampered.len() - 10);
    tampered += "AAAAAAAAAA";
    let none = URL_SAFE_NO_PAD.encode(forge.header(json!({ "alg": "none" })));
    let none = format!("{none}.{}.", parts(&good.access)[1]);

    let invalid = || Err(Refusal::field("token"));
    let not_found = || Err(Refusal::of(Code::NotFound, "SESSION_NOT_FOUND"));
    let not_allowed = || Err(Refusal::of(Code::PermissionDenied, "CALLER_NOT_ALLOWED"));
    let unknown_caller = || Err(Refusal::unauthenticated("CALLER_UNKNOWN"));
    let (admin, foreign) = (&*harness.admin, &*harness.foreign);
    let rows = [
        ("a letter", admin, of_token("x"), invalid()),
        ("three parts", admin, of_token("a.b.c"), invalid()),
        ("garbage after the prefix", admin, of_token("cs_rt_x"), invalid()),
        ("the prefix", admin, of_token("cs_rt_"), invalid()),
        ("another signature", admin, of_token(&tampered), invalid()),
        ("an access token of another service", admin, of_token(&other.access), invalid()),
        ("a refresh token of another service", admin, of_token(&other.refresh), invalid()),
        (
            "of another issuer",
            admin,
            of_token(&forge.resign(&good.access, json!({ "iss": "https://other.test" }))),
            invalid(),
        ),
        (
            "without a name",
            admin,
            of_token(&forge.resign(&good.access, json!({ "jti": null }))),
            invalid(),
        ),
        ("alg none", admin, of_token(&none), invalid()),
        (
            "a refresh token of a generation to come",
            admin,
            of_token(
                &forge.refresh_token(server, &good.id(), |lineage| lineage.generation += 1).await,
            ),
            invalid(),
        ),
        (
            "a refresh token of another secret",
            admin,
            of_token(
                &forge.refresh_token(server, &good.id(), |lineage| lineage.secret.0[3] ^= 8).await,
            ),
            invalid(),
        ),
        ("of 8193 bytes", admin, of_token(&"x".repeat(8193)), invalid()),
        ("empty", admin, of_token(""), invalid()),
        ("only a refresh token", admin, token_only(&good.refresh), Err(Refusal::field("extent"))),
        ("expired, of a session that does not exist", admin, of_token(&expired(&gone)), Ok(0)),
        (
            "only the token, expired, of a session that does not exist",
            admin,
            token_only(&expired(&gone)),
            Ok(0),
        ),
        ("only the token, expired", admin, token_only(&expired(&good.access)), Ok(0)),
        (
            "signed and expired in 1970",
            admin,
            of_token(&forge.resign(&gone, json!({ "iat": 0, "exp": 1 }))),
            Ok(0),
        ),
        ("another tenant's expired token", foreign, of_token(&expired(&good.access)), not_found()),
        (
            "a session that does not exist",
            admin,
            revocation(Target::SessionId(unknown.to_owned())),
            not_found(),
        ),
        (
            "SQL as a session",
            admin,
            revocation(Target::SessionId("' OR 1=1 --".to_owned())),
            Err(Refusal::field("session_id")),
        ),
        ("a subject that does not exist", admin, subject("acme", "nobody"), Ok(0)),
        ("SQL as a subject", admin, subject("acme", "' OR 1=1 --"), Ok(0)),
        ("a pattern as a subject", admin, subject("acme", "%"), Ok(0)),
        ("a tenant that does not exist", admin, tenant("nobody"), Ok(0)),
        ("a pattern as a tenant", admin, tenant("a%"), Ok(0)),
        // The caller of the following revocations is limited to another tenant.
        ("another tenant's access token", foreign, of_token(&good.access), not_found()),
        ("only another tenant's token", foreign, token_only(&good.access), not_found()),
        ("another tenant's refresh token", foreign, of_token(&good.refresh), not_found()),
        (
            "another tenant's session",
            foreign,
            revocation(Target::SessionId(good.id())),
            not_found(),
        ),
        ("another tenant's subject", foreign, subject("acme", "alice"), not_allowed()),
        ("another tenant", foreign, tenant("acme"), not_allowed()),
        ("the caller's own tenant, without the role", foreign, tenant("other"), not_allowed()),
        ("a subject of the default tenant", foreign, subject("", "alice"), not_allowed()),
        // The callers of the following revocations lack the role, or are unknown.
        ("by a validator", &harness.validator, of_token(&good.access), not_allowed()),
        ("by an issuer", &harness.issuer, of_token(&good.refresh), not_allowed()),
        ("garbage by an issuer", &harness.issuer, of_token("x"), not_allowed()),
        ("without a key", "", of_token(&good.access), unknown_caller()),
        ("with the token as the key", &good.access, of_token(&good.access), unknown_caller()),
        (
            "with an unknown key",
            "cs_ck_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            tenant("acme"),
            unknown_caller(),
        ),
    ];
    let rows =
        rows.map(|(name, by, order, expected)| Row { name, by: by.to_owned(), order, expected });
    for Row { name, by, order, expected } in rows {
        // A revocation of a subject or a tenant always adds an entry, even if no session is found,
        // because the database may have lost sessions. The entry expires.
        let is_name = matches!(order.target, Some(Target::Subject(_) | Target::Tenant(_)));
        let entries = i64::from(is_name && expected.is_ok());
        let is = harness
            .survives(name, &[secret(&order), &by], entries, revoke(&harness, &by, order.clone()))
            .await;
        assert_eq!(is, expected, "{name}");
    }
    assert!(harness.is_active(&good.access).await);
    assert!(harness.refresh(&harness.admin, &good.refresh).await.is_ok());
    harness.finish().await;
}

pub async fn thousands_of_garbage_tokens_add_no_row() {
    let harness = Harness::start().await;
    let good = harness.sign_in("alice").await;
    let [header, payload, signature] = parts(&good.access);
    let garbage = |number: usize| match number % 4 {
        0 => format!("{header}.{payload}.{}{number:06}", &signature[..signature.len() - 6]),
        1 => format!(
            "{header}.{}.{signature}",
            URL_SAFE_NO_PAD.encode(format!("{{\"jti\":\"{number}\"}}"))
        ),
        2 => format!("cs_rt_{}{number:06}", &good.refresh[6..good.refresh.len() - 6]),
        _ => format!("{number}.{number}.{number}"),
    };
    let tokens: Vec<_> = (0..TIMES).map(garbage).collect();
    let send = async {
        let calls =
            stream::iter(&tokens).map(|token| revoke(&harness, &harness.admin, of_token(token)));
        calls.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await
    };
    let secrets: Vec<_> = tokens.iter().map(String::as_str).collect();
    let answers = harness.survives("garbage", &secrets, 0, send).await;
    assert!(
        answers.len() == TIMES
            && answers.iter().all(|answer| *answer == Err(Refusal::field("token")))
    );
    assert!(harness.is_active(&good.access).await);
    harness.finish().await;
}

pub async fn thousands_of_repeated_revocations_leave_one_row_for_each_target() {
    let harness = Harness::start().await;
    let [session, alone, by_id, _] = [
        harness.sign_in("alice").await,
        harness.sign_in("bob").await,
        harness.sign_in("carol").await,
        harness.sign_in("dora").await,
    ];
    let elsewhere = CreateSessionRequest { tenant: "elsewhere".to_owned(), ..request("dave") };
    harness.server.client_with(&harness.admin).create_session(elsewhere).await.unwrap();
    let orders = [
        of_token(&session.access),
        of_token(&session.refresh),
        token_only(&alone.access),
        revocation(Target::SessionId(by_id.id())),
        subject("acme", "dora"),
        tenant("elsewhere"),
        tenant("that nobody has heard of"),
    ];
    let send = async {
        let calls = stream::iter((0..TIMES).map(|number| &orders[number % orders.len()]));
        let calls = calls.map(|order| revoke(&harness, &harness.admin, order.clone()));
        calls.buffered(AT_ONCE).collect::<Vec<_>>().await
    };
    let answers = harness
        .survives("again and again", &[&session.access, &session.refresh, &alone.access], 6, send)
        .await;
    // If a tenant is revoked several times at once, several answers may count the same sessions, so
    // the sum leaves them out.
    let of_tenants =
        |number: usize| matches!(orders[number % orders.len()].target, Some(Target::Tenant(_)));
    let ended = answers
        .into_iter()
        .map(Result::unwrap)
        .enumerate()
        .filter(|(number, _)| !of_tenants(*number));
    assert_eq!(ended.map(|(_, ended)| ended).sum::<i64>(), 3, "each session ends once");
    assert!(!harness.is_active(&session.access).await && !harness.is_active(&alone.access).await);
    assert!(harness.refresh(&harness.admin, &alone.refresh).await.is_ok(), "its session lives on");
    harness.finish().await;
}

/// A revocation identifies a token by its claims, never by its text, because other texts with the
/// same claims may be valid tokens too.
pub async fn revoking_a_token_revokes_every_other_token_with_the_same_jti() {
    for algorithm in ["EdDSA", "ES256"] {
        let server = Home::new(&format!("[keys]\nalgorithm = '{algorithm}'")).await.start().await;
        let session = server.sign_in("alice").await;
        let forge = Forge::of(&server).await;
        let payload = claims(&session.access);
        let text = Value::Object(payload.clone()).to_string();
        let reversed: Vec<_> =
            payload.iter().rev().map(|(name, value)| format!("{}: {value}", json!(name))).collect();
        let header = forge.header(json!({}));
        let mut twins = vec![
            ("spaces in the header", forge.sign(&header.replace(',', " ,\n"), &text)),
            (
                "spaces in the payload",
                forge.sign(&header, &text.replace(':', " : ").replace("https : ", "https:")),
            ),
            ("another order", forge.sign(&header, &format!("{{ {} }}", reversed.join(" , ")))),
            (
                "a member more",
                forge.sign(&forge.header(json!({ "jku": "https://evil.test" })), &text),
            ),
            ("an escape", forge.sign(&header, &text.replace("\"jti\"", "\"\\u006ati\""))),
            ("a claim more", forge.resign(&session.access, json!({ "mine": 1 }))),
            (
                "a later end",
                forge.resign(
                    &session.access,
                    json!({ "exp": payload["exp"].as_i64().unwrap() + 60 }),
                ),
            ),
            ("other scopes", forge.resign(&session.access, json!({ "scope": "admin" }))),
        ];
        if algorithm == "ES256" {
            // ECDSA signatures use a random number, so signing again gives another signature.
            // Besides, each signature has a second valid form.
            twins.push(("signed again", forge.resign(&session.access, json!({}))));
            let [header, payload, signature] = parts(&session.access);
            let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
            let other = URL_SAFE_NO_PAD
                .encode([&bytes[..32], &subtract(&ORDER_P256, &bytes[32..])].concat());
            twins.push(("n - s", format!("{header}.{payload}.{other}")));
        }
        for (name, twin) in &twins {
            assert_ne!(*twin, session.access, "{name}");
            assert_eq!(server.verdict(twin).await, Ok(()), "{algorithm}, {name}: still valid");
        }
        server.revoke(token_only(&session.access)).await.unwrap();
        for (name, twin) in &twins {
            assert_eq!(
                server.verdict(twin).await,
                Err(InactiveReason::Revoked),
                "{algorithm}, {name}"
            );
        }
        assert_eq!(server.rows().await.blacklist, 1);

        // Revoking the twin also revokes the original, even if neither was ever validated.
        let session = server.sign_in("bob").await;
        let twin = forge
            .sign(&header.replace(',', " ,"), &Value::Object(claims(&session.access)).to_string());
        server.revoke(token_only(&twin)).await.unwrap();
        server.clock.advance(seconds(1));
        assert_eq!(
            server.verdict(&session.access).await,
            Err(InactiveReason::Revoked),
            "{algorithm}"
        );
        assert_eq!(server.rows().await.blacklist, 2);
    }
}
