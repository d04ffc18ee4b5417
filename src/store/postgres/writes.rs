//! The statements that all writes are made of. Each takes as many rows as there are, and its text never changes.
//!
//! Locks are taken in one order everywhere, so that nobody waits for each other: subjects, requests, sessions by their
//! identifiers, and the head of the feed last.

use std::collections::HashMap;

use diesel::{
    BoolExpressionMethods, ExpressionMethods, QueryDsl, SelectableHelper,
    data_types::PgTimestamp,
    sql_types::{Array, BigInt, Binary, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;

use super::{
    pool::{Fault, Lease},
    rows::{SessionRow, TENANT, instant, revoked_key, timestamp, uuid},
    schema::{blacklist, sessions},
    sql::statement,
};
use crate::{
    domain::{
        ids::SessionId,
        revocation::{BlacklistEntry, Place, Revoked, Seq, Timeline},
        session::Session,
        text::Tenant,
        time::Timestamp,
    },
    mutants::broken,
    store::StoreError,
};

type OptionalText = Nullable<Text>;
type OptionalInstant = Nullable<Timestamptz>;

/// Reads sessions and keeps others from changing them until the transaction ends.
pub async fn lock(lease: &mut Lease<'_>, ids: &[SessionId]) -> Result<HashMap<SessionId, Session>, Fault> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<_> = ids.iter().map(|id| uuid(id.bytes())).collect();
    let rows: Vec<SessionRow> = sessions::table
        .filter(sessions::id.eq_any(ids))
        .order(sessions::id.asc())
        .for_update()
        .select(SessionRow::as_select())
        .load(&mut **lease)
        .await?;
    rows.into_iter().map(|row| Ok((row.id(), Session::try_from(row)?))).collect()
}

/// Writes everything of locked sessions that ever changes.
pub async fn save(lease: &mut Lease<'_>, changed: &[Session]) -> Result<(), Fault> {
    if changed.is_empty() {
        return Ok(());
    }
    fn column<'a, T>(changed: &'a [Session], of: impl Fn(&'a Session) -> T) -> Vec<T> {
        changed.iter().map(of).collect()
    }
    let ended = |session: &Session| session.ended.clone();
    statement::<()>(
        "UPDATE sessions AS s SET refreshed_at = given.refreshed_at, idle_expires_at = given.idle_expires_at, \
         sweep_on = least(s.sweep_on, given.idle_expires_at, given.ended_at), generation = given.generation, \
         refresh_key = given.refresh_key, access_token_id = given.access_token_id, user_agent = given.user_agent, \
         ip_address = given.ip_address, device_label = given.device_label, ended_at = given.ended_at, \
         end_reason = given.end_reason, end_note = given.end_note, revision = given.revision \
         FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS given (id, refreshed_at, idle_expires_at, generation, \
         refresh_key, access_token_id, user_agent, ip_address, device_label, ended_at, end_reason, end_note, revision) \
         WHERE s.id = given.id",
    )
    .bind::<Array<SqlUuid>, _>(column(changed, |session| uuid(session.id.bytes())))
    .bind::<Array<Timestamptz>, _>(column(changed, |session| instant(session.refreshed_at)))
    .bind::<Array<Timestamptz>, _>(column(changed, |session| instant(session.idle_expires_at)))
    .bind::<Array<BigInt>, _>(column(changed, |session| i64::from(session.lineage.generation)))
    .bind::<Array<Binary>, _>(column(changed, |session| session.lineage.key.0.to_vec()))
    .bind::<Array<SqlUuid>, _>(column(changed, |session| uuid(session.access_token_id.bytes())))
    .bind::<Array<Text>, _>(column(changed, |session| &*session.device.user_agent))
    .bind::<Array<Text>, _>(column(changed, |session| &*session.device.ip_address))
    .bind::<Array<Text>, _>(column(changed, |session| &*session.device.label))
    .bind::<Array<OptionalInstant>, _>(column(changed, |session| ended(session).map(|ended| instant(ended.at))))
    .bind::<Array<OptionalText>, _>(column(changed, |session| ended(session).map(|ended| ended.reason.as_str())))
    .bind::<Array<OptionalText>, _>(column(changed, |session| ended(session).map(|ended| ended.note.into_string())))
    .bind::<Array<BigInt>, _>(column(changed, |session| i64::from(session.revision)))
    .execute(&mut **lease)
    .await?;
    Ok(())
}

/// The statement that writes entries behind the head of the feed.
macro_rules! insertion {
    ($head:literal) => {
        concat!(
            "WITH head AS (",
            $head,
            ") \
         INSERT INTO blacklist AS b \
         (seq, kind, key, up_to, tenant, subject, session_id, reason, note, revoked_at, expires_at) \
         SELECT head.seq + given.place, given.kind, given.key, given.up_to, given.tenant, given.subject, \
         given.session_id, given.reason, given.note, given.revoked_at, given.expires_at \
         FROM head, unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WITH ORDINALITY AS given \
         (kind, key, up_to, tenant, subject, session_id, reason, note, revoked_at, expires_at, place) \
         ON CONFLICT (kind, key) DO UPDATE SET seq = excluded.seq, up_to = greatest(b.up_to, excluded.up_to), \
         tenant = excluded.tenant, subject = excluded.subject, session_id = excluded.session_id, \
         reason = excluded.reason, note = excluded.note, revoked_at = excluded.revoked_at, \
         expires_at = greatest(b.expires_at, excluded.expires_at) RETURNING b.seq, feed_timeline()"
        )
    };
}

/// Writes blacklist entries, each in the place of an older one for the same thing, and returns their places in the feed.
///
/// This locks the head of the feed until the commit, so it comes last: then the order of the entries is the order of the
/// commits, and a reader who has seen one has seen all before it.
pub async fn insert_entries(lease: &mut Lease<'_>, entries: &[BlacklistEntry]) -> Result<Vec<Place>, Fault> {
    if entries.is_empty() {
        return Ok(vec![]);
    }
    // One statement cannot write a row twice, so what is stopped twice gets one entry, the later one.
    let mut rows: Vec<BlacklistEntry> = vec![];
    let mut keys = vec![];
    let mut known = HashMap::new();
    let mut offsets = Vec::with_capacity(entries.len());
    for entry in entries {
        let place = *known.entry(revoked_key(&entry.revoked)).or_insert_with_key(|key| {
            keys.push(key.clone());
            rows.push(entry.clone());
            rows.len() - 1
        });
        if let Some(row) = rows.get_mut(place) {
            *row = later_of(row, entry);
        }
        offsets.push(i64::try_from(place).unwrap_or(i64::MAX));
    }
    let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);

    fn column<'a, T>(rows: &'a [BlacklistEntry], of: impl Fn(&'a BlacklistEntry) -> T) -> Vec<T> {
        rows.iter().map(of).collect()
    }
    let up_to = |entry: &BlacklistEntry| match &entry.revoked {
        Revoked::Tenant { up_to, .. } => Some(instant(*up_to)),
        Revoked::Session(_) | Revoked::Token(_) => None,
    };
    let text = match broken("feed-by-bigserial") {
        true => insertion!("SELECT nextval('broken_feed') + 0 * (?::bigint + ?::bigint) AS seq"),
        false => insertion!("UPDATE feed_head SET seq = seq + ? RETURNING seq - ? AS seq"),
    };
    let written: Vec<(i64, i64)> = statement::<(BigInt, BigInt)>(text)
        .bind::<BigInt, _>(count)
        .bind::<BigInt, _>(count)
        .bind::<Array<Text>, _>(keys.iter().map(|(kind, _)| *kind).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(keys.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>())
        .bind::<Array<OptionalInstant>, _>(column(&rows, up_to))
        .bind::<Array<Text>, _>(column(&rows, |entry| &*entry.tenant))
        .bind::<Array<OptionalText>, _>(column(&rows, |entry| entry.subject.as_deref()))
        .bind::<Array<Nullable<SqlUuid>>, _>(column(&rows, |entry| entry.session_id.map(|id| uuid(id.bytes()))))
        .bind::<Array<Text>, _>(column(&rows, |entry| entry.reason.as_str()))
        .bind::<Array<Text>, _>(column(&rows, |entry| &*entry.note))
        .bind::<Array<Timestamptz>, _>(column(&rows, |entry| instant(entry.revoked_at)))
        .bind::<Array<Timestamptz>, _>(column(&rows, |entry| instant(entry.expires_at)))
        .load(&mut **lease)
        .await?;
    match written.iter().min() {
        Some((first, timeline)) if written.len() == rows.len() => {
            let place = |offset| Place { timeline: Timeline(*timeline), seq: Seq(first + offset) };
            Ok(offsets.into_iter().map(place).collect())
        }
        _ => Err(StoreError::Damaged("feed_head does not have one row".to_owned()).into()),
    }
}

/// Of two entries for the same thing the newer one, kept as long as either.
fn later_of(one: &BlacklistEntry, newer: &BlacklistEntry) -> BlacklistEntry {
    let mut entry = newer.clone();
    entry.expires_at = one.expires_at.max(newer.expires_at);
    if let (Revoked::Tenant { up_to: before, .. }, Revoked::Tenant { up_to, .. }) = (&one.revoked, &mut entry.revoked) {
        *up_to = (*up_to).max(*before);
    }
    entry
}

/// The last instants that the entries of tenants cover, of those that have one.
pub async fn tenants_up_to<'a>(
    lease: &mut Lease<'_>,
    tenants: impl IntoIterator<Item = &'a Tenant>,
) -> Result<HashMap<String, Timestamp>, Fault> {
    let mut names: Vec<&str> = tenants.into_iter().map(|tenant| &**tenant).collect();
    names.sort_unstable();
    names.dedup();
    let rows: Vec<(String, Option<PgTimestamp>)> = blacklist::table
        .filter(blacklist::kind.eq(TENANT).and(blacklist::key.eq_any(names)))
        .select((blacklist::key, blacklist::up_to))
        .load(&mut **lease)
        .await?;
    Ok(rows.into_iter().filter_map(|(name, up_to)| Some((name, timestamp(up_to?)))).collect())
}
