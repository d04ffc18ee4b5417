//! What is done to replicas, links and the database, when, and for how long: all of it follows from
//! the seed.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::{
    cluster::in_time,
    database::Database,
    fleet::{Fleet, PERMANENT, PLACES},
    ledger::Dice,
    profiles::{LEASE, LONG_LEASE, LONG_WAIT, WAIT},
};

/// What may be done to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGSTOP, and SIGCONT later.
    Pause,
    /// The same behind a slow link, so that answers of the database wait for the process to go on.
    SlowPause,
    /// What it asks of the database waits on the way, and arrives.
    HoldRequests,
    /// What the database answers waits on the way, and arrives.
    HoldReplies,
    /// Both.
    Stall,
    /// Its connections pass nothing any more and do not end for a while; new ones are good.
    Silence,
    /// Its connections end; new ones are good.
    Cut,
    /// Its connections end, and there are no new ones for a while.
    Isolate,
    /// Its link is slow, one way or both.
    Slow,
    /// The database's answers take most of a lease, again and again: what they bring is old, and so
    /// is what the next ones do.
    SlowReplies,
    /// The database ends its connections.
    Terminate,
    /// `kill -9`, and it is started again.
    Kill,
    /// The same, a moment after a revocation was sent to it.
    KillRevoking,
    /// SIGTERM, and it is started again.
    Restart,
    /// Where there is nobody, a replica joins by a slow link and leaves again.
    Visit,
    /// The same, but it is killed.
    VisitAndDie,
}

/// What may be done to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disaster {
    /// All connections are terminated.
    Terminate,
    /// It crashes and is started again.
    Crash,
    /// A dump is put back under the running replicas.
    RestoreDump,
    /// A copy of the server's files is put back under the running replicas.
    PutCopyBack,
    /// The standby takes over, and one of the replicas stays with the old primary for a while,
    /// which does not know.
    FailOver,
}

/// A fault: what, after how long a calm, for how long, how slow a link is there and back, and which
/// place it is about if that is open.
#[derive(Clone, Copy, Debug)]
pub struct Fault<K> {
    pub kind: K,
    pub calm: Duration,
    pub lasts: Duration,
    pub slow: (Duration, Duration),
    pub place: usize,
}

/// Up to this long, and not shorter than a tenth of it.
fn span(dice: &mut Dice, longest: Duration) -> Duration {
    longest * u32::try_from(100 + dice.roll(901)).unwrap() / 1000
}

/// The faults of one place, one after the other without an end; none if there are no kinds. Kinds
/// that are named more often come more often.
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
    /// Does it, and undoes it.
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
                // Soon enough for anything between the arrival of the call and its acknowledgement.
                if timeout(self.lasts, fleet.revocation(place)).await.is_ok() {
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
                // Its start takes many turns.
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

impl Fault<Disaster> {
    /// Keeps a state of the database, and puts it back later.
    async fn set_back(&self, fleet: &Fleet, keep: impl FnOnce(), put_back: impl FnOnce()) {
        let kept = fleet.recorder.now();
        keep();
        // A replica that has not renewed since could not notice.
        sleep(LONG_LEASE + self.lasts).await;
        let from = fleet.recorder.now();
        put_back();
        fleet.recorder.set_back(kept, from);
        // Until no lease from before is in force and the list of replicas is believed again, and
        // what was lost is written again.
        sleep(LONG_WAIT + LONG_LEASE / 2).await;
        in_time("lost revocations are written again", fleet.restored()).await;
    }

    /// Does it, and undoes it.
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
                // Until leases from before are over, and then a while.
                sleep(WAIT * 3 / 2 + self.lasts).await;
                fleet.link(self.place).lead_to(&url);
                database.crash();
            }
        }
    }
}
