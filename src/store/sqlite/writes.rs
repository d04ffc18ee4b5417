//! The statements that run within a transaction. Any error rolls back the whole transaction.
//!
//! A query by a key, which finds at most one row, does not use `first`. That method would add a
//! `LIMIT` with a parameter, and SQLite reads the value of this parameter when it plans the
//! statement (`sqlite3ExprIsInteger`). So SQLite would plan the statement again on each use, which
//! takes longer than everything else that such a statement does.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, QueryableByName,
    RunQueryDsl, SelectableHelper, SqliteConnection,
    connection::DefaultLoadingMode,
    dsl, sql_query,
    sql_types::{BigInt, Binary, Nullable, Text},
};

use super::{
    TIMELINE,
    rows::{EarlierRow, NewBlacklistRow, SessionRow, cut_off, cut_off_key, revoked_key},
    schema::{blacklist, large_subjects, sessions, sweeper},
};
use crate::{
    domain::{
        cut_off::{
            Coverable, Covering, CutOff, CutOffKey, CutOffKind, KeyRef, Scope, WIDE_BEFORE, is_wide,
        },
        ids::SessionId,
        refresh::{RefreshAttempt, RefreshDecision},
        revocation::{BlacklistEntry, Coverage, FeedPosition, Revocation, Revoked, Seq},
        revoke::{
            MOST_COUNTED, MOST_ENDED_AT_ONCE, OldestLive, RevocationState, Survey, UncoveredCount,
        },
        session::{Ended, Session},
        text::{DeviceId, Subject, Tenant},
        time::{Timestamp, micros},
    },
    store::{EndedBatch, Refreshed, RevocationOutcome, StoreError, SweptRevocations},
};

type Result<T> = std::result::Result<T, StoreError>;

/// Runs a closure in an immediate transaction, which may write from its start.
pub fn transaction<T>(
    connection: &mut SqliteConnection,
    work: impl FnOnce(&mut SqliteConnection) -> Result<T>,
) -> Result<T> {
    connection.immediate_transaction(work)
}

pub fn refresh(connection: &mut SqliteConnection, attempt: &RefreshAttempt) -> Result<Refreshed> {
    let session = find(connection, attempt.session_id)?;
    let device_id = session.as_ref().map(|session| session.device.id.clone()).unwrap_or_default();
    let decision = RefreshDecision::of(attempt, session, |session| {
        covering(connection, session).map(|covering| covering.is_covered())
    });
    match decision? {
        RefreshDecision::Refuse(refusal) => Ok(Refreshed::Refused(refusal)),
        RefreshDecision::Replay { session, may_have_entry } => {
            let position = may_have_entry.then(|| newest_position(connection)).transpose()?;
            Ok(Refreshed::Replayed { session, position })
        }
        RefreshDecision::End { session, entry } => {
            write_end(connection, &session)?;
            let position = insert_entry(connection, entry)?;
            Ok(Refreshed::Ended { session, position })
        }
        RefreshDecision::Rotate { session, entry } => {
            write_rotation(connection, &session, &device_id)?;
            let position = entry.map(|entry| insert_entry(connection, entry)).transpose()?;
            Ok(Refreshed::Rotated { session, position })
        }
    }
}

/// Writes the columns that a refresh alters, including the limits, which may have become stricter.
/// The identifier of the device is written only if it differs from `device_id`, which the row has:
/// SQLite rewrites the entry of an index if the statement sets a column of it, even to its value.
pub fn write_rotation(
    connection: &mut SqliteConnection,
    next: &Session,
    device_id: &DeviceId,
) -> Result<()> {
    let policy = &next.policy;
    let new_device_id = Some(&next.device.id).filter(|id| *id != device_id);
    let limits = (
        sessions::access_token_ttl.eq(micros(policy.access_token_ttl)),
        sessions::idle_timeout.eq(micros(policy.idle_timeout)),
        sessions::refresh_mode.eq(policy.refresh.as_str()),
        sessions::refresh_grace.eq(micros(policy.refresh_grace)),
        sessions::replay.eq(policy.replay.as_str()),
        sessions::replay_limit.eq(micros(policy.replay_limit)),
        sessions::on_refresh.eq(policy.on_refresh.as_str()),
        sessions::reauthentication_lifetime.eq(policy.reauthentication_lifetime.map(micros)),
        sessions::expires_at.eq(next.expires_at.micros()),
        sessions::earlier_tokens_expire_at.eq(next.earlier_tokens_expire_at.map(Timestamp::micros)),
    );
    dsl::update(sessions::table.find(next.id.bytes().as_slice()))
        .set((
            limits,
            sessions::refreshed_at.eq(next.refreshed_at.micros()),
            sessions::idle_expires_at.eq(next.idle_expires_at.micros()),
            sessions::generation.eq(i64::from(next.lineage.generation)),
            sessions::refresh_key.eq(next.lineage.key.0.as_slice()),
            sessions::access_token_id.eq(next.access_token_id.bytes().as_slice()),
            sessions::user_agent.eq(&*next.device.user_agent),
            sessions::ip_address.eq(&*next.device.ip_address),
            sessions::device_label.eq(&*next.device.label),
            new_device_id.map(|id| sessions::device_id.eq(&**id)),
            sessions::revision.eq(i64::from(next.revision)),
        ))
        .execute(connection)?;
    Ok(())
}

