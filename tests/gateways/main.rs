//! Tests with real gateways in front of an application. Each gateway has its configuration from
//! examples/gateways, in which only ports are replaced, and the gateway's key or certificate is
//! inserted where a test needs one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod application;
mod gateway;
mod paths;
mod site;

use countersign::{
    clock::{Clock, SystemClock},
    proto::{
        CreateSessionRequest, ReauthenticateRequest, RevokeRequest, reauthenticate_request,
        revoke_request::Target,
    },
};
use prost_types::Timestamp;
use serde_json::json;
use tokio::time::{Duration, sleep};

use gateway::Program;
use site::Site;

/// Returns a request for a session with the audience and the scope that `/api/` demands, and an
/// authentication that is too weak for `/account/`.
fn session_of(subject: &str) -> CreateSessionRequest {
    CreateSessionRequest {
        subject: subject.to_owned(),
        tenant: "acme".to_owned(),
        client_id: "web".to_owned(),
        audience: vec!["https://api.example.com".to_owned()],
        scopes: vec!["orders:read".to_owned(), "orders:write".to_owned()],
        ..CreateSessionRequest::default()
    }
}

/// Returns names of headers that some applications take for the headers that a gateway sets,
/// because those applications ignore the case, or do not tell an underscore from a hyphen.
fn forged_headers() -> Vec<String> {
    let mut names = vec![];
    for parts in [
        &["X", "Auth", "Subject"][..],
        &["X", "Auth", "Session", "Id"],
        &["x", "auth", "client", "id"],
    ] {
        for between in 0..1_u32 << (parts.len() - 1) {
            let separators = (0..).map(|bit| if between >> bit & 1 == 1 { "_" } else { "-" });
            let pairs = parts[1..]
                .iter()
                .zip(separators)
                .map(|(part, separator)| format!("{separator}{part}"));
            names.push(parts[0].to_owned() + &pairs.collect::<String>());
        }
    }
    let others = [
        "x-auth-tenant",
        "X_AUTH_TENANT",
        "X-Auth_Tenant",
        "X_Auth-Tenant",
        "X-AUTH-SCOPE",
        "x_auth_scope",
    ];
    names.extend(others.map(str::to_owned));
    names
}

/// Checks that the gateway applies the demands of an area to every path that some application reads
/// as one of that area. `tokens` are listed with the areas that each may enter; the token `all` may
/// enter every area.
async fn assert_checks_paths(site: &Site, program: Program, tokens: &[(&str, &[&str])], all: &str) {
    let application = &site.application;
    let mut entered = vec![];
    for (method, target) in paths::hostile() {
        for (token, allowed) in tokens {
            let before = application.requests();
            site.send(method, &target, Some(token), &[]).await;
            for seen in application.targets_after(before) {
                if paths::areas(&seen).iter().any(|area| !allowed.contains(area)) {
                    entered.push(format!(
                        "{method} {target:?} as {:?}",
                        String::from_utf8_lossy(&seen)
                    ));
                }
            }
        }
    }
    entered.dedup();
    assert!(
        entered.is_empty(),
        "{program:?}: {} have entered:\n{}",
        entered.len(),
        entered.join("\n")
    );

    for target in paths::HARMLESS {
        let before = application.requests();
        let answer = site.ask(target, Some(all), &[]).await;
        assert_eq!(answer.status, 200, "{program:?}: {target}: {answer:?}");
        let seen = application.targets_after(before);
        assert_eq!(seen.len(), 1, "{program:?}: {target}");
        let ((path, query), (seen_path, seen_query)) =
            (paths::parts(target.as_bytes()), paths::parts(&seen[0]));
        // A gateway may encode a path in another way, and Traefik writes `&` for `;` in a query.
        let separated = |query: Vec<u8>| String::from_utf8(query).unwrap().replace(';', "&");
        assert_eq!(seen_path, path, "{program:?}: {target}");
        assert_eq!(separated(seen_query), separated(query), "{program:?}: {target}");
    }

    // Some applications read the path from these headers, so the gateway must remove them.
    let names =
        ["X-Original-URL", "X-Rewrite-URL", "X_Original-URL", "x-rewrite_url", "X_REWRITE_URL"];
    let answer = site.ask("/", Some(all), &names.map(|name| (name, "/api/orders"))).await;
    assert_eq!(answer.status, 200, "{program:?}: {answer:?}");
    let seen = application.headers_of(&answer);
    for name in ["x-original-url", "x-rewrite-url"] {
        // Some gateways send such a header empty, instead of removing it.
        assert!(
            seen.get(name).is_none_or(|values| values == &json!([""])),
            "{program:?}: {seen:?}"
        );
    }

    // An upgrade would give the client a connection to the application that the gateway no longer
    // checks.
    let upgrade = [
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
    ];
    let answer = site.ask("/", Some(all), &upgrade).await;
    if answer.status == 200 {
        assert_eq!(application.headers_of(&answer).get("upgrade"), None, "{program:?}");
    }
}

