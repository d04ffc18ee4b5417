//! Creates sessions within the quotas of their subjects. Each batch is one transaction.

use std::collections::{HashMap, VecDeque};

use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl,
    SelectableHelper, SqliteConnection, connection::DefaultLoadingMode, dsl,
};

use super::{
    legacy_tokens,
    rows::SessionRow,
    schema::{large_subjects, sessions},
    writes,
};
use crate::{
    domain::{
        creation::{Creation, CreationDecision, CreationState},
        cut_off::Covering,
        ids::SessionId,
        legacy_token::LegacyTokenHash,
        quota::{LiveSessions, MOST_READ, Tally},
        session::{Ended, Session},
        text::{Subject, Tenant},
        time::Timestamp,
    },
    store::{Created, Eviction, StoreError},
};

type Result<T> = std::result::Result<T, StoreError>;

/// Creates sessions one after the other.
pub fn create_all(
    connection: &mut SqliteConnection,
    creations: &[Creation],
) -> Result<Vec<Created>> {
    let mut state = State { connection, creations: creations.len(), known: HashMap::new() };
    let created: Result<Vec<_>> =
        creations.iter().map(|creation| create(&mut state, creation)).collect();
    let created = created?;
    state.keep_counts()?;
    Ok(created)
}

fn create(state: &mut State<'_>, creation: &Creation) -> Result<Created> {
    let evicted = match creation.decide(state)? {
        CreationDecision::Create { evicted } => evicted,
        CreationDecision::Repeat(earlier) => return Ok(Created::Repeated(earlier)),
        CreationDecision::RequestIdReused => return Ok(Created::RequestIdReused),
        CreationDecision::LegacyTokenTaken => return Ok(Created::LegacyTokenTaken),
        CreationDecision::QuotaExceeded => return Ok(Created::QuotaExceeded),
        CreationDecision::Revoked { up_to } => return Ok(Created::Revoked { up_to }),
        CreationDecision::AuthenticationRevoked { up_to } => {
            return Ok(Created::AuthenticationRevoked { up_to });
        }
    };
    let eviction = evict(state.connection, &evicted, &creation.eviction())?;
    dsl::insert_into(sessions::table)
        .values(SessionRow::from(&creation.session))
        .execute(state.connection)?;
    if let Some(hash) = &creation.legacy_token {
        legacy_tokens::insert(state.connection, hash, &creation.session)?;
    }
    Ok(Created::New { eviction })
}

/// The state that decisions about the creations of a batch are based on.
struct State<'a> {
    connection: &'a mut SqliteConnection,
    /// The number of creations in the batch.
    creations: usize,
    /// The live sessions of subjects that have been read in this transaction, each with the limit
    /// for which they were read.
    known: HashMap<(Tenant, Subject), (u32, LiveSessions)>,
}

impl CreationState for State<'_> {
    type Error = StoreError;

    fn earlier(&mut self, session: &Session) -> Result<Option<Session>> {
        let Some(request_id) = &session.request_id else { return Ok(None) };
        let earlier = sessions::table
            .filter(
                sessions::tenant.eq(&*session.tenant).and(sessions::request_id.eq(&**request_id)),
            )
            .select(SessionRow::as_select())
            .get_result(self.connection)
            .optional()?;
        earlier.map(Session::try_from).transpose()
    }

    fn covering(&mut self, session: &Session) -> Result<Covering> {
        writes::covering(self.connection, session)
    }

    fn has_legacy_token(&mut self, token: &LegacyTokenHash) -> Result<bool> {
        Ok(legacy_tokens::find(self.connection, token)?.is_some())
    }

    fn live_sessions(&mut self, creation: &Creation) -> Result<Option<&mut LiveSessions>> {
        let (session, max) = (&creation.session, creation.max_sessions);
        let subject = (session.tenant.clone(), session.subject.clone());
        let is_known = self.known.get(&subject).is_some_and(|(read_for, _)| *read_for == max);
        if max > 0 && !is_known {
            if let Some((read_for, live)) = self.known.remove(&subject) {
                keep_count(self.connection, &subject, read_for, &live)?;
            }
            let live = live_sessions(self.connection, session, max, self.creations)?;
            self.known.insert(subject.clone(), (max, live));
        }
        Ok(self.known.get_mut(&subject).map(|(_, live)| live))
    }
}

impl State<'_> {
    fn keep_counts(&mut self) -> Result<()> {
        for (subject, (max, live)) in &self.known {
            keep_count(self.connection, subject, *max, live)?;
        }
        Ok(())
    }
}

