//! Tests of the code, reason and details with which calls are refused. They also check that a
//! refused call changes nothing.

use countersign::proto::{
    BatchValidateRequest, CountSessionsRequest, CreateSessionRequest, EndReason, InactiveReason,
    ListAuditRequest, ListSessionsRequest, RefreshRequest, RevokeRequest, SessionFilter,
    SessionState, SubjectTarget, ValidateRequest, audit_service_client::AuditServiceClient,
    revoke_request::Target,
};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{Home, Server, of_token, request, revocation},
};
use prost_types::Timestamp;
use tonic::Code;
use tonic_types::StatusExt;

pub async fn every_invalid_field_of_a_call_is_named() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    let long = "x".repeat(257);

    let validate = |change: fn(&mut ValidateRequest, String)| {
        let mut request =
            ValidateRequest { access_token: good.access.clone(), ..Default::default() };
        change(&mut request, long.clone());
        request
    };
    for (request, field) in [
        (validate(|request, _| request.access_token.clear()), "access_token"),
        (validate(|request, long| request.audience = long), "audience"),
        (validate(|request, long| request.scopes = vec!["a".to_owned(), long]), "scopes[1]"),
        (validate(|request, _| request.scopes = vec!["a".to_owned(); 65]), "scopes"),
        (validate(|request, long| request.acr_values = vec![long]), "acr_values[0]"),
        (validate(|request, _| request.acr_values = vec!["a".to_owned(); 17]), "acr_values"),
        (validate(|request, _| request.view = 9), "view"),
        (
            validate(|request, _| {
                request.max_authentication_age =
                    Some(prost_types::Duration { seconds: -1, nanos: 0 });
            }),
            "max_authentication_age",
        ),
    ] {
        assert_eq!(refused(server.validate(request).await), Refusal::field(field));
    }

    let refresh = |scopes: Vec<String>| RefreshRequest {
        refresh_token: good.refresh.clone(),
        scopes,
        device: None,
    };
    assert_eq!(
        refused(server.exchange(refresh(vec!["a b".to_owned()])).await),
        Refusal::field("scopes[0]")
    );
    assert_eq!(
        refused(server.exchange(refresh(vec!["a".to_owned(); 65])).await),
        Refusal::field("scopes")
    );

    let subject = |tenant: &str, subject: &str, except: &str| {
        revocation(Target::Subject(SubjectTarget {
            tenant: tenant.to_owned(),
            subject: subject.to_owned(),
            except_session_id: except.to_owned(),
        }))
    };
    for (request, field) in [
        (RevokeRequest::default(), "target"),
        (of_token(""), "token"),
        (of_token(&"x".repeat(8193)), "token"),
        (revocation(Target::SessionId(String::new())), "session_id"),
        (revocation(Target::SessionId(good.id().to_uppercase())), "session_id"),
        (revocation(Target::Tenant("t".repeat(129))), "tenant"),
        (subject("acme", "", ""), "subject.subject"),
        (subject("a\nb", "alice", ""), "subject.tenant"),
        (subject("acme", "alice", "x"), "subject.except_session_id"),
        (RevokeRequest { note: "x".repeat(1025), ..of_token(&good.access) }, "note"),
        (RevokeRequest { extent: 9, ..of_token(&good.access) }, "extent"),
        (RevokeRequest { reason: 99, ..of_token(&good.access) }, "reason"),
    ] {
        assert_eq!(refused(server.revoke(request).await), Refusal::field(field));
    }

    for (request, field) in [
        (ListSessionsRequest { tenant: "t".repeat(129), ..Default::default() }, "tenant"),
        (ListSessionsRequest { subject: long.clone(), ..Default::default() }, "subject"),
        (ListSessionsRequest { state: 7, ..Default::default() }, "state"),
        (ListSessionsRequest { page_size: -1, ..Default::default() }, "page_size"),
        (ListSessionsRequest { page_size: 501, ..Default::default() }, "page_size"),
        (ListSessionsRequest { page_token: "x".to_owned(), ..Default::default() }, "page_token"),
        (ListSessionsRequest { order_by: "subject".to_owned(), ..Default::default() }, "order_by"),
    ] {
        assert_eq!(refused(server.client().list_sessions(request).await), Refusal::field(field));
    }
    let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
    let wrong_instant = Some(Timestamp { seconds: 0, nanos: -1 });
    let any = || SessionFilter { created_from: at(1), ..Default::default() };
    for (filter, field) in [
        (SessionFilter { client_id: long.clone(), ..any() }, "filter.client_id"),
        (SessionFilter { policy: "p".repeat(65), ..any() }, "filter.policy"),
        (SessionFilter { created_by: "log in".to_owned(), ..any() }, "filter.created_by"),
        (SessionFilter { end_reason: 99, ..any() }, "filter.end_reason"),
        (SessionFilter { created_from: wrong_instant, ..any() }, "filter.created_from"),
        (SessionFilter { created_until: at(1), ..any() }, "filter.created_until"),
        (SessionFilter { ended_from: wrong_instant, ..any() }, "filter.ended_from"),
        (SessionFilter { ended_from: at(2), ended_until: at(1), ..any() }, "filter.ended_until"),
        (
            SessionFilter { device_network: "192.0.2.0/33".to_owned(), ..any() },
            "filter.device_network",
        ),
        (
            SessionFilter { device_network: "example.org".to_owned(), ..any() },
            "filter.device_network",
        ),
        (SessionFilter { device_id: "d".repeat(129), ..Default::default() }, "filter.device_id"),
        (SessionFilter { device_id: "d\n".to_owned(), ..any() }, "filter.device_id"),
        (SessionFilter { client_id: "web".to_owned(), ..Default::default() }, "filter"),
    ] {
        let list = ListSessionsRequest { filter: Some(filter.clone()), ..Default::default() };
        assert_eq!(refused(server.client().list_sessions(list).await), Refusal::field(field));
        let count = CountSessionsRequest { filter: Some(filter), ..Default::default() };
        assert_eq!(refused(server.client().count_sessions(count).await), Refusal::field(field));
    }
    let ended_but_live = ListSessionsRequest {
        state: SessionState::Live.into(),
        filter: Some(SessionFilter { end_reason: EndReason::SignedOut.into(), ..any() }),
        ..Default::default()
    };
    let refusal = refused(server.client().list_sessions(ended_but_live).await);
    assert_eq!(refusal, Refusal::field("state"));
    for (request, field) in [
        (ListAuditRequest { tenant: Some("t".repeat(129)), ..Default::default() }, "tenant"),
        (ListAuditRequest { subject: long.clone(), ..Default::default() }, "subject"),
        (ListAuditRequest { session_id: "x".to_owned(), ..Default::default() }, "session_id"),
        (ListAuditRequest { caller: "log in".to_owned(), ..Default::default() }, "caller"),
        (ListAuditRequest { action: "signed_in".to_owned(), ..Default::default() }, "action"),
        (ListAuditRequest { from: wrong_instant, ..Default::default() }, "from"),
        (ListAuditRequest { from: at(2), until: at(2), ..Default::default() }, "until"),
        (ListAuditRequest { page_size: 501, ..Default::default() }, "page_size"),
        (ListAuditRequest { page_token: "x".to_owned(), ..Default::default() }, "page_token"),
    ] {
        let mut audit = AuditServiceClient::new(server.channel.clone());
        assert_eq!(refused(audit.list_audit(request).await), Refusal::field(field));
    }
    for id in ["", "x", &good.id().replace('-', ""), &good.id().to_uppercase()] {
        assert_eq!(refused(server.session(id).await), Refusal::field("session_id"), "{id}");
    }
    assert_eq!(server.verdict(&good.access).await, Ok(()));
    assert_eq!(server.rows().await.blacklist, 0);
}

