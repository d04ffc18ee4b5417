//! Tests of policies: which one a session gets, presets, limits that reach live sessions, refresh
//! tokens that stay the same, and settings that change while the service runs.

use countersign::{
    app,
    proto::{
        CreateSessionRequest, EndReason, InactiveReason, ListAuditRequest, ListSessionsRequest,
        RefreshMode, Session, SessionState, UpdateSessionRequest,
        audit_service_client::AuditServiceClient,
    },
};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{
        Home, SignedIn, TICK, eventually, of_token, request, request_under, seconds, start_plus,
    },
};
use futures_util::future::join_all;

use crate::changes::again;

fn of_client(tenant: &str, client: &str) -> CreateSessionRequest {
    CreateSessionRequest {
        tenant: tenant.to_owned(),
        client_id: client.to_owned(),
        ..request("alice")
    }
}

fn policy_name(session: &SignedIn) -> String {
    session.session.policy.clone().unwrap().name
}

pub async fn a_client_has_the_policy_and_the_audiences_that_the_configuration_gives_it() {
    let settings = "
        [clients.\"https://app.test\"]
        policy = 'strict'
        audiences = ['https://orders.test', 'https://app.test']
        [tenants.limited]
        policy = 'short'
        audiences = ['https://orders.test', 'https://stock.test']
        clients.kiosk = { policy = 'nist-aal3', audiences = ['https://stock.test'] }
        clients.web = { policy = 'two' }";
    let server = Home::new(settings).await.start().await;
    let created = async |request| {
        let created = server.create(request).await.unwrap();
        (policy_name(&created), created.session.audience)
    };
    let expected = |policy: &str, audiences: &[&str]| {
        (policy.to_owned(), audiences.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let app = "https://app.test";
    let (orders, stock) = ("https://orders.test", "https://stock.test");
    assert_eq!(created(of_client("", app)).await, expected("strict", &[orders, app]));
    assert_eq!(created(of_client("limited", app)).await, expected("strict", &[orders]));
    assert_eq!(created(of_client("limited", "kiosk")).await, expected("nist-aal3", &[stock]));
    assert_eq!(created(of_client("limited", "web")).await, expected("two", &[orders, stock]));
    assert_eq!(created(of_client("limited", "other")).await, expected("short", &[orders, stock]));
    assert_eq!(created(of_client("", "kiosk")).await, expected("default", &["https://auth.test"]));
    let named =
        CreateSessionRequest { policy: "short".to_owned(), ..of_client("limited", "kiosk") };
    assert_eq!(created(named).await, expected("short", &[stock]));
    for (audience, field) in [(app, "audience[0]"), (orders, "")] {
        let asking = CreateSessionRequest {
            audience: vec![audience.to_owned()],
            ..of_client("limited", app)
        };
        match field {
            "" => assert_eq!(created(asking).await.1, [orders]),
            field => assert_eq!(refused(server.create(asking).await), Refusal::field(field)),
        }
    }
}

pub async fn presets_can_be_named_like_any_policy_and_be_the_base_of_others() {
    let settings = "
        [policies.default]
        idle_timeout = '1h'
        max_sessions_per_subject = 1
        [policies.office]
        preset = 'nist-aal2'
        idle_timeout = '30m'
        [tenants]";
    let server = Home::new(settings).await.start().await;
    let limits = async |policy: &str| {
        let session = server.create(request_under(policy, policy)).await.unwrap().session;
        let policy = session.policy.unwrap();
        let lifetime = session.expires_at.unwrap().seconds - session.created_at.unwrap().seconds;
        let extended = policy.reauthentication_lifetime.map(|lifetime| lifetime.seconds);
        (policy.idle_timeout.unwrap().seconds, lifetime, extended)
    };
    assert_eq!(limits("nist-aal2").await, (3600, 86_400, Some(86_400)));
    assert_eq!(limits("office").await, (1800, 86_400, Some(86_400)));
    assert_eq!(limits("owasp-high-value").await, (300, 4 * 3600, None));
    for _ in 0..2 {
        server.create(request_under("nist-aal2", "bob")).await.unwrap();
    }
    let of_bob = ListSessionsRequest {
        tenant: "acme".to_owned(),
        subject: "bob".to_owned(),
        state: SessionState::Live.into(),
        ..Default::default()
    };
    let live = server.client().list_sessions(of_bob).await.unwrap().into_inner().sessions;
    assert_eq!(live.len(), 2, "a preset takes nothing from policies.default");
}

const LOOSE: &str = "
    [policies.default]
    access_token_ttl = '30m'
    idle_timeout = '2h'
    absolute_lifetime = '4h'
    [tenants]";
const STRICT: &str = "
    [policies.default]
    apply_to_live = true
    access_token_ttl = '1m'
    idle_timeout = '10m'
    absolute_lifetime = '20m'
    [tenants]";

pub async fn a_stricter_policy_reaches_a_live_session_at_its_next_refresh() {
    let server = Home::new(LOOSE).await.start().await;
    let first = server.sign_in("alice").await;
    let server = server.stop().await.with(STRICT).start().await;
    assert_eq!(server.verdict(&first.access).await, Ok(()), "not before its next refresh");

    server.clock.advance(seconds(600) - TICK);
    let next = server.refresh(&first.refresh).await.unwrap().now;
    let policy = next.session.policy.clone().unwrap();
    assert_eq!(policy.access_token_ttl.unwrap().seconds, 60);
    assert_eq!(policy.refresh_grace.unwrap().seconds, 30);
    assert_eq!(
        next.session.expires_at,
        Some(start_plus(seconds(1200))),
        "counted from its creation"
    );
    assert_eq!(server.verdict(&first.access).await, Ok(()), "it was issued before");

    // The entry of a revocation stops the long token too, for as long as it is valid.
    server.revoke(of_token(&next.refresh)).await.unwrap();
    server.clock.advance(seconds(600));
    let home = server.stop().await;
    app::sweep(&home.config(), home.system(), true).await.unwrap();
    let server = home.start().await;
    assert_eq!(server.verdict(&first.access).await, Err(InactiveReason::Revoked));
}

pub async fn a_session_that_has_expired_by_the_stricter_policy_ends_and_so_do_its_tokens() {
    let server = Home::new(LOOSE).await.start().await;
    let [idle, active, stepping] = [(); 3].map(|()| server.sign_in("alice"));
    let (idle, active, stepping) = (idle.await, active.await, stepping.await);
    server.clock.advance(seconds(599));
    let active = server.refresh(&active.refresh).await.unwrap().now;
    server.clock.advance(seconds(599));
    let active = server.refresh(&active.refresh).await.unwrap().now;
    let server = server.stop().await.with(STRICT).start().await;
    server.clock.advance(seconds(2));

    let access = &idle.access;
    assert_eq!(server.verdict(access).await, Ok(()), "it is live until its next refresh");
    let expired = Refusal::unauthenticated("SESSION_EXPIRED_IDLE");
    assert_eq!(refused(server.refresh(&idle.refresh).await), expired);
    assert_eq!(server.verdict(access).await, Err(InactiveReason::Revoked));
    let ended = server.session(&idle.id()).await.unwrap();
    assert_eq!((ended.state(), ended.end_reason()), (SessionState::Ended, EndReason::ExpiredIdle));
    assert_eq!(refused(server.refresh(&idle.refresh).await), expired, "as before");

    let expired = Refusal::unauthenticated("SESSION_EXPIRED_ABSOLUTE");
    assert_eq!(refused(server.refresh(&active.refresh).await), expired);
    assert_eq!(server.verdict(&active.access).await, Err(InactiveReason::Revoked));

    let expired = Refusal::unauthenticated("SESSION_EXPIRED_IDLE");
    assert_eq!(refused(server.client().reauthenticate(again(&stepping)).await), expired);
    assert_eq!(server.verdict(&stepping.access).await, Err(InactiveReason::Revoked));

    let mut audit = AuditServiceClient::new(server.channel.clone());
    let records = eventually("each end is recorded once", async || {
        let action = "session_expired".to_owned();
        let request = ListAuditRequest { action, ..Default::default() };
        let records = audit.list_audit(request).await.unwrap().into_inner().records;
        (records.len() == 3).then_some(records)
    })
    .await;
    let ended = |session: &SignedIn, reason| (session.id(), reason);
    let mut recorded: Vec<_> =
        records.iter().map(|record| (record.session_id.clone(), record.reason())).collect();
    let mut expected = vec![
        ended(&idle, EndReason::ExpiredIdle),
        ended(&active, EndReason::ExpiredAbsolute),
        ended(&stepping, EndReason::ExpiredIdle),
    ];
    recorded.sort();
    expected.sort();
    assert_eq!(recorded, expected);
}

const REUSE: &str = "
    [policies.machine]
    refresh = 'reuse'
    [policies.careful]
    refresh = 'reuse'
    on_refresh = 'revoke_access_token'
    [tenants]";

pub async fn a_refresh_token_that_is_reused_stays_the_same_and_yields_working_access_tokens() {
    let server = Home::new(REUSE).await.start().await;
    let first = server.create(request_under("machine", "job")).await.unwrap();
    let policy = first.session.policy.clone().unwrap();
    assert_eq!(policy.refresh(), RefreshMode::Reuse);
    assert_eq!(policy.refresh_grace.unwrap().seconds, 0);
    let answers = join_all((0..32).map(|_| server.refresh(&first.refresh))).await;
    for answer in answers {
        let answer = answer.unwrap();
        assert!(!answer.replayed);
        assert_eq!(answer.now.refresh, first.refresh);
        assert_eq!(server.verdict(&answer.now.access).await, Ok(()));
    }
    // It keeps the session alive for as long as it is used, and is good for as long.
    server.clock.advance(seconds(13 * 86_400));
    server.refresh(&first.refresh).await.unwrap();
    server.clock.advance(seconds(13 * 86_400));
    let late = server.refresh(&first.refresh).await.unwrap().now;
    assert_eq!(server.verdict(&late.access).await, Ok(()));
    server.revoke(of_token(&first.refresh)).await.unwrap();
    let revoked = Refusal::unauthenticated("SESSION_REVOKED");
    assert_eq!(refused(server.refresh(&first.refresh).await), revoked);
    assert_eq!(server.verdict(&late.access).await, Err(InactiveReason::Revoked));
}

pub async fn a_refresh_of_a_reused_token_revokes_the_access_token_before_if_the_policy_says_so() {
    let server = Home::new(REUSE).await.start().await;
    let first = server.create(request_under("careful", "job")).await.unwrap();
    let second = server.refresh(&first.refresh).await.unwrap().now;
    assert_eq!(second.refresh, first.refresh);
    let third = server.refresh(&first.refresh).await.unwrap().now;
    for stopped in [&first.access, &second.access] {
        assert_eq!(server.verdict(stopped).await, Err(InactiveReason::Revoked));
    }
    assert_eq!(server.verdict(&third.access).await, Ok(()));
}

pub async fn a_reauthentication_replaces_a_reused_refresh_token() {
    let server = Home::new(REUSE).await.start().await;
    let first = server.create(request_under("machine", "job")).await.unwrap();
    let answer = server.client().reauthenticate(again(&first)).await.unwrap().into_inner();
    let next = SignedIn::from((answer.session, answer.tokens));
    assert_ne!(next.refresh, first.refresh);
    let invalid = Refusal::unauthenticated("REFRESH_TOKEN_INVALID");
    assert_eq!(refused(server.refresh(&first.refresh).await), invalid);
    assert_eq!(server.session(&first.id()).await.unwrap().state(), SessionState::Live);
    assert_eq!(server.refresh(&next.refresh).await.unwrap().now.refresh, next.refresh);
}

pub async fn settings_change_while_the_service_runs() {
    let server = Home::new("").await.start().await;
    let token = server.sign_in("alice").await;
    assert_eq!(server.verdict(&token.access).await, Ok(()), "it is in the cache of tokens now");
    let limits = async |policy: &str| {
        let session = server.create(request_under(policy, "alice")).await.ok()?.session;
        Some(session.policy.unwrap().idle_timeout.unwrap().seconds)
    };
    assert_eq!(limits("new").await, None);
    server.reload("[policies.new]\nidle_timeout = '20m'\n[tenants.acme]\npolicy = 'new'");
    eventually("the policy is in force", async || limits("new").await).await;
    assert_eq!(policy_name(&server.sign_in("alice").await), "new", "by the rule of the tenant");

    server.reload(
        "[policies.new]\nidle_timeout = '30m'\n[policies.default]\naccess_token_ttl = \
         '1m'\n[tokens]\nmax_access_token_ttl = '10m'\n[tenants]",
    );
    let changed = async || limits("new").await.filter(|idle| *idle == 1800);
    eventually("the next file is in force", changed).await;
    // A token that lives no longer than the new maximum stays valid.
    assert_eq!(server.verdict(&token.access).await, Ok(()));
    server.reload(
        "[policies.default]\naccess_token_ttl = '1m'\n[tokens]\nmax_access_token_ttl = \
         '2m'\n[tenants]",
    );
    let refused = async || server.verdict(&token.access).await.err();
    let reason = eventually("the shorter maximum is in force", refused).await;
    assert_eq!(reason, InactiveReason::Malformed, "also for a token in the cache");
}

pub async fn an_update_does_not_apply_stricter_limits() {
    let server = Home::new(LOOSE).await.start().await;
    let first = server.sign_in("alice").await;
    let server = server.stop().await.with(STRICT).start().await;
    server.clock.advance(seconds(700));
    let update = UpdateSessionRequest {
        session_id: first.id(),
        update_mask: Some(prost_types::FieldMask { paths: vec!["device.label".to_owned()] }),
        session: Some(Session::default()),
        ..Default::default()
    };
    let session = server.client().update_session(update).await.unwrap().into_inner();
    assert_eq!(session.session.unwrap().state(), SessionState::Live);
}
