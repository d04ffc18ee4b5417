//! Sends the renewals of this process, one after the other. Each renewal shows the other replicas
//! that this replica is alive, reads new revocations, and extends the lease. Nothing else reads the
//! feed. `docs/decisions/0009-the-lease-protocol.md` has the rules.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};
use uuid::Uuid;

use super::{
    index::Index,
    others::Others,
    progress::{ClockCheck, Confirmation, SentRenewal, Validity},
    recovery::{RETRY, Recovery},
    replica::Replica,
};
use crate::{
    domain::{
        revocation::{Revoked, Seq, Timeline},
        time::Timestamp,
    },
    keys::keeper::Keeper,
    rng::RngFailed,
    store::{
        FeedEntry, Store, StoreError,
        replicas::{Answer, Newcomer, RenewalClient, RenewalOutcome, RenewalRequest},
    },
};

/// The maximum number of entries that one renewal reads.
const PAGE: i64 = 10_000;
/// The first pause between two renewals while a revocation waits for the reports of other replicas.
/// Each further pause is longer by the same time, up to [`LONGEST_PAUSE`].
const STEP: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(32);
/// The time-out of a renewal while the index is being loaded, unless `lease.duration` is longer.
const LOADING_TIMEOUT: Duration = Duration::from_secs(15);

/// A function that is called each time that this replica joins, and returns a new incarnation.
pub type IncarnationSource = Box<dyn Fn() -> Result<Newcomer, RngFailed> + Send + Sync>;

/// Wakes the background tasks when a renewal brings work for them.
#[derive(Clone, Debug, Default)]
pub struct WakeUps {
    /// Notified when an entry for a tenant or a subject has been applied to the index. The task
    /// ends the sessions of that tenant or subject.
    pub cut_offs: Arc<Notify>,
    /// Notified when the keys need attention before the next scheduled run.
    pub keys: Arc<Notify>,
}

/// Joins, and then renews the lease for as long as it runs.
pub struct LeaseRenewer {
    replica: Arc<Replica>,
    store: Arc<dyn Store>,
    keeper: Arc<Keeper>,
    renewals: Box<dyn RenewalClient>,
    hints: watch::Receiver<Seq>,
    wake_ups: WakeUps,
    incarnations: IncarnationSource,
    /// The identifier of the database at the first renewal. Answers from another database are
    /// refused.
    database: Option<Uuid>,
    membership: Option<Membership>,
    /// The background work for problems that renewals reveal.
    recovery: Recovery,
    is_failing: bool,
    clock: ClockCheck,
    /// The position that the last confirmed renewal has reported.
    reported: Seq,
}

/// The state of this process since it joined.
struct Membership {
    newcomer: Newcomer,
    /// The number of the last renewal that was sent.
    number: i64,
    /// The number of the last renewal that was confirmed.
    confirmed: i64,
    /// The head of the feed when this process joined. Until the process has read the feed to its
    /// end, it reports this position as applied. It may do so, because it accepts no token before.
    head_at_joining: Seq,
    /// The position up to which the feed has been read.
    cursor: Seq,
    /// A second index, which collects the entries while the feed is read from its beginning. It
    /// exists only if the replica's index had entries when the process joined. Once the feed has
    /// been read, the two are compared to find the entries that the database has lost.
    reread: Option<Index>,
    others: Others,
    /// The uptime at which this process joined again; `None` if it was not a member before. After
    /// it has joined again, the database may have been set back, and its table `replicas` may lack
    /// replicas that still have a lease.
    rejoined_at: Option<Duration>,
    /// The timeline in which the table `replicas` may be incomplete, and the uptime at which this
    /// was first seen.
    unsettled: Option<(Timeline, Duration)>,
}

/// The time of the next renewal.
enum Next {
    /// Immediately.
    AtOnce,
    /// The renewal waits until `lease.renewal` has passed or something asks for a renewal.
    WhenDue,
}

impl LeaseRenewer {
    /// Creates a renewer that has not joined.
    pub fn new(
        replica: Arc<Replica>,
        store: Arc<dyn Store>,
        keeper: Arc<Keeper>,
        incarnations: IncarnationSource,
    ) -> Self {
        Self {
            renewals: store.renewal_client(),
            hints: store.revocation_hints(),
            wake_ups: WakeUps::default(),
            recovery: Recovery::new(replica.clone(), store.clone()),
            replica,
            store,
            keeper,
            incarnations,
            database: None,
            membership: None,
            is_failing: false,
            clock: ClockCheck::Right,
            reported: Seq::default(),
        }
    }