/// A revocation. For a tenant or a subject, it comes with the number of live sessions that no entry
/// covers. There may be very many of them, so a reading connection counts them, and not the writer.
#[derive(Clone, Debug)]
pub struct CountedRevocation {
    pub revocation: Revocation,
    pub uncovered: Option<UncoveredCount>,
}

pub fn revoke(
    connection: &mut SqliteConnection,
    counted: &CountedRevocation,
) -> Result<RevocationOutcome> {
    let CountedRevocation { revocation, uncovered } = counted;
    // If the revocation adds no entry, it returns this position.
    let newest = newest_position(connection)?;
    let mut state = State { connection, at: revocation.ended.at, uncovered: *uncovered };
    let decision = revocation.decide(&mut state)?;
    for session in &decision.ended {
        write_end(connection, session)?;
    }
    let mut position = newest;
    for entry in decision.entries.iter().cloned() {
        position = insert_entry(connection, entry)?;
    }
    Ok(RevocationOutcome::new(&decision, position))
}

/// The state that the decision about a revocation is based on, at the instant `at`.
struct State<'a> {
    connection: &'a mut SqliteConnection,
    at: Timestamp,
    uncovered: Option<UncoveredCount>,
}

impl RevocationState for State<'_> {
    type Error = StoreError;

    fn session(&mut self, id: SessionId) -> Result<Option<Session>> {
        find(self.connection, id)
    }

    fn has_entry(&mut self, revoked: &Revoked) -> Result<bool> {
        let (kind, key) = revoked_key(revoked);
        let same = blacklist::kind.eq(kind).and(blacklist::key.eq(key));
        let present: i64 = blacklist::table.filter(same).count().get_result(self.connection)?;
        Ok(present > 0)
    }

    fn survey(&mut self, key: &CutOffKey) -> Result<Survey> {
        let coverage = coverage(self.connection, key)?;
        Ok(Survey { coverage, uncovered: self.uncovered })
    }

    fn live_sessions(&mut self, tenant: &Tenant, subject: &Subject) -> Result<OldestLive> {
        let mut sessions = live_sessions(self.connection, tenant, subject, self.at)?;
        let has_more = sessions.len() > MOST_ENDED_AT_ONCE;
        sessions.truncate(MOST_ENDED_AT_ONCE);
        Ok(OldestLive { sessions, has_more })
    }
}

/// Reads the newest session of a scope, and its cut-off. For a client, the newest session may be one
/// with another client.
fn coverage(connection: &mut SqliteConnection, key: &CutOffKey) -> Result<Coverage> {
    let covered = covered(connection, &key.borrowed())?;
    let Some(tenant) = key.scope().tenant() else {
        let newest = sessions::table.order(sessions::id.desc()).select(sessions::id);
        let newest: Option<Vec<u8>> = newest.first(connection).optional()?;
        return Ok(Coverage { newest: newest.as_deref().map(session_id).transpose()?, covered });
    };
    let mut newest = None;
    for is_over in [false, true] {
        let of_tenant = sessions::table
            .filter(sessions::tenant.eq(&**tenant).and(sessions::is_over.eq(is_over)))
            .order(sessions::id.desc())
            .select(sessions::id);
        let id: Option<Vec<u8>> = match key.scope().subject() {
            None => of_tenant.first(connection),
            Some(subject) => of_tenant.filter(sessions::subject.eq(&**subject)).first(connection),
        }
        .optional()?;
        newest = newest.max(id.as_deref().map(session_id).transpose()?);
    }
    Ok(Coverage { newest, covered })
}

