//! Ends or counts the sessions that a cut-off covers, in batches of limited size.
//!
//! A batch reads sessions in the order of their identifiers: those of one subject or tenant by the
//! index, and those of all tenants by the primary key. The client and the authentication are in no
//! index, so they are compared in the rows that the batch has read.

use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl, QueryableByName, RunQueryDsl, SqliteConnection,
    dsl,
    query_builder::{BoxedSqlQuery, SqlQuery},
    sql_query,
    sql_types::{BigInt, Binary, Nullable, Text},
    sqlite::Sqlite,
};

use super::{
    rows::cut_off_key,
    schema::blacklist,
    writes::{insert_entry, session_id},
};
use crate::{
    domain::{
        cut_off::{CutOff, CutOffKey},
        ids::SessionId,
        revocation::RETENTION_MARGIN,
        session::Ended,
        time::Timestamp,
    },
    store::{CountedBatch, CutOffEntry, EndedBatch, StoreError, Walk},
};

type Result<T> = std::result::Result<T, StoreError>;
type Statement<'a> = BoxedSqlQuery<'a, Sqlite, SqlQuery>;

/// Ends covered sessions in one transaction. If one of their tokens can be valid for longer than
/// the entry of the cut-off is kept, the entry is written again with a later expiry, so that the
/// index keeps it for long enough.
pub fn end(
    connection: &mut SqliteConnection,
    entry: &CutOffEntry,
    walk: Walk,
    limit: i64,
) -> Result<Option<EndedBatch>> {
    let (key, cut_off) = (&entry.key, entry.cut_off);
    let Some(read) = Batch::read(connection, key, cut_off, walk.after, limit)? else {
        // If the same sessions were revoked again, the entry has another `seq` now, and so stays
        // unfinished.
        dsl::update(blacklist::table.find(entry.seq.0))
            .set((blacklist::unfinished.eq(false), blacklist::walked_at.eq(walk.began_at.micros())))
            .execute(connection)?;
        return Ok(None);
    };
    let needed_until = read.batch.needed_until(connection, entry.ended.at)?;
    let sessions = read.batch.end(connection, &entry.ended)?;
    let needed_until = needed_until.map(|at| at.plus(RETENTION_MARGIN));
    if let Some(needed_until) = needed_until.filter(|needed_until| *needed_until > entry.expires_at)
    {
        insert_entry(connection, entry.until(needed_until))?;
    }
    if sessions > 0 {
        let (kind, key) = cut_off_key(&key.borrowed());
        let ended = i64::try_from(sessions).unwrap_or(i64::MAX);
        dsl::update(
            blacklist::table.filter(blacklist::kind.eq(kind)).filter(blacklist::key.eq(key)),
        )
        .set(blacklist::ended_sessions.eq(blacklist::ended_sessions + ended))
        .execute(connection)?;
    }
    Ok(Some(EndedBatch { last: session_id(&read.batch.last)?, sessions }))
}

/// Counts covered sessions that are live at `now`.
pub fn count(
    connection: &mut SqliteConnection,
    (key, cut_off): (&CutOffKey, CutOff),
    now: Timestamp,
    after: Option<SessionId>,
    limit: i64,
) -> Result<Option<CountedBatch>> {
    let Some(read) = Batch::read(connection, key, cut_off, after, limit)? else { return Ok(None) };
    let sessions = read.batch.count(connection, now)?;
    let last = session_id(&read.batch.last)?;
    Ok(Some(CountedBatch { last, looked_at: read.looked_at, sessions }))
}

/// A batch of sessions, and the cut-off that may cover them.
struct Batch<'a> {
    key: &'a CutOffKey,
    cut_off: CutOff,
    /// The batch begins after this identifier.
    after: Vec<u8>,
    /// The batch ends with this identifier.
    last: Vec<u8>,
}

/// A batch that has been read.
struct ReadBatch<'a> {
    batch: Batch<'a>,
    looked_at: i64,
}

#[derive(QueryableByName)]
struct RangeRow {
    #[diesel(sql_type = Nullable<Binary>)]
    last: Option<Vec<u8>>,
    #[diesel(sql_type = BigInt)]
    looked_at: i64,
}

#[derive(QueryableByName)]
struct InstantRow {
    #[diesel(sql_type = Nullable<BigInt>)]
    at: Option<i64>,
}

#[derive(QueryableByName)]
struct CountRow {
    #[diesel(sql_type = BigInt)]
    sessions: i64,
}

impl<'a> Batch<'a> {
    /// Reads the identifiers of the next batch. Returns none if there are no more.
    fn read(
        connection: &mut SqliteConnection,
        key: &'a CutOffKey,
        cut_off: CutOff,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<ReadBatch<'a>>> {
        let last = key.last_session(cut_off).bytes().to_vec();
        let after = after.map(|id| id.bytes().to_vec()).unwrap_or_default();
        let range = Self { key, cut_off, after, last };
        let in_range = range.in_range();
        let statement = sql_query(format!(
            "SELECT max(id) AS last, count(*) AS looked_at
            FROM (SELECT id FROM sessions WHERE {in_range} ORDER BY id LIMIT ?)"
        ));
        let statement = range.bind_range(statement.into_boxed::<Sqlite>());
        let row: Option<RangeRow> =
            statement.bind::<BigInt, _>(limit).get_result(connection).optional()?;
        Ok(row.and_then(|RangeRow { last, looked_at }| {
            let last = last?;
            Some(ReadBatch { batch: Self { last, ..range }, looked_at })
        }))
    }