fn evict(
    connection: &mut SqliteConnection,
    evicted: &[SessionId],
    ended: &Ended,
) -> Result<Option<Eviction>> {
    let mut eviction: Option<Eviction> = None;
    for id in evicted {
        let Some(session) = writes::find(connection, *id)? else { continue };
        let position = writes::end_session(connection, session, ended.clone())?;
        let eviction = eviction.get_or_insert(Eviction { position, sessions: vec![] });
        eviction.position = position;
        eviction.sessions.push(*id);
    }
    Ok(eviction)
}

/// Returns the live sessions of a session's subject, as many of them as are needed to enforce a
/// limit.
fn live_sessions(
    connection: &mut SqliteConnection,
    session: &Session,
    max: u32,
    creations: usize,
) -> Result<LiveSessions> {
    if max <= MOST_READ {
        let oldest = oldest(connection, session, LiveSessions::to_read(max))?;
        return Ok(LiveSessions::read(oldest, max));
    }
    let count = count(connection, session, max, creations)?;
    let oldest = oldest(connection, session, LiveSessions::to_read_of(count, max, creations))?;
    Ok(LiveSessions::counted(count, oldest))
}

/// Reads up to `most` live sessions of a session's subject, the oldest first.
fn oldest(
    connection: &mut SqliteConnection,
    session: &Session,
    most: usize,
) -> Result<VecDeque<(SessionId, Timestamp)>> {
    let now = session.created_at;
    // The reading stops after `most` rows. A `LIMIT` would make SQLite plan the statement again on
    // each use.
    let rows = sessions::table
        .filter(sessions::tenant.eq(&*session.tenant).and(sessions::subject.eq(&*session.subject)))
        .filter(sessions::is_over.eq(false).and(sessions::idle_expires_at.gt(now.micros())))
        .order(sessions::id.asc())
        .select((sessions::id, sessions::idle_expires_at))
        .load_iter::<(Vec<u8>, i64), DefaultLoadingMode>(connection)?;
    rows.take(most)
        .map(|row| {
            let (id, idle_expires_at) = row?;
            Ok((writes::session_id(&id)?, Timestamp::from_micros(idle_expires_at)))
        })
        .collect()
}

/// Returns an upper bound for the number of a subject's live sessions. This is for a limit that is
/// too great to read all sessions.
fn count(
    connection: &mut SqliteConnection,
    session: &Session,
    max: u32,
    creations: usize,
) -> Result<u64> {
    let (tenant, subject, now) = (&*session.tenant, &*session.subject, session.created_at);
    let kept: Option<(i64, i64)> = large_subjects::table
        .find((tenant, subject))
        .select((large_subjects::sessions, large_subjects::counted_at))
        .get_result(connection)
        .optional()?;
    let tally = kept.map(|(sessions, counted_at)| Tally {
        sessions: sessions.try_into().unwrap_or_default(),
        counted_at: Timestamp::from_micros(counted_at),
    });
    if let Some(tally) = tally.filter(|tally| tally.is_trusted(now, max, creations)) {
        return Ok(tally.sessions);
    }
    let not_over = sessions::table.filter(
        sessions::tenant
            .eq(tenant)
            .and(sessions::subject.eq(subject))
            .and(sessions::is_over.eq(false)),
    );
    if tally.is_none() {
        let most = usize::try_from(MOST_READ).unwrap_or(usize::MAX);
        let few =
            not_over.select(sessions::id).load_iter::<Vec<u8>, DefaultLoadingMode>(connection)?;
        let few = few.take(most + 1).count();
        if few <= most {
            return Ok(u64::try_from(few).unwrap_or_default());
        }
    }
    let counted: i64 = not_over.count().get_result(connection)?;
    dsl::replace_into(large_subjects::table)
        .values((
            large_subjects::tenant.eq(tenant),
            large_subjects::subject.eq(subject),
            large_subjects::sessions.eq(counted),
            large_subjects::counted_at.eq(now.micros()),
        ))
        .execute(connection)?;
    Ok(counted.try_into().unwrap_or_default())
}

/// Updates the number of a subject's sessions in `large_subjects`, if its limit is so great that
/// the number is stored.
fn keep_count(
    connection: &mut SqliteConnection,
    (tenant, subject): &(Tenant, Subject),
    max: u32,
    live: &LiveSessions,
) -> Result<()> {
    if max > MOST_READ {
        dsl::update(large_subjects::table.find((&**tenant, &**subject)))
            .set(large_subjects::sessions.eq(i64::try_from(live.count).unwrap_or(i64::MAX)))
            .execute(connection)?;
    }
    Ok(())
}
