//! What is written within a transaction, statement by statement. Any error undoes the whole transaction.
//!
//! Where a key finds at most one row, there is no `first`: it adds a `LIMIT` by a parameter, and SQLite looks at its value when it plans
//! (`sqlite3ExprIsInteger`), and so plans anew each time, which takes longer than all else that such a statement does.

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, QueryableByName, RunQueryDsl,
    SelectableHelper, SqliteConnection, dsl, sql_query,
    sql_types::{BigInt, Binary, Text},
};

use super::{
    TIMELINE,
    rows::{NewBlacklistRow, SessionRow, TENANT},
    schema::{blacklist, sessions, sweeper},
};
use crate::{
    domain::{
        ids::SessionId,
        policy::{OnQuota, OnRefresh},
        refresh::{RefreshAttempt, RefreshRefusal, RefreshVerdict},
        revocation::{
            BlacklistEntry, Place, RETENTION_MARGIN, Revocation, RevocationTarget, Seq, TenantState, tenant_covers,
        },
        session::{EndReason, Ended, Session},
        text::{Note, Subject, Tenant},
        time::{Timestamp, micros},
    },
    store::{
        Created, Creation, EndedBatch, Eviction, Refreshed, RevocationOutcome, RevokedTenant, StoreError,
        SweptRevocations,
    },
};

type Result<T> = std::result::Result<T, StoreError>;

/// Runs a closure in a transaction that has the right to write from its start.
pub fn transaction<T>(
    connection: &mut SqliteConnection,
    work: impl FnOnce(&mut SqliteConnection) -> Result<T>,
) -> Result<T> {
    connection.immediate_transaction(work)
}

pub fn create(connection: &mut SqliteConnection, creation: &Creation) -> Result<Created> {
    let session = &creation.session;
    if let Some(request_id) = &session.request_id {
        let earlier = sessions::table
            .filter(sessions::tenant.eq(&*session.tenant).and(sessions::request_id.eq(&**request_id)))
            .select(SessionRow::as_select())
            .get_result(connection)
            .optional()?;
        if let Some(row) = earlier {
            return Ok(Created::for_used_request_id(session, row.try_into()?));
        }
    }
    // Read here and not in the index, so that no session is created behind a revocation that is being committed.
    if let Some(up_to) = tenant_revoked_up_to(connection, &session.tenant)?
        && tenant_covers(up_to, session.id)
    {
        return Ok(Created::TenantRevoked { up_to });
    }
    let mut eviction = None;
    if creation.max_sessions > 0 {
        let now = session.created_at;
        let live = live_sessions(connection, &session.tenant, &session.subject, now)?;
        let keep = usize::try_from(creation.max_sessions - 1).unwrap_or(usize::MAX);
        let surplus = live.len().saturating_sub(keep);
        if surplus > 0 && creation.on_quota == OnQuota::Refuse {
            return Ok(Created::QuotaExceeded);
        }
        let (mut last, mut sessions) = (None, vec![]);
        for oldest in live.into_iter().take(surplus) {
            let ended = Ended { at: now, reason: EndReason::QuotaEvicted, note: Note::default() };
            let (evicted, place) = end_session(connection, oldest, ended)?;
            sessions.push(evicted.id);
            last = Some(place);
        }
        eviction = last.map(|place| Eviction { place, sessions });
    }
    dsl::insert_into(sessions::table).values(SessionRow::from(session)).execute(connection)?;
    Ok(Created::New { eviction })
}

pub fn refresh(connection: &mut SqliteConnection, attempt: &RefreshAttempt) -> Result<Refreshed> {
    let Some(session) = find(connection, attempt.session_id)? else {
        return Ok(Refreshed::Refused(RefreshRefusal::Unknown));
    };
    let verdict = session.judge_refresh(attempt);
    // The job that ends a revoked tenant's sessions may not have come to this one yet.
    if !matches!(verdict, RefreshVerdict::Refuse(_))
        && tenant_revoked_up_to(connection, &session.tenant)?.is_some_and(|up_to| tenant_covers(up_to, session.id))
    {
        return Ok(Refreshed::Refused(RefreshRefusal::Ended));
    }
    match verdict {
        RefreshVerdict::Refuse(refusal) => Ok(Refreshed::Refused(refusal)),
        RefreshVerdict::Replay => {
            let place = match session.policy.on_refresh {
                OnRefresh::KeepAccessToken => None,
                OnRefresh::RevokeAccessToken => Some(newest_place(connection)?),
            };
            Ok(Refreshed::Replayed { session: Box::new(session), place })
        }
        RefreshVerdict::Reuse => {
            let ended = Ended { at: attempt.now, reason: EndReason::RefreshTokenReused, note: Note::default() };
            let (session, place) = end_session(connection, session, ended)?;
            Ok(Refreshed::Reused { session: Box::new(session), place })
        }
        RefreshVerdict::Rotate(next) => {
            dsl::update(sessions::table.find(next.id.bytes().as_slice()))
                .set((
                    sessions::refreshed_at.eq(next.refreshed_at.micros()),
                    sessions::idle_expires_at.eq(next.idle_expires_at.micros()),
                    sessions::generation.eq(i64::from(next.lineage.generation)),
                    sessions::refresh_key.eq(next.lineage.key.0.as_slice()),
                    sessions::access_token_id.eq(next.access_token_id.bytes().as_slice()),
                    sessions::user_agent.eq(&*next.device.user_agent),
                    sessions::ip_address.eq(&*next.device.ip_address),
                    sessions::device_label.eq(&*next.device.label),
                    sessions::revision.eq(i64::from(next.revision)),
                ))
                .execute(connection)?;
            let place = match next.policy.on_refresh {
                OnRefresh::KeepAccessToken => None,
                OnRefresh::RevokeAccessToken => {
                    Some(insert_entry(connection, &BlacklistEntry::superseded(&session, attempt.now))?)
                }
            };
            Ok(Refreshed::Rotated { session: next, place })
        }
    }
}

