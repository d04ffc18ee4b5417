//! The part of the index that holds cut-offs: revocations of all sessions of a scope up to an
//! instant.

use std::{
    borrow::Borrow,
    collections::HashSet,
    hash::{Hash, Hasher, RandomState},
    sync::atomic::{AtomicUsize, Ordering},
};

use dashmap::DashMap;

use crate::{
    cut_off::{Coverable, CutOff, CutOffKey, CutOffKind, KeyRef},
    revocation::Revoked,
    time::Timestamp,
};

/// The cut-offs, each with the instant after which it may be dropped.
#[derive(Debug)]
pub struct CutOffs {
    by_key: DashMap<CutOffKey, (CutOff, Timestamp)>,
    /// The number of cut-offs of each kind, in the order of [`CutOffKind::ALL`].
    counts: [AtomicUsize; CutOffKind::ALL.len()],
}

/// A key by which the map is looked up. It allows a look-up by a [`KeyRef`], for which no text has
/// to be copied.
trait Key {
    fn borrowed(&self) -> KeyRef<'_>;
}

impl Key for CutOffKey {
    fn borrowed(&self) -> KeyRef<'_> {
        self.borrowed()
    }
}

impl Key for KeyRef<'_> {
    fn borrowed(&self) -> KeyRef<'_> {
        *self
    }
}

impl<'a> Borrow<dyn Key + 'a> for CutOffKey {
    fn borrow(&self) -> &(dyn Key + 'a) {
        self
    }
}

impl Hash for dyn Key + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrowed().hash(state);
    }
}

impl PartialEq for dyn Key + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.borrowed() == other.borrowed()
    }
}

impl Eq for dyn Key + '_ {}

impl CutOffs {
    /// Creates an empty collection whose map has this many shards. Each shard has a lock of its
    /// own.
    pub fn new(shards: usize) -> Self {
        Self {
            by_key: DashMap::with_hasher_and_shard_amount(RandomState::new(), shards),
            counts: Default::default(),
        }
    }

    /// Adds a cut-off. Sessions that an earlier cut-off covers stay covered.
    pub fn apply(&self, key: &CutOffKey, cut_off: CutOff, expires_at: Timestamp) {
        let mut is_new = false;
        let mut existing = self.by_key.entry(key.clone()).or_insert_with(|| {
            is_new = true;
            (cut_off, expires_at)
        });
        *existing = (existing.0.union(cut_off), existing.1.max(expires_at));
        drop(existing);
        if is_new && let Some(count) = self.counts.get(key.kind() as usize) {
            count.fetch_add(1, Ordering::Release);
        }
    }

    /// Returns whether a cut-off covers a session. While there are no cut-offs of a kind, its
    /// counter saves the look-up.
    pub fn cover(&self, session: &Coverable<'_>) -> bool {
        CutOffKind::ALL.into_iter().zip(&self.counts).any(|(kind, count)| {
            count.load(Ordering::Acquire) > 0
                && self
                    .by_key
                    .get(&session.key(kind) as &dyn Key)
                    .is_some_and(|existing| existing.0.covers(kind, session))
        })
    }

    /// Returns the number of cut-offs.
    pub fn len(&self) -> usize {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Returns all cut-offs, with their expiries.
    pub fn all(&self) -> impl Iterator<Item = (Revoked, Timestamp)> {
        self.by_key.iter().map(|entry| {
            let (cut_off, expires_at) = *entry.value();
            (Revoked::Sessions { key: entry.key().clone(), cut_off }, expires_at)
        })
    }

    /// Returns the cut-offs that `other` does not cover completely, with their expiries.
    pub fn missing_from<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (Revoked, Timestamp)> + 'a {
        self.by_key.iter().filter_map(|entry| {
            let (cut_off, expires_at) = *entry.value();
            let existing = other.by_key.get(entry.key()).map(|existing| existing.0);
            if existing.is_some_and(|existing| existing.union(cut_off) == existing) {
                return None;
            }
            Some((Revoked::Sessions { key: entry.key().clone(), cut_off }, expires_at))
        })
    }

    /// Drops the cut-offs that expired up to `until`, except those whose key is in `kept`.
    pub fn purge(&self, until: Timestamp, kept: &HashSet<CutOffKey>) {
        self.by_key.retain(|key, (_, expires_at)| {
            let keep = *expires_at > until || kept.contains(key);
            if !keep && let Some(count) = self.counts.get(key.kind() as usize) {
                count.fetch_sub(1, Ordering::Release);
            }
            keep
        });
    }
}
