//! Tests of the rules that hold on PostgreSQL alone, where the database server may be unreachable,
//! and other replicas serve from the same database.

use std::{
    fs,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::import::{ACCEPTING, imported, old};
use countersign::{
    app,
    clock::Clock,
    domain::time::Timestamp,
    proto::{
        CreateSessionRequest, InactiveReason, ListSessionsRequest, RevokeExtent, RevokeRequest,
        SubjectTarget, ValidateRequest, revoke_request::Target,
    },
};
use countersign_test_support::{
    database::{Database, postgres::PostgresDatabase},
    postgres_server::{Server as Postgres, number},
    refusal::{Refusal, refused},
    server::{
        Home, START, Server, TICK, eventually, next_status, of_token, request, request_under,
        revocation, seconds,
    },
};
use futures_util::future::{BoxFuture, FutureExt, join, join5};
use tokio::{task::spawn_blocking, time::Instant};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

const REVOKED: Result<(), InactiveReason> = Err(InactiveReason::Revoked);

/// Starts another service on the same database, with a copy of the master key.
async fn replica(of: &Server) -> Server {
    replica_with(of, "").await
}

/// Starts another service with these settings.
async fn replica_with(of: &Server, settings: &str) -> Server {
    let mut home = Home::new("").await;
    home.database = of.home.database.clone();
    fs::copy(of.home.master_key_file(), home.master_key_file()).unwrap();
    home.with(settings).start().await
}

pub async fn replicas_exchange_a_refresh_token_of_another_system_for_one_and_the_same() {
    let one = Home::new(ACCEPTING).await.start().await;
    let two = replica_with(&one, ACCEPTING).await;
    imported(&one, old("s1", "alice")).await;
    let (first, second) = join(one.refresh("old-s1"), two.refresh("old-s1")).await;
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.now.refresh, second.now.refresh);
    assert_ne!(first.replayed, second.replayed);
}

pub async fn services_on_one_database_serve_the_same_sessions() {
    let one = Server::start().await;
    let two = replica(&one).await;
    let first = one.sign_in("alice").await;
    assert_eq!(two.verdict(&first.access).await, Ok(()), "both replicas have the same keys");
    let next = two.refresh(&first.refresh).await.unwrap();
    let replay = one.refresh(&first.refresh).await.unwrap();
    assert_eq!((next.replayed, replay.replayed), (false, true));
    assert_eq!(replay.now.refresh, next.now.refresh);
    assert_eq!(one.session(&first.id()).await.unwrap(), next.now.session);

    let once = CreateSessionRequest { request_id: "once".to_owned(), ..request("alice") };
    let (created, repeated) = join(one.create(once.clone()), two.create(once)).await;
    assert_eq!(created.unwrap().tokens, repeated.unwrap().tokens);

    let limited = || request_under("refusing", "bob");
    assert!(one.create(limited()).await.is_ok() && two.create(limited()).await.is_ok());
    assert_eq!(
        refused(one.create(limited()).await),
        Refusal::quota("SESSION_QUOTA_EXCEEDED", "policy:refusing")
    );
}

pub async fn services_on_one_database_reject_tokens_that_the_others_have_revoked() {
    let one = Server::start().await;
    let two = replica(&one).await;
    let found = async |server: &Server, token: &str| {
        eventually("the revocation is found", async || server.verdict(token).await.err()).await
    };

    let revoked = one.sign_in("alice").await;
    assert_eq!(one.revoke(of_token(&revoked.access)).await.unwrap(), 1);
    assert_eq!(found(&two, &revoked.access).await, InactiveReason::Revoked);
    assert_eq!(two.revoke(of_token(&revoked.access)).await.unwrap(), 0);

    let evicted = one.create(request_under("two", "alice")).await.unwrap();
    two.clock.advance(seconds(1));
    for _ in 0..2 {
        two.create(request_under("two", "alice")).await.unwrap();
    }
    assert_eq!(found(&one, &evicted.access).await, InactiveReason::Revoked);

    let all = [one.sign_in("bob").await, two.sign_in("carol").await];
    two.revoke(revocation(Target::Tenant("acme".to_owned()))).await.unwrap();
    for session in &all {
        assert_eq!(found(&one, &session.access).await, InactiveReason::Revoked);
    }
    assert_eq!(two.verdict(&all[0].access).await, REVOKED);
}

