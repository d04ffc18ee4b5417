//! Tests of Watch: what a watcher is told, and what waits for it. In most tests the clock stands
//! still, so a lease lasts until the test moves the clock.

use std::time::Duration;

use countersign::{
    clock::Clock,
    proto::{
        CreateSessionRequest, KeyState, RevokedSessions, WatchRevocations, WatchStart,
        revoke_request::Target,
        revoked_sessions::{Instant, Where},
        watch_request::Message,
        watch_response::Event,
    },
};
use countersign_test_support::{
    ledger::reason,
    server::{Home, Server, SignedIn, at, of_token, request, revocation, seconds},
    watcher::Watcher,
};
use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::callers::caller;

/// Longer than any lease, and the time after which the service counts it as over.
const OVER: Duration = Duration::from_millis(2300);

fn id(session: &SignedIn) -> Vec<u8> {
    session.id().parse::<Uuid>().unwrap().as_bytes().to_vec()
}

fn ids(revocations: &WatchRevocations) -> Vec<Vec<u8>> {
    revocations.ids.iter().map(|revoked| revoked.id.clone()).collect()
}

/// Begins to revoke the session of a token.
fn revoke(server: &Server, session: &SignedIn) -> JoinHandle<Result<(), Status>> {
    let (mut client, request) = (server.client(), of_token(&session.access));
    tokio::spawn(async move { client.revoke(request).await.map(drop) })
}

pub async fn a_watcher_gets_all_revocations_keys_and_rules_and_then_a_lease() {
    let server = Server::start().await;
    let (alice, bob) = (server.sign_in("alice").await, server.sign_in("bob").await);
    server.revoke(of_token(&alice.access)).await.unwrap();
    server.revoke(revocation(Target::Tenant("globex".to_owned()))).await.unwrap();

    let mut watcher = Watcher::open(server.channel(), vec![]).await.unwrap();
    assert!(matches!(watcher.next().await.unwrap(), Event::Reset(_)));
    let Event::Rules(rules) = watcher.next().await.unwrap() else { panic!("no rules") };
    assert_eq!(rules.issuer, "https://auth.test");
    assert!(rules.tenants.is_empty() && rules.audiences.is_empty());
    let Event::Keys(keys) = watcher.next().await.unwrap() else { panic!("no keys") };
    for kid in server.published().await {
        assert!(keys.jwks.contains(&kid));
    }
    let Event::Revocations(revocations) = watcher.next().await.unwrap() else { panic!("none") };
    assert_eq!(ids(&revocations), [id(&alice)]);
    let [RevokedSessions { r#where: Some(Where::Tenant(tenant)), instant, .. }] =
        &revocations.sessions[..]
    else {
        panic!("{revocations:?}")
    };
    assert_eq!(tenant, "globex");
    assert!(matches!(instant, Some(Instant::CreatedUpTo(_))));

    let lease = watcher.lease().await;
    let valid_for = Duration::try_from(lease.valid_for.unwrap()).unwrap();
    assert!(valid_for > Duration::from_secs(1) && valid_for < Duration::from_secs(2));
    assert_eq!(lease.now, Some(at(server.clock.now())));

    let revoking = revoke(&server, &bob);
    assert_eq!(ids(&watcher.revocations().await), [id(&bob)]);
    watcher.renew();
    revoking.await.unwrap().unwrap();
}

pub async fn a_revocation_is_acknowledged_once_every_watcher_has_confirmed_it() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let (mut first, _) = Watcher::begin(server.channel()).await;
    let (mut second, _) = Watcher::begin(server.channel()).await;
    let (mut without_lease, _) = Watcher::begin(server.channel()).await;
    first.lease().await;
    second.lease().await;
    let mut revoking = revoke(&server, &session);
    first.revocations().await;
    second.revocations().await;
    without_lease.revocations().await;
    first.renew();
    first.lease().await;
    // The answer to a later call shows that the service had time to acknowledge.
    server.sign_in("bob").await;
    assert!((&mut revoking).now_or_never().is_none(), "the second watcher has not confirmed it");
    second.renew();
    revoking.await.unwrap().unwrap();
}

pub async fn a_revocation_waits_for_a_silent_watcher_until_its_lease_is_over() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let (mut watcher, _) = Watcher::begin(server.channel()).await;
    watcher.lease().await;
    let mut revoking = revoke(&server, &session);
    watcher.revocations().await;
    // The lease is waited for, too, if the stream has ended.
    drop(watcher);
    server.sign_in("bob").await;
    assert!((&mut revoking).now_or_never().is_none());
    server.clock.advance(OVER);
    revoking.await.unwrap().unwrap();
    server.revoke(of_token(&server.sign_in("carol").await.access)).await.unwrap();
}

