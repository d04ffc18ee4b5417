//! Background work for problems that the answers to renewals reveal: writes lost revocations again,
//! and removes replicas that are gone.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::{task::JoinSet, time::sleep};

use super::replica::Replica;
use crate::{
    clock::Clock,
    domain::{
        revocation::{Revocation, Revoked, Timeline},
        session::{EndReason, Ended},
        text::Note,
        time::Timestamp,
    },
    store::{Store, StoreError, replicas::Other},
};

/// The pause before another attempt after the database has failed.
pub(super) const RETRY: Duration = Duration::from_millis(100);

/// The number of lost revocations that are written again at the same time.
const RESTORED_AT_ONCE: usize = 512;

/// The background tasks. They are aborted when this value is dropped.
pub struct Recovery {
    replica: Arc<Replica>,
    store: Arc<dyn Store>,
    tasks: JoinSet<()>,
}

impl Recovery {
    /// Creates the value without any tasks.
    pub fn new(replica: Arc<Replica>, store: Arc<dyn Store>) -> Self {
        Self { replica, store, tasks: JoinSet::new() }
    }

    /// Releases the tasks that have finished.
    pub fn tidy(&mut self) {
        while self.tasks.try_join_next().is_some() {}
    }

    /// Carries out again the revocations that the index has and the database has lost. Writing only
    /// the blacklist entries would not be enough, because the database has also lost the fact that
    /// the sessions have ended.
    pub fn restore(&mut self, lost: Vec<(Revoked, Timestamp)>) {
        tracing::error!(
            revocations = lost.len(),
            "the database has lost revocations that had been acknowledged, as in a failover to a \
             standby that had not received them; they are written again"
        );
        self.replica.counts().lost_revocations.inc_by(lost.len() as u64);
        let store = self.store.clone();
        let replica = self.replica.clone();
        let now = replica.clock.now();
        self.tasks.spawn(async move {
            // Many run at the same time, because each revocation waits for its acknowledgement.
            let restoring = stream::iter(lost).for_each_concurrent(
                RESTORED_AT_ONCE,
                async |(revoked, expires_at)| {
                    let ended =
                        Ended { at: now, reason: EndReason::Unspecified, note: Note::default() };
                    let revocation = Revocation::of_lost(revoked, None, ended, expires_at);
                    while let Err(error) = restore(&*store, &replica, &revocation).await {
                        tracing::warn!(%error, "a lost revocation cannot be written again yet");
                        sleep(RETRY).await;
                    }
                },
            );
            restoring.await;
            tracing::info!("the lost revocations are in effect again");
        });
    }

    /// Removes a replica that has not renewed for so long that its last lease must have ended.
    pub fn remove(&mut self, other: Other) {
        let (store, replica) = (self.store.clone(), self.replica.clone());
        self.tasks.spawn(async move {
            let Some(members) = store.members() else { return };
            match members.remove(other.incarnation, other.renewals).await {
                Ok(true) => {
                    replica.counts().removals.inc();
                    let replica = &other.incarnation;
                    tracing::warn!(%replica, "a replica stopped without leaving");
                }
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "a replica that is gone cannot be removed"),
            }
        });
    }

    /// Records that the table `replicas` is complete in the timeline `now`: all replicas that it
    /// may lack in this timeline have lost their leases.
    pub fn settle(&mut self, before: Timeline, now: Timeline) {
        let store = self.store.clone();
        self.tasks.spawn(async move {
            let Some(members) = store.members() else { return };
            match members.settle(before, now).await {
                Ok(()) => tracing::info!("the replicas are complete again after a failover"),
                Err(error) => {
                    tracing::debug!(%error, "the replicas cannot be recorded as complete yet")
                }
            }
        });
    }
}

async fn restore(
    store: &dyn Store,
    replica: &Replica,
    revocation: &Revocation,
) -> Result<(), StoreError> {
    let epoch = replica.epoch();
    let position = store.revoke(revocation.clone()).await?.position;
    replica
        .acknowledged(epoch, position)
        .await
        .map_err(|error| StoreError::Unavailable(error.to_string()))
}
