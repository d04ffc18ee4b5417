//! The primary is replaced under load. No token is active after its revocation was acknowledged, no
//! acknowledged write is lost, a client that retries is not signed out, and the service recovers
//! without help.

use std::{sync::Arc, time::Duration};

use countersign_test_support::{
    cluster::eventually,
    ledger::Dice,
    patroni::{NODES, Part, Patroni},
    postgres_server::execute,
    workload::asking::Asker,
    workload::callers::Callers,
    workload::checker::check,
    workload::finishing::finish,
    workload::history::{Answer, History},
    workload::recorder::Recorder,
};
use tokio::time::sleep;

use crate::fleet::{Fleet, PERMANENT};

const DATABASE: &str = "countersign";
const SETTINGS: &[(&str, &str)] = &[
    ("COUNTERSIGN_LIMITS__MAX_BATCHES", "10000"),
    ("COUNTERSIGN_POLICIES__DEFAULT__MAX_SESSIONS_PER_SUBJECT", "0"),
    ("COUNTERSIGN_POLICIES__STRICT__REFRESH_GRACE", "0s"),
    ("COUNTERSIGN_POLICIES__SUPERSEDING__ON_REFRESH", "revoke_access_token"),
];
/// The time without a fault before the primary is replaced, and after the service has recovered.
const CALM: Duration = Duration::from_secs(2);
/// The largest number of violations that are printed.
const SHOWN: usize = 8;

/// A fault of the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// An orderly switchover to another server.
    SwitchOver,
    /// `kill -9` of all processes of the primary and of its Patroni, as if the machine were gone.
    KillNode,
    /// `kill -9` of the postmaster of the primary, which its Patroni notices.
    KillPostmaster,
    /// SIGSTOP of all processes of the primary and of its Patroni. Once there is another primary,
    /// the old server continues, still as a primary. Its Patroni stays stopped: Patroni 3.0.2 would
    /// take the lead back from the new primary and lose commits (docs/postgresql.md).
    Stop,
}

/// The way in which the replicas reach the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A URL that names all servers, with the first primary at this position.
    Position(usize),
    HaProxy,
}

/// Replaces the primary under load and checks what was recorded. Each call starts a cluster of its
/// own, so that an old primary that Patroni has not repaired yet does not disturb the next test.
async fn replace(fault: Fault, way: Way, seed: u64) {
    let mut cluster = Patroni::start().await;
    let leader = cluster.await_complete().await;
    execute(&cluster.url_of(leader, "postgres"), &format!("CREATE DATABASE {DATABASE}")).await;
    let url = match way {
        Way::Position(position) => cluster.url(leader, position, DATABASE),
        Way::HaProxy => cluster.start_haproxy(DATABASE).await,
    };
    let fleet = Arc::new(Fleet::start(&url, SETTINGS).await);
    let recorder = Arc::new(Recorder::new(History::default()));
    let asker =
        Arc::new(Asker { fleet: fleet.clone(), recorder: recorder.clone(), tokens_expire: false });
    let mut dice = Dice(seed);
    let callers = Callers::start(&asker, &mut dice.split());
    sleep(CALM).await;

    let struck = recorder.now();
    match fault {
        Fault::SwitchOver => cluster.switch_over(leader).await,
        Fault::KillNode => cluster.signal(leader, Part::All, "KILL"),
        Fault::KillPostmaster => cluster.signal(leader, Part::Postmaster, "KILL"),
        Fault::Stop => cluster.signal(leader, Part::All, "STOP"),
    }
    cluster.accepts_a_commit(DATABASE).await;
    let accepted = recorder.now();
    let mut back = vec![];
    for place in 0..PERMANENT {
        let created = async || recorder.created_since(place, accepted);
        back.push(eventually("sessions are created again", created).await.saturating_sub(accepted));
    }
    if fault == Fault::Stop {
        cluster.signal(leader, Part::Server, "CONT");
    }
    sleep(CALM).await;

    let held = callers.stop().await;
    recorder.set_healed((0..PERMANENT).collect(), vec![], fleet.fallen());
    finish(&asker, held, &mut dice).await;
    let history = recorder.finish();
    let acknowledged = history.calls.iter().filter(|call| call.answer == Answer::Done).count();
    println!(
        "{fault:?} by {way:?}: a commit was accepted after {:.1?}, sessions were created \
         {back:.1?} later; {} calls, of which {acknowledged} were writes that were acknowledged",
        accepted.saturating_sub(struck),
        history.calls.len(),
    );
    let violations = check(&history);
    if !violations.is_empty() {
        violations
            .iter()
            .take(SHOWN)
            .for_each(|violation| println!("  {:?}: {violation}", violation.rule));
        fleet.logs().iter().chain(&cluster.logs()).for_each(|line| println!("  {line}"));
    }
    assert!(violations.is_empty(), "{fault:?} by {way:?}: {} violations", violations.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_primary_whose_node_is_killed_is_replaced_and_nothing_is_lost() {
    replace(Fault::KillNode, Way::Position(0), 0).await;
}

#[ignore = "a quarter of an hour: scripts/torture ha"]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_primary_is_replaced_after_every_fault_at_every_position_and_behind_haproxy() {
    let mut seed = 0;
    for way in [Way::HaProxy].into_iter().chain((0..NODES).rev().map(Way::Position)) {
        for fault in [Fault::SwitchOver, Fault::KillNode, Fault::KillPostmaster, Fault::Stop] {
            seed += 1;
            replace(fault, way, seed).await;
        }
    }
}
