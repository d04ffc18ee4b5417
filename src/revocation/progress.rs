//! The progress of this replica through the feed, and the lease that rests on it. Only [`Progress`]
//! changes the lease, the applied position, the timeline and the epoch, and only it decides when a
//! wait for one of them ends.
//!
//! These rules hold at any time:
//! - A lease counts from before its renewal was sent. It is published after the index has applied
//!   the answer, and before the calls that wait for the renewal continue.
//! - A wait ends only with a renewal that was sent after the wait began, whatever the results of
//!   earlier renewals. Renewals are numbered across epochs, so no number is used twice.
//! - While the clock is wrong, a renewal gives no lease, and ends no wait of a call that checks the
//!   time of a token.
//! - When the membership ends, the lease ends first, and then the epoch. Positions of different
//!   epochs or timelines are never compared.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::lease::{Lease, Start};
use crate::{
    clock::Clock,
    domain::{
        ids::Incarnation,
        lease::LeaseConfig,
        revocation::{FeedPosition, Seq, Timeline},
        time::Timestamp,
    },
};

/// The time within which a committed entry must reach this replica's own index.
const REACH_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason why a wait for a renewal or an acknowledgement failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// This replica may not know the latest revocations.
    #[error("this replica may not know the latest revocations")]
    NotCurrent,
    /// It cannot be determined whether every replica knows a revocation.
    #[error("it cannot be determined whether every replica knows the revocation")]
    NotAcknowledged,
}

/// The reason why a revocation is effective on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckOutcome {
    /// Every replica has applied the revocation.
    Everywhere,
    /// The leases of all replicas that have not applied the revocation have ended.
    AfterWait,
}

/// A span of time in which this process kept one membership, and the database was not set back. If
/// the epoch is the same before and after a transaction, positions in the feed have kept their
/// meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(u64);

impl Epoch {
    fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The result of comparing this machine's wall clock with the clock of the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ClockCheck {
    /// The clocks agree within `lease.max_clock_skew`.
    #[default]
    Right,
    /// This machine's clock is behind by more than that.
    Behind,
    /// This machine's clock is ahead by more than that, so tokens may seem to have expired that
    /// other replicas still accept.
    Ahead,
}

/// A renewal that is about to be sent, or was sent. Only [`Progress::begin_renewal`] makes one. So
/// the number of the renewal, and the start of its lease, were determined before it was sent.
#[derive(Debug)]
pub(super) struct SentRenewal {
    number: u64,
    epoch: Epoch,
    start: Start,
}

impl SentRenewal {
    /// Returns the time of the wall clock before the renewal was sent.
    pub fn sent_at(&self) -> Timestamp {
        self.start.now
    }
}

/// The validity of the lease that a renewal gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity {
    /// The lease ends after `lease.duration`.
    Limited,
    /// The lease never ends, because no other process can revoke anything.
    ForEver,
}

/// The result of a confirmed renewal that has brought the index to the end of the feed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confirmation {
    /// The validity of the lease, if the clock is right.
    pub validity: Validity,
    /// The result of comparing the clocks.
    pub clock: ClockCheck,
    /// The end of the feed.
    pub applied: FeedPosition,
    /// The position up to which every replica has applied the feed.
    pub everywhere: Seq,
    /// The time that must pass until all leases that any replica has taken so far have ended.
    pub max_validity: Duration,
    /// The number of other replicas.
    pub others: usize,
    /// The uptime at which the answer was received.
    pub received: Duration,
}

/// The state at the last confirmed renewal.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The incarnation whose row is in the table `replicas`, if there is one.
    incarnation: Option<Incarnation>,
    /// True once the lease has ended for good.
    is_stopped: bool,
    /// The epoch. It ends when this process learns that it was removed as gone, or that the
    /// database was set back.
    epoch: Epoch,
    /// The number of the last confirmed renewal; zero until the index is loaded.
    confirmed: u64,
    /// The number of the last confirmed renewal at which the wall clock was right. Only such a
    /// renewal allows calls to check the time of a token.
    renewal: u64,
    /// The result of comparing the clocks at the last confirmed renewal.
    clock: ClockCheck,
    /// The position up to which the index has applied the feed.
    applied: FeedPosition,
    /// The position up to which every replica has applied the feed.
    everywhere: Seq,
    /// The time that must pass after the last confirmed renewal until all leases that any replica
    /// had taken by then have ended.
    max_validity: Duration,
    /// The number of other replicas.
    others: usize,
    /// The uptime at which the answer to the last confirmed renewal was received.
    received: Option<Duration>,
}

