//! Tests of BatchValidate, which answers many requests to Validate in one call.

use countersign::proto::{
    BatchValidateRequest, BatchValidateResponse, CreateSessionRequest, InactiveReason,
    ValidateRequest,
};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{Server, of_token, request},
};
use tonic::Status;

async fn ask(
    server: &Server,
    requests: Vec<ValidateRequest>,
) -> Result<BatchValidateResponse, Status> {
    Ok(server.client().batch_validate(BatchValidateRequest { requests }).await?.into_inner())
}

fn about(token: &str) -> ValidateRequest {
    ValidateRequest { access_token: token.to_owned(), ..Default::default() }
}

pub async fn batch_answers_are_in_the_order_of_the_requests_and_equal_those_of_validate() {
    let server = Server::start().await;
    let mut requests = vec![];
    for n in 0..64 {
        let scopes = vec!["read".to_owned()];
        let session = server
            .create(CreateSessionRequest { scopes, ..request(&format!("user-{n}")) })
            .await
            .unwrap();
        if n % 4 == 1 {
            server.revoke(of_token(&session.access)).await.unwrap();
        }
        requests.push(match n % 4 {
            2 => ValidateRequest { scopes: vec!["admin".to_owned()], ..about(&session.access) },
            3 => about("garbage"),
            _ => about(&session.access),
        });
    }
    let answers = ask(&server, requests.clone()).await.unwrap().responses;
    assert_eq!(answers.len(), 64);
    for (n, (answer, request)) in answers.iter().zip(requests).enumerate() {
        assert_eq!(*answer, server.validate(request).await.unwrap());
        let expected = match n % 4 {
            1 => InactiveReason::Revoked,
            2 => InactiveReason::InsufficientScope,
            3 => InactiveReason::Malformed,
            _ => InactiveReason::Unspecified,
        };
        assert_eq!(answer.inactive_reason(), expected);
        if n % 4 == 0 {
            assert_eq!(answer.subject, format!("user-{n}"));
        }
    }
}

pub async fn a_batch_has_1_to_256_requests() {
    let server = Server::start().await;
    let token = server.sign_in("alice").await.access;
    let answers = ask(&server, vec![about(&token); 256]).await.unwrap().responses;
    assert_eq!(answers.iter().filter(|answer| answer.active).count(), 256);
    for count in [0, 257] {
        assert_eq!(
            refused(ask(&server, vec![about(&token); count]).await),
            Refusal::field("requests")
        );
    }
}

pub async fn an_invalid_field_is_named_with_its_index_in_the_batch() {
    let server = Server::start().await;
    let token = server.sign_in("alice").await.access;
    for (wrong, field) in [
        (about(""), "requests[3].access_token"),
        (
            ValidateRequest { scopes: vec!["x".repeat(257)], ..about(&token) },
            "requests[3].scopes[0]",
        ),
        (
            ValidateRequest { acr_values: vec!["a".to_owned(); 17], ..about(&token) },
            "requests[3].acr_values",
        ),
        (ValidateRequest { view: 7, ..about(&token) }, "requests[3].view"),
    ] {
        let mut requests = vec![about(&token); 5];
        requests[3] = wrong;
        assert_eq!(refused(ask(&server, requests).await), Refusal::field(field));
    }
}