pub fn revoke(connection: &mut SqliteConnection, revocation: &Revocation) -> Result<RevocationOutcome> {
    let newest = newest_place(connection)?;
    write_revocation(connection, revocation, newest)
}

/// `newest` is where the blacklist has come to, for those who add nothing.
fn write_revocation(
    connection: &mut SqliteConnection,
    revocation: &Revocation,
    newest: Place,
) -> Result<RevocationOutcome> {
    let nothing = RevocationOutcome { found: true, place: newest, ..RevocationOutcome::default() };
    let ended = &revocation.ended;
    match &revocation.target {
        RevocationTarget::Session(id) => match find(connection, *id)? {
            Some(session) if session.is_live(ended.at) => end_all(connection, vec![session], revocation, nothing),
            session => stop_orphan(connection, session.as_ref(), revocation, nothing),
        },
        RevocationTarget::Token { token, session_id, expires_at } => match find(connection, *session_id)? {
            Some(session) if session.is_live(ended.at) => {
                let entry = BlacklistEntry::for_token(&session, *token, *expires_at, ended);
                add_entry(connection, &entry, revocation, nothing)
            }
            session => stop_orphan(connection, session.as_ref(), revocation, nothing),
        },
        RevocationTarget::Subject { tenant, subject, except } => {
            let mut live = live_sessions(connection, tenant, subject, ended.at)?;
            live.retain(|session| Some(session.id) != *except);
            end_all(connection, live, revocation, nothing)
        }
        RevocationTarget::Tenant(tenant) => {
            let state = tenant_state(connection, tenant)?;
            let Some(up_to) = state.up_to(ended.at) else { return Ok(nothing) };
            let entry = BlacklistEntry::for_tenant(tenant, up_to, ended);
            let outcome = add_entry(connection, &entry, revocation, nothing)?;
            Ok(RevocationOutcome { changed: outcome.wrote && state.has_uncovered(), ..outcome })
        }
    }
}

/// Writes an entry that ends no session, if there is room or it takes the place of an older one.
fn add_entry(
    connection: &mut SqliteConnection,
    entry: &BlacklistEntry,
    revocation: &Revocation,
    nothing: RevocationOutcome,
) -> Result<RevocationOutcome> {
    let row = NewBlacklistRow::from(entry);
    let same = blacklist::kind.eq(row.kind).and(blacklist::key.eq(&row.key));
    let present: i64 = blacklist::table.filter(same).count().get_result(connection)?;
    let is_new = present == 0;
    if is_new && !revocation.may_add {
        return Ok(RevocationOutcome { full: true, ..nothing });
    }
    let place = insert_entry(connection, entry)?;
    Ok(RevocationOutcome { wrote: true, changed: is_new, place, ..nothing })
}

/// What is left to do for a session that does not live. One that was ended has an entry of its own, which stops all its
/// tokens; one that is unknown, or expired although a token of it lives, has none.
fn stop_orphan(
    connection: &mut SqliteConnection,
    session: Option<&Session>,
    revocation: &Revocation,
    nothing: RevocationOutcome,
) -> Result<RevocationOutcome> {
    let outcome = match &revocation.orphan {
        Some(entry) if session.is_none_or(|session| session.ended.is_none()) => {
            add_entry(connection, entry, revocation, nothing)?
        }
        _ => nothing,
    };
    Ok(RevocationOutcome { found: session.is_some(), ..outcome })
}

fn tenant_state(connection: &mut SqliteConnection, tenant: &Tenant) -> Result<TenantState> {
    let newest: Option<Vec<u8>> = sessions::table
        .filter(sessions::tenant.eq(&**tenant))
        .order(sessions::id.desc())
        .select(sessions::id)
        .first(connection)
        .optional()?;
    let newest = newest.and_then(|id| id.try_into().ok()).map(SessionId::from_bytes);
    Ok(TenantState { newest, covered: tenant_revoked_up_to(connection, tenant)? })
}