/// The progress through the feed, and the lease.
pub(super) struct Progress {
    lease: Lease,
    duration: Duration,
    state: watch::Sender<State>,
    /// The number of the last renewal that was sent or is about to be sent.
    sent: AtomicU64,
}

impl Progress {
    /// Creates the progress of a process that has not joined and has no lease.
    pub fn new(clock: Arc<dyn Clock>, lease_config: &LeaseConfig) -> Self {
        Self {
            lease: Lease::new(clock, lease_config.margin),
            duration: lease_config.duration,
            state: watch::Sender::default(),
            sent: AtomicU64::new(0),
        }
    }

    /// Returns the lease.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Returns the current epoch.
    pub fn epoch(&self) -> Epoch {
        self.state.borrow().epoch
    }

    /// Returns the position up to which the index has applied the feed.
    pub fn applied(&self) -> FeedPosition {
        self.state.borrow().applied
    }

    /// Returns the timeline of the database at the last confirmed renewal.
    pub fn timeline(&self) -> Timeline {
        self.applied().timeline
    }

    /// Returns the number of other replicas, and the uptime at which this number was received.
    pub fn others(&self) -> (usize, Option<Duration>) {
        let state = self.state.borrow();
        (state.others, state.received)
    }

    /// Returns whether the feed has been read to its end since this process joined.
    pub fn is_loaded(&self) -> bool {
        self.state.borrow().confirmed > 0
    }

    /// Returns whether the index has been loaded since this process joined, and the clock was right
    /// when the load was complete or at a later renewal.
    pub fn is_loaded_under_right_clock(&self) -> bool {
        self.state.borrow().renewal > 0
    }

    /// Returns whether this process is still starting: since its start it has not loaded the index
    /// under a right clock. This may take a while.
    pub fn is_fresh(&self) -> bool {
        let state = self.state.borrow();
        state.epoch == Epoch::default() && state.renewal == 0
    }

    /// Returns whether this process was a member before.
    pub fn has_rejoined(&self) -> bool {
        self.epoch() != Epoch::default()
    }

    /// Records that this process has joined as this incarnation.
    pub fn begin_membership(&self, incarnation: Incarnation) {
        self.state.send_modify(|state| state.incarnation = Some(incarnation));
    }

    /// Begins a renewal. It must be sent only after this call. A wait that begins from now on waits
    /// for the renewal after this one.
    pub fn begin_renewal(&self) -> SentRenewal {
        let number = self.sent.fetch_add(1, Ordering::SeqCst) + 1;
        SentRenewal { number, epoch: self.epoch(), start: self.lease.start() }
    }

    /// Takes the lease that a renewal gives, and ends the waits for the renewal. A renewal of an
    /// earlier epoch has no effect. Once this process has stopped, no renewal has an effect.
    pub fn confirm(&self, renewal: SentRenewal, confirmation: Confirmation) {
        let before = *self.state.borrow();
        if before.is_stopped || renewal.epoch != before.epoch {
            return;
        }
        let Confirmation { validity, clock, applied, everywhere, max_validity, others, received } =
            confirmation;
        match validity {
            Validity::ForEver => self.lease.take_for_ever(),
            Validity::Limited if clock != ClockCheck::Right => {}
            Validity::Limited => self.lease.take(renewal.start, self.duration),
        }
        self.state.send_modify(|state| {
            *state = State {
                incarnation: state.incarnation,
                is_stopped: false,
                epoch: state.epoch,
                confirmed: renewal.number,
                // While the clock is wrong, no call may check the time of a token.
                renewal: match clock {
                    ClockCheck::Right => renewal.number,
                    ClockCheck::Behind | ClockCheck::Ahead => state.renewal,
                },
                clock,
                applied,
                everywhere,
                max_validity,
                others,
                received: Some(received),
            };
        });
    }

