//! Real gateways in front of an application: each with the configuration in examples/gateways, in
//! which only the ports are replaced.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/http.rs"]
#[allow(dead_code)]
mod http;
#[path = "support/ports.rs"]
mod ports;
#[path = "support/process.rs"]
#[allow(dead_code)]
mod support;
#[path = "support/venv.rs"]
mod venv;

#[path = "gateways/application.rs"]
mod application;
#[path = "gateways/gateway.rs"]
mod gateway;
#[path = "gateways/paths.rs"]
mod paths;
#[path = "gateways/site.rs"]
mod site;

use countersign::{
    clock::{Clock, SystemClock},
    proto::{CreateSessionRequest, RevokeRequest, revoke_request::Target},
};
use prost_types::Timestamp;
use serde_json::json;
use tokio::time::{Duration, sleep};

use gateway::Program;
use site::Site;

/// For the audience and with the scope that `/api/` demands, and an authentication that is too weak
/// for `/account/`.
fn usual(subject: &str) -> CreateSessionRequest {
    CreateSessionRequest {
        subject: subject.to_owned(),
        tenant: "acme".to_owned(),
        client_id: "web".to_owned(),
        audience: vec!["https://api.example.com".to_owned()],
        scopes: vec!["orders:read".to_owned(), "orders:write".to_owned()],
        ..CreateSessionRequest::default()
    }
}

