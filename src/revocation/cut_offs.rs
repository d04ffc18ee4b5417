//! The part of the index that holds cut-offs: revocations of all sessions of a tenant or a subject
//! that were created up to an instant.

use std::{
    collections::HashSet,
    hash::RandomState,
    sync::atomic::{AtomicUsize, Ordering},
};

use dashmap::DashMap;

use crate::domain::{
    ids::SessionId,
    revocation::{CutOff, Revoked, cut_off_key, read_cut_off_key},
    text::{Subject, Tenant},
    time::Timestamp,
};

/// The cut-offs, each with the instant after which it may be dropped.
#[derive(Debug)]
pub struct CutOffs {
    by_key: DashMap<String, (CutOff, Timestamp)>,
    tenants: AtomicUsize,
    subjects: AtomicUsize,
}

impl CutOffs {
    /// Creates an empty collection whose map has this many shards. Each shard has a lock of its
    /// own.
    pub fn new(shards: usize) -> Self {
        Self {
            by_key: DashMap::with_hasher_and_shard_amount(RandomState::new(), shards),
            tenants: AtomicUsize::new(0),
            subjects: AtomicUsize::new(0),
        }
    }

    /// Adds a cut-off. Sessions that an earlier cut-off covers stay covered.
    pub fn apply(
        &self,
        tenant: &str,
        subject: Option<&str>,
        cut_off: CutOff,
        expires_at: Timestamp,
    ) {
        let mut is_new = false;
        let mut existing = self.by_key.entry(cut_off_key(tenant, subject)).or_insert_with(|| {
            is_new = true;
            (cut_off, expires_at)
        });
        *existing = (existing.0.union(cut_off), existing.1.max(expires_at));
        drop(existing);
        if is_new {
            self.count(subject.is_some()).fetch_add(1, Ordering::Release);
        }
    }

    fn count(&self, is_subject: bool) -> &AtomicUsize {
        if is_subject { &self.subjects } else { &self.tenants }
    }

    /// Returns whether a session is covered by the cut-off of its tenant or of its subject. While
    /// there are no cut-offs, the counters save the look-ups.
    pub fn cover(&self, session: SessionId, tenant: &str, subject: &str) -> bool {
        let is_covered =
            |key: &str| self.by_key.get(key).is_some_and(|existing| existing.0.covers(session));
        (self.tenants.load(Ordering::Acquire) > 0 && is_covered(tenant))
            || (self.subjects.load(Ordering::Acquire) > 0
                && is_covered(&cut_off_key(tenant, Some(subject))))
    }

    /// Returns the number of cut-offs.
    pub fn len(&self) -> usize {
        self.tenants.load(Ordering::Relaxed) + self.subjects.load(Ordering::Relaxed)
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
            let (tenant, subject) = read_cut_off_key(entry.key());
            let tenant = Tenant::try_from(tenant.to_owned()).ok()?;
            let subject =
                subject.map(|subject| Subject::try_from(subject.to_owned())).transpose().ok()?;
            Some((Revoked::all(tenant, subject, cut_off), expires_at))
        })
    }

    /// Drops the cut-offs that expired up to `until`, except those whose key ([`cut_off_key`]) is
    /// in `kept`.
    pub fn purge(&self, until: Timestamp, kept: &HashSet<String>) {
        let mut gone = [0, 0];
        self.by_key.retain(|key, (_, expires_at)| {
            let keep = *expires_at > until || kept.contains(key);
            let [tenants, subjects] = &mut gone;
            let count = if read_cut_off_key(key).1.is_some() { subjects } else { tenants };
            *count += usize::from(!keep);
            keep
        });
        let [tenants, subjects] = gone;
        self.tenants.fetch_sub(tenants, Ordering::Release);
        self.subjects.fetch_sub(subjects, Ordering::Release);
    }
}
