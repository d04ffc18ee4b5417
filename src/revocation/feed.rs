//! Keeps the index fresh: reads new blacklist entries in the order of their commits, and alone writes to the index.
//!
//! Whoever revokes waits here until the entry has been applied. So a caller that goes away in the middle cannot leave the
//! index behind the database, and one way serves entries of this process and of others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};

use super::index::Index;
use crate::{
    domain::revocation::{Revoked, Seq},
    store::{Store, StoreError},
};

/// Entries read at a time.
const PAGE: i64 = 10_000;
/// How long to wait before reading again after the database failed.
const RETRY: Duration = Duration::from_millis(200);

/// The index and how far it has come.
#[derive(Debug)]
pub struct Feed {
    index: Index,
    /// The last entry applied; none before the first load is complete.
    applied: watch::Sender<Option<Seq>>,
    /// Whether that load is complete. Beside the channel, because looking into it takes a lock.
    loaded: AtomicBool,
    /// Wakes the job that ends the sessions of revoked tenants.
    tenant_revoked: Notify,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            index: Index::default(),
            applied: watch::channel(None).0,
            loaded: AtomicBool::new(false),
            tenant_revoked: Notify::new(),
        }
    }
}

impl Feed {
    /// The index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Whether the index may be trusted: it has been loaded. Ask it *before* a look-up, which then finds all that
    /// was loaded.
    pub fn is_current(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Waits until a tenant's entry has been applied, if none has since the last time.
    pub async fn tenant_revoked(&self) {
        self.tenant_revoked.notified().await;
    }

    /// Up to where the feed has been applied.
    pub fn applied(&self) -> Seq {
        self.applied.borrow().unwrap_or_default()
    }

    /// Waits until the entry at `seq`, and with it all before it, has been applied.
    pub async fn reach(&self, seq: Seq) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.applied.subscribe().wait_for(|applied| *applied >= Some(seq)).await;
    }

    /// Loads the whole blacklist. Until this is done the index may not be trusted.
    pub async fn load(&self, store: &dyn Store) -> Result<(), StoreError> {
        self.index.set_forgotten_until(store.forgotten_until().await?);
        let last = self.catch_up(store, Seq::default()).await?;
        self.applied.send_replace(Some(last));
        self.loaded.store(true, Ordering::Release);
        Ok(())
    }

    /// Applies new entries as they come, for as long as it is let run.
    pub async fn follow(&self, store: Arc<dyn Store>) {
        let mut hints = store.revocation_hints();
        loop {
            // Armed before reading: an entry that is committed while we read wakes us again.
            hints.borrow_and_update();
            let after = self.applied();
            match self.catch_up(&*store, after).await {
                Ok(last) if last == after => {
                    if hints.changed().await.is_err() {
                        return;
                    }
                }
                Ok(last) => {
                    self.applied.send_replace(Some(last));
                }
                Err(error) => {
                    tracing::error!(%error, "revocations cannot be read; trying again, none is acknowledged meanwhile");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Applies all entries after `after` and returns the last one.
    async fn catch_up(&self, store: &dyn Store, after: Seq) -> Result<Seq, StoreError> {
        let mut last = after;
        loop {
            let page = store.revocations_after(last, PAGE).await?;
            for entry in &page {
                self.index.apply(entry);
                if matches!(entry.revoked, Revoked::Tenant { .. }) {
                    self.tenant_revoked.notify_one();
                }
                last = entry.seq;
            }
            if i64::try_from(page.len()).unwrap_or(i64::MAX) < PAGE {
                return Ok(last);
            }
        }
    }
}
