//! Tests of renewals: what their answers contain, and when a renewal must not extend the lease.

use std::time::Duration;

use countersign::{
    domain::{
        ids::Incarnation,
        revocation::{Seq, Timeline},
    },
    store::{
        Store, StoreError,
        postgres::{PostgresStore, connect::Options},
        replicas::{Answer, Other, RenewalClient, RenewalOutcome, RenewalRequest},
    },
};

use countersign_test_support::postgres_server::{Server, execute, new_database, number, options};
use tokio::{
    task::{block_in_place, spawn_blocking},
    time::sleep,
};

use crate::{
    postgres_only::{in_time, open},
    support::{
        ALL, after, create, create_all, entries, join, newcomer, revoke_session, seconds, session,
    },
};

/// The pause between two checks of a condition that sends no event.
const MOMENT: Duration = Duration::from_millis(5);
const A: [u8; 16] = [1; 16];
const B: [u8; 16] = [2; 16];

/// Returns a renewal of replica `A` that reads the feed from its beginning.
fn renewal(number: i64, confirmed: i64, applied: Seq) -> RenewalRequest {
    let (incarnation, after) = (Incarnation::new(A), Seq::default());
    RenewalRequest {
        watchers: 0,
        incarnation,
        number,
        confirmed,
        applied,
        after,
        limit: ALL,
        timeout: seconds(60),
    }
}

async fn answer(renewals: &mut Box<dyn RenewalClient>, renewal: RenewalRequest) -> Answer {
    match renewals.renew(&renewal).await.unwrap() {
        RenewalOutcome::Answer(answer) => answer,
        RenewalOutcome::Gone => panic!("the replica has joined: {renewal:?}"),
    }
}

async fn is_gone(renewals: &mut Box<dyn RenewalClient>, renewal: RenewalRequest) -> bool {
    matches!(renewals.renew(&renewal).await.unwrap(), RenewalOutcome::Gone)
}

/// Opens a store, and lets replica `A` join.
async fn joined(url: &str) -> (PostgresStore, Box<dyn RenewalClient>) {
    let store = open(url).await;
    let renewals = join(&store, newcomer(Incarnation::new(A))).await;
    (store, renewals)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_returns_the_feed_its_head_and_the_other_replicas() {
    let (store, mut renewals) = joined(&new_database().await).await;
    let before = answer(&mut renewals, renewal(1, 0, Seq(0))).await;
    assert_eq!((before.head.seq, before.entries.len(), before.others.len()), (Seq(0), 0, 0));
    assert_eq!(before.settled, before.head.timeline);

    for session in create_all(&store, [session(1), session(2)]).await {
        revoke_session(&store, &session, after(3)).await;
    }
    let members = store.members().unwrap();
    assert_eq!(
        store.renewal_client().join(newcomer(Incarnation::new(B)), seconds(60)).await.unwrap(),
        Seq(2),
        "a new replica's row begins at the head of the feed"
    );
    let now = answer(&mut renewals, renewal(2, 1, Seq(0))).await;
    assert_eq!((now.head.seq, now.database), (Seq(2), before.database));
    assert_eq!(now.entries, entries(&store).await);
    let other = Other {
        incarnation: Incarnation::new(B),
        applied: Seq(2),
        renewals: 0,
        max_validity: seconds(3),
    };
    assert_eq!(now.others, [other]);
    let page = RenewalRequest { after: Seq(1), limit: 1, ..renewal(3, 2, Seq(2)) };
    assert_eq!(answer(&mut renewals, page).await.entries, now.entries[1..]);

    let register = members.register().await.unwrap();
    assert_eq!((register.head, register.is_settled()), (now.head, true));
    let listed: Vec<_> = register
        .members
        .iter()
        .map(|member| (member.incarnation, member.renewals, member.applied))
        .collect();
    assert_eq!(listed, [(Incarnation::new(A), 3, Seq(2)), (Incarnation::new(B), 0, Seq(2))]);
}

/// If the database was set back, the replica's row is missing, or has a smaller renewal number than
/// the last confirmed one. A renewal whose caller gave up may also arrive after a later renewal.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_reports_gone_if_its_row_is_missing_or_has_another_number() {
    let (store, mut renewals) = joined(&new_database().await).await;
    answer(&mut renewals, renewal(7, 0, Seq(0))).await;
    assert!(is_gone(&mut renewals, renewal(9, 8, Seq(0))).await, "the row was set back");
    assert!(is_gone(&mut renewals, renewal(7, 7, Seq(0))).await, "the number was used");
    answer(&mut renewals, renewal(9, 7, Seq(0))).await;

    let members = store.members().unwrap();
    assert!(!members.remove(Incarnation::new(A), 7).await.unwrap(), "the member has renewed since");
    assert!(members.remove(Incarnation::new(A), 9).await.unwrap());
    assert!(is_gone(&mut renewals, renewal(10, 9, Seq(0))).await, "a renewal never makes a row");
    assert_eq!(members.register().await.unwrap().members, []);

    join(&store, newcomer(Incarnation::new(B))).await;
    members.leave(Incarnation::new(B)).await.unwrap();
    assert_eq!(members.register().await.unwrap().members, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_register_is_recorded_as_complete_once_for_each_timeline() {
    let url = new_database().await;
    let (store, mut renewals) = joined(&url).await;
    let timeline = answer(&mut renewals, renewal(1, 0, Seq(0))).await.head.timeline;
    execute(&url, "UPDATE feed_head SET timeline = 0").await;
    assert_eq!(answer(&mut renewals, renewal(2, 1, Seq(0))).await.settled, Timeline(0));
    let members = store.members().unwrap();
    assert!(!members.register().await.unwrap().is_settled());
    members.settle(Timeline(0), timeline).await.unwrap();
    members.settle(Timeline(0), Timeline(99)).await.unwrap();
    assert_eq!(answer(&mut renewals, renewal(3, 2, Seq(0))).await.settled, timeline);
}

/// If the wait of a commit for its synchronous standby is cancelled, the commit is visible, but it
/// is lost if the primary is lost. No lease may be based on such a commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_did_not_wait_for_its_standby_is_not_confirmed() {
    let server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let url = server.url("postgres");
    let (store, mut renewals) = joined(&url).await;
    create(&store, session(1)).await;
    answer(&mut renewals, renewal(1, 0, Seq(0))).await;
    let standby = async |names: &str| {
        execute(&url, &format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await;
        execute(&url, "SELECT pg_reload_conf()").await;
    };
    standby("nobody").await;
    // The server applies the setting with a delay. As soon as a write waits for the standby, the
    // setting is in effect.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    while number(&url, waiting).await == 0 {
        let url = url.clone();
        tokio::spawn(async move {
            execute(&url, "UPDATE sweeper SET forgotten_until = forgotten_until").await
        });
        sleep(MOMENT).await;
    }
    let canceller = async {
        loop {
            execute(
                &url,
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
            )
            .await;
            sleep(MOMENT).await;
        }
    };
    // The row and the warning arrive together. Code that did not wait for the warning would accept
    // the row in some of these rounds.
    let cancelled = async {
        for number in 2..22 {
            let outcome = in_time(renewals.renew(&renewal(number, 1, Seq(0)))).await;
            assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{number}: {outcome:?}");
        }
    };
    tokio::select! {
        () = cancelled => {}
        () = canceller => unreachable!(),
    }
    standby("").await;
    answer(&mut renewals, renewal(22, 1, Seq(0))).await;
}

/// Starts a primary, lets replica `A` join it, and starts a standby of the primary.
async fn joined_pair() -> (Server, Server) {
    let primary = spawn_blocking(Server::start).await.unwrap();
    drop(joined(&primary.url("postgres")).await);
    let with_standby = move || {
        let standby = primary.start_standby();
        (primary, standby)
    };
    spawn_blocking(with_standby).await.unwrap()
}

/// An open connection to the former primary still reads its old state.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_primary_is_not_queried_after_a_renewal_has_found_its_successor() {
    let (primary, standby) = joined_pair().await;
    // New connections go to the first server in the URL that accepts writes.
    let store = open(&Server::url_of(&[&standby, &primary], "postgres")).await;
    let before = answer(&mut store.renewal_client(), renewal(1, 0, Seq(0))).await.head.timeline;
    assert_eq!(store.session(session(1).id).await.unwrap(), None);

    block_in_place(|| standby.promote());
    let there = create(&open(&standby.url("postgres")).await, session(1)).await;
    assert_eq!(
        store.session(there.id).await.unwrap(),
        None,
        "the existing connection leads to the former primary"
    );
    let now = answer(&mut store.renewal_client(), renewal(2, 0, Seq(0))).await.head.timeline;
    assert_ne!(now, before);
    assert_eq!(store.session(there.id).await.unwrap(), Some(there));
}

