//! The index: the blacklist in memory, which Validate looks up instead of the database.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicI64, AtomicUsize, Ordering},
};

use dashmap::DashMap;

use crate::{
    cut_off::{Coverable, CutOffKey},
    cut_offs::CutOffs,
    ids::{AuthenticationId, SessionId, TokenId},
    revocation::{FeedEntry, RETENTION_MARGIN, Revoked},
    time::Timestamp,
};

/// The sessions, tokens and cut-offs that are no longer accepted. All calls share the
/// index, but there is no lock that every call takes.
///
/// Session and token identifiers share one map. They are UUIDs of different versions, so they never
/// collide. An entry takes 25 bytes, plus at most 48 bytes of unused capacity in the map.
#[derive(Debug)]
pub struct Index {
    /// The entries of sessions and tokens by their identifiers.
    ids: DashMap<[u8; 16], IdEntry>,
    id_count: AtomicUsize,
    cut_offs: CutOffs,
    /// Makes the marks of tenants.
    tenant_hash: RandomState,
    /// The purge watermark in microseconds; see [`Index::is_below_purge_watermark`].
    purge_watermark: AtomicI64,
}

/// The entry of an identifier.
#[derive(Clone, Copy, Debug)]
struct IdEntry {
    /// The second after which the entry may be dropped.
    second: u32,
    tenant: TenantMark,
}

/// A hash of the name of a tenant. It selects the entries that a watcher gets whose caller is
/// limited to some tenants. If two tenants had the same hash, it would get meaningless identifiers
/// of the other tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantMark(u32);

/// All entries of an index.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The entries of sessions and tokens: each with its tenant, and the instant from which it may
    /// be dropped.
    pub ids: Vec<([u8; 16], TenantMark, Timestamp)>,
    /// The cut-offs, each with the instant from which it may be dropped.
    pub cut_offs: Vec<(Revoked, Timestamp)>,
}

/// Tells by the version of the UUID whether an identifier belongs to a session or a token.
pub fn revoked_id(id: [u8; 16]) -> Revoked {
    match id.get(6).map(|byte| byte >> 4) {
        Some(7) => Revoked::Session(SessionId::from_bytes(id)),
        _ => Revoked::Token(TokenId::from_bytes(id)),
    }
}

/// The number of shards of a map. Each shard has a lock of its own. The number is large, so that
/// the shards are small, and a look-up never waits long while expired entries are dropped from its
/// shard.
const SHARDS: usize = 256;

impl Default for Index {
    fn default() -> Self {
        Self {
            ids: DashMap::with_shard_amount(SHARDS),
            id_count: AtomicUsize::new(0),
            cut_offs: CutOffs::new(SHARDS),
            tenant_hash: RandomState::new(),
            purge_watermark: AtomicI64::new(i64::MIN),
        }
    }
}

impl IdEntry {
    /// Returns the instant from which the entry may be dropped, in whole seconds. The second was
    /// rounded up when the entry was added.
    fn expires_at(self) -> Timestamp {
        Timestamp::from_seconds(i64::from(self.second) - 1)
    }
}

impl Index {
    /// Adds an entry. If the index already has an entry for the same target, the later of the two
    /// expiries is kept, and what either cut-off covers stays covered. The new entry does not
    /// simply replace the other, because a database that was set back may have older values than
    /// the index.
    pub fn apply(&self, entry: &FeedEntry) {
        match &entry.revoked {
            Revoked::Session(id) => self.insert_id(*id.bytes(), entry),
            Revoked::Token(id) => self.insert_id(*id.bytes(), entry),
            Revoked::Sessions { key, cut_off } => {
                self.cut_offs.apply(key, *cut_off, entry.expires_at);
            }
        }
    }

    /// Returns the mark of a tenant.
    pub fn tenant_mark(&self, tenant: &str) -> TenantMark {
        let [a, b, c, d, ..] = self.tenant_hash.hash_one(tenant).to_le_bytes();
        TenantMark(u32::from_le_bytes([a, b, c, d]))
    }

    /// Copies all entries. Entries that are added meanwhile may be missing.
    pub fn snapshot(&self) -> Snapshot {
        let ids = self.ids.iter().map(|item| {
            let expires_at = item.value().expires_at();
            (*item.key(), item.value().tenant, expires_at)
        });
        Snapshot { ids: ids.collect(), cut_offs: self.cut_offs.all().collect() }
    }

