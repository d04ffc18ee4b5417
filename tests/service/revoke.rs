//! Tests of Revoke: the sessions that it ends, those that it leaves alone, and the rows that it
//! writes.

use countersign::{
    clock::Clock,
    proto::{
        EndReason, InactiveReason, RevokeExtent, RevokeRequest, SessionState, SubjectTarget,
        revoke_request::Target,
    },
};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{
        Rows, START, Server, SignedIn, eventually, of_token, request, request_under, revocation,
        seconds,
    },
};

const REVOKED: Result<(), InactiveReason> = Err(InactiveReason::Revoked);

/// Chooses the target of a revocation, given a session as it was created and as it was refreshed.
type Choose = fn(&SignedIn, &SignedIn) -> Target;

fn tenant(name: &str) -> RevokeRequest {
    revocation(Target::Tenant(name.to_owned()))
}

fn token_only(token: &str) -> RevokeRequest {
    RevokeRequest { extent: RevokeExtent::TokenOnly.into(), ..of_token(token) }
}

async fn sign_in_to(server: &Server, tenant: &str, subject: &str) -> SignedIn {
    let request =
        countersign::proto::CreateSessionRequest { tenant: tenant.to_owned(), ..request(subject) };
    server.create(request).await.unwrap()
}

pub async fn any_token_or_the_identifier_of_a_session_revokes_that_whole_session_and_no_other() {
    let server = Server::start().await;
    let bystander = server.sign_in("alice").await;
    let targets: [(&str, Choose); 5] = [
        ("old access token", |old, _| Target::Token(old.access.clone())),
        ("new access token", |_, new| Target::Token(new.access.clone())),
        ("old refresh token", |old, _| Target::Token(old.refresh.clone())),
        ("new refresh token", |_, new| Target::Token(new.refresh.clone())),
        ("identifier", |old, _| Target::SessionId(old.id())),
    ];
    for (what, target) in targets {
        let old = server.sign_in("alice").await;
        let new = server.refresh(&old.refresh).await.unwrap().now;
        let order = RevokeRequest {
            reason: EndReason::Compromised.into(),
            note: what.to_owned(),
            ..revocation(target(&old, &new))
        };
        assert_eq!(server.revoke(order.clone()).await.unwrap(), 1, "{what}");
        for token in [&old.access, &new.access] {
            assert_eq!(server.verdict(token).await, REVOKED, "{what}");
        }
        for token in [&old.refresh, &new.refresh] {
            assert_eq!(
                refused(server.refresh(token).await),
                Refusal::unauthenticated("SESSION_REVOKED"),
                "{what}"
            );
        }
        let session = server.session(&old.id()).await.unwrap();
        assert_eq!((session.end_reason(), &*session.end_note), (EndReason::Compromised, what));
        assert_eq!(server.revoke(order).await.unwrap(), 0, "{what}: again");
    }
    assert_eq!(server.verdict(&bystander.access).await, Ok(()));
    assert_eq!(server.rows().await, Rows { sessions: 6, blacklist: 5 });
}

pub async fn an_old_refresh_token_revokes_its_session_even_long_after_its_grace() {
    let server = Server::start().await;
    let old = server.sign_in("alice").await;
    server.refresh(&old.refresh).await.unwrap();
    server.clock.advance(seconds(3600));
    assert_eq!(server.revoke(of_token(&old.refresh)).await.unwrap(), 1);
    assert_eq!(
        server.session(&old.id()).await.unwrap().end_reason(),
        EndReason::Unspecified,
        "a revocation by an old token is no reuse"
    );
}

pub async fn revoking_a_subject_ends_all_its_sessions_except_the_one_to_be_spared() {
    let server = Server::start().await;
    let mut mine = vec![];
    for _ in 0..3 {
        mine.push(server.sign_in("alice").await);
    }
    let others = [server.sign_in("bob").await, sign_in_to(&server, "other", "alice").await];
    let order = |except: &str| {
        revocation(Target::Subject(SubjectTarget {
            tenant: "acme".to_owned(),
            subject: "alice".to_owned(),
            except_session_id: except.to_owned(),
        }))
    };
    assert_eq!(server.revoke(order(&mine[1].id())).await.unwrap(), 2);
    assert_eq!(server.verdict(&mine[0].access).await, REVOKED);
    assert_eq!(server.verdict(&mine[1].access).await, Ok(()));
    assert_eq!(server.verdict(&mine[2].access).await, REVOKED);
    assert_eq!(server.revoke(order("")).await.unwrap(), 1);
    assert_eq!(server.verdict(&mine[1].access).await, REVOKED);
    assert_eq!(server.revoke(order("")).await.unwrap(), 0);
    for other in &others {
        assert_eq!(server.verdict(&other.access).await, Ok(()));
    }
    assert_eq!(server.rows().await.blacklist, 1);
}

