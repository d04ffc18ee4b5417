//! The watchers of this replica: processes that verify access tokens themselves, under leases that
//! this replica gives them. [`Watchers`] knows how far each has confirmed the feed and how long its
//! leases last, and so decides which position this replica may report. Decision 34 has the rules.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::{
    counts::WatchCounts,
    lease::{DRIFT, Lease},
    published::{Batch, Log},
};
use crate::{
    clock::Clock,
    domain::{ids::Incarnation, lease::WatchConfig, revocation::Seq},
    store::FeedEntry,
};

/// The shortest lease that is given. A shorter one would end before the watcher has received it.
const SHORTEST_LEASE: Duration = Duration::from_millis(50);

/// The time between two messages with entries to a watcher, for each of the first [`FEW`] watchers
/// of the replica. It keeps the answers to revocations fast.
const PACE_OF_FEW: Duration = Duration::from_micros(100);

/// The same time for each further watcher. It keeps most of the processors for other calls.
const PACE_OF_MANY: Duration = Duration::from_micros(500);

/// The number of watchers that count as few.
const FEW: u32 = 150;

/// The reason why a process cannot become a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// There are too many watchers.
    TooMany,
    /// This process stops.
    Stopped,
}

/// A place in the stream of entries. A place in another membership of a replica is unrelated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The membership of the replica.
    pub membership: Incarnation,
    /// The position up to which all entries were sent.
    pub position: Seq,
}

/// The next part of the stream of a watcher.
#[derive(Clone, Debug)]
pub enum Part {
    /// Everything that was sent before is void, and the stream must begin anew ([`Watcher::begin`]).
    Reset,
    /// The next entries, up to this place.
    Entries(Vec<Arc<Batch>>, Place),
    /// Nothing is left to be sent.
    UpToDate,
    /// The index is being loaded.
    Loading,
    /// The watcher is further behind than the log reaches back.
    TooSlow,
    /// This process stops.
    Stopped,
}

/// The lease of this replica, as it was read for a watcher.
#[derive(Clone, Copy, Debug)]
pub struct ReadLease {
    /// The membership in which the lease was read.
    membership: Incarnation,
    /// The uptime before the lease was read.
    at: Duration,
    valid_for: Duration,
}

/// The result of asking for a lease for a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// The lease is recorded. The watcher may use it for this time.
    Lease(Duration),
    /// A later position than the watcher's was vouched for. Later entries must be sent first.
    Behind,
    /// The watcher gets no lease, because it has not confirmed the position of its last one, or
    /// because the lease of the replica was read before this process left or joined again.
    Refused,
}

/// The watchers of this replica.
pub struct Watchers {
    clock: Arc<dyn Clock>,
    margin: Duration,
    config: WatchConfig,
    state: Mutex<State>,
    /// Notified when there may be something to send.
    published: watch::Sender<()>,
    /// Notified when the watcher on which a report waits has become safe for a later position.
    safer: Notify,
    counts: WatchCounts,
}

#[derive(Default)]
struct State {
    /// The membership of this replica, once its index is loaded.
    membership: Option<Incarnation>,
    /// The entries of pages after which more follow.
    unpublished: Vec<FeedEntry>,
    log: Log,
    /// The latest position that was vouched for in this membership.
    vouched: Seq,
    watchers: HashMap<u64, WatcherState>,
    /// The number of watchers since the start, by which each is known.
    opened: u64,
    /// The watcher on which a report waits.
    blocker: Option<u64>,
    /// A position that was applied and not vouched for, and the uptime since which this is so.
    held_up: Option<(Seq, Duration)>,
    is_stopped: bool,
}

/// The state of a watcher. Its size does not depend on the number of its leases (rule 3).
#[derive(Clone, Copy, Debug, Default)]
struct WatcherState {
    /// The position that the watcher has confirmed.
    confirmed: Seq,
    /// The position of its last lease.
    leased: Seq,
    /// The uptime from which on all leases before the last one are over.
    earlier_end: Duration,
    /// The uptime from which on all its leases are over.
    end: Duration,
    /// True once its stream has ended.
    is_closed: bool,
}

impl WatcherState {
    /// Returns the position for which the watcher is safe: under its leases it accepts nothing that
    /// was revoked up to there. `None` if it is safe for every position (rule 4).
    fn safe(&self, uptime: Duration) -> Option<Seq> {
        match () {
            () if uptime >= self.end => None,
            () if uptime >= self.earlier_end => Some(self.leased.max(self.confirmed)),
            () => Some(self.confirmed),
        }
    }

