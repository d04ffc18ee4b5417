//! Reads the feed. Only one process uses the file, so there are no other replicas to inform.

use std::time::Duration;

use async_trait::async_trait;
use diesel::{ExpressionMethods, QueryDsl, SelectableHelper, dsl, sql_types::BigInt};
use diesel_async::{RunQueryDsl, pooled_connection::bb8::Pool};
use uuid::Uuid;

use super::{
    Connection, TIMELINE, connection, ring,
    rows::FeedRow,
    schema::{blacklist, key_ring, sweeper},
    writes::HEAD,
};
use crate::{
    domain::{
        key::RingVersion,
        revocation::{FeedPosition, Seq},
        time::Timestamp,
    },
    store::{
        FeedEntry, StoreError,
        replicas::{Answer, Newcomer, RenewalClient, RenewalOutcome, RenewalRequest},
        ring::SealedRing,
    },
};

/// A client that reads the feed over connections of its own.
pub struct SqliteRenewalClient {
    feed: Pool<Connection>,
}

impl SqliteRenewalClient {
    /// Creates a client that reads over the connections of a pool.
    pub fn new(feed: Pool<Connection>) -> Self {
        Self { feed }
    }
}

#[async_trait]
impl RenewalClient for SqliteRenewalClient {
    /// No other process can serve from the file, so there is no register to join.
    async fn join(&mut self, _: Newcomer, _: Duration) -> Result<Seq, StoreError> {
        Ok(Seq::default())
    }

    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome, StoreError> {
        let mut connection = connection(&self.feed).await?;
        // The head is read before the entries and the keys, so they are complete up to it.
        let head: i64 = dsl::select(dsl::sql::<BigInt>(HEAD)).get_result(&mut connection).await?;
        let rows = blacklist::table
            .filter(blacklist::seq.gt(renewal.after.0))
            .order(blacklist::seq.asc())
            .limit(renewal.limit)
            .select(FeedRow::as_select())
            .load(&mut connection)
            .await?;
        let entries: Vec<FeedEntry> =
            rows.into_iter().map(FeedEntry::try_from).collect::<Result<_, _>>()?;
        // The watermark is read after the entries. So it covers all entries that were deleted
        // before the entries were read.
        let purge_watermark =
            sweeper::table.select(sweeper::forgotten_until).get_result(&mut connection).await?;
        let ring = key_ring::table.select(key_ring::version).get_result(&mut connection).await?;
        let seq = entries.last().map_or(Seq(head), |entry| entry.seq.max(Seq(head)));
        Ok(RenewalOutcome::Answer(Answer {
            database: Uuid::nil(),
            head: FeedPosition { timeline: TIMELINE, seq },
            settled: TIMELINE,
            entries,
            ring: RingVersion(ring),
            purge_watermark: Timestamp::from_micros(purge_watermark),
            now: None,
            others: vec![],
        }))
    }

    async fn ring(&mut self, _: Duration) -> Result<SealedRing, StoreError> {
        let mut connection = connection(&self.feed).await?;
        // The version is read before the keys. So the keys may be newer than the version, but never
        // older.
        connection.spawn_blocking(|connection| Ok(ring::ring(connection))).await?
    }
}