    /// Returns the SQL condition for the sessions of the scope in the range. The index has the
    /// column `is_over` between the tenant or subject and the identifier.
    fn in_range(&self) -> &'static str {
        match (self.key.scope().tenant(), self.key.scope().subject()) {
            (None, _) => "id > ? AND id <= ?",
            (Some(_), None) => "tenant = ? AND is_over = FALSE AND id > ? AND id <= ?",
            (Some(_), Some(_)) => {
                "tenant = ? AND subject = ? AND is_over = FALSE AND id > ? AND id <= ?"
            }
        }
    }

    /// Binds the values of [`Self::in_range`].
    fn bind_range<'s>(&self, statement: Statement<'s>) -> Statement<'s> {
        let mut statement = statement;
        if let Some(tenant) = self.key.scope().tenant() {
            statement = statement.bind::<Text, _>(tenant.to_string());
        }
        if let Some(subject) = self.key.scope().subject() {
            statement = statement.bind::<Text, _>(subject.to_string());
        }
        statement.bind::<Binary, _>(self.after.clone()).bind::<Binary, _>(self.last.clone())
    }

    /// Returns the SQL condition for the sessions of the batch that the cut-off covers, apart from
    /// the one that it spares.
    fn covered(&self) -> String {
        let client = self.key.scope().client_id().map_or("", |_| " AND client_id = ?");
        let authentication =
            self.key.last_authentication(self.cut_off).map_or("", |_| " AND authenticated_at <= ?");
        format!("{} AND is_over = FALSE{client}{authentication}", self.in_range())
    }

    /// Binds the values of [`Self::covered`].
    fn bind_covered<'s>(&self, statement: Statement<'s>) -> Statement<'s> {
        let mut statement = self.bind_range(statement);
        if let Some(client_id) = self.key.scope().client_id() {
            statement = statement.bind::<Text, _>(client_id.to_string());
        }
        if let Some(up_to) = self.key.last_authentication(self.cut_off) {
            statement = statement.bind::<BigInt, _>(up_to.micros());
        }
        statement
    }

    /// Binds the values of `id IS NOT ? AND idle_expires_at > ?`: the spared session and an instant.
    fn bind_live<'s>(&self, statement: Statement<'s>, at: Timestamp) -> Statement<'s> {
        let spared = self.cut_off.spared.map(|id| id.bytes().to_vec());
        statement.bind::<Nullable<Binary>, _>(spared).bind::<BigInt, _>(at.micros())
    }

    /// Returns the latest instant at which a token of these sessions may be valid. Sessions that
    /// have expired count too, because a token may have been issued with a clock that was ahead.
    fn needed_until(
        &self,
        connection: &mut SqliteConnection,
        ended_at: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let covered = self.covered();
        let statement = sql_query(format!(
            "SELECT max(
                max(
                    min(
                        max(
                            ?,
                            refreshed_at + refresh_grace,
                            CASE replay
                                WHEN 'until_used' THEN refreshed_at + replay_limit
                                ELSE 0
                            END
                        ) + access_token_ttl,
                        idle_expires_at
                    ),
                    coalesce(earlier_tokens_expire_at, 0)
                )
            ) AS at
            FROM sessions
            WHERE {covered}"
        ));
        let statement = statement.into_boxed::<Sqlite>().bind::<BigInt, _>(ended_at.micros());
        let row: InstantRow = self.bind_covered(statement).get_result(connection)?;
        Ok(row.at.map(Timestamp::from_micros))
    }

    /// Ends those of the sessions that are live, and returns their number. The rows are not
    /// converted to sessions, because a damaged row must not keep the other sessions from ending.
    fn end(&self, connection: &mut SqliteConnection, ended: &Ended) -> Result<usize> {
        let covered = self.covered();
        let statement = sql_query(format!(
            "UPDATE sessions
            SET ended_at = ?,
                end_reason = ?,
                end_note = ?,
                revision = min(revision + 1, 4294967295),
                is_over = TRUE
            WHERE {covered} AND id IS NOT ? AND idle_expires_at > ?"
        ));
        let statement = statement
            .into_boxed::<Sqlite>()
            .bind::<BigInt, _>(ended.at.micros())
            .bind::<Text, _>(ended.reason.as_str())
            .bind::<Text, _>(ended.note.to_string());
        Ok(self.bind_live(self.bind_covered(statement), ended.at).execute(connection)?)
    }

    fn count(&self, connection: &mut SqliteConnection, now: Timestamp) -> Result<i64> {
        let covered = self.covered();
        let statement = sql_query(format!(
            "SELECT count(*) AS sessions
            FROM sessions
            WHERE {covered} AND id IS NOT ? AND idle_expires_at > ?"
        ));
        let statement = self.bind_covered(statement.into_boxed::<Sqlite>());
        let row: CountRow = self.bind_live(statement, now).get_result(connection)?;
        Ok(row.sessions)
    }
}