/// Returns the cut-off with a key, if there is one.
fn covered(connection: &mut SqliteConnection, key: &KeyRef<'_>) -> Result<Option<CutOff>> {
    let (kind, key) = cut_off_key(key);
    let entry: Option<(Option<i64>, Option<Vec<u8>>)> = blacklist::table
        .filter(blacklist::kind.eq(kind).and(blacklist::key.eq(key)))
        .select((blacklist::up_to, blacklist::session_id))
        .get_result(connection)
        .optional()?;
    entry.and_then(|(up_to, session_id)| Some(cut_off(up_to?, session_id.as_deref()))).transpose()
}

/// Counts the live sessions of a tenant, or of a subject, that its entry does not cover. The
/// session `except` is not counted.
pub fn count_uncovered(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    subject: Option<&Subject>,
    except: Option<SessionId>,
    now: Timestamp,
) -> Result<UncoveredCount> {
    let scope = match subject {
        None => Scope::Tenant(tenant.clone()),
        Some(subject) => Scope::Subject(tenant.clone(), subject.clone()),
    };
    let covered = covered(connection, &CutOffKey::created(scope).borrowed())?;
    let bytes = |id: SessionId| id.bytes().to_vec();
    let last = covered
        .map(|covered| bytes(SessionId::last_of_millisecond(covered.up_to)))
        .unwrap_or_default();
    let spared = covered.and_then(|covered| covered.spared).map(bytes).unwrap_or_default();
    let uncovered = sessions::table
        .filter(sessions::tenant.eq(&**tenant).and(sessions::is_over.eq(false)))
        .filter(sessions::idle_expires_at.gt(now.micros()))
        .filter(sessions::id.gt(last).or(sessions::id.eq(spared)))
        .filter(sessions::id.ne(except.map(bytes).unwrap_or_default()));
    let counted = uncovered.limit(MOST_COUNTED).select(dsl::sql::<BigInt>("1"));
    let found: Vec<i64> = match subject {
        None => counted.load(connection)?,
        Some(subject) => counted.filter(sessions::subject.eq(&**subject)).load(connection)?,
    };
    Ok(UncoveredCount { sessions: i64::try_from(found.len()).unwrap_or(MOST_COUNTED), covered })
}

/// Returns which cut-offs cover a session. Most of the time there are no wide cut-offs, which one
/// look into the index of the kinds shows.
pub fn covering(connection: &mut SqliteConnection, session: &Session) -> Result<Covering> {
    let has_wide = blacklist::table
        .filter(blacklist::kind.lt(WIDE_BEFORE))
        .select(blacklist::seq)
        .load_iter::<i64, DefaultLoadingMode>(connection)?
        .next()
        .transpose()?
        .is_some();
    let coverable = Coverable::from(session);
    let mut cut_offs = vec![];
    for kind in CutOffKind::ALL.into_iter().filter(|kind| has_wide || !is_wide(*kind)) {
        if let Some(cut_off) = covered(connection, &coverable.key(kind))? {
            cut_offs.push((kind, cut_off));
        }
    }
    Ok(Covering::of(coverable, cut_offs))
}

/// Ends a live session, and writes the entry that stops its tokens.
pub fn end_session(
    connection: &mut SqliteConnection,
    session: Session,
    ended: Ended,
) -> Result<FeedPosition> {
    let (session, entry) = BlacklistEntry::end(session, ended);
    write_end(connection, &session)?;
    insert_entry(connection, entry)
}

/// Writes the end of a session.
pub fn write_end(connection: &mut SqliteConnection, session: &Session) -> Result<()> {
    let ended = session.ended.as_ref();
    dsl::update(sessions::table.find(session.id.bytes().as_slice()))
        .set((
            sessions::ended_at.eq(ended.map(|ended| ended.at.micros())),
            sessions::end_reason.eq(ended.map(|ended| ended.reason.as_str())),
            sessions::end_note.eq(ended.map(|ended| &*ended.note)),
            sessions::revision.eq(i64::from(session.revision)),
            sessions::is_over.eq(session.ended.is_some()),
        ))
        .execute(connection)?;
    Ok(())
}

/// The last position that the feed has given out. SQLite counts it for the blacklist, whose rows are
/// never numbered twice (SQLite, "SQLite Autoincrement").
pub const HEAD: &str =
    "(SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'blacklist')";

/// Returns the last position of the feed.
pub fn newest_position(connection: &mut SqliteConnection) -> Result<FeedPosition> {
    Ok(position(dsl::select(dsl::sql::<BigInt>(HEAD)).get_result(connection)?))
}

