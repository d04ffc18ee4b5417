//! Tests of Validate with metadata, which reads the database.

use countersign::{
    proto::{
        BatchValidateRequest, CreateSessionRequest, EncodedStruct, InactiveReason,
        ReauthenticateRequest, ValidateRequest, ValidateResponse, ValidateView,
        reauthenticate_request::Session::SessionId,
    },
    store::{Store, StoreError},
};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{
        Home, Server, SignedIn, eventually, in_time, of_token, request, request_under, seconds,
    },
};
use prost_types::{Struct, Value, value::Kind};
use tonic::Code;

fn ticket(text: &str) -> EncodedStruct {
    let value = Value { kind: Some(Kind::StringValue(text.to_owned())) };
    Struct { fields: [("ticket".to_owned(), value)].into() }.into()
}

async fn sign_in(server: &Server, text: &str) -> SignedIn {
    let request = CreateSessionRequest { metadata: Some(ticket(text)), ..request("alice") };
    server.create(request).await.unwrap()
}

fn asked(access_token: &str) -> ValidateRequest {
    ValidateRequest {
        access_token: access_token.to_owned(),
        view: ValidateView::Full.into(),
        include_metadata: true,
        ..Default::default()
    }
}

fn plainly(access_token: &str) -> ValidateRequest {
    ValidateRequest { include_metadata: false, ..asked(access_token) }
}

async fn batch(server: &Server, requests: Vec<ValidateRequest>) -> Vec<ValidateResponse> {
    let answer = server.client().batch_validate(BatchValidateRequest { requests }).await;
    answer.unwrap().into_inner().responses
}

pub async fn metadata_are_returned_as_they_are_now_and_only_when_asked_for() {
    let server = Server::start().await;
    let session = sign_in(&server, "T-1").await;
    let without = server.validate(plainly(&session.access)).await.unwrap();
    assert_eq!(without.metadata, None);
    let with = server.validate(asked(&session.access)).await.unwrap();
    assert_eq!(with, ValidateResponse { metadata: Some(ticket("T-1")), ..without });

    let update = countersign::proto::UpdateSessionRequest {
        session_id: session.id(),
        update_mask: Some(prost_types::FieldMask { paths: vec!["metadata".to_owned()] }),
        session: Some(countersign::proto::Session {
            metadata: Some(ticket("T-2")),
            ..Default::default()
        }),
        ..Default::default()
    };
    server.client().update_session(update).await.unwrap();
    let changed = server.validate(asked(&session.access)).await.unwrap();
    assert_eq!(changed.metadata, Some(ticket("T-2")), "the same token shows the new metadata");

    let empty = server.sign_in("bob").await;
    let answer = server.validate(asked(&empty.access)).await.unwrap();
    assert_eq!(answer.metadata, Some(EncodedStruct::default()));

    for view in [ValidateView::Unspecified, ValidateView::Basic] {
        let basic = ValidateRequest { view: view.into(), ..asked(&session.access) };
        let refusal = refused(server.validate(basic.clone()).await);
        assert_eq!(refusal, Refusal::field("include_metadata"));
        let requests = vec![plainly(&session.access), basic];
        let refusal =
            refused(server.client().batch_validate(BatchValidateRequest { requests }).await);
        assert_eq!(refusal, Refusal::field("requests[1].include_metadata"));
    }
}

pub async fn a_batch_reads_the_metadata_of_all_its_sessions_by_one_query() {
    let server = Server::start().await;
    let [first, second, gone] =
        [sign_in(&server, "1").await, sign_in(&server, "2").await, sign_in(&server, "3").await];
    server.revoke(of_token(&gone.access)).await.unwrap();
    let again = server.refresh(&first.refresh).await.unwrap().now;
    let reads = server.store.metadata_reads();
    let requests = [
        asked(&first.access),
        plainly(&second.access),
        asked(&gone.access),
        asked("garbage"),
        asked(&second.access),
        asked(&again.access),
    ];
    let answers = batch(&server, requests.to_vec()).await;
    assert_eq!(*reads.borrow(), [2], "one query, for each session once");
    let metadata: Vec<_> = answers.iter().map(|answer| answer.metadata.clone()).collect();
    let (one, two) = (Some(ticket("1")), Some(ticket("2")));
    assert_eq!(metadata, [one.clone(), None, None, None, two, one]);
    for (request, answer) in requests.into_iter().zip(answers) {
        assert_eq!(answer, server.validate(request).await.unwrap());
    }
}