pub async fn an_unknown_session_is_not_found() {
    let server = Server::start().await;
    let unknown = "0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22";
    let not_found = || Refusal::of(Code::NotFound, "SESSION_NOT_FOUND");
    assert_eq!(refused(server.session(unknown).await), not_found());
    assert_eq!(
        refused(server.revoke(revocation(Target::SessionId(unknown.to_owned()))).await),
        not_found()
    );
    assert_eq!(server.rows().await.blacklist, 0);
}

pub async fn a_revocation_is_refused_while_the_blacklist_is_full_and_the_refusal_names_the_quota() {
    let server = Home::new("[blacklist]\nmax_entries = 2").await.start().await;
    let mut sessions = vec![];
    for subject in ["alice", "bob", "carol"] {
        sessions.push(server.sign_in(subject).await);
    }
    for session in &sessions[..2] {
        assert_eq!(server.revoke(of_token(&session.access)).await.unwrap(), 1);
    }
    let refusal = refused(server.revoke(of_token(&sessions[2].access)).await);
    assert_eq!(refusal, Refusal::quota("BLACKLIST_FULL", "blacklist"));
    assert_eq!(server.verdict(&sessions[2].access).await, Ok(()));
    assert_eq!(
        server.verdict(&sessions[0].access).await,
        Err(InactiveReason::Revoked),
        "nothing is evicted"
    );
    assert_eq!(server.rows().await.blacklist, 2);
}

pub async fn a_message_beyond_its_size_limit_is_refused_and_the_connection_stays_open() {
    let server = Server::start().await;
    let good = server.sign_in("alice").await;
    let huge = ValidateRequest { access_token: "x".repeat(5 << 20), ..Default::default() };
    assert_eq!(refused(server.validate(huge).await), Refusal::field("request"));
    for bytes in [70_000, 2 << 20] {
        let huge = CreateSessionRequest { subject: "x".repeat(bytes), ..request("alice") };
        let refusal = server.create(huge).await.err().unwrap();
        assert!(
            refusal.message().contains("65536 bytes (limits.max_request_bytes)"),
            "{refusal:?}"
        );
        assert_eq!(refusal.get_details_error_info().unwrap().metadata["limit"], "65536");
        assert_eq!(refused::<()>(Err(refusal)), Refusal::field("request"));
    }
    let ask = ValidateRequest { access_token: "x".repeat(8000), ..Default::default() };
    let batch = BatchValidateRequest { requests: vec![ask; 256] };
    let refusal = server.client().batch_validate(batch).await.unwrap_err();
    assert!(refusal.message().contains("1048576 bytes (limits.max_batch_bytes)"), "{refusal:?}");
    assert_eq!(refused::<()>(Err(refusal)), Refusal::field("request"));
    assert_eq!(server.verdict(&good.access).await, Ok(()));
}