/// Gives out a position of the feed to a change that has no row in the blacklist.
pub fn take_position(connection: &mut SqliteConnection) -> Result<FeedPosition> {
    let counted = sql_query("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'blacklist'")
        .execute(connection)?;
    if counted == 0 {
        sql_query("INSERT INTO sqlite_sequence (name, seq) VALUES ('blacklist', 1)")
            .execute(connection)?;
    }
    newest_position(connection)
}

/// Creates a position in the only timeline of the file.
fn position(seq: i64) -> FeedPosition {
    FeedPosition { timeline: TIMELINE, seq: Seq(seq) }
}

/// Writes an entry. If there is an older entry for the same session, token, subject or tenant, the
/// new entry replaces it, so that a repeated revocation adds no row and undoes nothing.
pub fn insert_entry(
    connection: &mut SqliteConnection,
    entry: BlacklistEntry,
) -> Result<FeedPosition> {
    let (kind, key) = revoked_key(&entry.revoked);
    let earlier = blacklist::table
        .filter(blacklist::kind.eq(kind).and(blacklist::key.eq(key)))
        .select(EarlierRow::as_select())
        .get_result(connection)
        .optional()?;
    let entry = match &earlier {
        Some(earlier) => entry.in_place_of(&earlier.entry()?, || earlier.end())?,
        None => entry,
    };
    let seq = dsl::replace_into(blacklist::table)
        .values(NewBlacklistRow::new(&entry, earlier.as_ref()))
        .returning(blacklist::seq)
        .get_result(connection)?;
    Ok(position(seq))
}

pub fn find(connection: &mut SqliteConnection, id: SessionId) -> Result<Option<Session>> {
    let row = sessions::table
        .find(id.bytes().as_slice())
        .select(SessionRow::as_select())
        .get_result(connection)
        .optional()?;
    row.map(Session::try_from).transpose()
}

/// Reads a subject's live sessions, the oldest first. It reads as many as one transaction may end,
/// and one more, which shows that there are others.
fn live_sessions(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    subject: &Subject,
    now: Timestamp,
) -> Result<Vec<Session>> {
    let rows = sessions::table
        .filter(sessions::tenant.eq(&**tenant).and(sessions::subject.eq(&**subject)))
        .filter(sessions::is_over.eq(false).and(sessions::idle_expires_at.gt(now.micros())))
        .order(sessions::id.asc())
        .select(SessionRow::as_select())
        .load_iter::<SessionRow, DefaultLoadingMode>(connection)?;
    rows.take(MOST_ENDED_AT_ONCE + 1).map(|row| row?.try_into()).collect()
}

pub fn session_id(bytes: &[u8]) -> Result<SessionId> {
    let wrong_size = |_| StoreError::Damaged("sessions.id is not 16 bytes".to_owned());
    Ok(SessionId::from_bytes(bytes.try_into().map_err(wrong_size)?))
}

pub fn end_all_sessions(
    connection: &mut SqliteConnection,
    ended: &Ended,
    until: Timestamp,
    after: Option<SessionId>,
    limit: i64,
) -> Result<Option<EndedBatch>> {
    let after = after.map(|id| id.bytes().to_vec()).unwrap_or_default();
    let looked_at: Vec<Vec<u8>> = sessions::table
        .filter(
            sessions::id
                .gt(&after)
                .and(sessions::id.le(SessionId::last_of_millisecond(until).bytes().to_vec())),
        )
        .order(sessions::id.asc())
        .limit(limit)
        .select(sessions::id)
        .load(connection)?;
    let Some(last) = looked_at.last() else { return Ok(None) };
    let at = ended.at.micros();
    let sessions = sql_query(
        "UPDATE sessions
         SET ended_at = ?,
            end_reason = ?,
            end_note = ?,
            revision = min(revision + 1, 4294967295),
            is_over = TRUE
         WHERE id > ? AND id <= ? AND NOT is_over AND idle_expires_at > ?",
    )
    .bind::<BigInt, _>(at)
    .bind::<Text, _>(ended.reason.as_str())
    .bind::<Text, _>(&*ended.note)
    .bind::<Binary, _>(&after)
    .bind::<Binary, _>(last)
    .bind::<BigInt, _>(at)
    .execute(connection)?;
    Ok(Some(EndedBatch { last: session_id(last)?, sessions }))
}