/// The last instant that the tenant's entry covers, if it has one.
fn tenant_revoked_up_to(connection: &mut SqliteConnection, tenant: &Tenant) -> Result<Option<Timestamp>> {
    let up_to: Option<Option<i64>> = blacklist::table
        .filter(blacklist::kind.eq(TENANT).and(blacklist::key.eq(tenant.as_bytes())))
        .select(blacklist::up_to)
        .get_result(connection)
        .optional()?;
    Ok(up_to.flatten().map(Timestamp::from_micros))
}

fn end_all(
    connection: &mut SqliteConnection,
    live: Vec<Session>,
    revocation: &Revocation,
    nothing: RevocationOutcome,
) -> Result<RevocationOutcome> {
    if !live.is_empty() && !revocation.may_add {
        return Ok(RevocationOutcome { full: true, ..nothing });
    }
    let mut outcome = nothing;
    for session in live {
        outcome.whose = Some((session.tenant.clone(), session.subject.clone()));
        outcome.place = end_session(connection, session, revocation.ended.clone())?.1;
        (outcome.wrote, outcome.changed) = (true, true);
        outcome.sessions += 1;
    }
    Ok(outcome)
}

/// Ends a live session and stops its tokens: two statements, one transaction.
fn end_session(connection: &mut SqliteConnection, session: Session, ended: Ended) -> Result<(Session, Place)> {
    let entry = BlacklistEntry::for_session(&session, &ended);
    let session = session.end(ended);
    write_end(connection, &session)?;
    let place = insert_entry(connection, &entry)?;
    Ok((session, place))
}

fn write_end(connection: &mut SqliteConnection, session: &Session) -> Result<()> {
    let ended = session.ended.as_ref();
    dsl::update(sessions::table.find(session.id.bytes().as_slice()))
        .set((
            sessions::ended_at.eq(ended.map(|ended| ended.at.micros())),
            sessions::end_reason.eq(ended.map(|ended| ended.reason.as_str())),
            sessions::end_note.eq(ended.map(|ended| &*ended.note)),
            sessions::revision.eq(i64::from(session.revision)),
        ))
        .execute(connection)?;
    Ok(())
}

/// Where the blacklist has come to.
pub fn newest_place(connection: &mut SqliteConnection) -> Result<Place> {
    let newest: Option<i64> = blacklist::table.select(dsl::max(blacklist::seq)).get_result(connection)?;
    Ok(place(newest.unwrap_or_default()))
}

/// A place in the only history that the file has.
fn place(seq: i64) -> Place {
    Place { timeline: TIMELINE, seq: Seq(seq) }
}

/// Writes an entry in the place of an older one for the same thing, so that repeating a revocation adds no row.
fn insert_entry(connection: &mut SqliteConnection, entry: &BlacklistEntry) -> Result<Place> {
    let seq = dsl::replace_into(blacklist::table)
        .values(NewBlacklistRow::from(entry))
        .returning(blacklist::seq)
        .get_result(connection)?;
    Ok(place(seq))
}

fn find(connection: &mut SqliteConnection, id: SessionId) -> Result<Option<Session>> {
    let row = sessions::table
        .find(id.bytes().as_slice())
        .select(SessionRow::as_select())
        .get_result(connection)
        .optional()?;
    row.map(Session::try_from).transpose()
}

/// A subject's live sessions, the oldest first.
fn live_sessions(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    subject: &Subject,
    now: Timestamp,
) -> Result<Vec<Session>> {
    let rows = sessions::table
        .filter(sessions::tenant.eq(&**tenant).and(sessions::subject.eq(&**subject)))
        .filter(sessions::ended_at.is_null().and(sessions::idle_expires_at.gt(now.micros())))
        .order(sessions::id.asc())
        .select(SessionRow::as_select())
        .load(connection)?;
    rows.into_iter().map(Session::try_from).collect()
}