/// A caller that revokes a session which another replica has already revoked gets an
/// acknowledgement too. The guarantee must hold for that acknowledgement as well.
pub async fn a_revocation_of_another_replica_is_not_acknowledged_before_its_entry_is_in_the_index()
{
    let one = Server::start().await;
    let two = replica(&one).await;
    for _ in 0..20 {
        let session = one.sign_in("alice").await;
        one.revoke(of_token(&session.access)).await.unwrap();
        assert_eq!(two.revoke(of_token(&session.access)).await.unwrap(), 0);
        assert_eq!(two.verdict(&session.access).await, REVOKED);
    }
}

pub async fn calls_report_a_crashed_database_server_and_validate_still_answers() {
    let postgres = Arc::new(spawn_blocking(Postgres::start).await.unwrap());
    let control = async |action: fn(&Postgres)| {
        let postgres = postgres.clone();
        spawn_blocking(move || action(&postgres)).await.unwrap();
    };
    let mut home = Home::new("").await;
    home.database = Database::Postgres(PostgresDatabase::at(&postgres.url("postgres")));
    let server = home.with("").start().await;
    let [good, bad] = [server.sign_in("alice").await, server.sign_in("bob").await];
    server.revoke(of_token(&bad.access)).await.unwrap();

    control(Postgres::crash).await;
    let (created, refreshed, revoked, shown, listed) = join5(
        server.create(request("carol")),
        server.refresh(&good.refresh),
        server.revoke(of_token(&good.access)),
        server.session(&good.id()),
        async { server.client().list_sessions(ListSessionsRequest::default()).await },
    )
    .await;
    let away = || Refusal::retry(Code::Unavailable, "STORE_UNAVAILABLE");
    let refusals =
        [refused(created), refused(refreshed), refused(revoked), refused(shown), refused(listed)];
    assert_eq!(refusals, [(); 5].map(|()| away()));
    assert_eq!(server.verdict(&good.access).await, Ok(()));
    assert_eq!(server.verdict(&bad.access).await, REVOKED);
    let health = server.health().check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);

    let line = app::open_store(&server.home.config()).await.err().unwrap().to_string();
    assert!(line.contains("cannot be reached") && !line.contains('\n'), "{line}");
    assert!(
        server.home.database.secrets().iter().all(|(_, secret)| !line.contains(secret)),
        "{line}"
    );

    control(Postgres::restart).await;
    let next = eventually("refreshes succeed again", async || {
        let answer = server.refresh(&good.refresh).await;
        answer.map_err(|status| assert_eq!(refused::<()>(Err(status)), away())).ok()
    })
    .await;
    assert!(!next.replayed, "the refused refresh changed nothing");
    assert_eq!(server.revoke(of_token(&next.now.access)).await.unwrap(), 1);
    let server = server.restart().await;
    for token in [&good.access, &next.now.access, &bad.access] {
        assert_eq!(server.verdict(token).await, REVOKED);
    }
}

/// Reduces the result of a call to success or the refusal, and boxes the future, so that different
/// calls have the same type.
fn outcome_of<'a, T>(
    call: impl Future<Output = Result<T, Status>> + Send + 'a,
) -> BoxFuture<'a, Result<(), Refusal>> {
    async { call.await.map(drop).map_err(|status| refused::<()>(Err(status))) }.boxed()
}

