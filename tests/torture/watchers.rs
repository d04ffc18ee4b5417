//! The watchers of a run: processes that verify tokens themselves. They are asked about tokens all
//! the time, and the checker treats their answers like those of replicas.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use countersign_test_support::{
    client_programs::client_programs,
    cluster::in_time,
    ledger::Dice,
    proxy::Link,
    workload::{
        history::{Ask, Call, TokenNumber},
        recorder::Recorder,
    },
};
use futures_util::future::join_all;
use tokio::{
    sync::watch,
    task::{JoinSet, block_in_place},
    time::{Instant, sleep},
};

use crate::{
    fleet::{Fleet, PLACES},
    rust_watcher::rust,
    watch_process::{Process, Program, Streak, python},
    watch_routes::Broken,
};

/// The number of tokens about which a watcher is asked at once. Their lines fit into a pipe.
const BATCH: usize = 32;
/// The pause between two batches, for each watcher of the run. Without it, watchers would take all
/// the time of the processors, and replicas would have no leases.
const PAUSE: Duration = Duration::from_millis(8);
/// The time after an acknowledgement in which watchers are asked about its tokens most often.
const RECENT: Duration = Duration::from_secs(3);
/// The number of most recent tokens among which the others are chosen.
const LATEST: usize = 400;
/// The longest time after the last fault until every watcher must have answered for every token.
const RECOVERY: Duration = Duration::from_secs(60);

/// A watcher that is to run.
#[derive(Clone)]
pub struct Plan {
    pub program: Program,
    /// The rule that the replicas break towards this watcher, if any.
    pub broken: Option<Broken>,
}

/// The time for which a watcher in Rust checks a token again and again, in short tests.
pub const REPEAT: Duration = Duration::from_micros(50);

/// Returns watchers that break no rule, in Python and in Rust by turns. Those in Rust check each
/// token again and again for the time `repeat`.
pub fn good(count: usize, repeat: Duration) -> Vec<Plan> {
    let python = Plan { program: python("none"), broken: None };
    let rust = Plan { program: rust(repeat), broken: None };
    [python, rust].into_iter().cycle().take(count).collect()
}

/// Returns a watcher by each client library. The checks of the libraries must have built them.
pub fn of_all_libraries() -> Vec<Plan> {
    let others = client_programs("tests/torture/watcher/clients.json").into_iter().map(|client| {
        let program: Program = Arc::new(move |addresses| {
            let mut command = client.command();
            command.args(addresses.iter().map(SocketAddr::to_string));
            command
        });
        Plan { program, broken: None }
    });
    others.chain([Plan { program: rust(REPEAT), broken: None }]).collect()
}

/// A watcher. Its process may be killed, and another one started.
pub struct Watcher {
    index: usize,
    program: Program,
    pub fleet: Arc<Fleet>,
    process: Mutex<Option<Arc<Process>>>,
    /// The pause between two batches of questions.
    pause: Duration,
    /// The time that its clocks have lost so far.
    lost: Mutex<Duration>,
}

impl Watcher {
    /// Returns the number of the watcher in the history.
    pub fn number(&self) -> usize {
        PLACES + self.index
    }

    fn recorder(&self) -> &Recorder {
        &self.fleet.recorder
    }

