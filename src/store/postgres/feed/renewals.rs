//! The connection over which a replica renews its row and reads the feed. It is not part of the
//! pool, so that no other work delays a renewal. An answer that comes with a warning is discarded.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use diesel::{
    data_types::PgTimestamp,
    sql_types::{Array, BigInt, Bool, Interval, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    super::{
        connection::{
            connect::{Connected, Target},
            fault::Fault,
            origin::LatestTimeline,
        },
        ring,
        rows::{damaged, interval, revoked, timestamp, uuid},
        sql::statement,
    },
    replicas::span,
};
use crate::{
    domain::{
        ids::Incarnation,
        key::RingVersion,
        revocation::{FeedPosition, Seq, Timeline},
    },
    store::{
        FeedEntry, StoreError,
        replicas::{Answer, Newcomer, Other, RenewalClient, RenewalOutcome, RenewalRequest},
        ring::SealedRing,
    },
};

/// Sends renewals over one connection, which it makes when it needs one.
pub struct PostgresRenewalClient {
    target: Target,
    latest: Arc<LatestTimeline>,
    /// The connection, if there is one. It is taken out while it is used, and put back only after
    /// the server has answered.
    connection: Option<Link>,
}

/// A connection that is closed at once when it is dropped, so that an answer which arrives too late
/// is never read.
struct Link(Connected);

impl Drop for Link {
    fn drop(&mut self) {
        self.0.driver.abort();
    }
}

impl PostgresRenewalClient {
    /// Creates a client, which does not connect yet. The client records the timelines that it sees
    /// in `latest`.
    pub fn new(target: Target, latest: Arc<LatestTimeline>) -> Self {
        Self { target, latest, connection: None }
    }

    /// Takes the connection out, or makes a new one.
    async fn take_link(&mut self) -> Result<Link, StoreError> {
        if let Some(link) = self.connection.take() {
            return Ok(link);
        }
        // A server that has not been replaced is preferred. If there is none, the database may have
        // been set back to an earlier history. So any server is accepted then.
        let connected = match self.target.connect_in(self.latest.get()).await {
            Ok(connected) => Ok(connected),
            Err(_) => self.target.connect().await,
        };
        connected.map(Link).map_err(|error| unavailable(error.to_string()))
    }
}

fn unavailable(problem: impl Into<String>) -> StoreError {
    StoreError::Unavailable(problem.into())
}

#[async_trait]
impl RenewalClient for PostgresRenewalClient {
    async fn join(&mut self, newcomer: Newcomer, limit: Duration) -> Result<Seq, StoreError> {
        let mut link = self.take_link().await?;
        let joined = timeout(limit, insert(&mut link.0.connection, newcomer)).await;
        let head = joined.map_err(|_| unavailable("it does not answer"))??;
        self.connection = Some(link);
        Ok(head)
    }

    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome, StoreError> {
        let mut link = self.take_link().await?;
        let warned = Arc::clone(&link.0.warned);
        warned.store(false, Ordering::SeqCst);
        let renewed = timeout(renewal.timeout, ask(&mut link.0.connection, renewal))
            .await
            .map_err(|_| unavailable("it does not answer"))??;
        self.connection = Some(link);
        if AtomicBool::load(&warned, Ordering::SeqCst) {
            // A commit succeeds with a warning if its wait for the standbys was cancelled. Such a
            // commit may still be lost.
            return Err(unavailable("it gave a warning"));
        }
        match &renewed {
            RenewalOutcome::Answer(answer) => self.latest.set(answer.head.timeline),
            // The server may have been replaced, or its database may have another history. So the
            // next renewal looks for a server again.
            RenewalOutcome::Gone => {
                self.latest.forget();
                self.connection = None;
            }
        }
        Ok(renewed)
    }

