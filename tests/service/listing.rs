//! Tests of ListSessions and CountSessions: order, pages, filters.

use std::time::Duration;

use countersign::{
    domain::{
        ids::SessionId,
        policy::OnQuota,
        session::Session,
        text::{ClientId, Subject},
        time::Timestamp,
    },
    proto::{
        CountSessionsRequest, CountSessionsResponse, CreateSessionRequest, Device, EndReason,
        ListSessionsRequest, ListSessionsResponse, RevokeRequest, SessionFilter, SessionState,
        revoke_request::Target,
    },
    store::{Creation, Store},
};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{
        Home, START, Server, SignedIn, of_token, request, request_under, revocation, seconds,
    },
};
use futures_util::future::join_all;
use prost::Message;
use prost_types::Struct;

use crate::callers::caller;

fn listing(page_size: i32) -> ListSessionsRequest {
    ListSessionsRequest { tenant: "acme".to_owned(), page_size, ..Default::default() }
}

async fn page(server: &Server, request: &ListSessionsRequest) -> ListSessionsResponse {
    server.client().list_sessions(request.clone()).await.unwrap().into_inner()
}

/// Returns the identifiers of all sessions, page by page.
async fn ids(server: &Server, mut request: ListSessionsRequest) -> Vec<Vec<String>> {
    let mut pages = vec![];
    loop {
        let page = page(server, &request).await;
        pages.push(page.sessions.into_iter().map(|session| session.session_id).collect());
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return pages;
        }
    }
}

/// Creates seven sessions in tenant `acme`, alternating between two subjects, and one in another
/// tenant. Returns the identifiers of the seven, the newest first.
async fn create_seven(server: &Server) -> Vec<String> {
    let mut ids = vec![];
    for n in 0..7 {
        ids.insert(0, server.sign_in(["alice", "bob"][n % 2]).await.id());
        server.clock.advance(seconds(1));
    }
    server
        .create(CreateSessionRequest { tenant: "other".to_owned(), ..request("alice") })
        .await
        .unwrap();
    ids
}

pub async fn pages_follow_each_other_without_gap_or_overlap_the_newest_session_first() {
    let server = Server::start().await;
    let all = create_seven(&server).await;
    for size in [1, 2, 3, 6, 7, 8, 500, 0] {
        let pages = ids(&server, listing(size)).await;
        assert_eq!(pages.concat(), all, "{size}");
        let size = if size == 0 { 50 } else { usize::try_from(size).unwrap() };
        assert_eq!(pages.len(), all.len().div_ceil(size), "no empty page at the end");
    }
    let of_bob = ListSessionsRequest { subject: "bob".to_owned(), ..listing(2) };
    assert_eq!(
        ids(&server, of_bob).await,
        [vec![all[1].clone(), all[3].clone()], vec![all[5].clone()]]
    );
}

pub async fn a_long_page_is_read_in_parts_and_ends_before_it_exceeds_the_size_limit() {
    const MIB: usize = 1 << 20;
    let server = Server::start().await;
    // Each session has a subject of its own, because of the quota.
    let create = async |n: usize, bytes: usize| {
        let claims = Struct { fields: [("text".to_owned(), "x".repeat(bytes).into())].into() };
        let asked = CreateSessionRequest { claims: Some(claims.into()), ..request(&n.to_string()) };
        server.clock.advance(seconds(1));
        server.create(asked).await.unwrap().id()
    };
    let mut all = vec![];
    for n in 0..140 {
        all.insert(0, create(n, 1).await);
    }
    for size in [63, 64, 65, 128, 140, 500] {
        let pages = ids(&server, listing(size)).await;
        assert_eq!(pages.concat(), all, "{size}");
        assert_eq!(pages.len(), all.len().div_ceil(usize::try_from(size).unwrap()), "{size}");
    }
    // A page has room for about 240 of these sessions.
    for n in 140..440 {
        all.insert(0, create(n, 4000).await);
    }
    let first = page(&server, &listing(500)).await;
    assert!((MIB - 5000..=MIB).contains(&first.encoded_len()), "{}", first.encoded_len());
    let pages = ids(&server, listing(500)).await;
    assert_eq!(pages.len(), 2);
    assert_eq!(pages.concat(), all);
}

pub async fn a_session_created_between_two_pages_does_not_shift_the_second_page() {
    let server = Server::start().await;
    let all = create_seven(&server).await;
    let first = page(&server, &listing(3)).await;
    server.sign_in("carol").await;
    let rest =
        ids(&server, ListSessionsRequest { page_token: first.next_page_token, ..listing(3) }).await;
    assert_eq!(rest.concat(), all[3..]);
}

