//! The table of the audit: rows are added many at a time, and deleted when they are old. None is ever changed or locked, so
//! that the right to do so can be taken from the service.

use diesel::sql_types::{Array, BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use super::{
    pool::{Fault, Lease},
    rows::{instant, uuid},
    sql::statement,
};
use crate::domain::{audit::AuditEntry, time::Timestamp};

pub async fn append(lease: &mut Lease<'_>, entries: &[AuditEntry]) -> Result<(), Fault> {
    /// A column of all rows.
    fn column<'a, T>(entries: &'a [AuditEntry], of: impl Fn(&'a AuditEntry) -> T) -> Vec<T> {
        entries.iter().map(of).collect()
    }
    statement::<()>(
        "INSERT INTO audit (at, id, session_id, sessions, left_out, peer, action, caller, tenant, subject, kid, reason, note) \
         SELECT at, id, session_id, sessions, left_out, peer::inet, action, caller, tenant, subject, kid, reason, note \
         FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS given (at, id, session_id, sessions, left_out, peer, action, \
         caller, tenant, subject, kid, reason, note) ON CONFLICT (at, id) DO NOTHING",
    )
    .bind::<Array<Timestamptz>, _>(column(entries, |entry| instant(entry.record.at)))
    .bind::<Array<SqlUuid>, _>(column(entries, |entry| uuid(entry.id.bytes())))
    .bind::<Array<Nullable<SqlUuid>>, _>(column(entries, |entry| entry.record.session_id.map(|id| uuid(id.bytes()))))
    .bind::<Array<Nullable<BigInt>>, _>(column(entries, |entry| entry.record.sessions))
    .bind::<Array<BigInt>, _>(column(entries, |entry| entry.left_out))
    .bind::<Array<Nullable<Text>>, _>(column(entries, |entry| entry.record.peer.map(|peer| peer.to_string())))
    .bind::<Array<Text>, _>(column(entries, |entry| entry.record.action.as_str()))
    .bind::<Array<Text>, _>(column(entries, |entry| entry.record.caller.as_str()))
    .bind::<Array<Nullable<Text>>, _>(column(entries, |entry| entry.record.tenant.as_deref()))
    .bind::<Array<Nullable<Text>>, _>(column(entries, |entry| entry.record.subject.as_deref()))
    .bind::<Array<Nullable<Text>>, _>(column(entries, |entry| entry.record.kid.as_deref()))
    .bind::<Array<Nullable<Text>>, _>(column(entries, |entry| entry.record.reason.map(|reason| reason.as_str())))
    .bind::<Array<Text>, _>(column(entries, |entry| &*entry.record.note))
    .execute(&mut **lease)
    .await?;
    Ok(())
}

pub async fn delete_old(lease: &mut Lease<'_>, until: Timestamp, limit: i64) -> Result<usize, Fault> {
    let deleted = statement::<()>(
        "WITH old AS MATERIALIZED (SELECT at, id FROM audit WHERE at < ? ORDER BY at, id LIMIT ?) \
         DELETE FROM audit AS a USING old WHERE a.at = old.at AND a.id = old.id",
    )
    .bind::<Timestamptz, _>(instant(until))
    .bind::<BigInt, _>(limit)
    .execute(&mut **lease)
    .await?;
    Ok(deleted)
}
