//! The faults of replicas, watchers, links and the database. The seed of a run determines their kinds, times
//! and durations.

use std::time::Duration;

use countersign_test_support::{cluster::in_time, ledger::Dice};
use tokio::time::{sleep, timeout};

use crate::{
    database::Database,
    fleet::{Fleet, PERMANENT, PLACES},
    profiles::{LEASE, LONG_LEASE, LONG_WAIT, MARGIN, WAIT},
    watchers::Watcher,
};

/// A kind of fault of one replica or its link to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGSTOP, and SIGCONT later.
    Pause,
    /// SIGSTOP behind a slow link, and SIGCONT later, so that answers of the database arrive while
    /// the process is stopped.
    SlowPause,
    /// The link delays requests to the database until the fault is over.
    HoldRequests,
    /// The link delays answers of the database until the fault is over.
    HoldReplies,
    /// The link delays both until the fault is over.
    Stall,
    /// Open connections pass nothing any more, and end only after a while. New connections work.
    Silence,
    /// Open connections end. New connections work.
    Cut,
    /// Open connections end, and new connections are refused for a while.
    Isolate,
    /// The link is slow in one direction or in both.
    Slow,
    /// Every answer of the database is delayed by three quarters of a lease, so that its contents
    /// are old when it arrives.
    SlowReplies,
    /// The database terminates the replica's connections.
    Terminate,
    /// `kill -9`, and a new start.
    Kill,
    /// `kill -9` a moment after a revocation was sent to the replica, and a new start.
    KillRevoking,
    /// SIGTERM, and a new start.
    Restart,
    /// In the slot after the permanent replicas, a replica joins by a slow link and leaves again.
    Visit,
    /// In the slot after the permanent replicas, a replica joins by a slow link and is killed.
    VisitAndDie,
}

/// A kind of fault of one watcher or its links to all replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatcherKind {
    /// SIGSTOP, and SIGCONT later.
    Pause,
    /// The links pass nothing until the fault is over.
    Stall,
    /// Open connections pass nothing any more, and end only after a while. New connections work.
    Silence,
    /// Open connections end. New connections work.
    Cut,
    /// Open connections end, and new connections are refused for a while.
    Isolate,
    /// The links are slow in one direction or in both.
    Slow,
    /// Everything that replicas send is delayed by more than a lease.
    SlowReplies,
    /// `kill -9`, and a new start.
    Kill,
    /// The wall clock is set, ahead or back.
    SetClock,
    /// Both clocks lose less than the margin of leases, as if the machine had been suspended
    /// unnoticed.
    LoseTime,
}

/// A kind of fault of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disaster {
    /// All connections are terminated.
    Terminate,
    /// The server crashes and is started again.
    Crash,
    /// A dump is restored while the replicas run.
    RestoreDump,
    /// The server's files are replaced by an older copy while the replicas run.
    PutCopyBack,
    /// The standby is promoted. The old primary keeps running as a primary, and one of the replicas
    /// stays with it for a while.
    FailOver,
}

/// A fault that is to happen.
#[derive(Clone, Copy, Debug)]
pub struct Fault<K> {
    pub kind: K,
    /// The time since the previous fault.
    pub calm: Duration,
    pub lasts: Duration,
    /// The delays of a slow link, towards the database and back.
    pub slow: (Duration, Duration),
    /// The replica that stays with the old primary in a failover.
    pub place: usize,
}

/// Returns a random duration between a tenth of `longest` and `longest`.
fn span(dice: &mut Dice, longest: Duration) -> Duration {
    longest * u32::try_from(100 + dice.roll(901)).unwrap() / 1000
}

/// Returns an endless sequence of faults of these kinds, or an empty one if there are no kinds. A
/// kind that is listed twice occurs twice as often.
pub fn schedule<K: Copy>(
    mut dice: Dice,
    kinds: &'static [K],
    calm: Duration,
) -> impl Iterator<Item = Fault<K>> {
    std::iter::from_fn(move || {
        let kind = *kinds.get(dice.roll(kinds.len().max(1)))?;
        let calm = span(&mut dice, calm);
        let lasts =
            if dice.roll(2) == 0 { span(&mut dice, LEASE) } else { span(&mut dice, LEASE * 3) };
        let (there, back) = (span(&mut dice, LEASE * 4 / 5), span(&mut dice, LEASE * 4 / 5));
        let slow = match dice.roll(4) {
            0 => (there, Duration::ZERO),
            1 => (Duration::ZERO, back),
            2 => (there / 2, back / 2),
            _ => (there / 10, back / 10),
        };
        Some(Fault { kind, calm, lasts, slow, place: dice.roll(PERMANENT) })
    })
}