    /// Ends the lease and then the epoch, because this process is not a member any more.
    pub fn end_membership(&self) {
        self.lease.end();
        self.state.send_modify(|state| {
            let State { is_stopped, received, .. } = *state;
            let epoch = state.epoch.next();
            *state = State { is_stopped, epoch, received, ..State::default() };
        });
    }

    /// Ends the lease for good. Returns the incarnation whose row is in the table `replicas`, if
    /// there is one.
    pub fn stop(&self) -> Option<Incarnation> {
        self.lease.end();
        let mut incarnation = None;
        self.state.send_modify(|state| {
            state.is_stopped = true;
            incarnation = state.incarnation.take();
        });
        incarnation
    }

    /// Begins a wait for a renewal that is sent from now on.
    pub fn next_renewal(&self) -> NextRenewal {
        NextRenewal { before: self.sent.load(Ordering::SeqCst), states: self.state.subscribe() }
    }

    /// Waits until no replica accepts the tokens that were revoked at `position`. See
    /// `Replica::acknowledged`.
    pub async fn acknowledged(
        &self,
        epoch: Epoch,
        position: FeedPosition,
    ) -> Result<AckOutcome, AckError> {
        let mut next = self.next_renewal();
        let begun = timeout(REACH_TIMEOUT, next.applied(epoch, position))
            .await
            .map_err(|_| AckError::NotAcknowledged)??;
        // At this uptime, all leases that were requested before now have ended.
        let over = self.lease.uptime() + begun.max_validity;
        let mut states = next.states;
        loop {
            let current = *states.borrow_and_update();
            if current.epoch != epoch || current.applied.timeline != position.timeline {
                return Err(AckError::NotAcknowledged);
            }
            if current.everywhere >= position.seq {
                return Ok(AckOutcome::Everywhere);
            }
            let rest = over.saturating_sub(self.lease.uptime());
            if rest.is_zero() {
                return Ok(AckOutcome::AfterWait);
            }
            tokio::select! {
                changed = states.changed() => changed.map_err(|_| AckError::NotAcknowledged)?,
                // By the uptime clock, the timer may fire too early. In that case the loop waits
                // once more.
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Waits until there is no lease.
    pub async fn lapsed(&self) {
        let mut states = self.state.subscribe();
        while let Some(remaining) = self.lease.remaining() {
            tokio::select! {
                _ = states.changed() => {}
                () = tokio::time::sleep(remaining) => {}
            }
        }
    }

    /// Waits until there is a lease.
    pub async fn current(&self) {
        let mut states = self.state.subscribe();
        while self.lease.remaining().is_none() {
            // This cannot fail, because the sender lives as long as `self`.
            let _ = states.changed().await;
        }
    }
}

/// A wait for the next renewal that is sent. The answer to that renewal reflects everything that
/// was committed before the wait began.
pub(super) struct NextRenewal {
    /// The number of the last renewal that was sent before the wait began.
    before: u64,
    states: watch::Receiver<State>,
}

impl NextRenewal {
    /// Waits until a renewal that was sent after the wait began is confirmed under a right clock.
    pub async fn confirmed(mut self) -> Result<(), AckError> {
        let renewed = self.states.wait_for(|state| state.renewal > self.before);
        renewed.await.map(drop).map_err(|_| AckError::NotCurrent)
    }

    /// Waits until a renewal that was sent after the wait began has brought the index to a position
    /// of this epoch.
    async fn applied(&mut self, epoch: Epoch, position: FeedPosition) -> Result<State, AckError> {
        let is_over = |state: &State| state.epoch != epoch;
        let is_void = |state: &State| {
            state.applied.timeline != position.timeline || state.clock == ClockCheck::Ahead
        };
        let reached = self.states.wait_for(|state| {
            let is_new = state.confirmed > self.before;
            is_over(state) || (is_new && (is_void(state) || state.applied.seq >= position.seq))
        });
        let reached = *reached.await.map_err(|_| AckError::NotAcknowledged)?;
        match is_over(&reached) || is_void(&reached) {
            true => Err(AckError::NotAcknowledged),
            false => Ok(reached),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::clock::SettableClock;

    const LEASE_CONFIG: LeaseConfig = LeaseConfig {
        duration: Duration::from_secs(2),
        renewal: Duration::from_millis(500),
        margin: Duration::from_millis(250),
        max_clock_skew: Duration::from_secs(5),
    };

    fn progress() -> (Arc<SettableClock>, Progress) {
        let clock = Arc::new(SettableClock::at(Timestamp::from_seconds(1_700_000_000)));
        clock.advance(Duration::from_secs(100));
        let progress = Progress::new(clock.clone(), &LEASE_CONFIG);
        (clock, progress)
    }

    fn at(seq: i64) -> FeedPosition {
        FeedPosition { timeline: Timeline(1), seq: Seq(seq) }
    }

    fn confirmation(applied: FeedPosition, everywhere: i64, clock: ClockCheck) -> Confirmation {
        Confirmation {
            validity: Validity::Limited,
            clock,
            applied,
            everywhere: Seq(everywhere),
            max_validity: LEASE_CONFIG.max_validity(),
            others: 1,
            received: Duration::from_secs(100),
        }
    }

    fn renew(progress: &Progress, applied: FeedPosition, everywhere: i64) {
        let renewal = progress.begin_renewal();
        progress.confirm(renewal, confirmation(applied, everywhere, ClockCheck::Right));
    }

    #[tokio::test]
    async fn a_wait_does_not_end_with_a_renewal_that_was_sent_before_it_began() {
        let (_, progress) = progress();
        let earlier = progress.begin_renewal();
        let mut acknowledged = Box::pin(progress.acknowledged(progress.epoch(), at(1)));
        let mut confirmed = Box::pin(progress.next_renewal().confirmed());
        assert!(acknowledged.as_mut().now_or_never().is_none());
        progress.confirm(earlier, confirmation(at(1), 1, ClockCheck::Right));
        assert!(acknowledged.as_mut().now_or_never().is_none());
        assert!(confirmed.as_mut().now_or_never().is_none());
        renew(&progress, at(1), 1);
        assert_eq!(acknowledged.now_or_never(), Some(Ok(AckOutcome::Everywhere)));
        assert_eq!(confirmed.now_or_never(), Some(Ok(())));
    }

    #[tokio::test]
    async fn an_acknowledgement_waits_until_the_other_replicas_report_or_their_leases_end() {
        let (clock, progress) = progress();
        let mut reported = Box::pin(progress.acknowledged(progress.epoch(), at(2)));
        let mut awaited = Box::pin(progress.acknowledged(progress.epoch(), at(3)));
        assert!(reported.as_mut().now_or_never().is_none());
        assert!(awaited.as_mut().now_or_never().is_none());
        // The wait for the others begins only once this replica has applied the position.
        clock.advance(Duration::from_secs(1));
        let mut poll = |progress: &Progress, everywhere| {
            renew(progress, at(3), everywhere);
            (reported.as_mut().now_or_never(), awaited.as_mut().now_or_never())
        };
        assert_eq!(poll(&progress, 1), (None, None));
        clock.advance(LEASE_CONFIG.max_validity() - Duration::from_micros(1));
        assert_eq!(poll(&progress, 2), (Some(Ok(AckOutcome::Everywhere)), None));
        clock.advance(Duration::from_micros(1));
        renew(&progress, at(3), 2);
        assert_eq!(awaited.now_or_never(), Some(Ok(AckOutcome::AfterWait)));
    }

    #[tokio::test]
    async fn a_revocation_of_another_epoch_or_timeline_is_not_acknowledged() {
        let (_, progress) = progress();
        renew(&progress, at(1), 1);
        let epoch = progress.epoch();
        let mut acknowledged = Box::pin(progress.acknowledged(epoch, at(1)));
        assert!(acknowledged.as_mut().now_or_never().is_none());
        progress.end_membership();
        assert_eq!(acknowledged.now_or_never(), Some(Err(AckError::NotAcknowledged)));
        renew(&progress, at(1), 1);
        let late = progress.acknowledged(epoch, at(1)).now_or_never();
        assert_eq!(late, Some(Err(AckError::NotAcknowledged)));

        let mut acknowledged = Box::pin(progress.acknowledged(progress.epoch(), at(1)));
        assert!(acknowledged.as_mut().now_or_never().is_none());
        renew(&progress, FeedPosition { timeline: Timeline(2), ..at(1) }, 1);
        assert_eq!(acknowledged.now_or_never(), Some(Err(AckError::NotAcknowledged)));
    }

    #[tokio::test]
    async fn a_wait_for_other_replicas_fails_when_the_epoch_or_the_timeline_changes() {
        let other_epoch: fn(&Progress) = |progress| {
            progress.end_membership();
            renew(progress, at(1), 1);
        };
        let other_timeline: fn(&Progress) =
            |progress| renew(progress, FeedPosition { timeline: Timeline(2), ..at(1) }, 1);
        for change in [other_epoch, other_timeline] {
            let (_, progress) = progress();
            let mut acknowledged = Box::pin(progress.acknowledged(progress.epoch(), at(1)));
            assert!(acknowledged.as_mut().now_or_never().is_none());
            renew(&progress, at(1), 0);
            assert!(acknowledged.as_mut().now_or_never().is_none());
            change(&progress);
            assert_eq!(acknowledged.now_or_never(), Some(Err(AckError::NotAcknowledged)));
        }
    }

    #[tokio::test]
    async fn a_renewal_gives_no_lease_after_the_end_of_its_epoch_or_after_a_stop() {
        let (_, progress) = progress();
        let earlier = progress.begin_renewal();
        progress.end_membership();
        progress.confirm(earlier, confirmation(at(1), 1, ClockCheck::Right));
        assert_eq!(progress.lease().remaining(), None);
        assert!(!progress.is_loaded());

        progress.stop();
        renew(&progress, at(1), 1);
        assert_eq!(progress.lease().remaining(), None);
    }

    #[tokio::test]
    async fn a_wrong_clock_prevents_a_lease_and_a_clock_ahead_also_an_acknowledgement() {
        for (clock, acknowledges) in [
            (ClockCheck::Behind, Ok(AckOutcome::Everywhere)),
            (ClockCheck::Ahead, Err(AckError::NotAcknowledged)),
        ] {
            let (_, progress) = progress();
            let mut acknowledged = Box::pin(progress.acknowledged(progress.epoch(), at(1)));
            let mut confirmed = Box::pin(progress.next_renewal().confirmed());
            assert!(acknowledged.as_mut().now_or_never().is_none());
            progress.confirm(progress.begin_renewal(), confirmation(at(1), 1, clock));
            assert_eq!(acknowledged.now_or_never(), Some(acknowledges), "{clock:?}");
            assert!(confirmed.as_mut().now_or_never().is_none(), "{clock:?}");
            assert_eq!(progress.lease().remaining(), None, "{clock:?}");
            assert!(progress.is_loaded() && progress.is_fresh(), "{clock:?}");
        }
    }

    #[tokio::test]
    async fn the_end_of_the_membership_ends_the_lease_and_resets_the_progress() {
        let (_, progress) = progress();
        progress.begin_membership(Incarnation::new([1; 16]));
        renew(&progress, at(7), 7);
        assert_eq!(progress.lease().remaining(), Some(LEASE_CONFIG.duration));
        progress.end_membership();
        assert_eq!(progress.lease().remaining(), None);
        assert_eq!(progress.applied(), FeedPosition::default());
        assert!(progress.has_rejoined() && !progress.is_loaded());
        assert_eq!(progress.stop(), None, "there is no row to remove");
    }
}
