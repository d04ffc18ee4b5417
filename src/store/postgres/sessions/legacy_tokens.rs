//! The refresh tokens of other systems.

use std::collections::HashSet;

use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl,
    sql_types::{Array, BigInt, Binary, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::{instant, uuid},
    schema::legacy_refresh_tokens,
    sql::{column, statement},
};
use crate::{
    domain::{
        ids::SessionId,
        legacy_token::{LegacyToken, LegacyTokenHash},
        session::LineageSecret,
        time::Timestamp,
    },
    store::{Creation, StoreError},
};

pub async fn find(
    connection: &mut PooledConnection<'_>,
    hash: LegacyTokenHash,
) -> Result<Option<LegacyToken>, Fault> {
    let row: Option<(Uuid, Vec<u8>)> = legacy_refresh_tokens::table
        .find(hash.bytes().to_vec())
        .select((legacy_refresh_tokens::session_id, legacy_refresh_tokens::secret))
        .first(&mut **connection)
        .await
        .optional()?;
    let Some((session_id, secret)) = row else { return Ok(None) };
    let damaged =
        |_| StoreError::Damaged("legacy_refresh_tokens.secret is not 16 bytes".to_owned());
    Ok(Some(LegacyToken {
        session_id: SessionId::from_bytes(session_id.into_bytes()),
        secret: LineageSecret(secret.try_into().map_err(damaged)?),
    }))
}

/// Returns the tokens of these creations that stand for a session already.
pub async fn taken(
    connection: &mut PooledConnection<'_>,
    creations: &[&Creation],
) -> Result<HashSet<LegacyTokenHash>, Fault> {
    let hashes: Vec<Vec<u8>> = creations
        .iter()
        .filter_map(|creation| creation.legacy_token)
        .map(|hash| hash.bytes().to_vec())
        .collect();
    if hashes.is_empty() {
        return Ok(HashSet::new());
    }
    let found: Vec<Vec<u8>> = legacy_refresh_tokens::table
        .filter(legacy_refresh_tokens::hash.eq_any(hashes))
        .select(legacy_refresh_tokens::hash)
        .load(&mut **connection)
        .await?;
    let hash = |bytes: Vec<u8>| {
        let wrong =
            |_| StoreError::Damaged("legacy_refresh_tokens.hash is not 32 bytes".to_owned());
        bytes.try_into().map(LegacyTokenHash::from_bytes).map_err(wrong)
    };
    Ok(found.into_iter().map(hash).collect::<Result<_, _>>()?)
}

/// Makes the tokens of new sessions stand for their first refresh tokens. Fails with a conflict if
/// another transaction has just made one of them stand for another session.
///
/// The rows are written in the order of their keys, so that two transactions never wait for each
/// other.
pub async fn insert(
    connection: &mut PooledConnection<'_>,
    creations: &[&Creation],
) -> Result<(), Fault> {
    let mut rows: Vec<_> = creations
        .iter()
        .filter_map(|creation| Some((creation.legacy_token?, &creation.session)))
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    rows.sort_unstable_by_key(|(hash, _)| *hash);
    let inserted = statement::<()>(
        "INSERT INTO legacy_refresh_tokens (hash, session_id, secret, expires_at)
        SELECT * FROM unnest(?, ?, ?, ?)
        ON CONFLICT (hash) DO NOTHING",
    )
    .bind::<Array<Binary>, _>(column(&rows, |(hash, _)| hash.bytes().to_vec()))
    .bind::<Array<SqlUuid>, _>(column(&rows, |(_, session)| uuid(session.id.bytes())))
    .bind::<Array<Binary>, _>(column(&rows, |(_, session)| session.lineage.secret.0.to_vec()))
    .bind::<Array<Timestamptz>, _>(column(&rows, |(_, session)| instant(session.expires_at)))
    .execute(&mut **connection)
    .await?;
    if inserted < rows.len() {
        let problem = "the same refresh token is being imported by others";
        return Err(Fault::Conflict(StoreError::Unavailable(problem.to_owned())));
    }
    Ok(())
}

/// Deletes rows that expired before `until`. A row that another transaction is deleting is left to
/// it.
pub async fn delete_old(
    connection: &mut PooledConnection<'_>,
    until: Timestamp,
    limit: i64,
) -> Result<usize, Fault> {
    let deleted = statement::<()>(
        "WITH old AS MATERIALIZED (
            SELECT hash
            FROM legacy_refresh_tokens
            WHERE expires_at < ?
            ORDER BY expires_at
            LIMIT ?
            FOR UPDATE SKIP LOCKED
        )
        DELETE FROM legacy_refresh_tokens AS l USING old WHERE l.hash = old.hash",
    )
    .bind::<Timestamptz, _>(instant(until))
    .bind::<BigInt, _>(limit)
    .execute(&mut **connection)
    .await?;
    Ok(deleted)
}
