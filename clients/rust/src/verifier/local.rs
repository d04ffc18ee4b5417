//! The copy of the keys, the rules and the revocations, by which tokens are verified without a
//! call.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use countersign_verification::{
    access::Expectations,
    clock::Clock,
    inactive::InactiveReason,
    index::Index,
    lease::{Lease, Start},
    reach::Reach,
    validate::{self, Answer, Authenticator, ClockTolerance, Question},
    verified_cache::VerifiedCache,
};
use tokio::sync::{Notify, watch};

use super::{KeySet, Status};

/// The rules for tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) issuer: String,
    pub(crate) max_lifetime: Duration,
    pub(crate) leeway: Duration,
    pub(crate) reach: Reach,
    pub(crate) lease_margin: Duration,
}

impl Rules {
    /// The rules before any have arrived. No token meets them.
    const NONE: Self = Self {
        issuer: String::new(),
        max_lifetime: Duration::ZERO,
        leeway: Duration::ZERO,
        reach: Reach { tenants: None, audiences: None },
        lease_margin: Duration::ZERO,
    };
}

/// A copy of everything that decides whether a token is active.
///
/// Only its index grows, and its lease is extended. When anything else changes, another copy takes
/// its place. Each copy has a lease of its own (rules 11 and 12 of decision 34): a check that has
/// loaded a copy with earlier keys must not get a lease that rests on the later ones.
pub(crate) struct LocalCopy {
    pub(crate) index: Arc<Index>,
    pub(crate) lease: Lease,
    keys: Arc<KeySet>,
    rules: Arc<Rules>,
    cache: Arc<VerifiedCache>,
}

impl LocalCopy {
    /// Creates a copy that has nothing. Verified tokens are kept in about `cache_bytes` of memory.
    pub(crate) fn empty(clock: Arc<dyn Clock>, cache_bytes: u64) -> Self {
        Self {
            index: Arc::default(),
            lease: Lease::new(clock, Duration::ZERO),
            keys: Arc::default(),
            rules: Arc::new(Rules::NONE),
            cache: Arc::new(VerifiedCache::with_capacity(cache_bytes)),
        }
    }

    /// Creates a copy with the same revocations and other keys or rules. Its lease has not begun.
    pub(crate) fn with(
        &self,
        clock: Arc<dyn Clock>,
        cache_bytes: u64,
        keys: Arc<KeySet>,
        rules: Arc<Rules>,
    ) -> Self {
        // The cache holds tokens that had the earlier issuer, and a signature of the earlier keys.
        let is_cache_good = rules.issuer == self.rules.issuer && keys.includes(&self.keys);
        let cache = match is_cache_good {
            true => self.cache.clone(),
            false => Arc::new(VerifiedCache::with_capacity(cache_bytes)),
        };
        let lease = Lease::new(clock, rules.lease_margin);
        Self { index: self.index.clone(), lease, keys, rules, cache }
    }

    pub(crate) fn keys(&self) -> &Arc<KeySet> {
        &self.keys
    }

    pub(crate) fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// Answers a question by this copy; `None` without a lease.
    pub(crate) fn answer(&self, question: &Question<'_>) -> Option<Answer> {
        // The lease is loaded before the look-up, and checked after it.
        let held = self.lease.load();
        let verifier = validate::Verifier {
            authenticator: Authenticator {
                expected: Expectations {
                    issuer: &self.rules.issuer,
                    max_ttl: self.rules.max_lifetime,
                },
                keys: &*self.keys,
                cache: &self.cache,
            },
            index: &self.index,
            reach: &self.rules.reach,
            clocks: ClockTolerance { leeway: self.rules.leeway, max_clock_skew: Duration::ZERO },
        };
        verifier.answer(question, held, |held| self.lease.check(held))
    }
}

