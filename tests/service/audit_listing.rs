//! Tests of ListAudit: it shows what the audit table has, page by page.

use countersign::proto::{
    AuditRecord, CreateSessionRequest, EndReason, ListAuditRequest, ListAuditResponse,
    RevokeRequest, audit_service_client::AuditServiceClient, revoke_request::Target,
};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{Home, START, Server, ShowKey, SignedIn, eventually, request, revocation, seconds},
};
use tonic::{Code, Status};

use crate::callers::caller;

async fn list(
    server: &Server,
    key: &str,
    request: ListAuditRequest,
) -> Result<ListAuditResponse, Status> {
    let mut client =
        AuditServiceClient::with_interceptor(server.channel.clone(), ShowKey(key.to_owned()));
    client.list_audit(request).await.map(tonic::Response::into_inner)
}

/// Returns the actions of the records that a request finds, each with its caller and subject.
async fn found(server: &Server, key: &str, mut request: ListAuditRequest) -> Vec<[String; 3]> {
    let mut records = vec![];
    loop {
        let page = list(server, key, request.clone()).await.unwrap();
        records.extend(page.records);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            let shown = |record: AuditRecord| [record.action, record.caller, record.subject];
            return records.into_iter().map(shown).collect();
        }
    }
}

pub async fn records_are_listed_by_subject_session_caller_action_and_time() {
    let (login, first) = caller("login", "roles = [\"issuer\"]");
    let (admin, second) = caller("helpdesk", "roles = [\"admin\"]");
    let (viewer, third) = caller("support", "roles = [\"viewer\"]\ntenants = [\"acme\"]");
    let server = Home::new(&[first, second, third].concat()).await.start().await;
    let create = async |asked: CreateSessionRequest| -> SignedIn {
        let created = server.client_with(&login).create_session(asked).await.unwrap().into_inner();
        server.clock.advance(seconds(1));
        (created.session, created.tokens).into()
    };
    let alice = create(request("alice")).await;
    create(request("bob")).await;
    create(CreateSessionRequest { tenant: "other".to_owned(), ..request("alice") }).await;
    let revoke = RevokeRequest {
        reason: EndReason::Compromised.into(),
        note: "laptop stolen".to_owned(),
        ..revocation(Target::SessionId(alice.id()))
    };
    server.client_with(&admin).revoke(revoke).await.unwrap();
    let all_written = async || {
        let records = found(&server, &admin, ListAuditRequest::default()).await;
        records.iter().any(|[action, ..]| action == "session_revoked").then_some(())
    };
    eventually("the records are written", all_written).await;

    let all = ListAuditRequest::default;
    let acme = || ListAuditRequest { tenant: Some("acme".to_owned()), ..all() };
    let created = |subject: &str| ["session_created", "login", subject].map(ToOwned::to_owned);
    let revoked = ["session_revoked", "helpdesk", "alice"].map(ToOwned::to_owned);
    let second = |n| Some(prost_types::Timestamp { seconds: START.seconds() + n, nanos: 0 });
    for (request, expected) in [
        (acme(), vec![revoked.clone(), created("bob"), created("alice")]),
        (
            ListAuditRequest { subject: "alice".to_owned(), ..acme() },
            vec![revoked.clone(), created("alice")],
        ),
        (
            ListAuditRequest { session_id: alice.id(), ..acme() },
            vec![revoked.clone(), created("alice")],
        ),
        (ListAuditRequest { caller: "helpdesk".to_owned(), ..acme() }, vec![revoked.clone()]),
        (
            ListAuditRequest { action: "session_created".to_owned(), ..acme() },
            vec![created("bob"), created("alice")],
        ),
        (ListAuditRequest { from: second(1), ..acme() }, vec![revoked.clone(), created("bob")]),
        (ListAuditRequest { until: second(1), ..acme() }, vec![created("alice")]),
    ] {
        for page_size in [1, 50] {
            let request = ListAuditRequest { page_size, ..request.clone() };
            assert_eq!(found(&server, &viewer, request.clone()).await, expected, "{request:?}");
        }
    }
    let of_all = found(&server, &admin, all()).await;
    assert_eq!(of_all.iter().filter(|[action, ..]| action == "session_created").count(), 3);
    assert!(of_all.iter().any(|[action, ..]| action == "key_rotated"), "it concerns no tenant");

    let one = ListAuditRequest { page_size: 1, ..acme() };
    let page = list(&server, &viewer, one.clone()).await.unwrap();
    let [record] = &page.records[..] else { panic!("one record, not {page:?}") };
    assert_eq!(record.note, "laptop stolen");
    assert_eq!(record.reason(), EndReason::Compromised);
    assert_eq!((record.ended_sessions, record.peer.as_str()), (Some(1), "127.0.0.1"));
    assert_eq!((record.tenant.as_deref(), &record.session_id), (Some("acme"), &alice.id()));
    let token = page.next_page_token;
    let other = ListAuditRequest { page_token: token, caller: "login".to_owned(), ..one };
    assert_eq!(refused(list(&server, &viewer, other).await), Refusal::field("page_token"));

    let not_allowed = Refusal::of(Code::PermissionDenied, "CALLER_NOT_ALLOWED");
    assert_eq!(refused(list(&server, &viewer, all()).await), not_allowed, "a tenant is required");
}

pub async fn without_the_table_the_answer_says_that_the_records_are_in_the_log() {
    let server = Home::new("[audit]\ntable = false").await.start().await;
    let refusal = refused(list(&server, "", ListAuditRequest::default()).await);
    assert_eq!(refusal, Refusal::of(Code::FailedPrecondition, "AUDIT_TABLE_OFF"));
}