pub async fn a_watcher_gets_no_further_lease_before_it_has_confirmed_its_last_one() {
    let server = Server::start().await;
    let (mut watcher, _) = Watcher::begin(server.channel()).await;
    watcher.lease().await;
    let before = watcher.cursor.clone();
    let revoking = revoke(&server, &server.sign_in("alice").await);
    watcher.revocations().await;
    // This lease covers the revocation, which the watcher does not confirm.
    let covering = watcher.renew_with(before.clone());
    let Event::Lease(lease) = watcher.next().await.unwrap() else { panic!("no lease") };
    assert_eq!(lease.number, covering);
    watcher.renew_with(before);
    let confirming = watcher.renew();
    let Event::Lease(lease) = watcher.next().await.unwrap() else { panic!("no lease") };
    assert_eq!(lease.number, confirming, "the renewal before it got no lease");
    revoking.await.unwrap().unwrap();
}

pub async fn the_revocation_of_a_key_waits_for_watchers() {
    let server = Server::start().await;
    let kid = server.signing(KeyState::Active).await.kid;
    let (mut watcher, snapshot) = Watcher::begin(server.channel()).await;
    assert!(snapshot.jwks.contains(&kid));
    watcher.lease().await;
    let mut keys = server.keys();
    let request = countersign::proto::RevokeKeyRequest { kid: kid.clone() };
    let mut revoking = tokio::spawn(async move { keys.revoke_key(request).await });
    let changed = loop {
        match watcher.next().await.unwrap() {
            Event::Keys(keys) if keys.revoked.contains(&kid) => break keys,
            _ => {}
        }
    };
    assert!(!changed.jwks.contains(&kid));
    server.sign_in("alice").await;
    assert!((&mut revoking).now_or_never().is_none(), "the watcher has not confirmed it");
    watcher.revocations().await;
    watcher.lease().await;
    revoking.await.unwrap().unwrap();
}

pub async fn a_stream_goes_on_after_its_cursor_at_the_same_process_only() {
    let server = Server::start().await;
    let (watcher, _) = Watcher::begin(server.channel()).await;
    let cursor = watcher.cursor.clone();
    drop(watcher);
    let alice = server.sign_in("alice").await;
    server.revoke(of_token(&alice.access)).await.unwrap();
    let mut watcher = Watcher::open(server.channel(), cursor.clone()).await.unwrap();
    let resumed = watcher.snapshot().await.unwrap();
    assert!(!resumed.is_reset);
    assert_eq!(ids(&resumed.revocations), [id(&alice)]);
    drop(watcher);

    let server = server.restart().await;
    let mut watcher = Watcher::open(server.channel(), cursor).await.unwrap();
    let begun = watcher.snapshot().await.unwrap();
    assert!(begun.is_reset);
    assert_eq!(ids(&begun.revocations), [id(&alice)]);
}

pub async fn wrong_messages_of_a_watcher_end_its_stream_with_a_reason() {
    let server = Server::start().await;
    let (watcher, _) = Watcher::begin(server.channel()).await;
    let mut beyond = watcher.cursor.clone();
    // The position is at the end.
    *beyond.last_mut().unwrap() = 0xff;
    let start = |cursor| Some(Message::Start(WatchStart { cursor }));
    let renewal = |number, applied| {
        Some(Message::Renewal(countersign::proto::WatchRenewal { number, applied }))
    };
    let cases = [
        (vec![start(vec![])], Code::InvalidArgument, "INVALID_FIELD"),
        (vec![None], Code::InvalidArgument, "INVALID_FIELD"),
        (vec![renewal(1, vec![1, 2, 3])], Code::InvalidArgument, "INVALID_FIELD"),
        (vec![renewal(2, vec![]), renewal(2, vec![])], Code::InvalidArgument, "INVALID_FIELD"),
        (vec![renewal(1, beyond)], Code::FailedPrecondition, "NOT_SENT"),
        (vec![renewal(1, vec![1; 100_000])], Code::InvalidArgument, "INVALID_FIELD"),
    ];
    for (messages, code, expected) in cases {
        let (mut watcher, _) = Watcher::begin(server.channel()).await;
        for message in messages {
            watcher.send(message);
        }
        let status = loop {
            if let Err(status) = watcher.next().await {
                break status;
            }
        };
        assert_eq!((status.code(), &*reason(&status)), (code, expected), "{status:?}");
    }
    let mut watcher = Watcher::open(server.channel(), vec![0; 3]).await.unwrap();
    assert_eq!(reason(&watcher.next().await.unwrap_err()), "INVALID_FIELD");
    // A cursor of another process is not wrong.
    let mut watcher = Watcher::open(server.channel(), vec![0; 32]).await.unwrap();
    assert!(watcher.snapshot().await.unwrap().is_reset);
}

pub async fn the_number_of_watchers_is_limited() {
    let server = Home::new("[limits]\nmax_watchers = 1").await.start().await;
    let (mut watcher, _) = Watcher::begin(server.channel()).await;
    let mut second = Watcher::open(server.channel(), vec![]).await.unwrap();
    let refused = second.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(reason(&refused), "TOO_MANY_WATCHERS");
    watcher.lease().await;
    watcher.end().await;
    // A watcher whose lease runs counts, although its stream has ended.
    let mut second = Watcher::open(server.channel(), vec![]).await.unwrap();
    assert_eq!(reason(&second.next().await.unwrap_err()), "TOO_MANY_WATCHERS");
    server.clock.advance(OVER);
    Watcher::begin(server.channel()).await;
}