pub async fn a_tenant_revocation_spares_a_session_created_later_in_the_same_microsecond() {
    let server = Server::start().await;
    let before = [server.sign_in("alice").await, server.sign_in("bob").await];
    let other = sign_in_to(&server, "other", "alice").await;
    let default = sign_in_to(&server, "", "alice").await;
    let order = RevokeRequest {
        reason: EndReason::Administrative.into(),
        note: "closed".to_owned(),
        ..tenant("acme")
    };
    assert_eq!(server.revoke(order).await.unwrap(), 2);
    for session in &before {
        assert_eq!(server.verdict(&session.access).await, REVOKED);
        assert_eq!(
            refused(server.refresh(&session.refresh).await),
            Refusal::unauthenticated("SESSION_REVOKED")
        );
    }
    let after = server.sign_in("alice").await;
    assert_eq!(server.clock.now(), START, "the clock has stood still");
    for session in [&after, &other, &default] {
        assert_eq!(server.verdict(&session.access).await, Ok(()));
        assert!(!server.refresh(&session.refresh).await.unwrap().replayed);
    }
    for session in &before {
        let ended = eventually("the sessions of the tenant end", async || {
            let session = server.session(&session.id()).await.unwrap();
            (session.state() == SessionState::Ended).then_some(session)
        });
        let ended = ended.await;
        assert_eq!((ended.end_reason(), &*ended.end_note), (EndReason::Administrative, "closed"));
    }
    assert_eq!(server.rows().await.blacklist, 1);

    assert_eq!(server.revoke(tenant("acme")).await.unwrap(), 1);
    assert_eq!(server.verdict(&after.access).await, REVOKED, "the second revocation covers it");
    assert_eq!(server.verdict(&server.sign_in("alice").await.access).await, Ok(()));
    assert_eq!(server.rows().await.blacklist, 1, "one row for each tenant");

    let server = server.restart().await;
    for session in [&before[0], &before[1], &after] {
        assert_eq!(server.verdict(&session.access).await, REVOKED);
    }
    assert_eq!(server.verdict(&other.access).await, Ok(()));
}

pub async fn the_default_tenant_can_be_revoked() {
    let server = Server::start().await;
    let default = sign_in_to(&server, "", "alice").await;
    let other = server.sign_in("alice").await;
    assert_eq!(server.revoke(tenant("")).await.unwrap(), 1);
    assert_eq!(server.verdict(&default.access).await, REVOKED);
    assert_eq!(server.verdict(&other.access).await, Ok(()));
}

pub async fn one_access_token_can_be_revoked_alone() {
    let server = Server::start().await;
    let first = server.sign_in("alice").await;
    let next = server.refresh(&first.refresh).await.unwrap().now;
    assert_eq!(server.revoke(token_only(&next.access)).await.unwrap(), 0);
    assert_eq!(server.verdict(&next.access).await, REVOKED);
    assert_eq!(server.verdict(&first.access).await, Ok(()));
    let last = server.refresh(&next.refresh).await.unwrap().now;
    assert_eq!(server.verdict(&last.access).await, Ok(()));
    assert_eq!(server.session(&first.id()).await.unwrap().state(), SessionState::Live);

    for target in [
        Target::Token(last.refresh.clone()),
        Target::SessionId(last.id()),
        Target::Tenant("acme".to_owned()),
        Target::Subject(SubjectTarget { subject: "alice".to_owned(), ..Default::default() }),
    ] {
        let order = RevokeRequest { extent: RevokeExtent::TokenOnly.into(), ..revocation(target) };
        assert_eq!(refused(server.revoke(order).await), Refusal::field("extent"));
    }
    assert_eq!(server.rows().await.blacklist, 1);
    let server = server.restart().await;
    assert_eq!(server.verdict(&next.access).await, REVOKED);
    assert_eq!(server.verdict(&last.access).await, Ok(()));
}

/// A user who comes back after lunch signs out with whatever access token the client still has.
pub async fn an_expired_access_token_can_revoke_its_session_and_revoking_it_alone_does_nothing() {
    let server = Server::start().await;
    let first = server.create(request_under("short", "alice")).await.unwrap();
    server.clock.advance(seconds(70));
    let next = server.refresh(&first.refresh).await.unwrap().now;
    // After this, both tokens have expired by every clock within the allowed skew.
    server.clock.advance(seconds(70));
    for token in [&first.access, &next.access] {
        assert_eq!(server.verdict(token).await, Err(InactiveReason::Expired));
        assert_eq!(server.revoke(token_only(token)).await.unwrap(), 0);
    }
    assert_eq!(server.session(&first.id()).await.unwrap().state(), SessionState::Live);
    assert_eq!(server.rows().await.blacklist, 0);

    let order = RevokeRequest {
        reason: EndReason::SignedOut.into(),
        note: "lunch".to_owned(),
        ..of_token(&first.access)
    };
    assert_eq!(server.revoke(order.clone()).await.unwrap(), 1);
    let session = server.session(&first.id()).await.unwrap();
    assert_eq!((session.end_reason(), &*session.end_note), (EndReason::SignedOut, "lunch"));
    let refusal = Refusal::unauthenticated("SESSION_REVOKED");
    assert_eq!(refused(server.refresh(&next.refresh).await), refusal);
    assert_eq!(server.revoke(order).await.unwrap(), 0, "again");
    assert_eq!(server.rows().await.blacklist, 1);
}

pub async fn a_revocation_of_an_expired_session_adds_no_row() {
    let server = Server::start().await;
    let session = server.create(request_under("short", "alice")).await.unwrap();
    server.clock.advance(seconds(300));
    assert_eq!(server.revoke(of_token(&session.access)).await.unwrap(), 0);
    assert_eq!(server.revoke(token_only(&session.access)).await.unwrap(), 0);
    assert_eq!(server.revoke(of_token(&session.refresh)).await.unwrap(), 0);
    assert_eq!(server.revoke(revocation(Target::SessionId(session.id()))).await.unwrap(), 0);
    assert_eq!(server.session(&session.id()).await.unwrap().end_reason(), EndReason::ExpiredIdle);
    assert_eq!(server.rows().await.blacklist, 0);
}

pub async fn end_reasons_that_only_the_service_may_give_are_refused() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    for reason in [
        EndReason::RefreshTokenReused,
        EndReason::QuotaEvicted,
        EndReason::ExpiredIdle,
        EndReason::ExpiredAbsolute,
    ] {
        let order = RevokeRequest { reason: reason.into(), ..of_token(&session.access) };
        assert_eq!(refused(server.revoke(order).await), Refusal::field("reason"));
    }
    assert_eq!(server.verdict(&session.access).await, Ok(()));
}
