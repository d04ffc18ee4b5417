//! The entries of the blacklist, which form the feed: their order is the order of the commits.

use std::{collections::HashMap, convert::Infallible};

use diesel::{
    ExpressionMethods, QueryDsl, SelectableHelper, dsl,
    sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;

use super::super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::{CutOffRow, instant, revoked_key, uuid},
    schema::blacklist,
    sql::{column, first_uncovered, statement},
};
use crate::{
    domain::{
        revocation::{BlacklistEntry, EarlierEntry, FeedPosition, Seq, Timeline},
        session::Ended,
    },
    store::{CutOffEntry, StoreError},
};

type OptionalText = Nullable<Text>;
type OptionalInstant = Nullable<Timestamptz>;

/// Expands to the session identifier in the entry that replaces `b`. For a subject, this is the
/// session that neither entry covers, as in `CutOff::union`.
macro_rules! spared_by_both {
    () => {
        concat!(
            "CASE
                WHEN b.kind <> 'subject' THEN excluded.session_id
                WHEN excluded.up_to >= b.up_to THEN CASE
                    WHEN excluded.session_id >= ",
            first_uncovered!("b"),
            "
                        OR excluded.session_id = b.session_id
                    THEN excluded.session_id
                END
                WHEN b.session_id >= ",
            first_uncovered!("excluded"),
            "
                    OR excluded.session_id = b.session_id
                THEN b.session_id
            END"
        )
    };
}

/// Appends entries to the feed, and moves its head.
const INSERT_ENTRIES: &str = concat!(
    "WITH head AS (
        UPDATE feed_head SET seq = seq + ? RETURNING seq - ? AS seq
    )
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
        unfinished = b.unfinished OR excluded.unfinished,
        ended_sessions = CASE WHEN b.unfinished THEN b.ended_sessions ELSE 0 END
    RETURNING b.seq, feed_timeline()"
);

/// Writes blacklist entries, and returns their positions in the feed. If there is an older entry
/// for the same session, token, subject or tenant, the new entry replaces it.
///
/// The insertion locks the head of the feed until the commit. So the order of the entries is the
/// order of the commits, and a reader that has seen an entry has seen all entries before it. A
/// transaction takes no other lock after this one.
pub async fn insert_entries(
    connection: &mut PooledConnection<'_>,
    entries: &[BlacklistEntry],
) -> Result<Vec<FeedPosition>, Fault> {
    if entries.is_empty() {
        return Ok(vec![]);
    }
    // One statement cannot write the same row twice, so several entries with the same key are
    // merged into one.
    let mut rows: Vec<BlacklistEntry> = vec![];
    let mut keys = vec![];
    let mut known = HashMap::new();
    let mut offsets = Vec::with_capacity(entries.len());
    for entry in entries {
        let index = *known.entry(revoked_key(&entry.revoked)).or_insert_with_key(|key| {
            keys.push(key.clone());
            rows.push(entry.clone());
            rows.len() - 1
        });
        if let Some(row) = rows.get_mut(index) {
            *row = merged(row, entry.clone());
        }
        offsets.push(i64::try_from(index).unwrap_or(i64::MAX));
    }
    let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);

    let up_to =
        |entry: &BlacklistEntry| entry.revoked.cut_off().map(|cut_off| instant(cut_off.up_to));
    let session_id = |entry: &BlacklistEntry| {
        let id = entry.revoked.cut_off().map_or(entry.session_id, |cut_off| cut_off.spared);
        id.map(|id| uuid(id.bytes()))
    };
    let written: Vec<(i64, i64)> = statement::<(BigInt, BigInt)>(INSERT_ENTRIES)
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

/// Returns the entry that replaces two entries with the same key.
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

/// Reads the entries of cut-offs that are marked as unfinished: sessions that they cover may still
/// have to be marked as ended.
pub async fn unfinished(connection: &mut PooledConnection<'_>) -> Result<Vec<CutOffEntry>, Fault> {
    let rows: Vec<CutOffRow> = blacklist::table
        .filter(dsl::sql::<Bool>("unfinished"))
        .order(blacklist::seq.asc())
        .select(CutOffRow::as_select())
        .load(&mut **connection)
        .await?;
    Ok(rows.into_iter().map(CutOffEntry::try_from).collect::<Result<_, _>>()?)
}

/// Reads the entries of cut-offs that are marked as unfinished or were so before, the newest first.
pub async fn cut_offs(connection: &mut PooledConnection<'_>) -> Result<Vec<CutOffEntry>, Fault> {
    let rows: Vec<CutOffRow> = blacklist::table
        .filter(dsl::sql::<Bool>("(unfinished OR walked_at IS NOT NULL)"))
        .order(blacklist::seq.desc())
        .select(CutOffRow::as_select())
        .load(&mut **connection)
        .await?;
    Ok(rows.into_iter().map(CutOffEntry::try_from).collect::<Result<_, _>>()?)
}

/// Reads the last position given out in the feed.
pub async fn feed_head(connection: &mut PooledConnection<'_>) -> Result<FeedPosition, Fault> {
    let (timeline, seq) =
        statement::<(BigInt, BigInt)>("SELECT feed_timeline(), seq FROM feed_head")
            .get_result(&mut **connection)
            .await?;
    Ok(FeedPosition { timeline: Timeline(timeline), seq: Seq(seq) })
}
