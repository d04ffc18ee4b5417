//! The watcher in Rust, which verifies tokens by `countersign-client` as any service does. The runs
//! start it as a process of this test program. It speaks the lines that `watcher/watcher.py`
//! describes, but checks each token many times.

use std::{
    env,
    io::{self, BufRead},
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use countersign_client::{
    Answer, Client, Demands, Verifier,
    verifier::{LocalBuilder, OnLapse},
};
use countersign_verification::{
    clock::{Clock, SystemClock},
    inactive::InactiveReason,
    time::Timestamp,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

use crate::watch_process::Program;

/// The variable with the addresses of the replicas.
const ADDRESSES: &str = "TORTURE_WATCHED";
/// The variable with the number of microseconds for which each token is checked again and again.
const REPEAT: &str = "TORTURE_REPEAT";

/// Returns the watcher in Rust, which checks each token again and again for this time.
pub fn rust(repeat: Duration) -> Program {
    Arc::new(move |addresses| {
        let mut command = Command::new(env::current_exe().unwrap());
        let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
        command.env(ADDRESSES, addresses.join(" "));
        command.env(REPEAT, repeat.as_micros().to_string());
        command.args(["--exact", "rust_watcher::serve", "--ignored", "--nocapture"]);
        command
    })
}

#[test]
#[ignore = "other tests start it as a process"]
fn serve() {
    let Ok(addresses) = env::var(ADDRESSES) else { return };
    let repeat = Duration::from_micros(env::var(REPEAT).unwrap().parse().unwrap());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("countersign_client=info"))
        .with_writer(io::stderr)
        .init();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let clock = Arc::<WrongClock>::default();
    let verifier = {
        let _entered = runtime.enter();
        watching(&addresses).clock(clock.clone()).start()
    };
    // The test program may have written the beginning of a line.
    println!();
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["clock", ahead, lost] => clock.set(ahead, lost),
            [number, token] => println!("{number} {}", check(&verifier, token, repeat)),
            _ => panic!("{line}"),
        }
    }
}

fn watching(addresses: &str) -> LocalBuilder {
    let mut urls = addresses.split(' ').map(|address| format!("http://{address}"));
    let first = Client::builder(urls.next().unwrap());
    let client = urls.fold(first, |client, url| client.endpoint(url)).build().unwrap();
    Verifier::local(client).on_lapse(OnLapse::Refuse)
}

/// The clocks of this machine, with errors.
#[derive(Default)]
struct WrongClock {
    ahead_nanos: AtomicI64,
    lost_nanos: AtomicI64,
}

impl WrongClock {
    fn set(&self, ahead: &str, lost: &str) {
        self.ahead_nanos.store(ahead.parse().unwrap(), Ordering::SeqCst);
        self.lost_nanos.store(lost.parse().unwrap(), Ordering::SeqCst);
    }
}

impl Clock for WrongClock {
    fn now(&self) -> Timestamp {
        let error =
            self.ahead_nanos.load(Ordering::SeqCst) - self.lost_nanos.load(Ordering::SeqCst);
        Timestamp::from_micros(SystemClock.now().micros() + error / 1_000)
    }

    fn uptime(&self) -> Duration {
        let lost = self.lost_nanos.load(Ordering::SeqCst).unsigned_abs();
        SystemClock.uptime().saturating_sub(Duration::from_nanos(lost))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Active,
    Inactive(InactiveReason),
    Unknown,
}

/// Equal outcomes, one after the other.
struct Streak {
    outcome: Outcome,
    count: usize,
    /// The beginning and the end of the first check.
    first: (Duration, Duration),
    /// The beginning and the end of the last check.
    last: (Duration, Duration),
}

impl Streak {
    fn text(&self) -> String {
        let Self { outcome, count, .. } = self;
        let [first_begin, first_end, last_begin, last_end] =
            [self.first.0, self.first.1, self.last.0, self.last.1].map(|at| at.as_nanos());
        let answer = match outcome {
            Outcome::Active => "active".to_owned(),
            Outcome::Inactive(reason) => format!("inactive {}", reason.as_str().to_uppercase()),
            Outcome::Unknown => "unknown NO_LEASE".to_owned(),
        };
        format!("{count} {first_begin} {first_end} {last_begin} {last_end} {answer}")
    }
}

fn monotonic() -> Duration {
    clock_gettime(ClockId::Monotonic).try_into().unwrap()
}

/// Checks a token again and again for this time.
fn check(verifier: &Verifier, token: &str, repeat: Duration) -> String {
    let demands = Demands::default();
    let mut streaks = Vec::<Streak>::new();
    let until = monotonic() + repeat;
    loop {
        let begin = monotonic();
        let answer = verifier.verify_locally(token, &demands);
        let end = monotonic();
        let outcome = match answer {
            Answer::Active(_) => Outcome::Active,
            Answer::Inactive(reason) => Outcome::Inactive(reason),
            Answer::Unknown(_) => Outcome::Unknown,
        };
        match streaks.last_mut().filter(|streak| streak.outcome == outcome) {
            Some(streak) => (streak.count, streak.last) = (streak.count + 1, (begin, end)),
            None => {
                let at = (begin, end);
                streaks.push(Streak { outcome, count: 1, first: at, last: at });
            }
        }
        if end >= until {
            break;
        }
    }
    let texts: Vec<_> = streaks.iter().map(Streak::text).collect();
    texts.join("; ")
}
