//! The ring of this process, and how it follows the one in the database.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Guard};

use super::{ring::KeyRing, sealing::MasterKeys};
use crate::{
    domain::{key::RingVersion, revocation::Timeline},
    store::{StoreError, replicas::RenewalClient, ring::SealedRing},
};

/// Keeps the ring that is in use.
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
    /// Keeps a ring that was opened under these master keys.
    pub fn new(masters: MasterKeys, ring: KeyRing) -> Self {
        Self { masters, ring: ArcSwap::from_pointee(ring) }
    }

    /// The ring as it is now.
    pub fn ring(&self) -> Guard<Arc<KeyRing>> {
        self.ring.load()
    }

    /// What keys are sealed under, for somebody who needs the ring no more.
    pub fn into_masters(self) -> MasterKeys {
        self.masters
    }

    /// What keys are sealed under.
    pub fn masters(&self) -> &MasterKeys {
        &self.masters
    }

    /// Takes note of a version of which the database has told, and reads the ring anew if it is
    /// another one, and says whether it was. Numbers of another history say nothing.
    pub async fn follow(
        &self,
        renewals: &mut dyn RenewalClient,
        version: RingVersion,
        timeline: Timeline,
        patience: Duration,
    ) -> Result<bool, StoreError> {
        let known = self.ring.load();
        if (known.version(), known.timeline()) == (version, timeline) {
            return Ok(false);
        }
        let ring = renewals.ring(patience).await?;
        if ring.version < version && ring.position.timeline == timeline {
            return Err(StoreError::Unavailable("it told older keys than before".to_owned()));
        }
        self.take(&known, ring);
        Ok(true)
    }

    /// Uses these keys from now on.
    fn take(&self, before: &KeyRing, ring: SealedRing) {
        let (after, problems) = before.follow(&self.masters, ring);
        for problem in problems {
            tracing::error!(%problem, "a key in the database is not good; the others are used");
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
                "the database has lost the revocation of keys that had been acknowledged; they \
                 are revoked again"
            );
        }
        self.ring.store(Arc::new(after));
    }
}