pub fn end_tenant_sessions(
    connection: &mut SqliteConnection,
    tenant: &RevokedTenant,
    after: Option<SessionId>,
    limit: i64,
) -> Result<Option<EndedBatch>> {
    let after = after.map(|id| id.bytes().to_vec()).unwrap_or_default();
    let last = SessionId::last_of_millisecond(tenant.up_to);
    let looked_at: Vec<Vec<u8>> = sessions::table
        .filter(sessions::tenant.eq(&*tenant.tenant))
        .filter(sessions::id.gt(&after).and(sessions::id.le(last.bytes().as_slice())))
        .order(sessions::id.asc())
        .limit(limit)
        .select(sessions::id)
        .load(connection)?;
    let Some(last) = looked_at.last() else { return Ok(None) };
    let at = tenant.ended.at.micros();
    // Rows are not read as sessions: a damaged one must not keep the others from ending.
    let sessions = sql_query(
        "UPDATE sessions SET ended_at = ?, end_reason = ?, end_note = ?, revision = min(revision + 1, 4294967295) \
         WHERE tenant = ? AND id > ? AND id <= ? AND ended_at IS NULL AND idle_expires_at > ?",
    )
    .bind::<BigInt, _>(at)
    .bind::<Text, _>(tenant.ended.reason.as_str())
    .bind::<Text, _>(&*tenant.ended.note)
    .bind::<Text, _>(&*tenant.tenant)
    .bind::<Binary, _>(&after)
    .bind::<Binary, _>(last)
    .bind::<BigInt, _>(at)
    .execute(connection)?;
    // Whatever the state: a token may have been issued with a clock that was ahead.
    sql_query(
        "UPDATE blacklist SET expires_at = max(expires_at, ? + (SELECT max(max(?, refreshed_at + refresh_grace, \
         CASE replay WHEN 'until_used' THEN refreshed_at + replay_limit ELSE 0 END) \
         + access_token_ttl) FROM sessions WHERE tenant = ? AND id > ? AND id <= ?)) WHERE seq = ?",
    )
    .bind::<BigInt, _>(micros(RETENTION_MARGIN))
    .bind::<BigInt, _>(at)
    .bind::<Text, _>(&*tenant.tenant)
    .bind::<Binary, _>(&after)
    .bind::<Binary, _>(last)
    .bind::<BigInt, _>(tenant.seq.0)
    .execute(connection)?;
    Ok(Some(EndedBatch { last: session_id(last)?, sessions }))
}

fn session_id(bytes: &[u8]) -> Result<SessionId> {
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
        .filter(sessions::id.gt(&after).and(sessions::id.le(SessionId::last_of_millisecond(until).bytes().to_vec())))
        .order(sessions::id.asc())
        .limit(limit)
        .select(sessions::id)
        .load(connection)?;
    let Some(last) = looked_at.last() else { return Ok(None) };
    let at = ended.at.micros();
    let sessions = sql_query(
        "UPDATE sessions
         SET ended_at = ?, end_reason = ?, end_note = ?, revision = min(revision + 1, 4294967295)
         WHERE id > ? AND id <= ? AND ended_at IS NULL AND idle_expires_at > ?",
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
struct Deleted {
    #[diesel(sql_type = BigInt)]
    expires_at: i64,
}

pub fn delete_expired_revocations(
    connection: &mut SqliteConnection,
    until: Timestamp,
    limit: i64,
) -> Result<SweptRevocations> {
    // A tenant's entry covers sessions by the millisecond that their identifiers tell, as `end_tenant_sessions` does.
    let deleted: Vec<Deleted> = sql_query(
        "DELETE FROM blacklist WHERE seq IN (SELECT seq FROM blacklist AS b WHERE b.expires_at < ? \
         AND NOT (b.kind = 'tenant' AND EXISTS (SELECT 1 FROM sessions AS s WHERE s.tenant = b.tenant \
         AND s.id < unhex(printf('%012X', b.up_to / 1000 + 1)) \
         AND s.ended_at IS NULL AND s.idle_expires_at > b.revoked_at)) \
         ORDER BY b.expires_at LIMIT ?) RETURNING expires_at",
    )
    .bind::<BigInt, _>(until.micros())
    .bind::<BigInt, _>(limit)
    .load(connection)?;
    let latest = deleted.iter().map(|row| row.expires_at).max().unwrap_or(i64::MIN);
    dsl::update(sweeper::table)
        .filter(sweeper::forgotten_until.lt(latest))
        .set(sweeper::forgotten_until.eq(latest))
        .execute(connection)?;
    let forgotten_until = sweeper::table.select(sweeper::forgotten_until).get_result(connection)?;
    Ok(SweptRevocations { deleted: deleted.len(), forgotten_until: Timestamp::from_micros(forgotten_until) })
}

pub fn delete_old_sessions(
    connection: &mut SqliteConnection,
    until: Timestamp,
    recorded_until: Timestamp,
    limit: i64,
) -> Result<usize> {
    let deleted = sql_query(
        "DELETE FROM sessions
        WHERE id IN (
            SELECT id FROM sessions
            WHERE coalesce(ended_at, idle_expires_at) < ? AND (ended_at IS NOT NULL OR idle_expires_at < ?)
            ORDER BY coalesce(ended_at, idle_expires_at)
            LIMIT ?
        )",
    )
    .bind::<BigInt, _>(until.micros())
    .bind::<BigInt, _>(recorded_until.micros())
    .bind::<BigInt, _>(limit)
    .execute(connection)?;
    Ok(deleted)
}