pub async fn streams_end_when_the_service_stops_and_it_waits_for_their_leases() {
    let server = Server::start().await;
    let (mut watcher, _) = Watcher::begin(server.channel()).await;
    watcher.lease().await;
    let ended = async {
        loop {
            if let Err(status) = watcher.next().await {
                break status;
            }
        }
    };
    let (_, ended) = tokio::join!(server.stop(), ended);
    assert_eq!(reason(&ended), "NOT_CURRENT");
}

pub async fn a_change_of_the_lifetimes_reaches_watchers() {
    let server = Server::start().await;
    let (mut watcher, _) = Watcher::begin(server.channel()).await;
    watcher.lease().await;
    server.reload("[tokens]\nmax_access_token_ttl = \"2h\"");
    let rules = loop {
        watcher.renew();
        if let Event::Rules(rules) = watcher.next().await.unwrap() {
            break rules;
        }
    };
    assert_eq!(Duration::try_from(rules.max_lifetime.unwrap()).unwrap(), seconds(7200));
}

pub async fn a_watcher_limited_to_a_tenant_gets_its_revocations_only_and_all_keys() {
    let (key, stanza) = caller("validator", "roles = [\"validator\"]\ntenants = [\"globex\"]");
    let (admin, admin_stanza) = caller("admin", "roles = [\"admin\"]");
    let server = Home::new(&format!("{stanza}{admin_stanza}")).await.start().await;
    let sign_in = async |tenant: &str| {
        let request = CreateSessionRequest { tenant: tenant.to_owned(), ..request("alice") };
        let answer = server.client_with(&admin).create_session(request).await.unwrap();
        answer.into_inner().session.unwrap().session_id
    };
    let revoke = async |target| {
        server.client_with(&admin).revoke(revocation(target)).await.unwrap();
    };
    let bytes = |id: &str| id.parse::<Uuid>().unwrap().as_bytes().to_vec();
    let [ours, theirs] = [sign_in("globex").await, sign_in("acme").await];
    let [ours_later, theirs_later] = [sign_in("globex").await, sign_in("acme").await];
    for id in [&ours, &theirs] {
        revoke(Target::SessionId(id.clone())).await;
    }
    let tenant = |name: &str| Target::Tenant(name.to_owned());
    revoke(tenant("initech")).await;

    let opened = Watcher::open_as(server.channel(), Some(&key), vec![]).await;
    let mut watcher = opened.unwrap();
    let snapshot = watcher.snapshot().await.unwrap();
    assert_eq!(ids(&snapshot.revocations), [bytes(&ours)]);
    assert!(snapshot.revocations.sessions.is_empty());
    for kid in server.published().await {
        assert!(snapshot.jwks.contains(&kid));
    }
    // Later revocations of others only move the cursor.
    for (target, expected) in [
        (Target::SessionId(theirs_later), vec![]),
        (Target::SessionId(ours_later.clone()), vec![bytes(&ours_later)]),
        (tenant("initech"), vec![]),
    ] {
        revoke(target).await;
        let revocations = watcher.revocations().await;
        assert_eq!((ids(&revocations), revocations.sessions.len()), (expected, 0));
    }
    let cursor = watcher.cursor.clone();
    revoke(tenant("globex")).await;
    assert_eq!(watcher.revocations().await.sessions.len(), 1);
    // A caller with other tenants, or this one once it has got others, lacks earlier revocations.
    for (key, is_reset) in [(&key, false), (&admin, true)] {
        let opened = Watcher::open_as(server.channel(), Some(key), cursor.clone()).await;
        let resumed = opened.unwrap().snapshot().await.unwrap();
        assert_eq!(resumed.is_reset, is_reset);
    }
}

pub async fn the_stream_of_a_caller_whose_registration_changes_ends() {
    let (key, stanza) = caller("validator", "roles = [\"validator\"]");
    let (_, other) = caller("other", "roles = [\"validator\"]");
    let server = Home::new(&stanza).await.start().await;
    let opened = Watcher::open_as(server.channel(), Some(&key), vec![]).await;
    let mut watcher = opened.unwrap();
    watcher.snapshot().await.unwrap();
    server.reload(&format!("{stanza}{other}"));
    watcher.lease().await;
    // Another key takes the place of this one.
    let (_, replaced) = caller("validator", "roles = [\"validator\"]");
    server.reload(&format!("{replaced}{other}"));
    let ended = loop {
        watcher.renew();
        if let Err(status) = watcher.next().await {
            break status;
        }
    };
    assert_eq!(reason(&ended), "NOT_CURRENT");
    let refused = Watcher::open_as(server.channel(), Some(&key), vec![]).await.err().unwrap();
    assert_eq!(reason(&refused), "CALLER_UNKNOWN");
}
