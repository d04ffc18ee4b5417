//! The register of the replicas.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl,
    data_types::PgTimestamp,
    sql_types::{BigInt, Interval, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio::time::timeout;
use uuid::Uuid;

use super::super::{
    PostgresStore, Shared,
    connection::{fault::Fault, pool::PooledConnection},
    rows::{interval, timestamp, uuid},
    schema::{feed_head, replicas},
    sql::statement,
    with_connection,
};
use crate::{
    domain::{
        ids::Incarnation,
        revocation::{FeedPosition, Seq, Timeline},
    },
    store::{
        StoreError,
        replicas::{
            FORMER_REPLICA_RETENTION, FormerReplica, FormerState, MOST_FORMER_REPLICAS,
            MOST_FORMER_REPLICAS_OF_A_NAME, Member, Members, Register,
        },
    },
};

/// The longest time that leaving may take. The process is about to end, and a database that does
/// not answer must not delay that. The other replicas will notice by themselves that this one is
/// gone.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Access to the store's connections for a task that outlives a call.
struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    async fn record_former(
        self,
        incarnation: Incarnation,
        row: DeletedRow,
        state: FormerState,
    ) -> Result<usize, StoreError> {
        with_connection!(self, record_former, incarnation, row, state)
    }
}

impl PostgresStore {
    /// Adds a replica to the list of former replicas. This is not part of the statement that
    /// deletes the replica's row, because revocations wait for that statement. If this function
    /// fails, revocations have stopped waiting for the replica nevertheless.
    fn record_former(
        &self,
        incarnation: Incarnation,
        row: DeletedRow,
        state: FormerState,
    ) -> impl Future<Output = ()> + Send + 'static {
        let handle = Handle { shared: Arc::clone(&self.shared) };
        async move {
            if let Err(error) = handle.record_former(incarnation, row, state).await {
                let state = state.as_str();
                tracing::warn!(%error, state, "a former replica will not be listed");
            }
        }
    }
}

#[async_trait]
impl Members for PostgresStore {
    async fn register(&self) -> Result<Register, StoreError> {
        with_connection!(self, read_register)
    }

    async fn remove(&self, incarnation: Incarnation, renewals: i64) -> Result<bool, StoreError> {
        let removed: Result<_, StoreError> = with_connection!(self, remove, incarnation, renewals);
        let Some(row) = removed? else { return Ok(false) };
        tokio::spawn(self.record_former(incarnation, row, FormerState::Removed));
        Ok(true)
    }

    async fn settle(&self, before: Timeline, now: Timeline) -> Result<(), StoreError> {
        with_connection!(self, settle, before, now)
    }

    async fn leave(&self, incarnation: Incarnation) -> Result<(), StoreError> {
        let leaving = async {
            let left: Result<_, StoreError> = with_connection!(self, leave, incarnation);
            if let Some(row) = left? {
                self.record_former(incarnation, row, FormerState::Left).await;
            }
            Ok(())
        };
        let silent = |_| Err(StoreError::Unavailable("it does not answer".to_owned()));
        timeout(LEAVE_TIMEOUT, leaving).await.unwrap_or_else(silent)
    }

    async fn delete_former_replicas(&self) -> Result<usize, StoreError> {
        with_connection!(self, delete_former_replicas)
    }
}

type MemberRow = (Uuid, String, String, String, PgTimestamp, i64, i64, i64, i64, i64);
type SqlMember =
    Nullable<(SqlUuid, Text, Text, Text, Timestamptz, BigInt, BigInt, BigInt, BigInt, BigInt)>;

async fn read_register(connection: &mut PooledConnection<'_>) -> Result<Register, Fault> {
    register(connection).await
}

/// Reads the members and the head of the feed in one statement, and so from one snapshot. So no
/// member has applied more of the feed than up to that head. A second statement reads the former
/// replicas.
pub async fn register(connection: &mut AsyncPgConnection) -> Result<Register, Fault> {
    type Row = (i64, i64, i64, Option<MemberRow>);
    let rows: Vec<Row> = statement::<(BigInt, BigInt, BigInt, SqlMember)>(
        "SELECT feed_timeline(), h.seq, h.timeline, incarnation, name, address, version, joined_at,
            (extract(epoch FROM clock_timestamp() - renewed_at) * 1000000)::bigint, renewals,
            applied, watchers,
            (extract(epoch FROM holds_for) * 1000000)::bigint
        FROM feed_head AS h LEFT JOIN replicas ON true
        ORDER BY joined_at, incarnation",
    )
    .load(connection)
    .await?;
    let [(timeline, seq, settled, _), ..] = rows.as_slice() else {
        return Err(StoreError::Damaged("feed_head has no row".to_owned()).into());
    };
    let head = FeedPosition { timeline: Timeline(*timeline), seq: Seq(*seq) };
    let settled = Timeline(*settled);
    let member = |row: MemberRow| {
        let (
            incarnation,
            name,
            address,
            version,
            joined_at,
            renewed_ago,
            renewals,
            applied,
            watchers,
            max_validity,
        ) = row;
        Member {
            incarnation: Incarnation::from_bytes(incarnation.into_bytes()),
            name,
            address,
            version,
            joined_at: timestamp(joined_at),
            renewed_ago: span(renewed_ago),
            renewals,
            applied: Seq(applied),
            watchers,
            max_validity: span(max_validity),
        }
    };
    let members: Vec<_> = rows.into_iter().filter_map(|(_, _, _, row)| row.map(member)).collect();
    let mut former = former_replicas(connection).await?;
    // A replica that left or was removed between the two statements is listed as a member only.
    former.retain(|former| members.iter().all(|member| member.incarnation != former.incarnation));
    Ok(Register { members, former, head, settled })
}