pub async fn a_page_token_of_another_request_is_refused() {
    let server = Server::start().await;
    create_seven(&server).await;
    let token = page(&server, &listing(3)).await.next_page_token;
    let with =
        |request: ListSessionsRequest| ListSessionsRequest { page_token: token.clone(), ..request };
    for other in [
        ListSessionsRequest { tenant: "other".to_owned(), ..listing(3) },
        ListSessionsRequest { subject: "alice".to_owned(), ..listing(3) },
        ListSessionsRequest { state: SessionState::Live.into(), ..listing(3) },
        ListSessionsRequest { order_by: "created_at".to_owned(), ..listing(3) },
        ListSessionsRequest {
            filter: Some(SessionFilter { created_from: at(START), ..Default::default() }),
            ..listing(3)
        },
    ] {
        let refusal = refused(server.client().list_sessions(with(other)).await);
        assert_eq!(refusal, Refusal::field("page_token"));
    }
    assert_eq!(page(&server, &with(listing(3))).await.sessions.len(), 3);
}

fn at(instant: Timestamp) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: instant.seconds(), nanos: 0 })
}

async fn count(server: &Server, filter: SessionFilter) -> CountSessionsResponse {
    let tenant = "acme".to_owned();
    let request = CountSessionsRequest { tenant, filter: Some(filter), ..Default::default() };
    server.client().count_sessions(request).await.unwrap().into_inner()
}

pub async fn each_filter_selects_the_sessions_that_are_listed_and_counted() {
    let (key, login) = caller("login", "roles = [\"issuer\"]");
    let (other, sso) = caller("sso", "roles = [\"admin\"]");
    let server = Home::new(&[login, sso].concat()).await.start().await;
    let create = async |key: &str, request: CreateSessionRequest| {
        let created = server.client_with(key).create_session(request).await.unwrap().into_inner();
        server.clock.advance(seconds(1));
        SignedIn::from((created.session, created.tokens))
    };
    let device = Device { device_id: "device 1".to_owned(), ..Default::default() };
    let mobile = CreateSessionRequest {
        client_id: "mobile".to_owned(),
        device: Some(device.clone()),
        ..request("alice")
    };
    let mobile = create(&key, mobile).await;
    let device = Device { ip_address: "192.0.2.7".to_owned(), ..device };
    let at_home = CreateSessionRequest { device: Some(device), ..request("bob") };
    let at_home = create(&other, at_home).await;
    let short = create(&key, request_under("short", "carol")).await;
    let revoke = RevokeRequest {
        reason: EndReason::Compromised.into(),
        ..revocation(Target::SessionId(short.id()))
    };
    server.client_with(&other).revoke(revoke).await.unwrap();
    assert_eq!(at_home.session.created_by, "sso");

    let any = || SessionFilter { created_from: at(START), ..Default::default() };
    let on = |id: &str| SessionFilter { device_id: id.to_owned(), ..Default::default() };
    for (filter, expected) in [
        (any(), vec![&short, &at_home, &mobile]),
        (SessionFilter { client_id: "mobile".to_owned(), ..any() }, vec![&mobile]),
        (SessionFilter { policy: "short".to_owned(), ..any() }, vec![&short]),
        (SessionFilter { created_by: "login".to_owned(), ..any() }, vec![&short, &mobile]),
        (SessionFilter { device_network: "192.0.2.0/24".to_owned(), ..any() }, vec![&at_home]),
        (SessionFilter { device_network: "192.0.2.7".to_owned(), ..any() }, vec![&at_home]),
        // The bits of the host do not matter.
        (SessionFilter { device_network: "192.0.2.9/24".to_owned(), ..any() }, vec![&at_home]),
        (on("device 1"), vec![&at_home, &mobile]),
        (on("device 2"), vec![]),
        (SessionFilter { client_id: "mobile".to_owned(), ..on("device 1") }, vec![&mobile]),
        (
            SessionFilter { created_from: at(START.plus(seconds(1))), ..on("device 1") },
            vec![&at_home],
        ),
        (SessionFilter { end_reason: EndReason::Compromised.into(), ..any() }, vec![&short]),
        (SessionFilter { end_reason: EndReason::SignedOut.into(), ..any() }, vec![]),
        (SessionFilter { ended_from: at(START), ..Default::default() }, vec![&short]),
        (SessionFilter { ended_until: at(START), ..any() }, vec![]),
        (SessionFilter { created_until: at(START.plus(seconds(1))), ..any() }, vec![&mobile]),
    ] {
        let expected: Vec<String> = expected.into_iter().map(SignedIn::id).collect();
        let request = ListSessionsRequest { filter: Some(filter.clone()), ..listing(1) };
        let listed = server.client_with(&key).list_sessions(request.clone()).await;
        assert_eq!(listed.unwrap().into_inner().sessions.len(), expected.len().min(1));
        let request = ListSessionsRequest { page_size: 0, ..request };
        let listed = server.client_with(&key).list_sessions(request.clone()).await.unwrap();
        let listed: Vec<_> =
            listed.into_inner().sessions.into_iter().map(|session| session.session_id).collect();
        assert_eq!(listed, expected, "{filter:?}");
        let oldest_first = ListSessionsRequest { order_by: "created_at".to_owned(), ..request };
        let reversed = server.client_with(&key).list_sessions(oldest_first).await.unwrap();
        let mut reversed: Vec<_> =
            reversed.into_inner().sessions.into_iter().map(|session| session.session_id).collect();
        reversed.reverse();
        assert_eq!(reversed, expected, "{filter:?}");
        let counting = CountSessionsRequest {
            tenant: "acme".to_owned(),
            filter: Some(filter),
            ..Default::default()
        };
        let counted = server.client_with(&key).count_sessions(counting).await.unwrap().into_inner();
        let sessions = i64::try_from(expected.len()).unwrap();
        assert_eq!(counted, CountSessionsResponse { sessions, may_be_more: false });
    }
}

