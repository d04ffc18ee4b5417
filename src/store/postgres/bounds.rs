//! Bounds of steps that end many rows.

use diesel::{ExpressionMethods, QueryDsl};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{
    pool::{Fault, Lease},
    rows::uuid,
    schema::sessions,
};
use crate::domain::{ids::SessionId, time::Timestamp};

/// Counts at most `limit` sessions after one, down to the last that was created up to the end of
/// the millisecond of `until`.
pub async fn count_sessions(
    lease: &mut Lease<'_>,
    until: Timestamp,
    after: Option<SessionId>,
    limit: i64,
) -> Result<i64, Fault> {
    let after = after.map_or(Uuid::nil(), |id| uuid(id.bytes()));
    let ids: Vec<Uuid> = sessions::table
        .filter(sessions::id.gt(after))
        .filter(sessions::id.le(uuid(SessionId::last_of_millisecond(until).bytes())))
        .order(sessions::id.asc())
        .limit(limit)
        .select(sessions::id)
        .load(&mut **lease)
        .await?;
    Ok(i64::try_from(ids.len()).unwrap_or(limit))
}