/// Reads may have been served by an old primary, but only the current primary can commit. A call
/// that only reads is therefore answered once a renewal that was sent after the reads has been
/// committed.
pub async fn an_answer_that_rests_only_on_reads_waits_for_a_later_renewal() {
    let server = Server::start().await;
    let [alice, gone, ended] =
        [server.sign_in("alice").await, server.sign_in("bob").await, server.sign_in("carol").await];
    server.refresh(&alice.refresh).await.unwrap();
    server.home.database.execute("DELETE FROM sessions WHERE subject = 'bob'").await;
    server.revoke(of_token(&ended.access)).await.unwrap();
    let dora = CreateSessionRequest { request_id: "once".to_owned(), ..request("dora") };
    server.create(dora.clone()).await.unwrap();

    let nobody = SubjectTarget {
        tenant: "acme".to_owned(),
        subject: "nobody".to_owned(),
        ..Default::default()
    };
    let calls: [(&str, BoxFuture<'_, Result<(), Refusal>>); 8] = [
        ("revoked before", outcome_of(server.revoke(of_token(&ended.access)))),
        (
            "no session of the subject",
            outcome_of(server.revoke(revocation(Target::Subject(nobody)))),
        ),
        (
            "no session of the tenant",
            outcome_of(server.revoke(revocation(Target::Tenant("nobody".to_owned())))),
        ),
        (
            "no such session, by its refresh token",
            outcome_of(server.revoke(of_token(&gone.refresh))),
        ),
        (
            "no such session, by its identifier",
            outcome_of(server.revoke(revocation(Target::SessionId(gone.id())))),
        ),
        ("no such session to be refreshed", outcome_of(server.refresh(&gone.refresh))),
        ("a refresh that is repeated", outcome_of(server.refresh(&alice.refresh))),
        ("a creation that is repeated", outcome_of(server.create(dora))),
    ];
    server.store.feed.shut();
    let mut calls = calls.map(|(what, call)| (what, call, None));
    for (what, call, answer) in &mut calls {
        for _ in 0..20 {
            *answer = answer.take().or_else(|| call.now_or_never());
            server.session(&alice.id()).await.unwrap();
        }
        assert_eq!(*answer, None, "{what}");
    }
    server.store.feed.open();
    for (what, call, _) in calls {
        let expected = match what {
            "no such session, by its identifier" => {
                Err(Refusal::of(Code::NotFound, "SESSION_NOT_FOUND"))
            }
            "no such session to be refreshed" => {
                Err(Refusal::unauthenticated("REFRESH_TOKEN_INVALID"))
            }
            _ => Ok(()),
        };
        assert_eq!(call.await, expected, "{what}");
    }
}

/// Another replica may have activated the next key in the meantime, so a replica without an active
/// key reads the keys again before it refuses.
pub async fn calls_are_refused_as_retriable_while_no_key_is_active_and_succeed_with_the_next_key() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let refusal = Refusal::retry(Code::Unavailable, "NO_ACTIVE_KEY");
    // The trigger keeps the service from activating the next key by itself.
    let gone = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE \
                EXCEPTION 'refused'; END $$; CREATE TRIGGER refused BEFORE INSERT OR UPDATE ON \
                signing_keys EXECUTE FUNCTION refuse(); CREATE TABLE kept AS SELECT * FROM \
                signing_keys; DELETE FROM signing_keys WHERE activated_at IS NOT NULL AND purpose \
                = 'access_token'; UPDATE feed_head SET seq = seq + 1, ring = ring + 1";
    let back = "BEGIN; DROP TRIGGER refused ON signing_keys; DELETE FROM signing_keys; \
                INSERT INTO signing_keys SELECT * FROM kept; \
                UPDATE feed_head SET seq = seq + 1, ring = ring + 1; COMMIT";
    server.home.database.execute(gone).await;
    eventually("the key is gone", async || server.create(request("bob")).await.err()).await;
    assert_eq!(refused(server.create(request("bob")).await), refusal);
    assert_eq!(refused(server.refresh(&session.refresh).await), refusal);
    server.home.database.execute(back).await;
    server.create(request("bob")).await.unwrap();
    assert!(
        !server.refresh(&session.refresh).await.unwrap().replayed,
        "the refused call changed nothing"
    );
    assert_eq!(server.verdict(&session.access).await, Ok(()));
}

/// Brings the database into the state that a failover would leave if the standby had received none
/// of the revocations.
const LOST: &str = "DELETE FROM blacklist; UPDATE feed_head SET seq = 0; DELETE FROM replicas; \
                    UPDATE sessions SET ended_at = NULL, end_reason = NULL, end_note = NULL, \
                    is_over = false";
const LIVE: &str = "SELECT count(*) FROM sessions WHERE ended_at IS NULL";

/// Waits until a query returns the expected number.
async fn becomes(server: &Server, sql: &str, expected: i64) {
    let url = server.home.database.url();
    eventually(sql, async || (number(&url, sql).await == expected).then_some(())).await;
}

