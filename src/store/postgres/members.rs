//! The register of the replicas.

use async_trait::async_trait;
use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl, Queryable, Selectable, SelectableHelper,
    data_types::PgTimestamp,
    sql_types::{BigInt, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{
    PostgresStore,
    pool::{Fault, Lease},
    rows::{timestamp, uuid},
    schema::replicas,
    sql::statement,
    with_connection,
};
use crate::{
    domain::{ids::Incarnation, revocation::Seq},
    store::{
        StoreError,
        members::{Member, Members, Newcomer},
    },
};

#[derive(Queryable, Selectable)]
#[diesel(table_name = replicas)]
struct MemberRow {
    incarnation: Uuid,
    name: String,
    version: String,
    joined_at: PgTimestamp,
    renewed_at: PgTimestamp,
    renewals: i64,
    applied: i64,
}

impl From<MemberRow> for Member {
    fn from(row: MemberRow) -> Self {
        Self {
            incarnation: Incarnation::from_bytes(row.incarnation.into_bytes()),
            name: row.name,
            version: row.version,
            joined_at: timestamp(row.joined_at),
            renewed_at: timestamp(row.renewed_at),
            renewals: row.renewals,
            applied: Seq(row.applied),
        }
    }
}

#[async_trait]
impl Members for PostgresStore {
    async fn join(&self, newcomer: Newcomer) -> Result<(), StoreError> {
        with_connection!(self, join, newcomer)
    }

    async fn renew(&self, incarnation: Incarnation, applied: Seq) -> Result<Option<Seq>, StoreError> {
        with_connection!(self, renew, incarnation, applied)
    }

    async fn list(&self) -> Result<Vec<Member>, StoreError> {
        with_connection!(self, list)
    }

    async fn remove(&self, incarnation: Incarnation, renewals: i64) -> Result<bool, StoreError> {
        with_connection!(self, remove, incarnation, renewals)
    }

    async fn leave(&self, incarnation: Incarnation) -> Result<(), StoreError> {
        with_connection!(self, leave, incarnation)
    }
}

async fn join(lease: &mut Lease<'_>, newcomer: Newcomer) -> Result<(), Fault> {
    diesel::insert_into(replicas::table)
        .values((
            replicas::incarnation.eq(uuid(newcomer.incarnation.bytes())),
            replicas::applied.eq(0),
            replicas::name.eq(newcomer.name),
            replicas::version.eq(newcomer.version),
        ))
        .execute(&mut **lease)
        .await?;
    Ok(())
}

async fn renew(lease: &mut Lease<'_>, incarnation: Incarnation, applied: Seq) -> Result<Option<Seq>, Fault> {
    let head: Option<i64> = statement::<BigInt>(
        "UPDATE replicas SET renewals = renewals + 1, renewed_at = clock_timestamp(), applied = ? \
         WHERE incarnation = ? RETURNING (SELECT seq FROM feed_head)",
    )
    .bind::<BigInt, _>(applied.0)
    .bind::<SqlUuid, _>(uuid(incarnation.bytes()))
    .get_result(&mut **lease)
    .await
    .optional()?;
    Ok(head.map(Seq))
}

async fn list(lease: &mut Lease<'_>) -> Result<Vec<Member>, Fault> {
    let rows: Vec<MemberRow> =
        replicas::table.order(replicas::joined_at.asc()).select(MemberRow::as_select()).load(&mut **lease).await?;
    Ok(rows.into_iter().map(Member::from).collect())
}

async fn remove(lease: &mut Lease<'_>, incarnation: Incarnation, renewals: i64) -> Result<bool, Fault> {
    let row = replicas::table.find(uuid(incarnation.bytes())).filter(replicas::renewals.eq(renewals));
    Ok(diesel::delete(row).execute(&mut **lease).await? > 0)
}

async fn leave(lease: &mut Lease<'_>, incarnation: Incarnation) -> Result<(), Fault> {
    diesel::delete(replicas::table.find(uuid(incarnation.bytes()))).execute(&mut **lease).await?;
    Ok(())
}
