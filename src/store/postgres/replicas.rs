//! The register of the replicas.

use std::time::Duration;

use async_trait::async_trait;
use diesel::{
    ExpressionMethods, QueryDsl,
    data_types::PgTimestamp,
    sql_types::{BigInt, Interval, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{
    PostgresStore,
    pool::{Fault, Lease},
    rows::{interval, timestamp, uuid},
    schema::{feed_head, replicas},
    sql::statement,
    with_connection,
};
use crate::{
    domain::{
        ids::Incarnation,
        revocation::{Place, Seq, Timeline},
    },
    store::{
        StoreError,
        replicas::{Member, Members, Newcomer, Register},
    },
};

#[async_trait]
impl Members for PostgresStore {
    async fn join(&self, newcomer: Newcomer) -> Result<Seq, StoreError> {
        with_connection!(self, join, newcomer)
    }

    async fn register(&self) -> Result<Register, StoreError> {
        with_connection!(self, register)
    }

    async fn remove(&self, incarnation: Incarnation, renewals: i64) -> Result<bool, StoreError> {
        with_connection!(self, remove, incarnation, renewals)
    }

    async fn settle(&self, before: Timeline, now: Timeline) -> Result<(), StoreError> {
        with_connection!(self, settle, before, now)
    }

    async fn leave(&self, incarnation: Incarnation) -> Result<(), StoreError> {
        with_connection!(self, leave, incarnation)
    }
}

async fn join(lease: &mut Lease<'_>, newcomer: Newcomer) -> Result<Seq, Fault> {
    let applied: i64 = statement::<BigInt>(
        "INSERT INTO replicas (incarnation, name, version, holds_for, applied) SELECT ?, ?, ?, ?, seq FROM feed_head \
         RETURNING applied",
    )
    .bind::<SqlUuid, _>(uuid(newcomer.incarnation.bytes()))
    .bind::<Text, _>(newcomer.name)
    .bind::<Text, _>(newcomer.version)
    .bind::<Interval, _>(interval(newcomer.holds_for))
    .get_result(&mut **lease)
    .await?;
    Ok(Seq(applied))
}

type MemberRow = (Uuid, String, String, PgTimestamp, i64, i64, i64, i64);
type SqlMember = Nullable<(SqlUuid, Text, Text, Timestamptz, BigInt, BigInt, BigInt, BigInt)>;

/// One statement, so one snapshot: nobody has applied more than the head that is told.
async fn register(lease: &mut Lease<'_>) -> Result<Register, Fault> {
    let rows: Vec<(i64, i64, i64, Option<MemberRow>)> = statement::<(BigInt, BigInt, BigInt, SqlMember)>(
        "SELECT feed_timeline(), h.seq, h.timeline, incarnation, name, version, joined_at, \
         (extract(epoch FROM clock_timestamp() - renewed_at) * 1000000)::bigint, renewals, applied, \
         (extract(epoch FROM holds_for) * 1000000)::bigint FROM feed_head AS h LEFT JOIN replicas ON true \
         ORDER BY joined_at, incarnation",
    )
    .load(&mut **lease)
    .await?;
    let [(timeline, seq, settled, _), ..] = rows.as_slice() else {
        return Err(StoreError::Damaged("feed_head has no row".to_owned()).into());
    };
    let head = Place { timeline: Timeline(*timeline), seq: Seq(*seq) };
    let settled = Timeline(*settled);
    let member =
        |(incarnation, name, version, joined_at, renewed_ago, renewals, applied, holds_for): MemberRow| Member {
            incarnation: Incarnation::from_bytes(incarnation.into_bytes()),
            name,
            version,
            joined_at: timestamp(joined_at),
            renewed_ago: span(renewed_ago),
            renewals,
            applied: Seq(applied),
            holds_for: span(holds_for),
        };
    let members = rows.into_iter().filter_map(|(_, _, _, row)| row.map(member)).collect();
    Ok(Register { members, head, settled })
}

/// Microseconds as a span: none if they are negative, as between two readings of a clock that was set back.
pub fn span(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

async fn remove(lease: &mut Lease<'_>, incarnation: Incarnation, renewals: i64) -> Result<bool, Fault> {
    let row = replicas::table.find(uuid(incarnation.bytes())).filter(replicas::renewals.eq(renewals));
    Ok(diesel::delete(row).execute(&mut **lease).await? > 0)
}

async fn settle(lease: &mut Lease<'_>, before: Timeline, now: Timeline) -> Result<(), Fault> {
    diesel::update(feed_head::table.filter(feed_head::timeline.eq(before.0)))
        .set(feed_head::timeline.eq(now.0))
        .execute(&mut **lease)
        .await?;
    Ok(())
}

async fn leave(lease: &mut Lease<'_>, incarnation: Incarnation) -> Result<(), Fault> {
    diesel::delete(replicas::table.find(uuid(incarnation.bytes()))).execute(&mut **lease).await?;
    Ok(())
}
