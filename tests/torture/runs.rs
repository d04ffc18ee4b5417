//! Runs of the unbroken build: each profile once, or as many as are asked for.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    postgres_server::Server,
    profiles::PROFILES,
    run::{Report, run},
};

/// Violations of each rule that are told.
const SHOWN: usize = 3;

/// Starts the server that is shared by runs.
pub async fn server() -> Arc<Server> {
    Arc::new(tokio::task::spawn_blocking(Server::start).await.unwrap())
}

/// The run of a number: the profiles take turns.
pub async fn numbered(server: &Arc<Server>, seed: u64) -> Report {
    let profile = usize::try_from(seed).unwrap() % PROFILES.len();
    run(server, &PROFILES[profile], seed, &vec![]).await
}

/// Prints all there is to know if something was wrong.
pub fn tell(report: &Report) {
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

/// Each profile once, about two minutes. The builds with a broken rule are found out in the first
/// run of their profile or the second (`mutants.rs`), so that one of each tells something;
/// `scripts/torture` makes as many as one has time for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_acknowledged_revocation_holds_whatever_happens() {
    let server = server().await;
    for seed in (0..).take(PROFILES.len()) {
        let report = numbered(&server, seed).await;
        println!("{report}");
        tell(&report);
        assert!(report.violations.is_empty(), "seed {seed}");
    }
}