    /// Returns the uptime at which the watcher becomes safe for a later position even if it
    /// confirms nothing more.
    fn safer_at(&self, uptime: Duration) -> Duration {
        if uptime < self.earlier_end { self.earlier_end } else { self.end }
    }
}

impl State {
    fn head(&self) -> Seq {
        self.log.head()
    }

    fn reaches(&self, place: Place) -> bool {
        self.membership == Some(place.membership) && self.log.reaches(place.position)
    }

    /// Returns the position for which all watchers are safe, up to `applied`, and the first watcher
    /// that is not safe for `applied`.
    fn safe(&self, applied: Seq, uptime: Duration) -> (Seq, Option<u64>) {
        self.watchers
            .iter()
            .filter_map(|(number, watcher)| Some((watcher.safe(uptime)?, *number)))
            .min()
            .filter(|(safe, _)| *safe < applied)
            .map_or((applied, None), |(safe, number)| (safe, Some(number)))
    }

    /// Forgets the watchers whose streams have ended and whose leases are over (rule 6).
    fn tidy(&mut self, uptime: Duration) {
        self.watchers.retain(|_, watcher| !watcher.is_closed || uptime < watcher.end);
    }
}

impl Watchers {
    /// Creates the value without watchers. `margin` is `lease.margin`.
    pub fn new(clock: Arc<dyn Clock>, margin: Duration, config: WatchConfig) -> Self {
        Self {
            clock,
            margin,
            config,
            state: Mutex::default(),
            published: watch::Sender::default(),
            safer: Notify::new(),
            counts: WatchCounts::default(),
        }
    }

    /// Returns the counters.
    pub fn counts(&self) -> &WatchCounts {
        &self.counts
    }

    /// Returns whether there were watchers since the start of this process, or before it.
    pub fn were_there(&self) -> bool {
        self.state().opened > 0
    }

    /// Returns the maximum number of watchers.
    pub fn max_watchers(&self) -> usize {
        self.config.max_watchers
    }

    /// Returns `lease.margin`.
    pub fn margin(&self) -> Duration {
        self.margin
    }