/// Checks everything that a gateway must do. The application answers each request that reaches it
/// with the request's headers.
async fn assert_guards(program: Program) {
    let site = Site::start(program).await;
    let mut sessions = site.authority.sessions().await;
    let mut create = async |request: CreateSessionRequest| {
        let created = sessions.create_session(request).await.unwrap().into_inner();
        (created.session.unwrap().session_id, created.tokens.unwrap().access_token)
    };
    let (_, good) = create(session_of("alice")).await;
    let (_, elsewhere) = create(CreateSessionRequest {
        audience: vec!["https://b.test".to_owned()],
        ..session_of("bob")
    })
    .await;
    let (_, weak) = create(CreateSessionRequest {
        scopes: vec!["orders:write".to_owned()],
        ..session_of("carol")
    })
    .await;
    let now = Timestamp { seconds: SystemClock.now().seconds(), nanos: 0 };
    let strong = CreateSessionRequest {
        acr: "urn:example:mfa".to_owned(),
        authenticated_at: Some(now),
        ..session_of("dave")
    };
    let elsewhere_too =
        CreateSessionRequest { audience: vec!["https://b.test".to_owned()], ..strong.clone() };
    let (_, strong_elsewhere) = create(elsewhere_too).await;
    let (_, strong) = create(strong).await;
    let (_, brief) =
        create(CreateSessionRequest { policy: "brief".to_owned(), ..session_of("erin") }).await;
    let mut forged = good.clone();
    forged.replace_range(forged.len() - 20..forged.len() - 10, "AAAAAAAAAA");

    // A refused request does not reach the application, and the client gets a challenge.
    for (what, path, token, status, challenge) in [
        ("nothing", "/", None, 401, "bearer realm="),
        ("nothing", "/api/orders", None, 401, "bearer realm="),
        ("garbage", "/", Some("garbage"), 401, "error=\"invalid_token\""),
        ("a forgery", "/", Some(&*forged), 401, "error=\"invalid_token\""),
        (
            "a token for another audience",
            "/api/orders",
            Some(&*elsewhere),
            401,
            "error=\"invalid_token\"",
        ),
        (
            "a token without the scope",
            "/api/orders",
            Some(&*weak),
            403,
            "error=\"insufficient_scope\"",
        ),
        ("a weak authentication", "/account/", Some(&*good), 401, "acr_values=\"urn:example:mfa\""),
    ] {
        let answer = site.ask(path, token, &[]).await;
        assert_eq!(answer.status, status, "{what} at {path}: {answer:?}");
        // nginx passes on the challenge of a 401, but not that of a 403.
        if !(program == Program::Nginx && status == 403) {
            assert!(answer.head.contains(challenge), "{what} at {path}: {answer:?}");
        }
    }
    assert_eq!(site.application.requests(), 0, "a refused request has reached the application");

    // A request that passes has the identity from the token, whatever headers the client sends.
    let forged_headers = forged_headers();
    let forged_headers: Vec<(&str, &str)> =
        forged_headers.iter().map(|name| (name.as_str(), "mallory")).collect();
    for (path, token, subject, scope) in [
        ("/", &good, "alice", "orders:read orders:write"),
        ("/api/orders?x=1", &good, "alice", "orders:read orders:write"),
        ("/account/", &strong, "dave", "orders:read orders:write"),
        ("/", &weak, "carol", "orders:write"),
    ] {
        let answer = site.ask(path, Some(token), &forged_headers).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let mut seen = site.application.identity_of(&answer);
        let session = seen.remove("x-auth-session-id").unwrap();
        assert_eq!(session.as_array().unwrap().len(), 1, "{path}");
        let expected = json!({
            "x-auth-subject": [subject],
            "x-auth-tenant": ["acme"],
            "x-auth-client-id": ["web"],
            "x-auth-scope": [scope],
        });
        assert_eq!(json!(seen), expected, "{path}");
    }

    // A client cannot remove these headers by naming them in `Connection`.
    let drops = [
        ("Connection", "X-Auth-Subject, x-auth-scope"),
        ("Connection", "X-Auth-Tenant, X-Auth-Session-Id"),
    ];
    let answer = site.ask("/", Some(&good), &drops).await;
    if answer.status == 200 {
        assert_eq!(site.application.identity_of(&answer).len(), 5, "{answer:?}");
    }

    let tokens: [(&str, &[&str]); 4] =
        [(&weak, &[]), (&elsewhere, &[]), (&good, &["/api"]), (&strong_elsewhere, &["/account"])];
    assert_checks_paths(&site, program, &tokens, &strong).await;

    // Malformed credentials are refused.
    let before = site.application.requests();
    let basic = [("authorization", "Basic eDp5")];
    for (what, token, headers) in [
        ("two headers", Some(&*good), &basic[..]),
        ("a control character", Some("\u{1}"), &[]),
        ("a control character in the cookie", None, &[("cookie", "\u{1}")]),
        ("no text", Some("\u{ff}"), &[]),
    ] {
        let answer = site.ask("/", token, headers).await;
        assert!((400..500).contains(&answer.status), "{what}: {answer:?}");
    }
    assert_eq!(site.application.requests(), before);

    // There is no header for a claim that the token does not have.
    let nameless = CreateSessionRequest {
        tenant: String::new(),
        scopes: vec![],
        ..session_of("\u{e4}lice \u{1f600}%")
    };
    let (_, nameless) = create(nameless).await;
    let answer = site.ask("/", Some(&nameless), &forged_headers).await;
    let mut seen = site.application.identity_of(&answer);
    seen.remove("x-auth-session-id").unwrap();
    let expected =
        json!({ "x-auth-subject": ["%C3%A4lice %F0%9F%98%80%25"], "x-auth-client-id": ["web"] });
    assert_eq!(json!(seen), expected);

    // A token is refused once it has expired.
    loop {
        let answer = site.ask("/", Some(&brief), &[]).await;
        if answer.status != 200 {
            assert_eq!(answer.status, 401, "{answer:?}");
            assert!(answer.head.contains("expired"), "{answer:?}");
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }

    // A revocation takes effect for the next request.
    for number in 0..20 {
        let (session, token) = create(session_of(&format!("user-{number}"))).await;
        assert_eq!(site.ask("/", Some(&token), &[]).await.status, 200);
        let target = Some(Target::SessionId(session));
        let mut client = site.authority.sessions().await;
        client.revoke(RevokeRequest { target, ..RevokeRequest::default() }).await.unwrap();
        let answer = site.ask("/", Some(&token), &[]).await;
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(answer.head.contains("revoked"), "{answer:?}");
    }

    // A client that is challenged gets through once its user has authenticated again, and the
    // earlier token is refused from then on.
    let (session, earlier) = create(session_of("frank")).await;
    let answer = site.ask("/account/", Some(&earlier), &[]).await;
    assert_eq!(answer.status, 401, "{answer:?}");
    let again = ReauthenticateRequest {
        session: Some(reauthenticate_request::Session::SessionId(session)),
        acr: "urn:example:mfa".to_owned(),
        ..ReauthenticateRequest::default()
    };
    let mut client = site.authority.sessions().await;
    let again = client.reauthenticate(again).await.unwrap().into_inner().tokens.unwrap();
    assert_eq!(site.ask("/account/", Some(&again.access_token), &[]).await.status, 200);
    for path in ["/", "/account/"] {
        let answer = site.ask(path, Some(&earlier), &[]).await;
        assert_eq!(answer.status, 401, "{path}: {answer:?}");
    }

    // If the authority cannot be reached, nothing passes.
    let before = site.application.requests();
    let site = site.without_authority();
    for token in [None, Some(&*good)] {
        let answer = site.ask("/", token, &[]).await;
        assert!(answer.status >= 400, "{answer:?}");
    }
    assert_eq!(site.application.requests(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_guards_an_application() {
    assert_guards(Program::Envoy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_guards_an_application() {
    assert_guards(Program::Nginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caddy_guards_an_application() {
    assert_guards(Program::Caddy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traefik_guards_an_application() {
    assert_guards(Program::Traefik).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_guards_an_application() {
    assert_guards(Program::Haproxy).await;
}

/// The application never sees the token, whether it came in the header or in the cookie.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_accepts_the_token_in_a_cookie_and_hides_the_token_from_the_application() {
    let site = Site::start_with(
        Program::Envoy,
        "[gateway]\ncookie = \"session\"\nremove_credential = true\n",
    )
    .await;
    let created = site
        .authority
        .sessions()
        .await
        .create_session(session_of("alice"))
        .await
        .unwrap()
        .into_inner();
    let token = created.tokens.unwrap().access_token;
    let (alone, among) = (format!("session={token}"), format!("a=b; session={token}; c=d"));
    for (header, cookie, left) in [
        (None, Some(&alone), None),
        (None, Some(&among), Some("a=b; c=d")),
        (Some(&*token), None, None),
        (Some(&*token), Some(&among), Some("a=b; c=d")),
    ] {
        let cookie: Vec<_> = cookie.map(|cookie| ("cookie", cookie.as_str())).into_iter().collect();
        let answer = site.ask("/", header, &cookie).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(!answer.body.contains(&token), "{answer:?}");
        let seen = site.application.headers_of(&answer);
        assert_eq!(seen.get("authorization"), None);
        assert_eq!(seen.get("cookie"), left.map(|left| json!([left])).as_ref());
        assert_eq!(seen["x-auth-subject"], json!(["alice"]));
    }
    let other = [("cookie", "session=garbage")];
    assert_eq!(site.ask("/", Some(&token), &other).await.status, 401, "two different tokens");
    assert_eq!(site.ask("/", None, &other).await.status, 401);
}

/// The examples have a comment for the gateway's key. With the key in its place the gateway works,
/// and without it the authority refuses the gateway's calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_authenticates_by_its_key_if_callers_must_be_known() {
    for program in [Program::Envoy, Program::Nginx, Program::Caddy, Program::Haproxy] {
        for is_known in [true, false] {
            let (site, token) = Site::start_with_callers(program, is_known).await;
            assert_passes_if_known(&site, &token, is_known, program).await;
        }
    }
}

/// Traefik cannot send a key, so it authenticates by a certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traefik_authenticates_by_its_certificate_if_callers_must_be_known() {
    for is_known in [true, false] {
        let (site, token) = Site::start_with_certificates(is_known).await;
        assert_passes_if_known(&site, &token, is_known, Program::Traefik).await;
    }
}

async fn assert_passes_if_known(site: &Site, token: &str, is_known: bool, program: Program) {
    let answer = site.ask("/", Some(token), &[]).await;
    assert_eq!(answer.status == 200, is_known, "{program:?}: {answer:?}");
    assert_eq!(site.application.requests(), usize::from(is_known), "{program:?}");
}
