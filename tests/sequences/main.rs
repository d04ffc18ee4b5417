//! Random sequences of all calls agree with a small pure model of sessions, state by state and
//! answer by answer. `model/` has the rules.
//!
//! ```sh
//! SEQUENCES=100000 cargo test --release --test sequences -- sqlite --nocapture
//! ```
//!
//! runs as many sequences instead of those of the suite. `SEQUENCES_SEED` is a number
//! from which other sequences follow. A failure prints the shortest sequence that was found, and
//! what service and model said.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod commands;
mod messages;
mod model;
mod run;
mod settings;

use std::{
    env, panic,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use countersign_test_support::database::Engine;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use run::World;
use tokio::{runtime::Handle, task};

/// The number of services, each of which runs one sequence at a time, because a sequence needs the
/// clock for itself.
const SERVICES: u64 = 4;

/// The number of sequences in the suite.
const IN_THE_SUITE: u64 = 200;

/// Sequences between two lines about the progress of a long run.
const REPORTED: u64 = 1000;

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

/// Runs sequences on one service until one fails. A sequence that is shortened has its numbers too.
fn run_sequences(world: &World, runtime: &Handle, service: u64, sequences: u64) {
    let seed = number("SEQUENCES_SEED").unwrap_or_default();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&service.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config {
        cases: u32::try_from(sequences).unwrap(),
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    };
    let (begun, good, failed) = (AtomicU64::new(0), AtomicU64::new(0), OnceLock::new());
    let outcome = TestRunner::new_with_rng(config, rng).run(&commands::sequence(), |sequence| {
        let agreed = runtime.block_on(world.run(begun.fetch_add(1, Relaxed), &sequence));
        agreed.map_err(|problem| {
            failed.get_or_init(|| {
                let count = good.load(Relaxed) + 1;
                eprintln!("service {service}: disagreement in sequence {count}, being shortened");
                count
            });
            TestCaseError::fail(problem)
        })?;
        if good.fetch_add(1, Relaxed) % REPORTED == REPORTED - 1 {
            eprintln!("service {service}: {} sequences", good.load(Relaxed));
        }
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(problem, sequence)) => {
            let count = failed.into_inner().unwrap_or_default();
            let commands: String =
                sequence.commands.iter().map(|command| format!("  {command:?}\n")).collect();
            panic!(
                "service and model disagree in sequence {count} of service {service}, which can be \
                 shortened to this one, begun {} us after a second:\n{commands}{problem}",
                sequence.begin
            )
        }
        Err(TestError::Abort(problem)) => panic!("{problem}"),
    }
}

async fn random_sequences_agree_with_the_model() {
    let sequences = number("SEQUENCES").unwrap_or(IN_THE_SUITE);
    let mut running = vec![];
    for service in 0..SERVICES {
        let (world, runtime) = (Arc::new(World::start().await), Handle::current());
        let running_on = world.clone();
        let task = task::spawn_blocking(move || {
            run_sequences(&running_on, &runtime, service, sequences.div_ceil(SERVICES));
        });
        running.push((world, task));
    }
    for (world, task) in running {
        if let Err(failure) = task.await {
            panic::resume_unwind(failure.into_panic());
        }
        Arc::into_inner(world).unwrap().stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_sequences_agree_with_the_model_on_sqlite() {
    Engine::Sqlite.run(random_sequences_agree_with_the_model()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_sequences_agree_with_the_model_on_postgres() {
    Engine::Postgres.run(random_sequences_agree_with_the_model()).await;
}
