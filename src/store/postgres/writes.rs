//! The statements that all writes are made of. Each takes as many rows as there are, and its text
//! never changes.
//!
//! Locks are taken in one order everywhere, so that nobody waits for each other: subjects,
//! requests, sessions by their identifiers, and the head of the feed last.

use std::{collections::HashMap, convert::Infallible};

use diesel::{
    BoolExpressionMethods, ExpressionMethods, QueryDsl, SelectableHelper,
    data_types::PgTimestamp,
    sql_types::{Array, BigInt, Binary, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{
    pool::{Fault, PooledConnection},
    rows::{SessionRow, instant, revoked, revoked_key, uuid},
    schema::{blacklist, sessions},
    sql::{first_uncovered, statement},
};
use crate::{
    domain::{
        ids::SessionId,
        revocation::{
            self, BlacklistEntry, CutOff, EarlierEntry, FeedPosition, Seq, Timeline, cut_off_key,
        },
        session::{Ended, Session},
        time::Timestamp,
    },
    store::StoreError,
};

type OptionalText = Nullable<Text>;
type OptionalInstant = Nullable<Timestamptz>;

/// Reads sessions and keeps others from changing them until the transaction ends.
pub async fn lock(
    connection: &mut PooledConnection<'_>,
    ids: &[SessionId],
) -> Result<HashMap<SessionId, Session>, Fault> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<_> = ids.iter().map(|id| uuid(id.bytes())).collect();
    let rows: Vec<SessionRow> = sessions::table
        .filter(sessions::id.eq_any(ids))
        .order(sessions::id.asc())
        .for_update()
        .select(SessionRow::as_select())
        .load(&mut **connection)
        .await?;
    rows.into_iter().map(|row| Ok((row.id(), Session::try_from(row)?))).collect()
}

/// Writes everything of locked sessions that ever changes.
pub async fn save(connection: &mut PooledConnection<'_>, changed: &[Session]) -> Result<(), Fault> {
    if changed.is_empty() {
        return Ok(());
    }
    fn column<'a, T>(changed: &'a [Session], of: impl Fn(&'a Session) -> T) -> Vec<T> {
        changed.iter().map(of).collect()
    }
    let ended = |session: &Session| session.ended.clone();
    statement::<()>(
        "UPDATE sessions AS s
        SET refreshed_at = given.refreshed_at,
            idle_expires_at = given.idle_expires_at,
            sweep_on = coalesce(given.ended_at, least(s.sweep_on, given.idle_expires_at)),
            is_over = s.is_over OR given.ended_at IS NOT NULL,
            generation = given.generation,
            refresh_key = given.refresh_key,
            access_token_id = given.access_token_id,
            user_agent = given.user_agent,
            ip_address = given.ip_address,
            device_label = given.device_label,
            ended_at = given.ended_at,
            end_reason = given.end_reason,
            end_note = given.end_note,
            revision = given.revision
        FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS given (
            id, refreshed_at, idle_expires_at, generation, refresh_key, access_token_id, user_agent,
            ip_address, device_label, ended_at, end_reason, end_note, revision
        )
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
    .bind::<Array<OptionalInstant>, _>(column(changed, |session| {
        ended(session).map(|ended| instant(ended.at))
    }))
    .bind::<Array<OptionalText>, _>(column(changed, |session| {
        ended(session).map(|ended| ended.reason.as_str())
    }))
    .bind::<Array<OptionalText>, _>(column(changed, |session| {
        ended(session).map(|ended| ended.note.into_string())
    }))
    .bind::<Array<BigInt>, _>(column(changed, |session| i64::from(session.revision)))
    .execute(&mut **connection)
    .await?;
    Ok(())
}

/// The session of the entry that takes the place of `b`: of a subject the one that neither covers,
/// as `CutOff::union` has it.
macro_rules! spared_by_both {
    () => {
        concat!(
            "CASE WHEN b.kind <> 'subject' THEN excluded.session_id \
             WHEN excluded.up_to >= b.up_to THEN CASE WHEN excluded.session_id >= ",
            first_uncovered!("b"),
            " OR excluded.session_id = b.session_id THEN excluded.session_id END \
             WHEN b.session_id >= ",
            first_uncovered!("excluded"),
            " OR excluded.session_id = b.session_id THEN b.session_id END"
        )
    };
}

/// The statement that writes entries behind the head of the feed.
macro_rules! insertion {
    ($head:literal) => {
        concat!(
            "WITH head AS (",
            $head,
            ")
            INSERT INTO blacklist AS b (
                seq, kind, key, up_to, tenant, subject, session_id, reason, note, revoked_at,
                expires_at, unfinished
            )
            SELECT
                head.seq + given.ordinal, given.kind, given.key, given.up_to, given.tenant,
                given.subject, given.session_id, given.reason, given.note, given.revoked_at,
                given.expires_at, given.unfinished
            FROM head, unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WITH ORDINALITY AS given (
                kind, key, up_to, tenant, subject, session_id, reason, note, revoked_at, expires_at,
                unfinished, ordinal
            )
            ON CONFLICT (kind, key) DO UPDATE
            SET seq = excluded.seq,
                up_to = greatest(b.up_to, excluded.up_to),
                tenant = excluded.tenant,
                subject = excluded.subject,
                session_id = ",
            spared_by_both!(),
            ",
                reason = CASE WHEN b.up_to > excluded.up_to THEN b.reason ELSE excluded.reason END,
                note = CASE WHEN b.up_to > excluded.up_to THEN b.note ELSE excluded.note END,
                revoked_at = CASE
                    WHEN b.up_to > excluded.up_to THEN b.revoked_at ELSE excluded.revoked_at
                END,
                expires_at = greatest(b.expires_at, excluded.expires_at),
                unfinished = b.unfinished OR excluded.unfinished
            RETURNING b.seq, feed_timeline()"
        )
    };
}

/// Writes blacklist entries, each in the place of an older one for the same thing, and returns
/// their places in the feed.
///
/// This locks the head of the feed until the commit, so it comes last: then the order of the
/// entries is the order of the commits, and a reader who has seen one has seen all before it.
pub async fn insert_entries(
    connection: &mut PooledConnection<'_>,
    entries: &[BlacklistEntry],
) -> Result<Vec<FeedPosition>, Fault> {
    if entries.is_empty() {
        return Ok(vec![]);
    }
    // One statement cannot write a row twice, so what is stopped twice gets one entry, the later
    // one.
    let mut rows: Vec<BlacklistEntry> = vec![];
    let mut keys = vec![];
    let mut known = HashMap::new();
    let mut offsets = Vec::with_capacity(entries.len());
    for entry in entries {
        let position = *known.entry(revoked_key(&entry.revoked)).or_insert_with_key(|key| {
            keys.push(key.clone());
            rows.push(entry.clone());
            rows.len() - 1
        });
        if let Some(row) = rows.get_mut(position) {
            *row = merged(row, entry.clone());
        }
        offsets.push(i64::try_from(position).unwrap_or(i64::MAX));
    }
    let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);

    fn column<'a, T>(rows: &'a [BlacklistEntry], of: impl Fn(&'a BlacklistEntry) -> T) -> Vec<T> {
        rows.iter().map(of).collect()
    }
    let up_to =
        |entry: &BlacklistEntry| entry.revoked.cut_off().map(|cut_off| instant(cut_off.up_to));
    let session_id = |entry: &BlacklistEntry| {
        let id = entry.revoked.cut_off().map_or(entry.session_id, |cut_off| cut_off.spared);
        id.map(|id| uuid(id.bytes()))
    };
    let text = insertion!("UPDATE feed_head SET seq = seq + ? RETURNING seq - ? AS seq");
    let written: Vec<(i64, i64)> = statement::<(BigInt, BigInt)>(text)
        .bind::<BigInt, _>(count)
        .bind::<BigInt, _>(count)
        .bind::<Array<Text>, _>(keys.iter().map(|(kind, _)| *kind).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(keys.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>())
        .bind::<Array<OptionalInstant>, _>(column(&rows, up_to))
        .bind::<Array<Text>, _>(column(&rows, |entry| &*entry.tenant))
        .bind::<Array<OptionalText>, _>(column(&rows, |entry| entry.subject.as_deref()))
        .bind::<Array<Nullable<SqlUuid>>, _>(column(&rows, session_id))
        .bind::<Array<Text>, _>(column(&rows, |entry| entry.reason.as_str()))
        .bind::<Array<Text>, _>(column(&rows, |entry| &*entry.note))
        .bind::<Array<Timestamptz>, _>(column(&rows, |entry| instant(entry.revoked_at)))
        .bind::<Array<Timestamptz>, _>(column(&rows, |entry| instant(entry.expires_at)))
        .bind::<Array<Bool>, _>(column(&rows, |entry| entry.unfinished))
        .load(&mut **connection)
        .await?;
    match written.iter().min() {
        Some((first, timeline)) if written.len() == rows.len() => {
            let position =
                |offset| FeedPosition { timeline: Timeline(*timeline), seq: Seq(first + offset) };
            Ok(offsets.into_iter().map(position).collect())
        }
        _ => Err(StoreError::Damaged("feed_head does not have one row".to_owned()).into()),
    }
}

/// Of two entries for the same thing the one that takes the place of both.
fn merged(earlier: &BlacklistEntry, newer: BlacklistEntry) -> BlacklistEntry {
    let BlacklistEntry { expires_at, unfinished, .. } = *earlier;
    let cut_off = earlier.revoked.cut_off();
    let end = || -> Result<Ended, Infallible> {
        let BlacklistEntry { revoked_at, reason, note, .. } = earlier;
        Ok(Ended { at: *revoked_at, reason: *reason, note: note.clone() })
    };
    let Ok(merged) = newer.in_place_of(&EarlierEntry { cut_off, expires_at, unfinished }, end);
    merged
}

/// The cut-offs of tenants and subjects that have one.
pub struct CutOffs(HashMap<String, CutOff>);

impl CutOffs {
    /// The last instant up to which a session's tenant and subject were revoked, if that covers it.
    pub fn covered_up_to(&self, session: &Session) -> Option<Timestamp> {
        let keys = [
            cut_off_key(&session.tenant, None),
            cut_off_key(&session.tenant, Some(&session.subject)),
        ];
        let cut_offs = keys.iter().filter_map(|key| self.0.get(key)).copied();
        revocation::covered_up_to(cut_offs, session.id)
    }
}

/// The cut-offs that may cover these sessions.
pub async fn cut_offs<'a>(
    connection: &mut PooledConnection<'_>,
    sessions: impl IntoIterator<Item = &'a Session>,
) -> Result<CutOffs, Fault> {
    let mut keys: Vec<String> = sessions
        .into_iter()
        .flat_map(|session| {
            [
                cut_off_key(&session.tenant, None),
                cut_off_key(&session.tenant, Some(&session.subject)),
            ]
        })
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let rows: Vec<(String, String, Option<PgTimestamp>, Option<Uuid>)> = blacklist::table
        .filter(blacklist::kind.eq_any(["tenant", "subject"]).and(blacklist::key.eq_any(keys)))
        .select((blacklist::kind, blacklist::key, blacklist::up_to, blacklist::session_id))
        .load(&mut **connection)
        .await?;
    let mut cut_offs = HashMap::new();
    for (kind, key, up_to, session_id) in rows {
        if let Some(cut_off) = revoked(&kind, key.clone(), up_to, session_id)?.cut_off() {
            cut_offs.insert(key, cut_off);
        }
    }
    Ok(CutOffs(cut_offs))
}
