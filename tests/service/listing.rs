//! Tests of ListSessions: order, pages, filters.

use countersign::proto::{
    CreateSessionRequest, ListSessionsRequest, ListSessionsResponse, SessionState,
};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{Home, Server, of_token, request, request_under, seconds},
};
use prost::Message;
use prost_types::Struct;

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
    ] {
        let refusal = refused(server.client().list_sessions(with(other)).await);
        assert_eq!(refusal, Refusal::field("page_token"));
    }
    assert_eq!(page(&server, &with(listing(3))).await.sessions.len(), 3);
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