/// The sessions are written to the store, because 60,000 calls would take long.
pub async fn a_search_ends_early_and_says_so_if_too_few_of_many_sessions_pass_the_filter() {
    let server = Server::start().await;
    let rare = CreateSessionRequest { client_id: "rare".to_owned(), ..request("rare") };
    let rare = server.create(rare).await.unwrap();
    let pattern = server.store.session(rare.id().parse().unwrap()).await.unwrap().unwrap();
    let creations = (1..=60_000).map(|n: u32| {
        let created_at = START.plus(Duration::from_millis(n.into()));
        let session = Session {
            id: SessionId::new(created_at, [7; 10]),
            subject: Subject::try_from(n.to_string()).unwrap(),
            client_id: ClientId::default(),
            created_at,
            ..pattern.clone()
        };
        Creation { session, max_sessions: 0, on_quota: OnQuota::Refuse, legacy_token: None }
    });
    let creations: Vec<_> = creations.collect();
    for creations in creations.chunks(500) {
        let creations =
            creations.iter().cloned().map(|creation| server.store.create_session(creation));
        for created in join_all(creations).await {
            created.unwrap();
        }
    }
    let all = count(&server, SessionFilter::default()).await;
    assert!(all.may_be_more && all.sessions > 10_000, "{all:?}");
    let filter = SessionFilter {
        client_id: "rare".to_owned(),
        created_from: at(START),
        ..Default::default()
    };
    let counted = count(&server, filter.clone()).await;
    assert_eq!(counted, CountSessionsResponse { sessions: 0, may_be_more: true });
    let pages = ids(&server, ListSessionsRequest { filter: Some(filter), ..listing(0) }).await;
    assert_eq!(pages, [vec![], vec![rare.id()]], "the second page goes on behind the first");
}

pub async fn an_expired_session_is_not_listed_as_live_nor_as_ended_before_a_sweep_records_its_end()
{
    let server = Home::new("[sweeper]\nschedule = '* * * * * *'").await.start().await;
    let revoked = server.sign_in("alice").await;
    server.revoke(of_token(&revoked.access)).await.unwrap();
    server.clock.advance(seconds(1));
    let idle = server.create(request_under("short", "alice")).await.unwrap();
    server.clock.advance(seconds(300));
    let live = server.sign_in("alice").await;
    let of_state = |state: SessionState| {
        ids(&server, ListSessionsRequest { state: state.into(), ..listing(0) })
    };
    assert_eq!(of_state(SessionState::Live).await.concat(), [live.id()]);
    assert_eq!(
        of_state(SessionState::Ended).await.concat(),
        [revoked.id()],
        "no sweep has recorded the expiry yet"
    );
    server.clock.advance(seconds(61));
    server.store.whole_sweep().await;
    assert_eq!(of_state(SessionState::Ended).await.concat(), [idle.id(), revoked.id()]);
    assert_eq!(
        of_state(SessionState::Unspecified).await.concat(),
        [live.id(), idle.id(), revoked.id()]
    );
}