/// The copy in force, which a background task replaces.
pub(crate) struct Local {
    copy: ArcSwap<LocalCopy>,
    clock: Arc<dyn Clock>,
    cache_bytes: u64,
    /// Counts the leases that were taken.
    leases: watch::Sender<u64>,
    /// Notified if a token names a key that is not known.
    pub(crate) unknown_key: Notify,
    connections: AtomicU64,
    resets: AtomicU64,
    lag_micros: AtomicU64,
}

impl Local {
    pub(crate) fn new(clock: Arc<dyn Clock>, cache_bytes: u64) -> Self {
        Self {
            copy: ArcSwap::from_pointee(LocalCopy::empty(clock.clone(), cache_bytes)),
            clock,
            cache_bytes,
            leases: watch::Sender::new(0),
            unknown_key: Notify::new(),
            connections: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            lag_micros: AtomicU64::new(0),
        }
    }

    /// Answers a question by the copy in force; `None` without a lease.
    pub(crate) fn answer(&self, question: &Question<'_>) -> Option<Answer> {
        let answer = self.copy.load().answer(question)?;
        if matches!(answer.outcome, Err(InactiveReason::UnknownKey)) {
            self.unknown_key.notify_one();
        }
        Some(answer)
    }

    /// Returns the copy in force.
    pub(crate) fn copy(&self) -> Arc<LocalCopy> {
        self.copy.load_full()
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Puts a copy without revocations and without a lease in force. The lease of the copy before
    /// remains to the checks that have loaded it.
    pub(crate) fn reset(&self) -> Arc<LocalCopy> {
        let former = self.copy();
        let index = Index::default();
        // A token that has expired stays expired (rule 13).
        index.raise_purge_watermark(former.index.purge_watermark());
        // The cache of verified tokens outlives the reset, if issuer and keys stay the same.
        let (keys, rules) = (former.keys.clone(), former.rules.clone());
        let kept = former.with(self.clock.clone(), self.cache_bytes, keys, rules);
        self.put(LocalCopy { index: Arc::new(index), ..kept })
    }

    /// Puts a copy with other keys or rules in force. `lease` is the lease that is good for it too,
    /// if there is one. The copy has it from the beginning, so that no check finds none.
    pub(crate) fn replace(
        &self,
        keys: Arc<KeySet>,
        rules: Arc<Rules>,
        lease: Option<(Start, Duration)>,
    ) -> Arc<LocalCopy> {
        let copy = self.copy().with(self.clock.clone(), self.cache_bytes, keys, rules);
        if let Some((start, valid_for)) = lease {
            copy.lease.take(start, valid_for);
        }
        self.put(copy)
    }

    fn put(&self, copy: LocalCopy) -> Arc<LocalCopy> {
        let copy = Arc::new(copy);
        self.copy.store(copy.clone());
        copy
    }

    /// Takes a lease of the copy in force.
    pub(crate) fn take(&self, copy: &LocalCopy, start: Start, valid_for: Duration) {
        copy.lease.take(start, valid_for);
        self.leases.send_modify(|leases| *leases += 1);
    }

    pub(crate) fn count_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_lag(&self, lag: Duration) {
        let micros = u64::try_from(lag.as_micros()).unwrap_or(u64::MAX);
        self.lag_micros.store(micros, Ordering::Relaxed);
    }

    /// Waits until the copy in force has a lease.
    pub(crate) async fn ready(&self) {
        let mut leases = self.leases.subscribe();
        while self.copy().lease.remaining().is_none() {
            // The sender lives as long as this value.
            let _ = leases.changed().await;
        }
    }

    pub(crate) fn status(&self) -> Status {
        let copy = self.copy();
        Status {
            lease: copy.lease.remaining(),
            revocations: copy.index.len(),
            connections: self.connections.load(Ordering::Relaxed),
            resets: self.resets.load(Ordering::Relaxed),
            lag: Duration::from_micros(self.lag_micros.load(Ordering::Relaxed)),
        }
    }
}