    /// Returns the wake-ups of the background tasks.
    pub fn wake_ups(&self) -> WakeUps {
        self.wake_ups.clone()
    }

    /// Joins and loads the index.
    pub async fn load(&mut self) -> Result<(), StoreError> {
        loop {
            let next = self.step().await?;
            if self.replica.progress.is_loaded_under_right_clock() {
                return Ok(());
            }
            // The index is loaded, but the clock is wrong. Somebody may correct it, so the loop
            // goes on.
            if let Next::WhenDue = next {
                sleep(RETRY).await;
            }
        }
    }

    /// Renews for ever.
    pub async fn run(mut self) {
        let mut pause = Duration::ZERO;
        loop {
            self.recovery.tidy();
            let begun = Instant::now();
            // The hints are marked as seen before the renewal, so that a commit during the renewal
            // wakes this task again.
            self.hints.borrow_and_update();
            let applied = self.replica.progress.applied();
            match self.step().await {
                Ok(Next::AtOnce) => {
                    self.log_success();
                }
                Ok(Next::WhenDue) => {
                    self.log_success();
                    pause = match self.replica.progress.applied() == applied {
                        true => LONGEST_PAUSE.min(pause + STEP),
                        false => STEP,
                    };
                    self.wait(begun, &mut pause).await;
                }
                Err(error) => {
                    self.log_failure(&error);
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Waits until the next renewal is due, or until something asks for a renewal.
    async fn wait(&mut self, begun: Instant, pause: &mut Duration) {
        let due = match self.is_shared() {
            true => begun + self.replica.lease_config.renewal,
            // There is no other process that must learn that this process is alive.
            false => begun + Duration::from_secs(86_400),
        };
        let is_waited_for = self.replica.is_waited_for();
        tokio::select! {
            () = sleep_until(due) => {}
            () = sleep(*pause), if is_waited_for => {}
            // The watchers have confirmed something, so there is more to report.
            () = self.replica.watchers().safer_than(self.reported) => {}
            // While the clock is wrong, a renewal gives no lease, so it would not help the calls
            // that wait for a lease.
            () = self.replica.wanted.notified(), if self.clock == ClockCheck::Right => {
                *pause = Duration::ZERO;
            }
            () = self.replica.revocation_waits.notified() => *pause = Duration::ZERO,
            changed = self.hints.changed() => if changed.is_err() {
                // The store is being closed.
                std::future::pending::<()>().await;
            },
        }
    }

    /// Returns whether other processes may use the database.
    fn is_shared(&self) -> bool {
        self.store.members().is_some()
    }

    /// Joins if this process is not a member. Otherwise renews once.
    async fn step(&mut self) -> Result<Next, StoreError> {
        let Some(membership) = &mut self.membership else {
            self.join().await?;
            return Ok(Next::AtOnce);
        };
        membership.number += 1;
        // The lease counts from here. Calls that arrive from here on wait for the next renewal.
        let sent = self.replica.progress.begin_renewal();
        let is_loading = !self.replica.progress.is_loaded();
        let duration = self.replica.lease_config.duration;
        let renewal = RenewalRequest {
            incarnation: membership.newcomer.incarnation,
            number: membership.number,
            confirmed: membership.confirmed,
            applied: match is_loading {
                true => membership.head_at_joining,
                false => self.replica.watchers().vouch(self.replica.progress.applied().seq),
            },
            watchers: i64::try_from(self.replica.watchers().lag().0).unwrap_or(i64::MAX),
            after: membership.cursor,
            limit: PAGE,
            timeout: if is_loading { duration.max(LOADING_TIMEOUT) } else { duration },
        };
        let next = match self.renewals.renew(&renewal).await {
            Ok(RenewalOutcome::Gone) => {
                self.end_membership();
                return Ok(Next::AtOnce);
            }
            Ok(RenewalOutcome::Answer(answer))
                if *self.database.get_or_insert(answer.database) != answer.database =>
            {
                Err(StoreError::Unavailable("it is another database than before".to_owned()))
            }
            Ok(RenewalOutcome::Answer(answer)) => {
                // Changes of the keys are part of the feed. The key ring must therefore be current
                // before this replica reports the feed as applied.
                let (ring, timeline) = (answer.ring, answer.head.timeline);
                let followed =
                    self.keeper.follow(&mut *self.renewals, ring, timeline, renewal.timeout).await;
                followed.and_then(|has_changed| {
                    if has_changed && self.keeper.ring().is_in_trouble() {
                        self.wake_ups.keys.notify_one();
                    }
                    self.apply(&renewal, answer, sent)
                })
            }
            Err(error) => Err(error),
        };
        let renewals = &self.replica.counts().renewals;
        match next {
            Ok(_) => renewals.confirmed.inc(),
            Err(_) => renewals.failed.inc(),
        };
        next
    }

    async fn join(&mut self) -> Result<(), StoreError> {
        if self.database.is_none()
            && let Some(validity) = self.store.watched().await?
        {
            self.replica.watchers().add_earlier(validity);
        }
        let newcomer =
            (self.incarnations)().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let head_at_joining = self.renewals.join(newcomer.clone(), LOADING_TIMEOUT).await?;
        self.replica.progress.begin_membership(newcomer.incarnation);
        let has_entries = !self.replica.index().is_empty();
        self.membership = Some(Membership {
            newcomer,
            number: 0,
            confirmed: 0,
            head_at_joining,
            cursor: Seq::default(),
            reread: has_entries.then(Index::default),
            others: Others::default(),
            rejoined_at: self
                .replica
                .progress
                .has_rejoined()
                .then(|| self.replica.lease().uptime()),
            unsettled: None,
        });
        Ok(())
    }

    /// Ends the membership, because this process was removed, or the database was set back to a
    /// state before the last renewals. The index keeps its entries, because their targets are still
    /// revoked.
    fn end_membership(&mut self) {
        self.replica.progress.end_membership();
        self.replica.watchers().end_membership();
        self.replica.counts().rejoins.inc();
        self.membership = None;
        tracing::warn!(
            "this replica was removed by another, or the database was set back; it joins again"
        );
    }

    /// Applies a confirmed answer. Rule 7 of decision 9 requires the order of the steps.
    fn apply(
        &mut self,
        renewal: &RenewalRequest,
        answer: Answer,
        sent: SentRenewal,
    ) -> Result<Next, StoreError> {
        let is_shared = self.is_shared();
        let Some(membership) = &mut self.membership else { return Ok(Next::AtOnce) };
        let replica = &self.replica;
        membership.confirmed = renewal.number;
        membership.apply(&answer.entries, replica, &self.wake_ups);
        let counts = replica.counts();
        counts.head.set(answer.head.seq.0);
        let is_last = i64::try_from(answer.entries.len()).is_ok_and(|count| count < renewal.limit);
        if !is_last {
            counts.applied.set(membership.cursor.0);
            replica.watchers().collect(&answer.entries);
            // More entries follow. Even when they have been read, the index need not be complete up
            // to the head of this answer, because one of them may have moved beyond that position.
            // Only the answer with the last entries shows how far the index is complete.
            return Ok(Next::AtOnce);
        }
        replica.index().raise_purge_watermark(answer.purge_watermark);
        membership.cursor = answer.head.seq;
        counts.applied.set(membership.cursor.0);
        // Watchers get the entries before this replica takes the lease that rests on them.
        let (watchers, incarnation) = (replica.watchers(), membership.newcomer.incarnation);
        watchers.publish(incarnation, &answer.entries, answer.head.seq);
        let vouched = watchers.vouch(answer.head.seq);

        let received = replica.lease().uptime();
        let own = membership.newcomer.max_validity;
        let max_validity =
            answer.others.iter().map(|other| other.max_validity).fold(own, Duration::max);
        let is_settled = answer.settled == answer.head.timeline;
        let is_complete = is_settled && !membership.may_lack_others(received, max_validity);
        let everywhere = match is_shared {
            // There is no other process that must apply the feed.
            false => vouched,
            true if is_complete => applied_everywhere(renewal, &answer),
            // Nothing is known about the replicas that the register lacks.
            true => Seq::default(),
        };
        self.reported = if is_shared { renewal.applied } else { vouched };
        let lost = membership.take_lost(replica);
        let gone = membership.others.find_gone(&answer.others, received);
        let to_settle = membership.timeline_to_settle(&answer, received, max_validity);

        let clock = self.compare_clocks(sent.sent_at(), answer.now);
        let confirmation = Confirmation {
            validity: if is_shared { Validity::Limited } else { Validity::ForEver },
            clock,
            applied: answer.head,
            everywhere,
            max_validity,
            others: answer.others.len(),
            received,
        };
        self.replica.progress.confirm(sent, confirmation);
        if !lost.is_empty() {
            self.recovery.restore(lost);
        }
        for other in gone {
            self.recovery.remove(other);
        }
        if let Some(timeline) = to_settle {
            self.recovery.settle(answer.settled, timeline);
        }
        // Other replicas may be waiting for this one to report that it has applied the entries.
        // If its watchers have not confirmed them, `wait` waits for that.
        Ok(if vouched > renewal.applied && is_shared { Next::AtOnce } else { Next::WhenDue })
    }
}

/// Returns the position up to which every replica in the register has applied the feed.
fn applied_everywhere(renewal: &RenewalRequest, answer: &Answer) -> Seq {
    answer.others.iter().map(|other| other.applied).fold(renewal.applied, Seq::min)
}

impl Membership {
    /// Applies the next entries of the feed.
    fn apply(&mut self, entries: &[FeedEntry], replica: &Replica, wake_ups: &WakeUps) {
        for entry in entries {
            replica.index().apply(entry);
            if entry.revoked.cut_off().is_some() {
                wake_ups.cut_offs.notify_one();
            }
            self.cursor = entry.seq;
            if let Some(reread) = &mut self.reread {
                reread.apply(entry);
            }
        }
    }

    /// Returns the entries of the index that are missing from the feed. Only the first call, which
    /// must follow the end of the feed, returns any.
    fn take_lost(&mut self, replica: &Replica) -> Vec<(Revoked, Timestamp)> {
        self.reread.take().map(|reread| replica.index().missing_from(&reread)).unwrap_or_default()
    }

    /// Returns whether the table `replicas` may lack replicas that still have a lease, because the
    /// database may have been set back.
    fn may_lack_others(&self, received: Duration, max_validity: Duration) -> bool {
        self.rejoined_at.is_some_and(|joined| received.saturating_sub(joined) <= max_validity)
    }

    /// Returns the timeline of an answer if the register must be complete in that timeline by now,
    /// and the database does not have this on record yet.
    fn timeline_to_settle(
        &mut self,
        answer: &Answer,
        received: Duration,
        max_validity: Duration,
    ) -> Option<Timeline> {
        let head = answer.head.timeline;
        self.unsettled = match self.unsettled {
            _ if answer.settled == head => None,
            Some((timeline, since)) if timeline == head => Some((timeline, since)),
            _ => Some((head, received)),
        };
        let (timeline, since) = self.unsettled?;
        if received.saturating_sub(since) <= max_validity {
            return None;
        }
        // The time starts again, so that another attempt follows if this one fails.
        self.unsettled = Some((timeline, received));
        Some(timeline)
    }
}

impl LeaseRenewer {
    /// Compares this machine's wall clock with the clock of the database. The database has read its
    /// clock after `before` and before this call.
    fn compare_clocks(&mut self, before: Timestamp, database: Option<Timestamp>) -> ClockCheck {
        let Some(database) = database else { return ClockCheck::Right };
        let after = self.replica.lease().start().now;
        let skew = self.replica.lease_config.max_clock_skew;
        let check = match () {
            () if database < before.minus(skew) => ClockCheck::Ahead,
            () if database > after.plus(skew) => ClockCheck::Behind,
            () => ClockCheck::Right,
        };
        if check == ClockCheck::Right {
            self.replica.clock.adjust_correction(before, database, after);
        }
        if std::mem::replace(&mut self.clock, check) != check {
            let ahead_ms = (after.micros() - database.micros()) / 1000;
            match check {
                ClockCheck::Right => {
                    tracing::info!("the clock agrees with the one of the database again")
                }
                ClockCheck::Behind => tracing::error!(
                    ahead_ms,
                    "the clock is further from the one of the database than lease.max_clock_skew \
                     allows; nothing is validated here until they agree"
                ),
                ClockCheck::Ahead => tracing::error!(
                    ahead_ms,
                    "the clock is further from the one of the database than lease.max_clock_skew \
                     allows; nothing is validated here, and no revocation acknowledged, until \
                     they agree"
                ),
            }
        }
        check
    }

    fn log_failure(&mut self, error: &StoreError) {
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::error!(%error, "the lease cannot be renewed; trying again, no revocation is \
                                     acknowledged meanwhile");
        }
    }

    fn log_success(&mut self) {
        if std::mem::replace(&mut self.is_failing, false) {
            tracing::info!("the lease is renewed again");
        }
    }
}
