//! Many runs, which `scripts/torture` starts. The totals and the next seed are saved to a file
//! after each run, so that an interrupted series can be continued.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    run::Report,
    runs::{print_violations, run_seed, server},
};

/// Returns the time for which a watcher in Rust checks a token again and again.
fn repeat() -> Duration {
    let micros = env::var("COUNTERSIGN_TORTURE_REPEAT");
    let micros = micros.map_or(1000, |text| text.parse().expect("a number of microseconds"));
    Duration::from_micros(micros)
}

/// The totals of all runs so far.
#[derive(Debug, Default, Deserialize, Serialize)]
struct State {
    next_seed: u64,
    runs: usize,
    calls: usize,
    /// The number of answers for tokens whose revocation had been acknowledged before.
    checked: usize,
    /// The number of checks by watchers that had a lease.
    #[serde(default)]
    local_validations: usize,
    /// The number of such checks of tokens whose revocation had been acknowledged before.
    #[serde(default)]
    local_checked: usize,
    acknowledged: usize,
    /// The longest time that an acknowledgement took.
    longest: Duration,
    faults: usize,
    violations: usize,
}

impl State {
    fn path() -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("torture.json")
    }

    /// Loads the saved totals. Starts from zero if a seed is given or nothing is saved.
    fn load() -> Self {
        match env::var("COUNTERSIGN_TORTURE_SEED") {
            Ok(seed) => {
                Self { next_seed: seed.parse().expect("the seed is a number"), ..Self::default() }
            }
            Err(_) => fs::read(Self::path())
                .map_or(Self::default(), |text| serde_json::from_slice(&text).unwrap()),
        }
    }

    fn save(&self) {
        fs::write(Self::path(), serde_json::to_vec(self).unwrap()).unwrap();
    }

    fn add(&mut self, report: &Report) {
        self.next_seed = report.seed + 1;
        self.runs += 1;
        self.calls += report.figures.calls;
        self.checked += report.figures.checked;
        self.local_validations += report.figures.local_validations;
        self.local_checked += report.figures.local_checked;
        self.acknowledged += report.figures.acknowledged.len();
        self.longest =
            self.longest.max(report.figures.acknowledged.last().copied().unwrap_or_default());
        self.faults += report.faults.len();
        self.violations += report.violations.len();
    }
}

/// The number of runs, such as `20`, or the time that they may take, such as `60m`.
enum Length {
    Runs(usize),
    Time(Duration),
}

impl Length {
    fn from_environment() -> Self {
        let text = env::var("COUNTERSIGN_TORTURE").unwrap_or_else(|_| "60m".to_owned());
        let minutes = text
            .strip_suffix('m')
            .map(|minutes| minutes.parse::<u64>().expect("a number of minutes"));
        minutes.map_or_else(
            || Self::Runs(text.parse().expect("a number of runs, or of minutes like 60m")),
            |minutes| Self::Time(Duration::from_secs(minutes * 60)),
        )
    }
}

#[ignore = "takes as long as scripts/torture is told"]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn acknowledged_revocations_hold_in_as_many_runs_as_asked_for() {
    let length = Length::from_environment();
    let mut state = State::load();
    let server = server().await;
    let start = Instant::now();
    for run in 0.. {
        let progress = match length {
            Length::Runs(runs) if run < runs => format!("{}/{runs}", run + 1),
            Length::Time(time) if start.elapsed() < time => {
                format!("{}m of {}m", start.elapsed().as_secs() / 60, time.as_secs() / 60)
            }
            Length::Runs(_) | Length::Time(_) => break,
        };
        let report = run_seed(&server, state.next_seed, repeat()).await;
        state.add(&report);
        state.save();
        println!("{progress}: {report}");
        print_violations(&report);
        assert!(report.violations.is_empty(), "seed {}: {state:?}", report.seed);
    }
    println!("{state:?}");
}