/// Names that applications take for ours, as they are read by those who take an underscore for a
/// hyphen, and any case.
fn lies() -> Vec<String> {
    let mut names = vec![];
    for parts in [
        &["X", "Auth", "Subject"][..],
        &["X", "Auth", "Session", "Id"],
        &["x", "auth", "client", "id"],
    ] {
        for between in 0..1_u32 << (parts.len() - 1) {
            let separators = (0..).map(|place| if between >> place & 1 == 1 { "_" } else { "-" });
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

/// A path is judged as the application reads it, whatever application it is. `tokens` are with the
/// areas that each may enter; `all` may enter each.
async fn judges_paths(site: &Site, program: Program, tokens: &[(&str, &[&str])], all: &str) {
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
        // A gateway may write a path in another way, and Traefik writes `&` for `;` in a query.
        let separated = |query: Vec<u8>| String::from_utf8(query).unwrap().replace(';', "&");
        assert_eq!(seen_path, path, "{program:?}: {target}");
        assert_eq!(separated(seen_query), separated(query), "{program:?}: {target}");
    }

    // Nor does a client name another path in a header that some applications read it from.
    let names =
        ["X-Original-URL", "X-Rewrite-URL", "X_Original-URL", "x-rewrite_url", "X_REWRITE_URL"];
    let answer = site.ask("/", Some(all), &names.map(|name| (name, "/api/orders"))).await;
    assert_eq!(answer.status, 200, "{program:?}: {answer:?}");
    let seen = application.headers_of(&answer);
    for name in ["x-original-url", "x-rewrite-url"] {
        // An empty header says nothing.
        assert!(
            seen.get(name).is_none_or(|values| values == &json!([""])),
            "{program:?}: {seen:?}"
        );
    }

    // Nor does it get a connection to the application on which nothing is judged.
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

/// What every gateway must do. The application answers each request that reaches it with the
/// headers that it had.
async fn guards(program: Program) {
    let site = Site::start(program).await;
    let mut sessions = site.authority.sessions().await;
    let mut create = async |request: CreateSessionRequest| {
        let created = sessions.create_session(request).await.unwrap().into_inner();
        (created.session.unwrap().session_id, created.tokens.unwrap().access_token)
    };
    let (_, good) = create(usual("alice")).await;
    let (_, elsewhere) = create(CreateSessionRequest {
        audience: vec!["https://b.test".to_owned()],
        ..usual("bob")
    })
    .await;
    let (_, weak) =
        create(CreateSessionRequest { scopes: vec!["orders:write".to_owned()], ..usual("carol") })
            .await;
    let now = Timestamp { seconds: SystemClock.now().seconds(), nanos: 0 };
    let strong = CreateSessionRequest {
        acr: "urn:example:mfa".to_owned(),
        authenticated_at: Some(now),
        ..usual("dave")
    };
    let elsewhere_too =
        CreateSessionRequest { audience: vec!["https://b.test".to_owned()], ..strong.clone() };
    let (_, strong_elsewhere) = create(elsewhere_too).await;
    let (_, strong) = create(strong).await;
    let (_, brief) =
        create(CreateSessionRequest { policy: "brief".to_owned(), ..usual("erin") }).await;
    let mut forged = good.clone();
    forged.replace_range(forged.len() - 20..forged.len() - 10, "AAAAAAAAAA");

    // What is refused does not reach the application, and the client learns what would help.
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
        // nginx hands on the challenge of a 401 and not that of a 403.
        if !(program == Program::Nginx && status == 403) {
            assert!(answer.head.contains(challenge), "{what} at {path}: {answer:?}");
        }
    }
    assert_eq!(site.application.requests(), 0, "nothing of that has reached the application");

    // What passes comes with who it is, whatever else it says of that.
    let lies = lies();
    let lies: Vec<(&str, &str)> = lies.iter().map(|name| (name.as_str(), "mallory")).collect();
    for (path, token, subject, scope) in [
        ("/", &good, "alice", "orders:read orders:write"),
        ("/api/orders?x=1", &good, "alice", "orders:read orders:write"),
        ("/account/", &strong, "dave", "orders:read orders:write"),
        ("/", &weak, "carol", "orders:write"),
    ] {
        let answer = site.ask(path, Some(token), &lies).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let mut seen = site.application.identity_of(&answer);
        let session = seen.remove("x-auth-session-id").unwrap();
        assert_eq!(session.as_array().unwrap().len(), 1, "{path}");
        let told = json!({
            "x-auth-subject": [subject], "x-auth-tenant": ["acme"], "x-auth-client-id": ["web"], "x-auth-scope": [scope],
        });
        assert_eq!(json!(seen), told, "{path}");
    }

    // Nor does a client take away what is said of it.
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
    judges_paths(&site, program, &tokens, &strong).await;

    // Whatever is odd about the token.
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

    // What the token does not say is not there at all.
    let nameless = CreateSessionRequest {
        tenant: String::new(),
        scopes: vec![],
        ..usual("\u{e4}lice \u{1f600}%")
    };
    let (_, nameless) = create(nameless).await;
    let answer = site.ask("/", Some(&nameless), &lies).await;
    let mut seen = site.application.identity_of(&answer);
    seen.remove("x-auth-session-id").unwrap();
    let told =
        json!({ "x-auth-subject": ["%C3%A4lice %F0%9F%98%80%25"], "x-auth-client-id": ["web"] });
    assert_eq!(json!(seen), told);

    // A token that has expired.
    loop {
        let answer = site.ask("/", Some(&brief), &[]).await;
        if answer.status != 200 {
            assert_eq!(answer.status, 401, "{answer:?}");
            assert!(answer.head.contains("expired"), "{answer:?}");
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }

    // A revocation holds for the very next request.
    for number in 0..20 {
        let (session, token) = create(usual(&format!("user-{number}"))).await;
        assert_eq!(site.ask("/", Some(&token), &[]).await.status, 200);
        let target = Some(Target::SessionId(session));
        let mut client = site.authority.sessions().await;
        client.revoke(RevokeRequest { target, ..RevokeRequest::default() }).await.unwrap();
        let answer = site.ask("/", Some(&token), &[]).await;
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(answer.head.contains("revoked"), "{answer:?}");
    }

    // Where nobody can be asked, nothing passes.
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
    guards(Program::Envoy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_guards_an_application() {
    guards(Program::Nginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caddy_guards_an_application() {
    guards(Program::Caddy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traefik_guards_an_application() {
    guards(Program::Traefik).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_guards_an_application() {
    guards(Program::Haproxy).await;
}

/// Wherever a token was, the application does not see it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_takes_the_token_from_a_cookie_too_and_keeps_it_from_the_application() {
    let site = Site::start_with(
        Program::Envoy,
        "[gateway]\ncookie = \"session\"\nremove_credential = true\n",
    )
    .await;
    let created =
        site.authority.sessions().await.create_session(usual("alice")).await.unwrap().into_inner();
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
    assert_eq!(site.ask("/", Some(&token), &other).await.status, 401, "two different ones");
    assert_eq!(site.ask("/", None, &other).await.status, 401);
}

/// Gateways that are known by a key, which stands where the examples have a comment for it; and no
/// other gateway is believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_shows_its_key_where_callers_must_be_known() {
    for program in [Program::Envoy, Program::Nginx, Program::Caddy, Program::Haproxy] {
        for is_known in [true, false] {
            let (site, token) = Site::start_with_callers(program, is_known).await;
            passes(&site, &token, is_known, program).await;
        }
    }
}

/// The same for the one that has no place for a key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traefik_shows_its_certificate_where_callers_must_be_known() {
    for is_known in [true, false] {
        let (site, token) = Site::start_with_certificates(is_known).await;
        passes(&site, &token, is_known, Program::Traefik).await;
    }
}

async fn passes(site: &Site, token: &str, is_known: bool, program: Program) {
    let answer = site.ask("/", Some(token), &[]).await;
    assert_eq!(answer.status == 200, is_known, "{program:?}: {answer:?}");
    assert_eq!(site.application.requests(), usize::from(is_known), "{program:?}");
}