    fn insert_id(&self, id: [u8; 16], entry: &FeedEntry) {
        // The second is rounded up, so that no entry is dropped too early.
        let second =
            u32::try_from(entry.expires_at.seconds().saturating_add(1)).unwrap_or(u32::MAX);
        let tenant = entry
            .tenant
            .as_ref()
            .map_or_else(TenantMark::default, |tenant| self.tenant_mark(tenant));
        let mut is_new = false;
        self.ids
            .entry(id)
            .and_modify(|existing| existing.second = second.max(existing.second))
            .or_insert_with(|| {
                is_new = true;
                IdEntry { second, tenant }
            });
        if is_new {
            self.id_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns whether an entry stops a token of a session. The entry may be for the token, the
    /// authentication that it rests on, or its session, or be a cut-off that covers the session.
    /// Without an authentication, the token rests on that with which the session was created.
    pub fn stops(
        &self,
        session: &Coverable<'_>,
        token: TokenId,
        authentication: Option<AuthenticationId>,
    ) -> bool {
        let authentication =
            authentication.unwrap_or_else(|| AuthenticationId::first_of(session.id));
        self.ids.contains_key(session.id.bytes())
            || self.ids.contains_key(token.bytes())
            || self.ids.contains_key(authentication.bytes())
            || self.cut_offs.cover(session)
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.id_count.load(Ordering::Relaxed) + self.cut_offs.len()
    }

    /// Returns whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether a sweep may have deleted an entry that stops a token with this expiry. Such
    /// a token counts as expired whatever the clock says. Otherwise a revoked token would become
    /// valid again if the clock went back after the sweep.
    pub fn is_below_purge_watermark(&self, token_expires_at: Timestamp) -> bool {
        token_expires_at.plus(RETENTION_MARGIN).micros()
            <= self.purge_watermark.load(Ordering::Acquire)
    }

    /// Returns the purge watermark.
    pub fn purge_watermark(&self) -> Timestamp {
        Timestamp::from_micros(self.purge_watermark.load(Ordering::Acquire))
    }

    /// Raises the purge watermark to `latest`, the latest expiry of an entry that a sweep has
    /// deleted. This must happen before such entries are dropped from the index. The watermark
    /// never goes back.
    pub fn raise_purge_watermark(&self, latest: Timestamp) {
        self.purge_watermark.fetch_max(latest.micros(), Ordering::AcqRel);
    }

    /// Returns the entries that are missing from `other`, with their expiries. If `other` holds
    /// what the database has, these are the entries that the database has lost. Entries for
    /// sessions and tokens that a sweep may have deleted are left out.
    pub fn missing_from(&self, other: &Self) -> Vec<(Revoked, Timestamp)> {
        let purge_watermark = self.purge_watermark();
        let ids = self.ids.iter().filter_map(|entry| {
            let is_missing = entry.value().expires_at() > purge_watermark
                && !other.ids.contains_key(entry.key());
            let second = Timestamp::from_seconds(i64::from(entry.value().second));
            is_missing.then(|| (revoked_id(*entry.key()), second))
        });
        // Cut-offs are not filtered by their expiry, because the database keeps them while it still
        // has to mark sessions as ended.
        ids.chain(self.cut_offs.missing_from(&other.cut_offs)).collect()
    }

    /// Drops the entries that expired up to `until`, except cut-offs whose key is in `kept`. The
    /// purge watermark must have been raised to `until` before this call.
    ///
    /// The tokens that a dropped entry stops are below the watermark, so they count as expired
    /// whatever the clock says. Fractions of a second in the expiry of an entry make no difference,
    /// because tokens expire at whole seconds.
    pub fn purge(&self, until: Timestamp, kept: &HashSet<CutOffKey>) {
        let mut gone = 0;
        self.ids.retain(|_, entry| {
            let keep = entry.expires_at().seconds() > until.seconds();
            gone += usize::from(!keep);
            keep
        });
        self.id_count.fetch_sub(gone, Ordering::Relaxed);

        self.cut_offs.purge(until, kept);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        cut_off::{CutOff, Scope},
        revocation::Seq,
        text::{ClientId, Subject, Tenant},
    };

    const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);

    fn entry(revoked: Revoked, expires_at: Timestamp) -> FeedEntry {
        FeedEntry { seq: Seq(1), revoked, tenant: None, expires_at }
    }

    fn session(at: Timestamp) -> SessionId {
        SessionId::new(at, [1; 10])
    }

    const TOKEN: [u8; 16] = [2; 16];

    /// Returns the revocation of all sessions of the subject "alice", or of all but one.
    fn of_alice(tenant: &Tenant, up_to: Timestamp, spared: Option<SessionId>) -> Revoked {
        let subject = Subject::try_from("alice".to_owned()).unwrap();
        let key = CutOffKey::created(Scope::Subject(tenant.clone(), subject));
        Revoked::Sessions { key, cut_off: CutOff { up_to, spared } }
    }

    fn of_tenant(tenant: &Tenant, up_to: Timestamp) -> Revoked {
        let key = CutOffKey::created(Scope::Tenant(tenant.clone()));
        Revoked::Sessions { key, cut_off: CutOff::up_to(up_to) }
    }

    /// A session of the client "web", whose user authenticated a second before its creation.
    fn coverable<'a>(id: SessionId, tenant: &'a str, subject: &'a str) -> Coverable<'a> {
        let authenticated_at = NOW.minus(Duration::from_secs(1));
        Coverable { id, tenant, subject, client_id: "web", authenticated_at }
    }

    fn stops(index: &Index, id: SessionId, token: [u8; 16], tenant: &str, subject: &str) -> bool {
        index.stops(&coverable(id, tenant, subject), TokenId::new(token), None)
    }

    #[test]
    fn a_token_is_stopped_by_entries_of_the_token_its_session_subject_and_tenant() {
        let tenant = Tenant::try_from("acme".to_owned()).unwrap();
        let stops = |revoked| {
            let index = Index::default();
            assert!(!stops(&index, session(NOW), TOKEN, "acme", "alice"));
            index.apply(&entry(revoked, NOW));
            stops(&index, session(NOW), TOKEN, "acme", "alice")
        };
        let before = NOW.minus(Duration::from_millis(1));
        assert!(stops(of_alice(&tenant, NOW, None)));
        assert!(!stops(of_alice(&tenant, before, None)));
        assert!(!stops(of_alice(&tenant, NOW, Some(session(NOW)))));
        assert!(!stops(of_alice(&Tenant::default(), NOW, None)));
        assert!(stops(Revoked::Session(session(NOW))));
        assert!(stops(Revoked::Token(TokenId::new(TOKEN))));
        assert!(stops(of_tenant(&tenant, NOW)));
        assert!(!stops(of_tenant(&tenant, before)));
        assert!(!stops(of_tenant(&Tenant::default(), NOW)));
        assert!(!stops(Revoked::Session(session(NOW.plus(Duration::from_millis(1))))));
    }

    #[test]
    fn a_token_is_stopped_by_the_cut_offs_of_its_client_and_of_its_authentication() {
        let tenant = |name: &str| Tenant::try_from(name.to_owned()).unwrap();
        let client_id = |name: &str| ClientId::try_from(name.to_owned()).unwrap();
        let before = |instant: Timestamp| CutOff::up_to(instant.minus(Duration::from_micros(1)));
        let stops = |key, cut_off| {
            let index = Index::default();
            index.apply(&entry(Revoked::Sessions { key, cut_off }, NOW));
            let is_stopped = stops(&index, session(NOW), TOKEN, "acme", "alice");
            index.purge(NOW, &HashSet::new());
            assert!(index.is_empty() && !stops(&index, session(NOW), TOKEN, "acme", "alice"));
            is_stopped
        };
        for (scope, is_ours) in [
            (Scope::Everywhere, true),
            (Scope::Tenant(tenant("acme")), true),
            (Scope::Tenant(tenant("")), false),
            (Scope::Client(tenant("acme"), client_id("web")), true),
            (Scope::Client(tenant("acme"), client_id("app")), false),
            (Scope::Client(tenant(""), client_id("web")), false),
            (Scope::ClientEverywhere(client_id("web")), true),
            (Scope::ClientEverywhere(client_id("app")), false),
        ] {
            let created = CutOffKey::created(scope.clone());
            assert_eq!(stops(created.clone(), CutOff::up_to(NOW)), is_ours, "{created:?}");
            assert!(!stops(created, before(NOW)));
            let authenticated = CutOffKey::authenticated(scope).unwrap();
            assert_eq!(stops(authenticated.clone(), before(NOW)), is_ours, "{authenticated:?}");
            assert!(!stops(authenticated, before(NOW.minus(Duration::from_secs(1)))));
        }
    }

    #[test]
    fn an_entry_is_dropped_only_after_it_has_expired() {
        let index = Index::default();
        index.apply(&entry(Revoked::Session(session(NOW)), NOW));
        index.purge(NOW.minus(Duration::from_micros(1)), &HashSet::new());
        assert_eq!(index.len(), 1);
        index.purge(NOW, &HashSet::new());
        assert!(index.is_empty());
        assert!(!stops(&index, session(NOW), TOKEN, "", ""));
    }

    #[test]
    fn an_entry_that_is_applied_again_is_counted_once() {
        let index = Index::default();
        for _ in 0..3 {
            index.apply(&entry(Revoked::Session(session(NOW)), NOW));
            index.apply(&entry(of_tenant(&Tenant::default(), NOW), NOW));
            index.apply(&entry(of_alice(&Tenant::default(), NOW, None), NOW));
        }
        assert_eq!(index.len(), 3);
    }

    #[test]
    fn entries_that_are_missing_from_another_index_are_found() {
        let acme = Tenant::try_from("acme".to_owned()).unwrap();
        let (token, later) = (TokenId::new(TOKEN), NOW.plus(Duration::from_secs(9)));
        let tenant_up_to = |up_to| of_tenant(&acme, up_to);
        let index = Index::default();
        for revoked in [Revoked::Session(session(NOW)), Revoked::Token(token), tenant_up_to(later)]
        {
            index.apply(&entry(revoked, later));
        }
        let other = Index::default();
        other.apply(&entry(Revoked::Session(session(NOW)), NOW));
        other.apply(&entry(tenant_up_to(NOW), NOW));
        let mut missing = index.missing_from(&other);
        missing.sort_by_key(|(revoked, _)| matches!(revoked, Revoked::Sessions { .. }));
        let rounded_up = later.plus(Duration::from_secs(1));
        assert_eq!(missing, [(Revoked::Token(token), rounded_up), (tenant_up_to(later), later)]);
        assert_eq!(other.missing_from(&index), []);
        // A missing cut-off of a subject is found even if the two cut-offs differ only in the
        // session that they spare.
        let alices = |spared| of_alice(&acme, NOW, spared);
        other.apply(&entry(alices(Some(session(NOW))), later));
        assert!(index.missing_from(&other).iter().all(|(revoked, _)| *revoked != alices(None)));
        index.apply(&entry(alices(None), later));
        assert!(index.missing_from(&other).contains(&(alices(None), later)));
        other.apply(&entry(alices(None), later));
        assert!(!index.missing_from(&other).contains(&(alices(None), later)));

        index.apply(&entry(tenant_up_to(NOW), NOW));
        assert!(
            stops(&index, session(later), [3; 16], "acme", "bob"),
            "the older cut-off does not undo the newer one"
        );
        index.raise_purge_watermark(later);
        assert_eq!(
            index.missing_from(&other),
            [(tenant_up_to(later), later)],
            "a sweep may have deleted the entries of sessions and tokens"
        );
    }

    #[test]
    fn a_token_below_the_purge_watermark_stays_expired() {
        let index = Index::default();
        assert!(!index.is_below_purge_watermark(NOW), "no sweep has deleted anything yet");
        index.raise_purge_watermark(NOW);
        let edge = NOW.minus(RETENTION_MARGIN);
        assert!(!index.is_below_purge_watermark(edge.plus(Duration::from_micros(1))));
        assert!(
            index.is_below_purge_watermark(edge),
            "the deleted entry may have been for this token"
        );
        index.raise_purge_watermark(NOW.minus(Duration::from_secs(1000)));
        assert!(index.is_below_purge_watermark(edge), "the watermark never goes back");
    }

    #[test]
    fn purge_keeps_an_expired_cut_off_whose_key_it_is_told_to_keep() {
        let index = Index::default();
        let tenant = Tenant::try_from("acme".to_owned()).unwrap();
        index.apply(&entry(of_tenant(&tenant, NOW), NOW));
        let later = NOW.plus(Duration::from_secs(10));
        index.purge(later, &HashSet::from([CutOffKey::created(Scope::Tenant(tenant.clone()))]));
        assert!(stops(&index, session(NOW), [3; 16], "acme", "bob"));
        index.purge(later, &HashSet::new());
        assert!(!stops(&index, session(NOW), [3; 16], "acme", "bob"));
    }
}