    async fn ring(&mut self, read_timeout: Duration) -> Result<SealedRing, StoreError> {
        let mut link = self.connection.take().ok_or_else(|| unavailable("there was no renewal"))?;
        let read = timeout(read_timeout, ring::ring(&mut link.0.connection)).await;
        let ring = read.map_err(|_| unavailable("it does not answer"))??;
        self.connection = Some(link);
        Ok(ring)
    }
}

type Page = (
    Option<Vec<i64>>,
    Option<Vec<String>>,
    Option<Vec<String>>,
    Option<Vec<Option<PgTimestamp>>>,
    Option<Vec<Option<Uuid>>>,
    Option<Vec<PgTimestamp>>,
    Option<Vec<String>>,
);
type Others = (Option<Vec<Uuid>>, Option<Vec<i64>>, Option<Vec<i64>>, Option<Vec<i64>>);
type Row = (bool, i64, i64, i64, i64, Uuid, PgTimestamp, PgTimestamp, Page, Others);

type Values<T> = Nullable<Array<T>>;
type SqlPage = (
    Values<BigInt>,
    Values<Text>,
    Values<Text>,
    Values<Nullable<Timestamptz>>,
    Values<Nullable<SqlUuid>>,
    Values<Timestamptz>,
    Values<Text>,
);
type SqlOthers = (Values<SqlUuid>, Values<BigInt>, Values<BigInt>, Values<BigInt>);
type SqlRow =
    (Bool, BigInt, BigInt, BigInt, BigInt, SqlUuid, Timestamptz, Timestamptz, SqlPage, SqlOthers);

/// Renews the row of this replica, if it is as the last confirmed renewal or a later one left it,
/// and reads the entries after those that the replica has read.
const RENEWAL: &str = "WITH mine AS (
        UPDATE replicas
        SET renewals = ?, applied = ?, watchers = ?, renewed_at = clock_timestamp()
        WHERE incarnation = ? AND renewals >= ? AND renewals < ?
        RETURNING 1
    ),
    page AS (
        SELECT
            array_agg(seq ORDER BY seq) AS seqs,
            array_agg(kind ORDER BY seq) AS kinds,
            array_agg(key ORDER BY seq) AS keys,
            array_agg(up_to ORDER BY seq) AS up_tos,
            array_agg(session_id ORDER BY seq) AS session_ids,
            array_agg(expires_at ORDER BY seq) AS expiries,
            array_agg(tenant ORDER BY seq) AS tenants
        FROM (
            SELECT seq, kind, key, up_to, session_id, expires_at, tenant
            FROM blacklist
            WHERE seq > ?
            ORDER BY seq
            LIMIT ?
        ) AS next
    ),
    others AS (
        SELECT
            array_agg(incarnation ORDER BY incarnation) AS incarnations,
            array_agg(applied ORDER BY incarnation) AS applied,
            array_agg(renewals ORDER BY incarnation) AS renewals,
            array_agg(
                (extract(epoch FROM holds_for) * 1000000)::bigint ORDER BY incarnation
            ) AS holds_for
        FROM replicas
        WHERE incarnation <> ?
    )
    SELECT
        EXISTS (SELECT FROM mine), h.seq, h.timeline, feed_timeline(), h.ring, h.database,
        s.forgotten_until, clock_timestamp(),
        page.seqs, page.kinds, page.keys, page.up_tos, page.session_ids, page.expiries,
        page.tenants,
        others.incarnations, others.applied, others.renewals, others.holds_for
    FROM feed_head AS h, sweeper AS s, page, others";

/// Inserts the row of a replica.
async fn insert(connection: &mut AsyncPgConnection, newcomer: Newcomer) -> Result<Seq, Fault> {
    let applied: i64 = statement::<BigInt>(
        "INSERT INTO replicas (incarnation, name, address, version, holds_for, applied)
        SELECT ?, ?, ?, ?, ?, seq FROM feed_head
        RETURNING applied",
    )
    .bind::<SqlUuid, _>(uuid(newcomer.incarnation.bytes()))
    .bind::<Text, _>(newcomer.name)
    .bind::<Text, _>(newcomer.address)
    .bind::<Text, _>(newcomer.version)
    .bind::<Interval, _>(interval(newcomer.max_validity))
    .get_result(connection)
    .await?;
    Ok(Seq(applied))
}