impl Fault<Kind> {
    /// Injects the fault, and returns once its effects are over.
    pub async fn strike(&self, fleet: &Fleet, place: usize) {
        let link = fleet.link(place);
        match self.kind {
            Kind::Pause => self.pause(fleet, place).await,
            Kind::SlowPause => {
                link.delay(self.slow.0, self.slow.1);
                sleep(LEASE / 4).await;
                self.pause(fleet, place).await;
                sleep(LEASE / 4).await;
            }
            Kind::HoldRequests => {
                link.hold_requests();
                sleep(self.lasts).await;
            }
            Kind::HoldReplies => {
                link.hold_replies();
                sleep(self.lasts).await;
            }
            Kind::Stall => {
                link.stall();
                sleep(self.lasts).await;
            }
            Kind::Silence => {
                link.silence();
                sleep(self.lasts).await;
                link.cut();
            }
            Kind::Cut => link.cut(),
            Kind::Isolate => {
                link.refuse();
                link.cut();
                sleep(self.lasts).await;
            }
            Kind::Slow => {
                link.delay(self.slow.0, self.slow.1);
                sleep(self.lasts).await;
            }
            Kind::SlowReplies => {
                link.delay(Duration::ZERO, LEASE * 3 / 4);
                sleep(self.lasts.max(LEASE * 2)).await;
            }
            Kind::Terminate => fleet.terminate_connections(place).await,
            Kind::Kill => {
                fleet.kill(place).await;
                sleep(self.lasts / 2).await;
                fleet.start(place).await;
            }
            Kind::KillRevoking => {
                // The delay is random and short, so that the kill may come at any point between the
                // arrival of the call and its acknowledgement.
                if timeout(self.lasts, fleet.await_revocation(place)).await.is_ok() {
                    sleep(self.slow.0 / 32).await;
                    fleet.kill(place).await;
                    fleet.start(place).await;
                }
            }
            Kind::Restart => {
                fleet.stop(place).await;
                fleet.start(place).await;
            }
            Kind::Visit | Kind::VisitAndDie => {
                // A start takes many round trips, so the delay of each is smaller.
                link.delay(self.slow.0 / 6, self.slow.1 / 6);
                fleet.start(place).await;
                sleep(self.lasts).await;
                if self.kind == Kind::Visit {
                    fleet.stop(place).await;
                } else {
                    fleet.kill(place).await;
                }
            }
        }
        link.restore();
    }

    async fn pause(&self, fleet: &Fleet, place: usize) {
        fleet.signal(place, "STOP").await;
        sleep(self.lasts).await;
        fleet.signal(place, "CONT").await;
    }
}

impl Fault<WatcherKind> {
    /// Injects the fault, and returns once its effects are over.
    pub async fn strike(&self, watcher: &Watcher) {
        let links: Vec<_> = watcher.links().collect();
        let (there, back) = self.slow;
        match self.kind {
            WatcherKind::Pause => {
                watcher.signal("STOP");
                sleep(self.lasts).await;
                watcher.signal("CONT");
            }
            WatcherKind::Stall => {
                links.iter().for_each(|link| link.stall());
                sleep(self.lasts).await;
            }
            WatcherKind::Silence => {
                links.iter().for_each(|link| link.silence());
                sleep(self.lasts).await;
                links.iter().for_each(|link| link.cut());
            }
            WatcherKind::Cut => links.iter().for_each(|link| link.cut()),
            WatcherKind::Isolate => {
                links.iter().for_each(|link| link.refuse());
                links.iter().for_each(|link| link.cut());
                sleep(self.lasts).await;
            }
            WatcherKind::Slow => {
                links.iter().for_each(|link| link.delay(there, back));
                sleep(self.lasts).await;
            }
            WatcherKind::SlowReplies => {
                links.iter().for_each(|link| link.delay(Duration::ZERO, LEASE * 3 / 2));
                sleep(self.lasts.max(LEASE * 4)).await;
            }
            WatcherKind::Kill => {
                watcher.kill();
                sleep(self.lasts / 2).await;
                watcher.start();
            }
            WatcherKind::SetClock => {
                // At most about two seconds in either direction.
                let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap();
                watcher.set_clocks(4 * (nanos(there) - nanos(back)), Duration::ZERO);
            }
            WatcherKind::LoseTime => {
                watcher.set_clocks(0, MARGIN * 9 / 10);
                // The margin covers only one such loss in the time of a lease.
                sleep(LONG_LEASE).await;
            }
        }
        links.iter().for_each(|link| link.restore());
    }
}

impl Fault<Disaster> {
    /// Keeps a state of the database with `keep`, and restores it later with `put_back`.
    async fn set_back(&self, fleet: &Fleet, keep: impl FnOnce(), put_back: impl FnOnce()) {
        let kept = fleet.recorder.now();
        keep();
        // Every replica renews in this time, because one that has not renewed since `keep` cannot
        // notice the set-back.
        sleep(LONG_LEASE + self.lasts).await;
        let from = fleet.recorder.now();
        put_back();
        fleet.recorder.set_back(kept, from);
        // The set-back ends once no earlier lease is valid, the register of replicas counts as
        // complete again (decision 9, rules 18 and 19), and the lost revocations are written again.
        sleep(LONG_WAIT + LONG_LEASE / 2).await;
        in_time("lost revocations are written again", fleet.await_restored()).await;
    }

    /// Injects the fault, and returns once its effects are over.
    pub async fn strike(&self, fleet: &Fleet, database: &Database) {
        match self.kind {
            Disaster::Terminate => {
                let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                           WHERE datname = current_database() AND pid <> pg_backend_pid()";
                database.try_execute(sql).await;
            }
            Disaster::Crash => {
                database.crash();
                sleep(self.lasts / 2).await;
                database.restart();
            }
            Disaster::RestoreDump => {
                let folder = tempfile::tempdir().unwrap();
                let dump = folder.path().join("dump");
                self.set_back(fleet, || database.dump(&dump), || database.restore(&dump)).await;
            }
            Disaster::PutCopyBack => {
                self.set_back(fleet, || database.copy(), || database.put_copy_back()).await
            }
            Disaster::FailOver => {
                let Some(url) = database.promote().await else { return };
                for place in (0..PLACES).filter(|place| *place != self.place) {
                    fleet.link(place).lead_to(&url);
                    fleet.link(place).cut();
                }
                // The old primary is kept running until all leases from before the failover have
                // ended.
                sleep(WAIT * 3 / 2 + self.lasts).await;
                fleet.link(self.place).lead_to(&url);
                database.crash();
            }
        }
    }
}