    /// Returns the number of open streams, and the largest number of positions by which one is
    /// behind.
    pub fn lag(&self) -> (usize, i64) {
        let state = self.state();
        let open = state.watchers.values().filter(|watcher| !watcher.is_closed);
        open.fold((0, 0), |(count, lag), watcher| {
            (count + 1, lag.max(state.head().0.saturating_sub(watcher.confirmed.0)))
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes entries of a page after which more follow. They are published with the last page.
    pub(super) fn collect(&self, entries: &[FeedEntry]) {
        let mut state = self.state();
        // Until the index is loaded, every watcher begins with a snapshot, so it needs no entries.
        if state.membership.is_some() {
            state.unpublished.extend_from_slice(entries);
        }
    }

    /// Publishes entries that the index has applied, up to the end of the feed. This must happen
    /// before the replica takes the lease that rests on them (rule 1).
    pub(super) fn publish(&self, membership: Incarnation, entries: &[FeedEntry], head: Seq) {
        let mut state = self.state();
        if state.membership == Some(membership) {
            state.unpublished.extend_from_slice(entries);
            let entries = std::mem::take(&mut state.unpublished);
            if !state.log.append(entries, head) {
                return;
            }
        } else {
            state.membership = Some(membership);
            state.log = Log::beginning_at(head);
        }
        drop(state);
        self.published.send_replace(());
    }

    /// Ends the membership. No watcher gets a lease until the index has been loaded again.
    pub(super) fn end_membership(&self) {
        let mut state = self.state();
        state.membership = None;
        state.unpublished.clear();
        state.log = Log::default();
        state.vouched = Seq::default();
        state.held_up = None;
        drop(state);
        self.published.send_replace(());
    }

    /// Returns the position that this replica may report if it has applied the feed up to
    /// `applied`. From now on no watcher gets a lease for an earlier position (rules 4 and 5).
    pub(super) fn vouch(&self, applied: Seq) -> Seq {
        let uptime = self.clock.uptime();
        let mut state = self.state();
        state.tidy(uptime);
        let (safe, _) = state.safe(applied, uptime);
        state.vouched = state.vouched.max(safe);
        if let Some((_, since)) = state.held_up.filter(|(position, _)| *position <= safe) {
            self.counts.held_up.observe(uptime.saturating_sub(since).as_secs_f64());
            state.held_up = None;
        }
        if safe < applied && state.held_up.is_none() {
            state.held_up = Some((applied, uptime));
        }
        safe
    }

    /// Waits until this replica may report a later position than `reported`.
    pub(super) async fn safer_than(&self, reported: Seq) {
        loop {
            let wait = {
                let uptime = self.clock.uptime();
                let mut state = self.state();
                let head = state.head();
                let (safe, blocker) = state.safe(head, uptime);
                if safe > reported {
                    return;
                }
                state.blocker = blocker;
                let watcher = blocker.and_then(|number| state.watchers.get(&number));
                watcher.map(|watcher| watcher.safer_at(uptime).saturating_sub(uptime))
            };
            let safer_by_time = async {
                match wait {
                    Some(wait) => sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.safer.notified() => {}
                () = safer_by_time => {}
            }
        }
    }

    /// Waits until no lease of a watcher is valid any more. New ones must be impossible.
    pub async fn leases_over(&self) {
        loop {
            let uptime = self.clock.uptime();
            let end = self.state().watchers.values().map(|watcher| watcher.end).max();
            let rest = end.unwrap_or_default().saturating_sub(uptime);
            if rest.is_zero() {
                return;
            }
            sleep(rest).await;
        }
    }

    /// Ends all streams, and opens no more.
    pub fn stop(&self) {
        self.state().is_stopped = true;
        self.published.send_replace(());
    }

    /// Reads the lease of this replica, in order to give one to a watcher. This must happen before
    /// the entries are sent that precede the watcher's lease (rule 1). `None` if the replica has no
    /// lease, or too short a one.
    pub fn read_lease(&self, lease: &Lease) -> Option<ReadLease> {
        // The membership is read first, because a lease ends before its membership.
        let membership = self.state().membership?;
        let at = self.clock.uptime();
        let remaining = lease.remaining()?;
        let longest = match remaining {
            Duration::MAX => self.config.lease,
            remaining => self.config.lease.min(remaining.saturating_sub(self.margin)),
        };
        let valid_for = longest - longest * 2 / DRIFT;
        (valid_for >= SHORTEST_LEASE).then_some(ReadLease { membership, at, valid_for })
    }

    /// Returns the place up to which the index has all entries, once it is loaded. The index may
    /// also have later ones.
    pub fn place(&self) -> Option<Place> {
        let state = self.state();
        let position = state.head();
        state.membership.map(|membership| Place { membership, position })
    }

    /// Returns whether a stream can go on after a place.
    pub fn reaches(&self, place: Place) -> bool {
        self.state().reaches(place)
    }

    /// Counts the watchers of an earlier process as a watcher whose leases are over after this time
    /// (rule 15).
    pub(super) fn add_earlier(&self, validity: Duration) {
        let end = self.clock.uptime() + validity;
        let mut state = self.state();
        state.opened += 1;
        let number = state.opened;
        let earlier =
            WatcherState { earlier_end: end, end, is_closed: true, ..WatcherState::default() };
        state.watchers.insert(number, earlier);
    }

    /// Returns the longest time after which a lease that was given now is over.
    pub fn longest_validity(&self) -> Duration {
        self.over_after(self.config.lease)
    }

    fn over_after(&self, valid_for: Duration) -> Duration {
        valid_for + valid_for * 2 / DRIFT + self.margin
    }

    /// Opens the stream of a watcher. It goes on after `place` if possible (rule 8).
    pub fn open(self: &Arc<Self>, place: Option<Place>) -> Result<Watcher, NotOpened> {
        let uptime = self.clock.uptime();
        let mut state = self.state();
        if state.is_stopped {
            return Err(NotOpened::Stopped);
        }
        state.tidy(uptime);
        if state.watchers.len() >= self.config.max_watchers {
            self.counts.refused.inc();
            return Err(NotOpened::TooMany);
        }
        state.opened += 1;
        let number = state.opened;
        let place = place.filter(|place| state.reaches(*place));
        // A cursor is of what the watcher has applied, so it confirms this.
        let confirmed = place.map(|place| place.position).unwrap_or_default();
        state.watchers.insert(number, WatcherState { confirmed, ..WatcherState::default() });
        drop(state);
        let published = self.published.subscribe();
        Ok(Watcher { watchers: self.clone(), number, place, published })
    }
}

/// The stream of a watcher. The watcher counts as closed once this is dropped.
pub struct Watcher {
    watchers: Arc<Watchers>,
    number: u64,
    /// The place up to which everything has been sent; none before the first reset.
    place: Option<Place>,
    published: watch::Receiver<()>,
}

impl Watcher {
    /// Returns the next part of the stream. The caller must send it.
    pub fn next_part(&mut self) -> Part {
        self.published.mark_unchanged();
        let state = self.watchers.state();
        if state.is_stopped {
            return Part::Stopped;
        }
        let Some(membership) = state.membership else { return Part::Loading };
        let Some(place) = self.place.filter(|place| place.membership == membership) else {
            return Part::Reset;
        };
        if place.position == state.head() {
            return Part::UpToDate;
        }
        let Some(batches) = state.log.after(place.position) else { return Part::TooSlow };
        let place = Place { membership, position: state.head() };
        self.place = Some(place);
        Part::Entries(batches, place)
    }

    /// Begins the stream at the place of a snapshot, which must then be sent. Returns false if the
    /// snapshot is too old.
    #[must_use]
    pub fn begin(&mut self, place: Place) -> bool {
        let mut state = self.watchers.state();
        if !state.reaches(place) {
            return false;
        }
        self.place = Some(place);
        // Earlier confirmations do not count, and earlier leases do not cover any position of this
        // membership (rule 7).
        if let Some(watcher) = state.watchers.get_mut(&self.number) {
            (watcher.confirmed, watcher.leased) = (Seq::default(), Seq::default());
            watcher.earlier_end = watcher.end;
        }
        true
    }

    /// Returns whether entries have been published that are not sent yet.
    pub fn is_behind(&self) -> bool {
        let state = self.watchers.state();
        self.place.is_some_and(|place| {
            state.membership == Some(place.membership) && place.position < state.head()
        })
    }

    /// Returns the time that should pass until the next entries are sent. It grows with the number
    /// of watchers, so that they take a bounded part of the processors however fast entries are
    /// published, up to a quarter of a lease. Entries that come after a longer pause are sent at
    /// once.
    pub fn pace(&self) -> Duration {
        pace(self.watchers.state().watchers.len(), self.watchers.config.lease)
    }

    /// Waits until there may be another part.
    pub async fn changed(&mut self) {
        // This cannot fail, because the sender lives as long as `self`.
        let _ = self.published.changed().await;
    }

    /// Takes the confirmation that the watcher has applied everything up to a place. Returns false
    /// if the place was not sent.
    #[must_use]
    pub fn confirm(&self, confirmed: Place) -> bool {
        let Some(sent) = self.place else { return false };
        if sent.membership != confirmed.membership {
            // It may have been sent before a reset.
            return true;
        }
        if confirmed.position > sent.position {
            return false;
        }
        let mut state = self.watchers.state();
        let is_awaited = state.blocker == Some(self.number);
        if let Some(watcher) = state.watchers.get_mut(&self.number)
            && watcher.confirmed < confirmed.position
        {
            watcher.confirmed = confirmed.position;
            if is_awaited {
                self.watchers.safer.notify_one();
            }
        }
        true
    }

    /// Records a lease for the place up to which everything has been sent, if the watcher may have
    /// one. The caller must then send the lease, and before that nothing else.
    pub fn give_lease(&self, read: ReadLease) -> Given {
        let uptime = self.watchers.clock.uptime();
        let mut state = self.watchers.state();
        // While this process leaves the register, and in another membership, the lease that was read
        // may not be given any more (rule 5).
        if state.is_stopped || state.membership != Some(read.membership) {
            return Given::Refused;
        }
        let vouched = state.vouched;
        let Some(place) = self.place.filter(|place| place.membership == read.membership) else {
            return Given::Behind;
        };
        let Some(watcher) = state.watchers.get_mut(&self.number) else {
            return Given::Refused;
        };
        if watcher.confirmed < watcher.leased && uptime < watcher.end {
            return Given::Refused;
        }
        if place.position < vouched {
            return Given::Behind;
        }
        watcher.earlier_end = watcher.end;
        watcher.end = watcher.end.max(read.at + self.watchers.over_after(read.valid_for));
        watcher.leased = place.position;
        self.watchers.counts.leases.inc();
        Given::Lease(read.valid_for)
    }
}

fn pace(watchers: usize, lease: Duration) -> Duration {
    let watchers = u32::try_from(watchers).unwrap_or(u32::MAX);
    let few = watchers.min(FEW);
    let pace = PACE_OF_FEW * few + PACE_OF_MANY.saturating_mul(watchers - few);
    // A lease comes after the entries before it, and is to come in time.
    pace.min(lease / 4)
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut state = self.watchers.state();
        if let Some(watcher) = state.watchers.get_mut(&self.number) {
            watcher.is_closed = true;
        }
    }
}

#[cfg(test)]
#[path = "watchers_tests.rs"]
mod tests;