    /// Returns its links to all places.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.fleet.watch_links(self.index)
    }

    fn process(&self) -> Option<Arc<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts a process. It begins without a cursor.
    pub fn start(&self) {
        let addresses = self.fleet.watch_addresses(self.index);
        let process = block_in_place(|| Process::start(&mut (self.program)(&addresses)));
        *self.lost.lock().unwrap() = Duration::ZERO;
        *self.process.lock().unwrap() = Some(Arc::new(process));
    }

    /// Kills the process as `kill -9` does.
    pub fn kill(&self) {
        let process = self.process.lock().unwrap().take();
        if let Some(process) = process {
            block_in_place(|| process.kill());
        }
    }

    /// Sends a signal to the process: `STOP` or `CONT`.
    pub fn signal(&self, signal: &str) {
        if let Some(process) = self.process() {
            block_in_place(|| process.signal(signal));
        }
    }

    /// Makes its wall clock ahead by so many nanoseconds, and both of its clocks lose this time.
    pub fn set_clocks(&self, ahead: i64, lost: Duration) {
        let mut before = self.lost.lock().unwrap();
        *before += lost;
        if let Some(process) = self.process() {
            process.set_clocks(ahead, *before);
        }
    }

    /// Asks about tokens, and records the answers. Returns whether all of them are known.
    async fn validate(&self, tokens: &[TokenNumber]) -> bool {
        let Some(process) = self.process() else { return false };
        let texts: Vec<_> = tokens.iter().map(|token| self.recorder().text(*token)).collect();
        let Some(replies) = process.ask(&texts).await else { return false };
        let mut are_known = true;
        for (token, streaks) in tokens.iter().zip(replies) {
            are_known &= streaks.iter().all(|streak| streak.answer.is_known());
            for Streak { count, begin, end, answer } in streaks {
                let (begin, end) = self.recorder().span(begin, end);
                let (replica, ask) = (self.number(), Ask::Validate(*token));
                self.recorder().call(Call { replica, begin, end, ask, answer, count });
            }
        }
        are_known
    }

    /// Waits until the watcher has a lease. Without one it does not even know that this is no token.
    async fn lease(&self) {
        let question = ["no-token".to_owned()];
        let process = self.process().expect("the watcher was started");
        let has_lease = |streaks: &Vec<Streak>| streaks.iter().all(|it| it.answer.is_known());
        while !process.ask(&question).await.expect("it runs").iter().all(has_lease) {
            sleep(self.pause).await;
        }
    }

    /// Asks about recently revoked tokens and others, again and again.
    async fn check(self: Arc<Self>, mut dice: Dice, stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            let known = self.recorder().tokens();
            let since = self.recorder().now().saturating_sub(RECENT);
            let revoked = self.fleet.acknowledged_since(since);
            let mut tokens: Vec<_> = revoked.iter().rev().take(BATCH / 2).copied().collect();
            if !revoked.is_empty() {
                tokens.extend((0..BATCH / 4).map(|_| revoked[dice.roll(revoked.len())]));
            }
            if known > 0 {
                let mut latest = || TokenNumber(known - 1 - dice.roll(known.min(LATEST)));
                tokens.extend((tokens.len()..BATCH).map(|_| latest()));
            }
            self.validate(&tokens).await;
            sleep(self.pause).await;
        }
    }

    /// Asks about every token, until the watcher knows the answers.
    async fn finish(&self) {
        let deadline = Instant::now() + RECOVERY;
        let all: Vec<_> = (0..self.recorder().tokens()).map(TokenNumber).collect();
        for tokens in all.chunks(BATCH) {
            while !self.validate(tokens).await && Instant::now() < deadline {
                sleep(self.pause).await;
            }
        }
    }
}

/// The watchers of a run.
pub struct Watchers {
    all: Vec<Arc<Watcher>>,
    checks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Watchers {
    /// Starts the watchers. They may start before the replicas.
    pub fn start(fleet: &Arc<Fleet>, plans: &[Plan]) -> Self {
        let watcher = |(index, plan): (usize, &Plan)| {
            let watcher = Watcher {
                index,
                program: plan.program.clone(),
                fleet: fleet.clone(),
                process: Mutex::default(),
                pause: PAUSE * u32::try_from(plans.len()).unwrap(),
                lost: Mutex::default(),
            };
            watcher.start();
            Arc::new(watcher)
        };
        let all = plans.iter().enumerate().map(watcher).collect();
        Self { all, checks: JoinSet::new(), stop: watch::Sender::new(false) }
    }

    /// Waits until each watcher has a lease, and asks them from then on until `finish`.
    pub async fn ask(&mut self, dice: &mut Dice) {
        let leases = self.all.iter().map(|watcher| watcher.lease());
        in_time("every watcher has a lease", join_all(leases)).await;
        for watcher in &self.all {
            self.checks.spawn(watcher.clone().check(dice.split(), self.stop.subscribe()));
        }
    }

    /// Returns the watchers.
    pub fn all(&self) -> &[Arc<Watcher>] {
        &self.all
    }

    /// Returns the numbers of the watchers in the history.
    pub fn numbers(&self) -> Vec<usize> {
        self.all.iter().map(|watcher| watcher.number()).collect()
    }

    /// Asks each watcher about every token, and ends them. Returns the last lines of their logs.
    pub async fn finish(self) -> Vec<String> {
        self.stop.send_replace(true);
        self.checks.join_all().await;
        join_all(self.all.iter().map(|watcher| watcher.finish())).await;
        let mut lines = vec![];
        for watcher in &self.all {
            let log = watcher.process().map(|process| process.log()).unwrap_or_default();
            lines.extend(log.iter().map(|line| format!("watcher {}: {line}", watcher.number())));
            watcher.kill();
        }
        lines
    }
}
