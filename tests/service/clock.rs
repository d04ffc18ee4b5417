//! Tests with a wall clock that jumps: a revoked token must stay revoked, and no blacklist entry
//! may be deleted too early.

use countersign::{app, clock::Clock, domain::time::Timestamp, proto::InactiveReason};
use countersign_test_support::server::{
    Home, START, Server, TICK, of_token, request_under, seconds,
};

/// Returns a home whose sweeper runs each second, and whose clock stands right before a sweep.
async fn home_before_a_sweep() -> Home {
    let home = Home::new("[sweeper]\nschedule = '* * * * * *'").await;
    home.clock.jump_to(end_of_second(START));
    home
}

/// Returns the last instant of the second in which `instant` lies.
fn end_of_second(instant: Timestamp) -> Timestamp {
    instant.floor_to_second().plus(seconds(1) - TICK)
}

pub async fn a_revoked_token_stays_inactive_if_the_clock_goes_back_after_a_sweep() {
    let server = home_before_a_sweep().await.start().await;
    let start = server.clock.now();
    let session = server.create(request_under("short", "alice")).await.unwrap();
    server.revoke(of_token(&session.access)).await.unwrap();

    // The token expires after 60 s, and its entry is kept for another 60 s.
    server.clock.advance(seconds(200));
    assert_eq!(server.store.whole_sweep().await, server.clock.now());
    assert_eq!(server.rows().await.blacklist, 0, "the entry is gone");
    server.clock.jump_to(start);
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Expired));

    let server = server.restart().await;
    assert_eq!(server.clock.now(), start);
    assert_eq!(
        server.verdict(&session.access).await,
        Err(InactiveReason::Expired),
        "the database keeps the purge watermark"
    );
}

pub async fn a_blacklist_entry_stays_until_a_minute_after_the_expiry_of_its_tokens() {
    let server = home_before_a_sweep().await.start().await;
    let session = server.create(request_under("short", "alice")).await.unwrap();
    server.revoke(of_token(&session.access)).await.unwrap();
    let expires_at = server.clock.now().floor_to_second().plus(seconds(60));

    server.clock.advance(end_of_second(expires_at.plus(seconds(59))).since(server.clock.now()));
    server.store.whole_sweep().await;
    assert_eq!(server.rows().await.blacklist, 1, "the last microsecond of the margin");
    server.clock.jump_to(expires_at.minus(TICK));
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
}

pub async fn the_sweeper_deletes_nothing_while_the_clock_is_briefly_an_hour_ahead() {
    let server = home_before_a_sweep().await.start().await;
    let start = server.clock.now();
    let session = server.create(request_under("short", "alice")).await.unwrap();
    let live = server.create(request_under("short", "bob")).await.unwrap();
    server.revoke(of_token(&session.access)).await.unwrap();

    server.clock.jump_to(start.plus(seconds(3600)));
    assert_eq!(server.store.whole_sweep().await, start, "the sweeper's clock has not moved");
    assert_eq!(server.rows().await.blacklist, 1);
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Expired));

    server.clock.jump_to(start);
    server.store.whole_sweep().await;
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
    assert_eq!(server.verdict(&live.access).await, Ok(()));
}

pub async fn a_session_revoked_after_the_clock_went_back_stays_revoked_once_the_clock_is_right() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    server.clock.jump_to(START.minus(seconds(3600)));
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::NotYetValid));
    assert_eq!(server.revoke(of_token(&session.refresh)).await.unwrap(), 1);
    let home = server.stop().await;
    home.clock.jump_to(START.plus(seconds(1)));
    app::sweep(&home.config(), home.system(), true).await.unwrap();
    assert_eq!(home.rows().await.blacklist, 1);
    let server = home.start().await;
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
}

pub async fn a_tenant_revoked_after_the_clock_went_back_loses_all_earlier_sessions() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    server.clock.jump_to(START.minus(seconds(3600)));
    server
        .revoke(countersign_test_support::server::revocation(
            countersign::proto::revoke_request::Target::Tenant("acme".to_owned()),
        ))
        .await
        .unwrap();
    let after = server.sign_in("alice").await;
    assert_eq!(server.verdict(&after.access).await, Ok(()));
    server.clock.jump_to(START);
    assert_eq!(server.verdict(&session.access).await, Err(InactiveReason::Revoked));
}

pub async fn ended_sessions_are_deleted_after_their_retention_and_live_ones_are_kept() {
    let server = Server::start().await;
    let over = server.create(request_under("short", "alice")).await.unwrap();
    let live = server.sign_in("bob").await;
    let home = server.stop().await;
    // The session ends after 300 idle seconds, and is kept for 30 days.
    home.clock.advance(seconds(300 + 30 * 86_400));
    app::sweep(&home.config(), home.system(), true).await.unwrap();
    assert_eq!(home.rows().await.sessions, 2, "at the last instant of its retention");
    home.clock.advance(TICK);
    app::sweep(&home.config(), home.system(), true).await.unwrap();
    assert_eq!(home.rows().await.sessions, 1);
    let server = home.start().await;
    assert!(server.session(&over.id()).await.is_err());
    assert!(server.session(&live.id()).await.is_ok());
}

/// On a shared database, the sweep takes the time from the database, so it does not depend on this
/// machine's clock.
pub async fn the_sweep_command_refuses_a_clock_that_is_far_from_the_time_of_the_newest_row() {
    let server = Server::start().await;
    server.sign_in("alice").await;
    let home = server.stop().await;
    let swept = async |at, is_clock_right| {
        home.clock.jump_to(at);
        app::sweep(&home.config(), home.system(), is_clock_right)
            .await
            .map_err(|error| error.to_string())
    };
    for at in [START.plus(seconds(86_400)).plus(seconds(60)), START.minus(seconds(61))] {
        match home.config().database.is_shared() {
            true => assert!(swept(at, false).await.is_ok()),
            false => assert!(swept(at, false).await.unwrap_err().contains("--clock-is-right")),
        }
    }
    assert!(swept(START.plus(seconds(3600)), false).await.is_ok());
    assert!(swept(START.plus(seconds(200_000)), true).await.is_ok());
}
