//! Caches tokens whose signature has been verified. To verify a cached token again takes only a
//! hash and a look-up.
//!
//! Only verified tokens and their claims are kept. Everything that can change (time, revocation,
//! the key's state, the caller's demands) is checked after each look-up.

use std::{mem::size_of, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use quick_cache::{DefaultHashBuilder, Lifecycle, Weighter, sync::Cache};

use crate::{claims::AccessClaims, counters::Counters};

/// A token whose signature was verified.
#[derive(Debug)]
pub struct VerifiedToken {
    /// The name of the key that signed it. The state of the key is checked each time.
    pub kid: String,
    /// The claims of the token.
    pub claims: AccessClaims,
}

/// The SHA-256 digest of a whole token, which is its key in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Computes the digest of a token.
    pub fn of(token: &str) -> Self {
        let mut bytes = [0; 32];
        // SHA-256 always has 32 bytes, so the digest is never left at zero.
        if let Some(whole) = digest(&SHA256, token.as_bytes()).as_ref().first_chunk() {
            bytes = *whole;
        }
        Self(bytes)
    }
}

/// The bytes that the cache itself needs for an entry: its digest, its slots in a list and in a
/// hash table, and the reference counts of its `Arc`.
const ENTRY_BYTES: usize = 128;

#[derive(Clone, Debug)]
struct ByMemory;

impl Weighter<TokenDigest, Arc<VerifiedToken>> for ByMemory {
    fn weight(&self, _: &TokenDigest, token: &Arc<VerifiedToken>) -> u64 {
        let bytes = ENTRY_BYTES + size_of::<VerifiedToken>() - size_of::<AccessClaims>()
            + token.kid.capacity();
        u64::try_from(bytes + token.claims.memory()).unwrap_or(u64::MAX)
    }
}

/// The numbers of the counters.
const HITS: usize = 0;
const MISSES: usize = 1;
const EVICTIONS: usize = 2;

/// Counts the tokens that are evicted.
#[derive(Clone, Debug)]
struct CountEvictions(Arc<Counters>);

impl Lifecycle<TokenDigest, Arc<VerifiedToken>> for CountEvictions {
    /// The last token that a call has evicted, which is dropped after the lock is released. A call
    /// seldom evicts more than one.
    type RequestState = Option<Arc<VerifiedToken>>;

    fn on_evict(
        &self,
        evicted: &mut Self::RequestState,
        _: TokenDigest,
        token: Arc<VerifiedToken>,
    ) {
        self.0.increment(EVICTIONS);
        *evicted = Some(token);
    }
}

/// A bounded cache that all calls share. There is no single lock that every call would take.
#[derive(Debug)]
pub struct VerifiedCache {
    tokens: Cache<TokenDigest, Arc<VerifiedToken>, ByMemory, DefaultHashBuilder, CountEvictions>,
    counters: Arc<Counters>,
}

/// The counts of the cache since the start of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheCounts {
    /// The number of look-ups that found the token.
    pub hits: u64,
    /// The number of look-ups that did not find the token.
    pub misses: u64,
    /// The tokens that made room for others.
    pub evictions: u64,
    /// The tokens in the cache.
    pub tokens: usize,
    /// The memory of the tokens in the cache.
    pub bytes: u64,
}

impl VerifiedCache {
    /// Creates a cache whose tokens take at most about this many bytes of memory. A cache of zero
    /// bytes keeps no tokens.
    pub fn with_capacity(bytes: u64) -> Self {
        const USUAL_TOKEN: u64 = 1024;
        let items = usize::try_from(bytes / USUAL_TOKEN).unwrap_or(usize::MAX);
        let counters = Arc::new(Counters::new(3));
        let lifecycle = CountEvictions(counters.clone());
        let hasher = DefaultHashBuilder::default();
        Self { tokens: Cache::with(items, bytes, ByMemory, hasher, lifecycle), counters }
    }

    /// Returns the token with this digest, if it is cached.
    pub fn get(&self, digest: &TokenDigest) -> Option<Arc<VerifiedToken>> {
        let found = self.tokens.get(digest);
        self.counters.increment(if found.is_some() { HITS } else { MISSES });
        found
    }

    /// Adds a token.
    pub fn insert(&self, digest: TokenDigest, token: Arc<VerifiedToken>) {
        self.tokens.insert(digest, token);
    }

    /// Returns the counts.
    pub fn counts(&self) -> CacheCounts {
        CacheCounts {
            hits: self.counters.get(HITS),
            misses: self.counters.get(MISSES),
            evictions: self.counters.get(EVICTIONS),
            tokens: self.tokens.len(),
            bytes: self.tokens.weight(),
        }
    }
}
