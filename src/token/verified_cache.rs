//! Remembers which tokens have a good signature, so that a token seen again costs a hash and a
//! look-up.
//!
//! Only the outcome of the signature check and the claims are kept. Everything that can change
//! (time, revocation, the key's state, the caller's demands) is checked after the cache, each time.

use std::{mem::size_of, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use quick_cache::{Weighter, sync::Cache};

use crate::domain::claims::AccessClaims;

/// A token whose signature was found good.
#[derive(Debug)]
pub struct VerifiedToken {
    /// The key that signed it. Whether it still may is checked each time.
    pub kid: String,
    /// What the token says.
    pub claims: AccessClaims,
}

/// SHA-256 of a whole token: its name in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of a token.
    pub fn of(token: &str) -> Self {
        let mut bytes = [0; 32];
        // SHA-256 always has 32 bytes; a digest of zeros, should that ever change, is merely a
        // cache that never hits.
        if let Some(whole) = digest(&SHA256, token.as_bytes()).as_ref().first_chunk() {
            bytes = *whole;
        }
        Self(bytes)
    }
}

/// Bytes that the cache itself takes for an entry: its digest, its place in a list and a table, and
/// the counts of its `Arc`.
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

/// A bounded cache, shared by all calls without a lock that all of them would take.
#[derive(Debug)]
pub struct VerifiedCache(Cache<TokenDigest, Arc<VerifiedToken>, ByMemory>);

impl VerifiedCache {
    /// A cache whose tokens take about this many bytes of memory at most; zero for none.
    pub fn with_capacity(bytes: u64) -> Self {
        const USUAL_TOKEN: u64 = 1024;
        let items = usize::try_from(bytes / USUAL_TOKEN).unwrap_or(usize::MAX);
        Self(Cache::with_weighter(items, bytes, ByMemory))
    }

    /// What is known of this token.
    pub fn get(&self, digest: &TokenDigest) -> Option<Arc<VerifiedToken>> {
        self.0.get(digest)
    }

    /// Remembers a token.
    pub fn insert(&self, digest: TokenDigest, token: Arc<VerifiedToken>) {
        self.0.insert(digest, token);
    }
}