pub async fn lost_revocations_are_rewritten_without_waiting_for_one_another() {
    let server = Server::start().await;
    let sessions =
        [server.sign_in("alice").await, server.sign_in("bob").await, server.sign_in("carol").await];
    for session in &sessions {
        server.revoke(of_token(&session.access)).await.unwrap();
    }
    server.store.committed_revocations.shut();
    server.home.database.execute(LOST).await;
    becomes(&server, "SELECT count(*) FROM blacklist", 3).await;
    becomes(&server, LIVE, 0).await;
    server.store.committed_revocations.open();
    for session in &sessions {
        assert_eq!(server.verdict(&session.access).await, REVOKED);
    }
}

/// The rewritten entry gets the same sequence number in the feed as the lost entry had.
pub async fn the_sessions_of_a_tenant_whose_revocation_was_lost_end_again() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    server.revoke(revocation(Target::Tenant("acme".to_owned()))).await.unwrap();
    becomes(&server, LIVE, 0).await;
    server.home.database.execute(LOST).await;
    becomes(&server, "SELECT count(*) FROM blacklist WHERE seq = 1", 1).await;
    becomes(&server, LIVE, 0).await;
    assert_eq!(server.verdict(&session.access).await, REVOKED);
}

/// The pause between two renewals of a lease.
const RENEWAL: Duration = Duration::from_millis(500);

/// Returns the number of renewals so far.
async fn renewals(server: &Server) -> u128 {
    let url = server.home.database.url();
    number(&url, "SELECT coalesce(sum(renewals), 0)::bigint FROM replicas")
        .await
        .try_into()
        .unwrap()
}

pub async fn a_service_whose_clock_is_too_far_off_refuses_to_validate() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let mut watch = server.watch_health("").await;
    assert_eq!(next_status(&mut watch).await, Some(ServingStatus::Serving));
    for (off, right) in [(6, 5), (-6, -5)] {
        server.store.skew.store(off, Ordering::SeqCst);
        // Two seconds are longer than the rest of the lease.
        server.clock.advance(seconds(2));
        assert_eq!(next_status(&mut watch).await, Some(ServingStatus::NotServing));
        let (before, begun) = (renewals(&server).await, Instant::now());
        let mut calls = vec![];
        for _ in 0..200 {
            let (mut client, access_token) = (server.client(), session.access.clone());
            let request = ValidateRequest { access_token, ..Default::default() };
            calls.push(tokio::spawn(async move { client.validate(request).await }));
            // Waiting for this call makes the calls to Validate arrive one after the other.
            server.session(&session.id()).await.unwrap();
        }
        for call in calls {
            let refusal = refused(call.await.unwrap());
            assert_eq!(refusal, Refusal::retry(Code::Unavailable, "NOT_CURRENT"));
        }
        let asked = renewals(&server).await - before;
        let in_time = begun.elapsed().as_millis() / RENEWAL.as_millis() + 3;
        assert!(asked <= in_time, "{asked} renewals, but at most {in_time} are due");

        server.store.skew.store(right, Ordering::SeqCst);
        assert_eq!(next_status(&mut watch).await, Some(ServingStatus::Serving));
        assert_eq!(server.verdict(&session.access).await, Ok(()));
    }
}

pub async fn a_service_with_a_clock_too_far_behind_acknowledges_revocations_and_validates_nothing()
{
    let behind = Server::start().await;
    let right = replica(&behind).await;
    let session = behind.sign_in("alice").await;
    let mut watch = behind.watch_health("").await;
    assert_eq!(next_status(&mut watch).await, Some(ServingStatus::Serving));
    behind.store.skew.store(6, Ordering::SeqCst);
    // Two seconds are longer than the rest of the lease.
    behind.clock.advance(seconds(2));
    assert_eq!(next_status(&mut watch).await, Some(ServingStatus::NotServing));

    assert_eq!(behind.revoke(of_token(&session.access)).await.unwrap(), 1);
    assert_eq!(right.verdict(&session.access).await, REVOKED);
    let request = ValidateRequest { access_token: session.access, ..Default::default() };
    let refusal = refused(behind.validate(request).await);
    assert_eq!(refusal, Refusal::retry(Code::Unavailable, "NOT_CURRENT"));
}