pub async fn tokens_are_validated_without_the_database_unless_metadata_are_needed() {
    let server = Server::start().await;
    let [good, gone] = [sign_in(&server, "1").await, sign_in(&server, "2").await];
    server.revoke(of_token(&gone.access)).await.unwrap();
    server.store.fail_with(Some(StoreError::Unavailable("away".to_owned())));
    let unavailable = Refusal::retry(Code::Unavailable, "STORE_UNAVAILABLE");
    assert_eq!(refused(server.validate(asked(&good.access)).await), unavailable);
    let requests = vec![plainly(&good.access), asked(&good.access)];
    let refusal = refused(server.client().batch_validate(BatchValidateRequest { requests }).await);
    assert_eq!(refusal, unavailable);
    // An inactive token needs no metadata.
    for token in [&*gone.access, "garbage"] {
        assert!(!server.validate(asked(token)).await.unwrap().active);
    }
    assert!(server.validate(plainly(&good.access)).await.unwrap().active);
    let requests = vec![plainly(&good.access), asked(&gone.access)];
    assert_eq!(batch(&server, requests).await.len(), 2);
}

/// While a replica waits for a renewal, the rows may be ahead of its index.
pub async fn a_token_is_revoked_if_the_row_says_so_before_the_index_does() {
    let server = Server::start().await;
    let ended = sign_in(&server, "1").await;
    let stepped_up = sign_in(&server, "2").await;
    let strict = server.create(request_under("strict", "bob")).await.unwrap();
    let kept = sign_in(&server, "3").await;

    server.store.feed.shut();
    let mut client = server.client();
    let access = ended.access.clone();
    let revoking = tokio::spawn(async move { client.revoke(of_token(&access)).await.map(drop) });
    let mut client = server.client();
    let again =
        ReauthenticateRequest { session: Some(SessionId(stepped_up.id())), ..Default::default() };
    let stepping = tokio::spawn(async move { client.reauthenticate(again).await.map(drop) });
    let mut client = server.client();
    let refresh = countersign::proto::RefreshRequest {
        refresh_token: strict.refresh.clone(),
        ..Default::default()
    };
    let refreshing = tokio::spawn(async move { client.refresh(refresh).await.map(drop) });
    server.refresh(&kept.refresh).await.unwrap();

    for session in [&ended, &stepped_up, &strict] {
        let id = session.id().parse().unwrap();
        eventually("the row has changed", async || {
            let row = server.store.session(id).await.unwrap().unwrap();
            (row.revision > 1).then_some(())
        })
        .await;
        assert!(server.validate(plainly(&session.access)).await.unwrap().active);
        let answer = server.validate(asked(&session.access)).await.unwrap();
        let [in_batch] = &batch(&server, vec![asked(&session.access)]).await[..] else { panic!() };
        assert_eq!(&answer, in_batch);
        let bare = ValidateResponse {
            inactive_reason: InactiveReason::Revoked.into(),
            checked_at: answer.checked_at,
            ..Default::default()
        };
        assert_eq!(answer, bare);
        assert!(answer.checked_at.is_some());
    }
    let answer = server.validate(asked(&kept.access)).await.unwrap();
    assert_eq!(answer.metadata, Some(ticket("3")), "a refresh keeps the earlier access token");
    server.store.feed.open();
    for call in [revoking, stepping, refreshing] {
        in_time("the call is answered", call).await.unwrap().unwrap();
    }
}

pub async fn an_active_token_whose_row_was_deleted_has_no_metadata() {
    let server = Server::start().await;
    let session = sign_in(&server, "1").await;
    server.home.database.execute("DELETE FROM sessions").await;
    let answer = server.validate(asked(&session.access)).await.unwrap();
    assert_eq!(answer, server.validate(plainly(&session.access)).await.unwrap());
    assert!(answer.active);
}

pub async fn metadata_count_as_a_read_and_towards_the_length_of_the_answer() {
    let limits = "[limits]\nmax_reads = 1\nmax_answer_bytes = 131072";
    let server = Home::new(limits).await.start().await;
    let long = sign_in(&server, &"x".repeat(4000)).await;
    server.store.metadata.shut();
    let mut client = server.client();
    let request = asked(&long.access);
    let reading = tokio::spawn(async move { client.validate(request).await });
    server.store.metadata.held().await;
    let overloaded = Refusal::retry(Code::ResourceExhausted, "OVERLOADED");
    assert_eq!(refused(server.validate(asked(&long.access)).await), overloaded);
    assert_eq!(refused(server.session(&long.id()).await), overloaded);
    let requests = vec![asked(&long.access)];
    let refusal = refused(server.client().batch_validate(BatchValidateRequest { requests }).await);
    assert_eq!(refusal, overloaded);
    assert!(server.validate(plainly(&long.access)).await.unwrap().active);
    server.store.metadata.open();
    in_time("the answer", reading).await.unwrap().unwrap();
    // A refused read begins a cool-down.
    server.clock.advance(seconds(1));

    assert_eq!(batch(&server, vec![plainly(&long.access); 40]).await.len(), 40);
    let requests = vec![asked(&long.access); 40];
    let refusal = refused(server.client().batch_validate(BatchValidateRequest { requests }).await);
    assert!(refusal.fields[0].starts_with("requests["), "{refusal:?}");
}