/// Sends a renewal. It is one statement, and so one snapshot and one commit. Rows may arrive before
/// the commit has been waited for. The answer is complete only when the server is ready for the
/// next statement, which is after the wait for the commit.
async fn ask(
    connection: &mut AsyncPgConnection,
    renewal: &RenewalRequest,
) -> Result<RenewalOutcome, Fault> {
    // `load` reads the whole answer, to its end. `get_result` would stop at the first row.
    let rows: Vec<Row> = statement::<SqlRow>(RENEWAL)
        .bind::<BigInt, _>(renewal.number)
        .bind::<BigInt, _>(renewal.applied.0)
        .bind::<BigInt, _>(renewal.watchers)
        .bind::<SqlUuid, _>(uuid(renewal.incarnation.bytes()))
        .bind::<BigInt, _>(renewal.confirmed)
        .bind::<BigInt, _>(renewal.number)
        .bind::<BigInt, _>(renewal.after.0)
        .bind::<BigInt, _>(renewal.limit)
        .bind::<SqlUuid, _>(uuid(renewal.incarnation.bytes()))
        .load(connection)
        .await?;
    let Some((found, seq, settled, timeline, ring, database, purge_watermark, now, page, others)) =
        rows.into_iter().next()
    else {
        return Err(StoreError::Damaged("feed_head or sweeper has no row".to_owned()).into());
    };
    if !found {
        return Ok(RenewalOutcome::Gone);
    }
    Ok(RenewalOutcome::Answer(Answer {
        database,
        head: FeedPosition { timeline: Timeline(timeline), seq: Seq(seq) },
        settled: Timeline(settled),
        entries: entries(page)?,
        ring: RingVersion(ring),
        purge_watermark: timestamp(purge_watermark),
        now: Some(timestamp(now)),
        others: listed(others),
    }))
}

fn entries(
    (seqs, kinds, keys, up_tos, session_ids, expiries, tenants): Page,
) -> Result<Vec<FeedEntry>, StoreError> {
    let (Some(seqs), Some(kinds), Some(keys), Some(up_tos), Some(session_ids)) =
        (seqs, kinds, keys, up_tos, session_ids)
    else {
        return Ok(vec![]);
    };
    let (expiries, tenants) = (expiries.unwrap_or_default(), tenants.unwrap_or_default());
    let whats = seqs.into_iter().zip(kinds).zip(keys).zip(up_tos).zip(session_ids);
    let rows = whats.zip(expiries).zip(tenants);
    rows.map(|((((((seq, kind), key), up_to), session_id), expires_at), tenant)| {
        let revoked = revoked(&kind, key, up_to, session_id)?;
        Ok(FeedEntry {
            seq: Seq(seq),
            tenant: FeedEntry::tenant_of(&revoked, tenant)
                .map_err(|problem| damaged("blacklist.tenant", problem))?,
            revoked,
            expires_at: timestamp(expires_at),
        })
    })
    .collect()
}

fn listed((incarnations, applied, renewals, max_validity): Others) -> Vec<Other> {
    let (Some(incarnations), Some(applied), Some(renewals), Some(max_validity)) =
        (incarnations, applied, renewals, max_validity)
    else {
        return vec![];
    };
    let rows = incarnations.into_iter().zip(applied).zip(renewals).zip(max_validity);
    rows.map(|(((incarnation, applied), renewals), max_validity)| Other {
        incarnation: Incarnation::from_bytes(incarnation.into_bytes()),
        applied: Seq(applied),
        renewals,
        max_validity: span(max_validity),
    })
    .collect()
}