/// By the clock of the service that is ahead, the session has expired. If the service relied on
/// that clock, it would find nothing to revoke and answer OK.
pub async fn a_service_whose_clock_is_too_far_ahead_acknowledges_no_revocation() {
    let ahead = Server::start().await;
    let right = replica(&ahead).await;
    let session = ahead.create(request_under("short", "alice")).await.unwrap();
    ahead.clock.advance(seconds(3600));
    ahead.store.skew.store(-3600, Ordering::SeqCst);

    let refusal = refused(ahead.revoke(revocation(Target::SessionId(session.id()))).await);
    assert_eq!(right.verdict(&session.access).await, Ok(()));
    assert_eq!(refusal, Refusal::retry(Code::Unavailable, "STORE_UNAVAILABLE"));
}

/// A sweep by a clock that is ahead would delete blacklist entries too early, when their tokens
/// have not yet expired by the clocks of other replicas.
pub async fn a_service_without_a_lease_leaves_the_sweeps_to_others() {
    let home = Home::new("[sweeper]\nschedule = '* * * * * *'").await;
    // The clock stands right before the next sweep.
    home.clock.jump_to(START.floor_to_second().plus(seconds(1)).minus(TICK));
    let server = home.start().await;
    server.store.whole_sweep().await;
    let mut watch = server.watch_health("").await;
    assert_eq!(next_status(&mut watch).await, Some(ServingStatus::Serving));
    server.store.skew.store(-6, Ordering::SeqCst);
    server.clock.advance(seconds(2));
    assert_eq!(next_status(&mut watch).await, Some(ServingStatus::NotServing));

    // One sweep may have been under way when the lease ended.
    let most = server.store.sweeps() + 1;
    let before = renewals(&server).await;
    eventually("time passes", async || (renewals(&server).await >= before + 3).then_some(())).await;
    assert!(server.store.sweeps() <= most, "{} sweeps, {most} at most", server.store.sweeps());

    server.store.skew.store(0, Ordering::SeqCst);
    server.store.whole_sweep().await;
}

pub async fn a_service_that_starts_with_a_wrong_clock_does_not_serve_until_the_clock_is_right() {
    let home = Home::new("").await;
    let begun = Instant::now();
    let server = home.launch(|store| store.skew.store(6, Ordering::SeqCst)).await;
    let mut watch = server.watch_health("").await;
    assert_eq!(next_status(&mut watch).await, Some(ServingStatus::NotServing));
    let asked = eventually("the replica asks for the time again", async || {
        let asked = renewals(&server).await;
        (asked >= 5).then_some(asked)
    })
    .await;
    let in_time = begun.elapsed().as_millis() / 100 + 1;
    assert!(asked <= in_time, "{asked} renewals without a pause");
    let any = ValidateRequest { access_token: "garbage".to_owned(), ..Default::default() };
    let refusal = refused(server.validate(any).await);
    assert_eq!(refusal, Refusal::retry(Code::Unavailable, "NOT_CURRENT"));
    server.store.skew.store(0, Ordering::SeqCst);
    assert_eq!(next_status(&mut watch).await, Some(ServingStatus::Serving));
}

/// By the clock of another replica, the token may not have expired yet.
pub async fn an_expired_token_can_be_revoked_while_it_may_be_valid_by_another_clock() {
    let ahead = Server::start().await;
    let behind = replica(&ahead).await;
    let [token, late] = [
        ahead.create(request_under("short", "alice")).await.unwrap().access,
        ahead.create(request_under("short", "bob")).await.unwrap().access,
    ];
    let token_only =
        |token: &str| RevokeRequest { extent: RevokeExtent::TokenOnly.into(), ..of_token(token) };
    // Each clock may be off by five seconds.
    let expiry = START.floor_to_second().plus(seconds(60));
    ahead.clock.advance(expiry.plus(seconds(10)).minus(TICK).since(START));
    behind.clock.advance(expiry.minus(TICK).since(START));
    assert_eq!(ahead.verdict(&token).await, Err(InactiveReason::Expired));
    assert_eq!(behind.verdict(&token).await, Ok(()));
    ahead.revoke(token_only(&token)).await.unwrap();
    assert_eq!(behind.verdict(&token).await, REVOKED);
    assert_eq!(ahead.rows().await.blacklist, 1);

    ahead.clock.advance(TICK);
    behind.clock.advance(TICK);
    assert_eq!(behind.verdict(&late).await, Err(InactiveReason::Expired));
    ahead.revoke(token_only(&late)).await.unwrap();
    assert_eq!(ahead.rows().await.blacklist, 1);
}

