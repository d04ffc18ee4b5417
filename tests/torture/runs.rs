//! Runs each profile once. The functions here are also used by the longer tests.

use countersign_test_support::postgres_server::Server;
use std::{collections::BTreeMap, env, sync::Arc, time::Duration};

use crate::{
    profiles::PROFILES,
    run::{Report, run},
    watchers::{Plan, REPEAT, good, of_all_libraries},
};

/// The largest number of violations of each rule that are printed.
const SHOWN: usize = 3;

/// Starts the PostgreSQL server that runs share.
pub async fn server() -> Arc<Server> {
    Arc::new(tokio::task::spawn_blocking(Server::start).await.unwrap())
}

/// Makes the run of a seed. Consecutive seeds use the profiles in turn. Watchers in Rust check each
/// token again and again for the time `repeat`.
pub async fn run_seed(server: &Arc<Server>, seed: u64, repeat: Duration) -> Report {
    let profile = usize::try_from(seed).unwrap() % PROFILES.len();
    run(server, &PROFILES[profile], seed, &vec![], "", &watchers(repeat)).await
}

/// Returns two watchers, or as many as the environment says.
fn watchers(repeat: Duration) -> Vec<Plan> {
    let count = env::var("COUNTERSIGN_TORTURE_WATCHERS");
    let count = count.map_or(2, |count| count.parse().expect("the number of watchers is a number"));
    good(count, repeat)
}

/// If a rule was violated, prints the violations, the faults and the last lines of the logs.
pub fn print_violations(report: &Report) {
    let mut by_rule = BTreeMap::<_, Vec<_>>::new();
    for violation in &report.violations {
        by_rule.entry(violation.rule).or_default().push(violation);
    }
    for (rule, violations) in &by_rule {
        println!("  {rule:?}, {} times:", violations.len());
        violations.iter().take(SHOWN).for_each(|violation| println!("    {violation}"));
    }
    if !by_rule.is_empty() {
        report.faults.iter().for_each(|fault| println!("  {fault}"));
        report.logs.iter().for_each(|line| println!("  {line}"));
    }
}

/// Makes one run of each profile, in about two minutes. Replicas that break a rule fail in the
/// first or second run of their profile (`mutants.rs`), so even one run of each profile is a useful
/// test. `scripts/torture` makes as many runs as there is time for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_acknowledged_revocation_holds_whatever_happens() {
    let server = server().await;
    for seed in (0..).take(PROFILES.len()) {
        let report = run_seed(&server, seed, REPEAT).await;
        println!("{report}");
        print_violations(&report);
        assert!(report.violations.is_empty(), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "the checks of the client libraries must have built their watchers"]
async fn an_acknowledged_revocation_holds_for_each_client_library() {
    let server = server().await;
    for seed in (200..).take(PROFILES.len()) {
        let profile = usize::try_from(seed).unwrap() % PROFILES.len();
        let watchers = of_all_libraries();
        let report = run(&server, &PROFILES[profile], seed, &vec![], "", &watchers).await;
        println!("{report}");
        print_violations(&report);
        assert!(report.violations.is_empty(), "seed {seed}");
    }
}