#[derive(QueryableByName)]
struct Newest {
    #[diesel(sql_type = Nullable<BigInt>)]
    at: Option<i64>,
}

/// Returns the latest of three instants: the last refresh of the newest session, the newest
/// revocation, and the newest record of the audit.
pub fn newest(connection: &mut SqliteConnection) -> Result<Option<Timestamp>> {
    let rows: Vec<Newest> = sql_query(
        "SELECT refreshed_at AS at FROM (SELECT refreshed_at FROM sessions ORDER BY id DESC LIMIT 1)
        UNION ALL
        SELECT revoked_at FROM (SELECT revoked_at FROM blacklist ORDER BY seq DESC LIMIT 1)
        UNION ALL SELECT max(at) FROM audit",
    )
    .load(connection)?;
    Ok(rows.into_iter().filter_map(|row| row.at).max().map(Timestamp::from_micros))
}

#[derive(QueryableByName)]
struct Deleted {
    #[diesel(sql_type = BigInt)]
    expires_at: i64,
}

pub fn delete_expired_revocations(
    connection: &mut SqliteConnection,
    until: Timestamp,
    limit: i64,
) -> Result<SweptRevocations> {
    // The entry of a tenant or subject covers a session if the time of creation in the session's
    // identifier, in milliseconds, is not later than `up_to`.
    sql_query(
        "UPDATE blacklist AS b
        SET unfinished = TRUE
        WHERE b.expires_at < ? AND b.kind IN ('tenant', 'subject') AND NOT b.unfinished
            AND (
                b.kind = 'tenant' AND EXISTS (
                    SELECT 1 FROM sessions AS s
                    WHERE s.tenant = b.tenant AND s.is_over = FALSE
                        AND s.id < unhex(printf('%012X', b.up_to / 1000 + 1))
                        AND s.idle_expires_at > b.revoked_at
                )
                OR b.kind = 'subject' AND EXISTS (
                    SELECT 1 FROM sessions AS s
                    WHERE s.tenant = b.tenant AND s.subject = b.subject AND s.is_over = FALSE
                        AND s.id < unhex(printf('%012X', b.up_to / 1000 + 1))
                        AND s.id IS NOT b.session_id
                        AND s.idle_expires_at > b.revoked_at
                )
            )",
    )
    .bind::<BigInt, _>(until.micros())
    .execute(connection)?;
    // For the entry of a wide cut-off, no index finds such a session. So it is kept until the job
    // has walked through all sessions once more.
    sql_query(
        "UPDATE blacklist
        SET unfinished = TRUE
        WHERE kind < 'b' AND expires_at < ? AND NOT unfinished
            AND (walked_at IS NULL OR walked_at < expires_at)",
    )
    .bind::<BigInt, _>(until.micros())
    .execute(connection)?;
    let deleted: Vec<Deleted> = sql_query(
        "DELETE FROM blacklist
        WHERE seq IN (
            SELECT seq
            FROM blacklist
            WHERE expires_at < ? AND NOT unfinished
            ORDER BY expires_at
            LIMIT ?
        )
        RETURNING expires_at",
    )
    .bind::<BigInt, _>(until.micros())
    .bind::<BigInt, _>(limit)
    .load(connection)?;
    let latest = deleted.iter().map(|row| row.expires_at).max().unwrap_or(i64::MIN);
    dsl::update(sweeper::table)
        .filter(sweeper::forgotten_until.lt(latest))
        .set(sweeper::forgotten_until.eq(latest))
        .execute(connection)?;
    let purge_watermark = sweeper::table.select(sweeper::forgotten_until).get_result(connection)?;
    Ok(SweptRevocations {
        deleted: deleted.len(),
        purge_watermark: Timestamp::from_micros(purge_watermark),
    })
}

pub fn delete_old_sessions(
    connection: &mut SqliteConnection,
    until: Timestamp,
    limit: i64,
) -> Result<usize> {
    dsl::delete(large_subjects::table.filter(large_subjects::counted_at.lt(until.micros())))
        .execute(connection)?;
    let deleted = sql_query(
        "DELETE FROM sessions
        WHERE id IN (
            SELECT id FROM sessions
            WHERE is_over AND coalesce(ended_at, idle_expires_at) < ?
            ORDER BY coalesce(ended_at, idle_expires_at)
            LIMIT ?
        )",
    )
    .bind::<BigInt, _>(until.micros())
    .bind::<BigInt, _>(limit)
    .execute(connection)?;
    Ok(deleted)
}
