//! Holds the key ring of this process, and reloads it when the ring in the database changes.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Guard};

use super::{ring::KeyRing, sealing::MasterKeys};
use crate::{
    domain::{key::RingVersion, revocation::Timeline},
    store::{StoreError, replicas::RenewalClient, ring::SealedRing},
};

/// Holds the ring that is in use, and the master keys that open new versions of the ring.
pub struct Keeper {
    masters: MasterKeys,
    ring: ArcSwap<KeyRing>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("ring", &self.ring.load()).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Creates a keeper of a ring that was opened by these master keys.
    pub fn new(masters: MasterKeys, ring: KeyRing) -> Self {
        Self { masters, ring: ArcSwap::from_pointee(ring) }
    }

    /// Returns the current ring.
    pub fn ring(&self) -> Guard<Arc<KeyRing>> {
        self.ring.load()
    }

    /// Returns the master keys, and drops the ring.
    pub fn into_masters(self) -> MasterKeys {
        self.masters
    }

    /// Returns the master keys.
    pub fn masters(&self) -> &MasterKeys {
        &self.masters
    }

    /// Reloads the ring if its version in the database, which a renewal has reported, differs from
    /// the version in use. Returns whether the ring was reloaded. Versions of different timelines
    /// cannot be compared, so another timeline also causes a reload.
    pub async fn follow(
        &self,
        renewals: &mut dyn RenewalClient,
        version: RingVersion,
        timeline: Timeline,
        timeout: Duration,
    ) -> Result<bool, StoreError> {
        let known = self.ring.load();
        if (known.version(), known.timeline()) == (version, timeline) {
            return Ok(false);
        }
        let ring = renewals.ring(timeout).await?;
        if ring.version < version && ring.position.timeline == timeline {
            return Err(StoreError::Unavailable("it returned older keys than before".to_owned()));
        }
        self.replace(&known, ring);
        Ok(true)
    }

    /// Replaces the ring in use, and logs what has changed.
    fn replace(&self, before: &KeyRing, ring: SealedRing) {
        let (after, problems) = before.follow(&self.masters, ring);
        for problem in problems {
            tracing::error!(%problem, "a key in the database is damaged; the other keys are used");
        }
        if before.version() != after.version() {
            tracing::info!(
                version = after.version().0,
                signing_key = after.signing().map(|key| &*key.kid),
                "the key ring has changed"
            );
        }
        if after.lost_revocations() != before.lost_revocations()
            && !after.lost_revocations().is_empty()
        {
            tracing::error!(
                keys = ?after.lost_revocations(),
                "the database has lost the revocation of keys although it had been acknowledged; \
                 these keys are revoked again"
            );
        }
        self.ring.store(Arc::new(after));
    }
}
