//! The refresh tokens of other systems.

use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl, SqliteConnection, dsl, sql_query,
    sql_types::BigInt,
};

use super::{schema::legacy_refresh_tokens, writes};
use crate::{
    domain::{
        legacy_token::{LegacyToken, LegacyTokenHash},
        session::{LineageSecret, Session},
        time::Timestamp,
    },
    store::StoreError,
};

type Result<T> = std::result::Result<T, StoreError>;

pub fn find(
    connection: &mut SqliteConnection,
    hash: &LegacyTokenHash,
) -> Result<Option<LegacyToken>> {
    let row: Option<(Vec<u8>, Vec<u8>)> = legacy_refresh_tokens::table
        .find(hash.bytes().as_slice())
        .select((legacy_refresh_tokens::session_id, legacy_refresh_tokens::secret))
        .get_result(connection)
        .optional()?;
    let Some((session_id, secret)) = row else { return Ok(None) };
    let damaged =
        |_| StoreError::Damaged("legacy_refresh_tokens.secret is not 16 bytes".to_owned());
    Ok(Some(LegacyToken {
        session_id: writes::session_id(&session_id)?,
        secret: LineageSecret(secret.try_into().map_err(damaged)?),
    }))
}

/// Makes a token stand for the first refresh token of a new session.
pub fn insert(
    connection: &mut SqliteConnection,
    hash: &LegacyTokenHash,
    session: &Session,
) -> Result<()> {
    dsl::insert_into(legacy_refresh_tokens::table)
        .values((
            legacy_refresh_tokens::hash.eq(hash.bytes().as_slice()),
            legacy_refresh_tokens::session_id.eq(session.id.bytes().as_slice()),
            legacy_refresh_tokens::secret.eq(session.lineage.secret.0.as_slice()),
            legacy_refresh_tokens::expires_at.eq(session.expires_at.micros()),
        ))
        .execute(connection)?;
    Ok(())
}

pub fn delete_old(
    connection: &mut SqliteConnection,
    until: Timestamp,
    limit: i64,
) -> Result<usize> {
    let deleted = sql_query(
        "DELETE FROM legacy_refresh_tokens
        WHERE hash IN (
            SELECT hash
            FROM legacy_refresh_tokens
            WHERE expires_at < ?
            ORDER BY expires_at
            LIMIT ?
        )",
    )
    .bind::<BigInt, _>(until.micros())
    .bind::<BigInt, _>(limit)
    .execute(connection)?;
    Ok(deleted)
}