/// The other replicas may still need entries that have expired by one replica's clock.
pub async fn a_sweep_uses_the_clock_of_the_database() {
    let server = Home::new("[sweeper]\nschedule = '* * * * * *'").await.start().await;
    server.store.skew.store(-3, Ordering::SeqCst);
    assert_eq!(server.store.whole_sweep().await, server.clock.now().minus(seconds(3)));
}

/// Returns whether a replica answers that a token is active.
async fn is_active(server: &Server, token: &str) -> bool {
    let request = ValidateRequest { access_token: token.to_owned(), ..Default::default() };
    server.validate(request).await.unwrap().active
}

/// Each replica's clock differs from the database's clock by less than `lease.max_clock_skew`. All
/// replicas correct their time to the database's clock, so they agree.
pub async fn replicas_with_different_clocks_agree_on_what_is_valid_replayed_and_reused() {
    let first = Server::start().await;
    let servers = [replica(&first).await, replica(&first).await, first];
    for (server, off) in servers.iter().zip([-4_i64, 4, 0]) {
        server.clock.jump_to(Timestamp::from_micros(START.micros() + off * 1_000_000));
        server.store.skew.store(-off, Ordering::SeqCst);
        // The next renewal corrects the replica's time to the database's clock.
        server.clock.advance(seconds(3));
        server.sign_in("anybody").await;
    }
    let _running = keep_clocks_running(&servers.each_ref());
    for maker in &servers {
        for other in &servers {
            let fresh = maker.sign_in("alice").await;
            assert!(is_active(other, &fresh.access).await, "at once");
            let next = maker.refresh(&fresh.refresh).await.unwrap();
            servers.iter().for_each(|server| server.clock.advance(seconds(29)));
            assert!(
                other.refresh(&fresh.refresh).await.unwrap().replayed,
                "within the grace of 30 s"
            );
            servers.iter().for_each(|server| server.clock.advance(seconds(2)));
            let reused = refused(other.refresh(&fresh.refresh).await);
            assert_eq!(reused, Refusal::unauthenticated("REFRESH_TOKEN_REUSED"), "after the grace");
            assert!(!is_active(maker, &next.now.access).await);
        }
    }
}

/// Keeps advancing the clocks of servers in real time, until the returned set is dropped. The tests
/// advance the clocks past the ends of leases. A replica may then have to wait until its own clock
/// passes the end of another replica's lease, so its clock must keep running.
fn keep_clocks_running(servers: &[&Server]) -> tokio::task::JoinSet<()> {
    const STEP: Duration = Duration::from_millis(5);
    let clocks: Vec<_> = servers.iter().map(|server| server.clock.clone()).collect();
    let mut running = tokio::task::JoinSet::new();
    running.spawn(async move {
        loop {
            tokio::time::sleep(STEP).await;
            clocks.iter().for_each(|clock| clock.advance(STEP));
        }
    });
    running
}

/// If each replica used its own clock, the second session would seem older than the first.
pub async fn the_oldest_session_is_the_one_that_was_created_first_whichever_replicas_created_them()
{
    let ahead = Server::start().await;
    let behind = replica(&ahead).await;
    for (server, off) in [(&ahead, 4_i64), (&behind, -4)] {
        server.clock.jump_to(Timestamp::from_micros(START.micros() + off * 1_000_000));
        server.store.skew.store(-off, Ordering::SeqCst);
        server.clock.advance(seconds(3));
        server.sign_in("anybody").await;
    }
    let _running = keep_clocks_running(&[&ahead, &behind]);
    let mut created = vec![];
    for server in [&ahead, &behind, &ahead] {
        created.push(server.create(request_under("two", "alice")).await.unwrap());
        for server in [&ahead, &behind] {
            server.clock.advance(seconds(1));
        }
    }
    for (session, expected) in created.iter().zip([false, true, true]) {
        assert_eq!(is_active(&behind, &session.access).await, expected);
    }
}
