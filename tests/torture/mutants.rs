//! Tests that the torture runs find broken rules of the protocol. In a build in which one rule is
//! broken, a few runs of a profile must show a token that is active after its revocation was
//! acknowledged. The unbroken build passes the same profile.

use countersign_test_support::workload::checker::Rule;
use std::env;

use crate::{
    profiles::Profile,
    run::run,
    runs::{print_violations, server},
};

/// The mutants, each with the profile that exercises the rule that it breaks.
const MUTANTS: [(&str, &str); 7] = [
    ("deadline-from-reply", "late answers"),
    ("acknowledge-skips-a-member", "lost replicas"),
    ("load-before-joining", "newcomers"),
    ("feed-by-bigserial", "slow commits"),
    ("renew-by-read", "replaced primary"),
    ("renew-without-standby", "replaced primary"),
    ("purge-at-expiry", "clocks"),
];

/// The most runs in which a mutant must be found.
const RUNS: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_broken_rule_is_found() {
    let server = server().await;
    let only = env::var("COUNTERSIGN_TORTURE_MUTANT").ok();
    let first = env::var("COUNTERSIGN_TORTURE_SEED")
        .map_or(0, |seed| seed.parse().expect("the seed is a number"));
    let mut survivors = vec![];
    for (mutant, profile) in
        MUTANTS.into_iter().filter(|(mutant, _)| only.as_ref().is_none_or(|only| only == mutant))
    {
        let mut found = None;
        for seed in (first..).take(RUNS) {
            let report =
                run(&server, Profile::named(profile), seed, &vec![("COUNTERSIGN_MUTANT", mutant)])
                    .await;
            println!("{mutant}: {report}");
            if report.violations.iter().any(|violation| violation.rule == Rule::ActiveAfterRevoked)
            {
                print_violations(&report);
                found = Some(seed - first + 1);
                break;
            }
        }
        match found {
            Some(runs) => println!("{mutant} is found in run {runs}"),
            None => survivors.push(mutant),
        }
    }
    assert_eq!(survivors, [""; 0], "not found within {RUNS} runs");
}
