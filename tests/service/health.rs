//! Tests of the health service, of reflection, of calls before the blacklist is loaded, and of a
//! graceful shutdown.

use countersign::proto::{InactiveReason, ValidateRequest};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{Home, Server, eventually, in_time, next_status, of_token, request},
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

const NAMES: [&str; 2] = ["", "countersign.v1.SessionService"];

async fn status(server: &Server, service: &str) -> Result<ServingStatus, Code> {
    let answer = server.health().check(HealthCheckRequest { service: service.to_owned() }).await;
    answer.map(|answer| answer.into_inner().status()).map_err(|status| status.code())
}

pub async fn validate_is_refused_until_the_blacklist_is_loaded() {
    let server = Server::start().await;
    let [good, bad] = [server.sign_in("alice").await, server.sign_in("bob").await];
    server.revoke(of_token(&bad.access)).await.unwrap();
    let server = server.stop().await.launch(|store| store.feed.shut()).await;
    server.store.feed.held().await;

    let mut watch = server.watch_health(NAMES[1]).await;
    assert_eq!(next_status(&mut watch).await, Some(ServingStatus::NotServing));
    for name in NAMES {
        assert_eq!(status(&server, name).await, Ok(ServingStatus::NotServing), "{name}");
    }
    for token in [&good.access, &bad.access, "garbage"] {
        let request = ValidateRequest { access_token: token.to_owned(), ..Default::default() };
        let refusal = refused(server.validate(request).await);
        assert_eq!(refusal, Refusal::retry(Code::Unavailable, "NOT_CURRENT"));
    }

    server.store.feed.open();
    assert_eq!(next_status(&mut watch).await, Some(ServingStatus::Serving));
    for name in NAMES {
        assert_eq!(status(&server, name).await, Ok(ServingStatus::Serving), "{name}");
    }
    assert_eq!(server.verdict(&good.access).await, Ok(()));
    assert_eq!(server.verdict(&bad.access).await, Err(InactiveReason::Revoked));
}

pub async fn a_revocation_is_not_acknowledged_before_its_entry_is_in_the_index() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let server = server.stop().await.launch(|store| store.feed.shut()).await;
    server.store.feed.held().await;
    let revoke = || {
        let (mut client, token) = (server.client(), session.access.clone());
        tokio::spawn(async move {
            client.revoke(of_token(&token)).await.unwrap().into_inner().revoked_sessions
        })
    };
    let first = revoke();
    // Once the row is visible, the revocation is committed. The call must still not be answered,
    // however many other calls are answered meanwhile.
    eventually("the row is there", async || (server.rows().await.blacklist == 1).then_some(()))
        .await;
    let again = revoke();
    for _ in 0..200 {
        status(&server, "").await.unwrap();
        assert!(!first.is_finished());
        assert!(!again.is_finished(), "a repeated revocation waits as well");
    }
    server.store.feed.open();
    assert_eq!((first.await.unwrap(), again.await.unwrap()), (1, 0));
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
}

pub async fn health_of_an_unknown_service_is_not_found() {
    let server = Server::start().await;
    assert_eq!(status(&server, "countersign.v1.Nonsense").await, Err(Code::NotFound));
}

pub async fn the_first_signal_only_turns_health_to_not_serving_and_the_second_stops_the_service() {
    let server = Home::new("[shutdown]\ngrace = '1h'\ndrain = '1h'").await.start().await;
    let mut watches = vec![];
    for name in NAMES {
        let mut watch = server.watch_health(name).await;
        assert_eq!(next_status(&mut watch).await, Some(ServingStatus::Serving));
        watches.push(watch);
    }
    server.shutdown.soft.cancel();
    for watch in &mut watches {
        assert_eq!(next_status(watch).await, Some(ServingStatus::NotServing));
    }
    let session = server.sign_in("alice").await;
    assert_eq!(server.verdict(&session.access).await, Ok(()));

    server.shutdown.hard.cancel();
    for watch in &mut watches {
        while next_status(watch).await.is_some() {}
    }
    in_time("the service stops", server.running).await.unwrap().unwrap();
}

pub async fn a_call_in_flight_at_the_signal_is_finished_and_answered() {
    let server = Server::start().await;
    server.store.creations.shut();
    let mut client = server.client();
    let call = tokio::spawn(async move { client.create_session(request("alice")).await });
    server.store.creations.held().await;
    let mut watch = server.watch_health("").await;
    server.shutdown.soft.cancel();
    // The server ends the watch when it stops accepting calls.
    while next_status(&mut watch).await.is_some() {}
    assert!(!call.is_finished() && !server.running.is_finished());
    server.store.creations.open();
    let created = call.await.unwrap().unwrap().into_inner();
    assert_eq!(created.session.unwrap().subject, "alice");
    in_time("the service stops", server.running).await.unwrap().unwrap();
    assert_eq!(server.home.rows().await.sessions, 1);
}

pub async fn reflection_lists_the_services() {
    let server = Server::start().await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(server.channel.clone());
    let mut answers = client
        .server_reflection_info(futures_util::stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("another answer")
    };
    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "countersign.v1.AuditService",
            "countersign.v1.KeyService",
            "countersign.v1.RevocationService",
            "countersign.v1.SessionService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection"
        ]
    );
}
