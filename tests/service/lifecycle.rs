//! Tests of a session from its creation to its end, across restarts of the service.

use std::fs;

use countersign::{
    app::{self, AppError},
    proto::{EndReason, InactiveReason, RevokeRequest, SessionState, revoke_request::Target},
};
use countersign_test_support::server::{Server, of_token, revocation, seconds, start_plus};

pub async fn a_revoked_session_is_inactive_at_once_and_after_a_restart() {
    let server = Server::start().await;
    let first = server.sign_in("alice").await;
    assert_eq!(server.verdict(&first.access).await, Ok(()));

    server.clock.advance(seconds(5));
    let next = server.refresh(&first.refresh).await.unwrap().now;
    assert_eq!(next.id(), first.id());
    assert_ne!(next.refresh, first.refresh);
    for token in [&first.access, &next.access] {
        assert_eq!(
            server.verdict(token).await,
            Ok(()),
            "a refresh leaves the former access token alone"
        );
    }

    server.clock.advance(seconds(5));
    let request = RevokeRequest {
        reason: EndReason::SignedOut.into(),
        note: "bye".to_owned(),
        ..of_token(&next.access)
    };
    assert_eq!(server.revoke(request).await.unwrap(), 1);
    for token in [&first.access, &next.access] {
        assert_eq!(server.verdict(token).await, Err(InactiveReason::Revoked));
    }

    let server = server.restart().await;
    for token in [&first.access, &next.access] {
        assert_eq!(server.verdict(token).await, Err(InactiveReason::Revoked), "after a restart");
    }
    let again =
        RevokeRequest { note: "again".to_owned(), ..revocation(Target::SessionId(first.id())) };
    assert_eq!(server.revoke(again).await.unwrap(), 0);
    let session = server.session(&first.id()).await.unwrap();
    assert_eq!(session.state(), SessionState::Ended);
    assert_eq!(session.end_reason(), EndReason::SignedOut);
    assert_eq!(session.end_note, "bye", "the first note stays");
    assert_eq!(session.ended_at, Some(start_plus(seconds(10))));
}

pub async fn a_live_session_goes_on_after_a_restart() {
    let server = Server::start().await;
    let before = server.sign_in("alice").await;
    let server = server.restart().await;
    assert_eq!(server.verdict(&before.access).await, Ok(()));
    let after = server.refresh(&before.refresh).await.unwrap();
    assert!(!after.replayed);
    assert_eq!(server.verdict(&after.now.access).await, Ok(()));
}

pub async fn a_refresh_can_be_replayed_after_the_service_has_restarted() {
    let server = Server::start().await;
    let first = server.sign_in("alice").await;
    let next = server.refresh(&first.refresh).await.unwrap().now;
    let server = server.restart().await;
    let replay = server.refresh(&first.refresh).await.unwrap();
    assert!(replay.replayed);
    assert_eq!(replay.now.refresh, next.refresh);
}

pub async fn a_missing_or_foreign_master_key_is_refused_and_the_right_one_still_opens_the_database()
{
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let home = server.stop().await;
    let other = Server::start().await.stop().await;
    let (file, kept) = (home.master_key_file(), home.master_key_file().with_extension("kept"));
    fs::rename(&file, &kept).unwrap();
    let sweep = async || app::sweep(&home.config(), home.system(), true).await;
    assert!(matches!(sweep().await, Err(AppError::MasterKeyGone(_))));
    assert!(!file.exists(), "no new master key is made");
    fs::copy(other.master_key_file(), &file).unwrap();
    assert!(matches!(sweep().await, Err(AppError::Ring(_))));
    fs::rename(&kept, &file).unwrap();
    let server = home.start().await;
    assert_eq!(server.verdict(&session.access).await, Ok(()));
    assert!(server.refresh(&session.refresh).await.is_ok());
}