/// The former primary was frozen while the standby took over, so it still behaves as a primary. The
/// URL names it first, so new connections would go to it.
#[tokio::test(flavor = "multi_thread")]
async fn no_connection_is_made_to_a_replaced_primary_even_if_the_url_names_it_first() {
    let (primary, standby) = joined_pair().await;
    let url = Server::url_of(&[&primary, &standby], "postgres");
    let connect_timeout = Duration::from_secs(1);
    let store = PostgresStore::open(&Options { connect_timeout, ..options(&url) }).await.unwrap();
    let before = answer(&mut store.renewal_client(), renewal(1, 0, Seq(0))).await.head.timeline;

    primary.freeze();
    block_in_place(|| standby.promote());
    let there = create(&open(&standby.url("postgres")).await, session(1)).await;
    let now = answer(&mut store.renewal_client(), renewal(2, 0, Seq(0))).await.head.timeline;
    assert_ne!(now, before);
    primary.thaw();
    assert_eq!(store.session(there.id).await.unwrap(), Some(there));
}

/// The remaining server is on an earlier timeline than the crashed one, and has none of the commits
/// of the later timeline.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_the_remaining_server_does_not_know_can_join_that_server() {
    let (primary, standby) = joined_pair().await;
    let url = Server::url_of(&[&standby, &primary], "postgres");
    let connect_timeout = Duration::from_secs(1);
    let store = PostgresStore::open(&Options { connect_timeout, ..options(&url) }).await.unwrap();
    block_in_place(|| standby.promote());
    let mut renewals = store.renewal_client();
    let ours = answer(&mut renewals, renewal(9, 0, Seq(0))).await.head.timeline;
    spawn_blocking(move || standby.crash()).await.unwrap();

    let gone = loop {
        match renewals.renew(&renewal(10, 9, Seq(0))).await {
            Ok(outcome) => break outcome,
            Err(_) => sleep(MOMENT).await,
        }
    };
    assert!(
        matches!(gone, RenewalOutcome::Gone),
        "the remaining server does not know {ours:?}: {gone:?}"
    );
    let joining = renewals.join(newcomer(Incarnation::new(B)), seconds(60));
    in_time(joining).await.unwrap();
}