type FormerRow = (Uuid, String, String, String, String, PgTimestamp, PgTimestamp, i64);
type SqlFormer = (SqlUuid, Text, Text, Text, Text, Timestamptz, Timestamptz, BigInt);

async fn former_replicas(connection: &mut AsyncPgConnection) -> Result<Vec<FormerReplica>, Fault> {
    let rows: Vec<FormerRow> = statement::<SqlFormer>(
        "SELECT incarnation, name, address, version, state, joined_at, ended_at, applied
        FROM former_replicas
        WHERE ended_at > clock_timestamp() - ?
        ORDER BY ended_at DESC, incarnation",
    )
    .bind::<Interval, _>(interval(FORMER_REPLICA_RETENTION))
    .load(connection)
    .await?;
    let former =
        |(incarnation, name, address, version, state, joined_at, ended_at, applied): FormerRow| {
            // A newer version may write other states. Such rows are left out, because no decision
            // depends on them.
            let state = FormerState::from_name(&state)?;
            Some(FormerReplica {
                incarnation: Incarnation::from_bytes(incarnation.into_bytes()),
                name,
                address,
                version,
                state,
                joined_at: timestamp(joined_at),
                ended_at: timestamp(ended_at),
                applied: Seq(applied),
            })
        };
    Ok(rows.into_iter().filter_map(former).collect())
}

/// Converts microseconds to a duration. A negative number becomes zero; it occurs if the clock was
/// set back between two readings.
pub fn span(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

/// The columns of a deleted row that are copied to `former_replicas`.
const DELETED: (
    replicas::joined_at,
    replicas::applied,
    replicas::name,
    replicas::address,
    replicas::version,
) = (replicas::joined_at, replicas::applied, replicas::name, replicas::address, replicas::version);
type DeletedRow = (PgTimestamp, i64, String, String, String);

async fn remove(
    connection: &mut PooledConnection<'_>,
    incarnation: Incarnation,
    renewals: i64,
) -> Result<Option<DeletedRow>, Fault> {
    let row =
        replicas::table.find(uuid(incarnation.bytes())).filter(replicas::renewals.eq(renewals));
    Ok(diesel::delete(row).returning(DELETED).get_result(&mut **connection).await.optional()?)
}

async fn settle(
    connection: &mut PooledConnection<'_>,
    before: Timeline,
    now: Timeline,
) -> Result<(), Fault> {
    diesel::update(feed_head::table.filter(feed_head::timeline.eq(before.0)))
        .set(feed_head::timeline.eq(now.0))
        .execute(&mut **connection)
        .await?;
    Ok(())
}

async fn leave(
    connection: &mut PooledConnection<'_>,
    incarnation: Incarnation,
) -> Result<Option<DeletedRow>, Fault> {
    let row = replicas::table.find(uuid(incarnation.bytes()));
    Ok(diesel::delete(row).returning(DELETED).get_result(&mut **connection).await.optional()?)
}

async fn record_former(
    connection: &mut PooledConnection<'_>,
    incarnation: Incarnation,
    row: DeletedRow,
    state: FormerState,
) -> Result<usize, Fault> {
    let (joined_at, applied, name, address, version) = row;
    statement::<()>(
        "INSERT INTO former_replicas (
            incarnation, joined_at, applied, state, name, address, version
        )
        VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (incarnation) DO NOTHING",
    )
    .bind::<SqlUuid, _>(uuid(incarnation.bytes()))
    .bind::<Timestamptz, _>(joined_at)
    .bind::<BigInt, _>(applied)
    .bind::<Text, _>(state.as_str())
    .bind::<Text, _>(name)
    .bind::<Text, _>(address)
    .bind::<Text, _>(version)
    .execute(&mut **connection)
    .await?;
    // The limits are enforced here as well as by the sweep, so that a replica that starts again and
    // again does not fill the table until the next sweep.
    delete_former_replicas(connection).await
}

async fn delete_former_replicas(connection: &mut PooledConnection<'_>) -> Result<usize, Fault> {
    let deleted = statement::<()>(
        "WITH ranked AS (
            SELECT incarnation, ended_at,
                row_number() OVER (ORDER BY ended_at DESC, incarnation) AS rank, row_number() OVER
                (PARTITION BY name ORDER BY ended_at DESC, incarnation) AS rank_in_name
            FROM former_replicas
        )
        DELETE FROM former_replicas AS f
        USING ranked AS r
        WHERE f.incarnation = r.incarnation
        AND (r.rank > ? OR r.rank_in_name > ? OR r.ended_at <= clock_timestamp() - ?)",
    )
    .bind::<BigInt, _>(MOST_FORMER_REPLICAS)
    .bind::<BigInt, _>(MOST_FORMER_REPLICAS_OF_A_NAME)
    .bind::<Interval, _>(interval(FORMER_REPLICA_RETENTION))
    .execute(&mut **connection)
    .await?;
    Ok(deleted)
}
