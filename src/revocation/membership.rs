//! Keeps this process in the register of the replicas, with how far its index has come, and removes from it those that have
//! gone without a word. A database with one process has no register, and then there is nothing to do.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::feed::Feed;
use crate::{
    domain::ids::Incarnation,
    rng::RngFailed,
    store::{
        Store, StoreError,
        members::{Member, Members, Newcomer},
    },
};

/// How often a replica renews its row, and looks at those of the others.
const RENEW_EVERY: Duration = Duration::from_millis(500);
/// A replica whose row stood still for this long is gone.
const GONE_AFTER: Duration = Duration::from_secs(10);

/// This process among the replicas.
pub struct Membership {
    store: Arc<dyn Store>,
    feed: Arc<Feed>,
    /// Draws a life of this replica.
    newcomer: Box<dyn Fn() -> Result<Newcomer, RngFailed> + Send + Sync>,
    /// The life whose row there is.
    current: Mutex<Option<Incarnation>>,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").field("current", &self.current).finish_non_exhaustive()
    }
}

impl Membership {
    /// Not a member yet; `newcomer` draws a new life of this replica.
    pub fn new(
        store: Arc<dyn Store>,
        feed: Arc<Feed>,
        newcomer: impl Fn() -> Result<Newcomer, RngFailed> + Send + Sync + 'static,
    ) -> Self {
        Self { store, feed, newcomer: Box::new(newcomer), current: Mutex::default() }
    }

    /// Joins. The index is to be loaded only after that: who revokes from now on knows of this replica.
    pub async fn join(&self) -> Result<(), StoreError> {
        let Some(members) = self.store.members() else { return Ok(()) };
        let newcomer = (self.newcomer)().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let incarnation = newcomer.incarnation;
        members.join(newcomer).await?;
        self.set(Some(incarnation));
        Ok(())
    }

    /// Renews the row for as long as it is let run.
    pub async fn keep(&self) {
        let Some(members) = self.store.members() else { return std::future::pending().await };
        let mut others = Others::default();
        let mut ticks = interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.renew(members, &mut others).await {
                tracing::debug!(%error, "this replica's row cannot be renewed");
            }
        }
    }

    /// Leaves. If this fails, the others find out.
    pub async fn leave(&self) {
        if let (Some(members), Some(incarnation)) = (self.store.members(), self.current())
            && let Err(error) = members.leave(incarnation).await
        {
            tracing::debug!(%error, "this replica's row is left behind");
        }
    }

    async fn renew(&self, members: &dyn Members, others: &mut Others) -> Result<(), StoreError> {
        let renewed = match self.current() {
            Some(incarnation) => members.renew(incarnation, self.feed.applied()).await?,
            None => None,
        };
        if renewed.is_none() {
            tracing::warn!("this replica was taken for gone; it joins again");
            self.set(None);
            self.join().await?;
        }
        for gone in others.look(members.list().await?, Instant::now()) {
            if members.remove(gone.incarnation, gone.renewals).await? {
                tracing::warn!(replica = %gone.incarnation, name = gone.name, "a replica has gone without a word");
            }
        }
        Ok(())
    }

    fn current(&self) -> Option<Incarnation> {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, incarnation: Option<Incarnation>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = incarnation;
    }
}

/// The rows as they were seen, and since when they have stood still.
#[derive(Default)]
struct Others(HashMap<Incarnation, (i64, Instant)>);

impl Others {
    /// Takes note of the rows, and returns those that have stood still for too long.
    fn look(&mut self, rows: Vec<Member>, now: Instant) -> Vec<Member> {
        self.0.retain(|incarnation, _| rows.iter().any(|row| row.incarnation == *incarnation));
        rows.into_iter()
            .filter(|row| {
                let (renewals, since) = self.0.entry(row.incarnation).or_insert((row.renewals, now));
                if *renewals != row.renewals {
                    (*renewals, *since) = (row.renewals, now);
                }
                now.duration_since(*since) > GONE_AFTER
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{revocation::Seq, time::Timestamp};

    fn row(incarnation: u8, renewals: i64) -> Member {
        let at = Timestamp::from_seconds(0);
        let (name, version) = ("host".to_owned(), "0".to_owned());
        let incarnation = Incarnation::new([incarnation; 16]);
        Member { incarnation, name, version, joined_at: at, renewed_at: at, renewals, applied: Seq(0) }
    }

    #[tokio::test]
    async fn a_row_is_gone_when_it_has_stood_still_for_long_enough_under_our_eyes() {
        let mut others = Others::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(others.look(vec![row(1, 5), row(2, 5)], at(0)), []);
        assert_eq!(others.look(vec![row(1, 6), row(2, 5)], at(9)), []);
        assert_eq!(others.look(vec![row(1, 6), row(2, 5), row(3, 0)], at(11)), [row(2, 5)]);
        assert_eq!(others.look(vec![row(1, 6), row(3, 0)], at(20)), [row(1, 6)]);
        assert_eq!(others.look(vec![row(2, 5)], at(22)), [], "who comes back is looked at anew");
    }
}
