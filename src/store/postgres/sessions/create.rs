//! Creates sessions within the quotas of their subjects. The fast path is one statement, which
//! creates the sessions for which there is room. On the slow path, the other creations are decided
//! one by one, on state that a few statements have read for all of them.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
};

use async_trait::async_trait;
use diesel::{
    BoolExpressionMethods, ExpressionMethods, QueryDsl, SelectableHelper,
    data_types::PgTimestamp,
    sql_types::{Array, BigInt, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{
    super::{
        batch::{self, BatchWrite},
        connection::{
            fault::Fault,
            pool::{Pool, PooledConnection},
        },
        feed::{
            cut_offs::{self, CutOffs},
            entries,
        },
        rows::{SessionRow, instant, timestamp, uuid},
        schema::sessions,
        sql::statement,
    },
    insert::{Limits, insert_sessions},
    legacy_tokens, lock,
    oldest_live::{OldestLive, Start},
    quota_lock,
};
use crate::{
    domain::{
        creation::{Creation, CreationDecision, CreationState},
        cut_off::Covering,
        ids::SessionId,
        legacy_token::LegacyTokenHash,
        quota::{LiveSessions, MOST_READ, Tally},
        revocation::{BlacklistEntry, FeedPosition},
        session::{Ended, Session},
        time::Timestamp,
    },
    store::{Created, Eviction, StoreError, batch::BatchOutcome},
};

/// Commits a batch of creations.
pub async fn commit(
    pool: &Pool,
    oldest_live: &OldestLive,
    creations: &[Creation],
) -> BatchOutcome<Created> {
    batch::commit_in_two(pool, creations, FastPath, |creation| SlowPath { creation, oldest_live })
        .await
}

/// A creation on the fast path. It is made if there is room for the session and if its request is
/// new. A session with a refresh token of another system is left to the slow path.
struct FastPath<'a>(&'a Creation);

#[async_trait]
impl BatchWrite for FastPath<'_> {
    /// None leaves the creation to the slow path.
    type Outcome = Option<Created>;

    async fn apply(
        connection: &mut PooledConnection<'_>,
        creations: &[Self],
    ) -> Result<Vec<Result<Option<Created>, StoreError>>, Fault> {
        let plain: Vec<&Creation> = creations
            .iter()
            .map(|Self(creation)| *creation)
            .filter(|creation| creation.legacy_token.is_none())
            .collect();
        let inserted: HashSet<SessionId> = match plain.is_empty() {
            true => HashSet::new(),
            false => {
                insert_sessions(connection, &plain, Limits::Check).await?.into_iter().collect()
            }
        };
        let is_new = |creation: &Creation| inserted.contains(&creation.session.id);
        Ok(creations
            .iter()
            .map(|Self(creation)| Ok(is_new(creation).then_some(Created::New { eviction: None })))
            .collect())
    }
}

/// A creation on the slow path: it may repeat an earlier request, or there may be no room for the
/// session.
struct SlowPath<'a> {
    creation: &'a Creation,
    oldest_live: &'a OldestLive,
}

#[async_trait]
impl BatchWrite for SlowPath<'_> {
    type Outcome = Created;

    async fn apply(
        connection: &mut PooledConnection<'_>,
        creations: &[Self],
    ) -> Result<Vec<Result<Created, StoreError>>, Fault> {
        let Some(Self { oldest_live, .. }) = creations.first() else { return Ok(vec![]) };
        let creations: Vec<&Creation> = creations.iter().map(|slow| slow.creation).collect();
        let begin = quota_lock::begin(&quota_lock::subject_locks(connection, &creations));
        connection.run(&begin).await?;
        let mut batch = Batch {
            earlier: earlier(connection, &creations).await?,
            cut_offs: cut_offs::read(
                connection,
                creations.iter().map(|creation| &creation.session),
            )
            .await?,
            legacy_tokens: legacy_tokens::taken(connection, &creations).await?,
            live: Live::read(connection, oldest_live, &creations).await?,
            evicted: HashMap::new(),
            new: vec![],
        };
        let decided: Vec<CreationDecision> =
            creations.iter().map(|creation| batch.decide(creation)).collect();

        if !batch.new.is_empty()
            && insert_sessions(connection, &batch.new, Limits::Checked).await?.len()
                < batch.new.len()
        {
            // Since then, another transaction has created a session for one of these requests.
            let problem = "the same request is being made by others";
            return Err(Fault::Conflict(StoreError::Unavailable(problem.to_owned())));
        }
        legacy_tokens::insert(connection, &batch.new).await?;
        // Sessions are evicted after the insertion, because one new session may be evicted to make
        // room for another new one.
        let (ended, entries) = evict(connection, &batch.evicted).await?;
        batch.live.keep_counts(connection).await?;
        // The head of the feed is locked last.
        let positions = entries::insert_entries(connection, &entries).await?;
        connection.commit().await?;
        let positions = ended.into_iter().zip(positions).collect();
        Ok(decided.into_iter().map(|decision| Ok(created(decision, &positions))).collect())
    }
}

/// Ends sessions, and returns those that it has ended, with the entries that stop their tokens. A
/// session that another transaction has ended in the meantime is left as it is.
async fn evict(
    connection: &mut PooledConnection<'_>,
    evicted: &HashMap<SessionId, Ended>,
) -> Result<(Vec<SessionId>, Vec<BlacklistEntry>), Fault> {
    let mut ids: Vec<SessionId> = evicted.keys().copied().collect();
    ids.sort_unstable();
    let (mut ended, mut entries) = (vec![], vec![]);
    for (id, session) in lock::lock_sessions(connection, &ids).await? {
        if session.ended.is_none()
            && let Some(end) = evicted.get(&id)
        {
            let (session, entry) = BlacklistEntry::end(session, end.clone());
            ended.push(session);
            entries.push(entry);
        }
    }
    lock::save_sessions(connection, &ended).await?;
    Ok((ended.into_iter().map(|session| session.id).collect(), entries))
}

/// Returns the outcome of a decision. `positions` are the feed positions of the entries of the
/// evicted sessions.
fn created(decision: CreationDecision, positions: &HashMap<SessionId, FeedPosition>) -> Created {
    match decision {
        CreationDecision::Create { mut evicted } => {
            evicted.retain(|id| positions.contains_key(id));
            let positions = evicted.iter().filter_map(|id| positions.get(id)).copied();
            let last = positions.max_by_key(|position| position.seq);
            Created::New { eviction: last.map(|position| Eviction { position, sessions: evicted }) }
        }
        CreationDecision::Repeat(earlier) => Created::Repeated(earlier),
        CreationDecision::RequestIdReused => Created::RequestIdReused,
        CreationDecision::LegacyTokenTaken => Created::LegacyTokenTaken,
        CreationDecision::QuotaExceeded => Created::QuotaExceeded,
        CreationDecision::Revoked { up_to } => Created::Revoked { up_to },
        CreationDecision::AuthenticationRevoked { up_to } => {
            Created::AuthenticationRevoked { up_to }
        }
    }
}

/// The state that decisions about creations are based on, and the decisions so far.
struct Batch<'a> {
    /// The sessions that were created for the same requests before, by tenant and request id.
    earlier: HashMap<(String, String), Session>,
    cut_offs: CutOffs,
    /// The refresh tokens of other systems that stand for a session.
    legacy_tokens: HashSet<LegacyTokenHash>,
    live: Live<'a>,
    /// The sessions to be evicted, each with the time, reason and note of its end.
    evicted: HashMap<SessionId, Ended>,
    new: Vec<&'a Creation>,
}

impl<'a> Batch<'a> {
    fn decide(&mut self, creation: &'a Creation) -> CreationDecision {
        let Ok(decision) = creation.decide(self);
        if let CreationDecision::Create { evicted } = &decision {
            let session = &creation.session;
            if let Some(request) = request(session) {
                self.earlier.insert(request, session.clone());
            }
            self.legacy_tokens.extend(creation.legacy_token);
            self.evicted.extend(evicted.iter().map(|id| (*id, creation.eviction())));
            self.new.push(creation);
        }
        decision
    }
}

impl CreationState for Batch<'_> {
    type Error = Infallible;

    fn earlier(&mut self, session: &Session) -> Result<Option<Session>, Infallible> {
        Ok(request(session).and_then(|request| self.earlier.get(&request)).cloned())
    }

    fn covering(&mut self, session: &Session) -> Result<Covering, Infallible> {
        Ok(self.cut_offs.covering(session))
    }

    fn has_legacy_token(&mut self, token: &LegacyTokenHash) -> Result<bool, Infallible> {
        Ok(self.legacy_tokens.contains(token))
    }

    fn live_sessions(
        &mut self,
        creation: &Creation,
    ) -> Result<Option<&mut LiveSessions>, Infallible> {
        let session = &creation.session;
        Ok(self.live.of.get_mut(&owner(&session.tenant, &session.subject)))
    }
}

/// Returns the tenant and the request id, which together identify a request. Returns none if the
/// request has no id.
fn request(session: &Session) -> Option<(String, String)> {
    session.request_id.as_ref().map(|id| (session.tenant.to_string(), id.to_string()))
}

/// Reads the sessions that were created earlier with the request ids of these creations.
async fn earlier(
    connection: &mut PooledConnection<'_>,
    creations: &[&Creation],
) -> Result<HashMap<(String, String), Session>, Fault> {
    let mut found = HashMap::new();
    let mut requests: HashMap<&str, Vec<&str>> = HashMap::new();
    for Creation { session, .. } in creations {
        if let Some(request_id) = &session.request_id {
            requests.entry(&session.tenant).or_default().push(request_id);
        }
    }
    for (tenant, request_ids) in requests {
        let rows: Vec<SessionRow> = sessions::table
            .filter(sessions::tenant.eq(tenant).and(sessions::request_id.eq_any(request_ids)))
            .select(SessionRow::as_select())
            .load(&mut **connection)
            .await?;
        for row in rows {
            let session = Session::try_from(row)?;
            if let Some(request) = request(&session) {
                found.insert(request, session);
            }
        }
    }
    Ok(found)
}

/// The live sessions of subjects with a quota, by tenant and subject.
struct Live<'a> {
    of: HashMap<(String, String), LiveSessions>,
    /// The subjects whose number of sessions is kept in `large_subjects`.
    large: Vec<(&'a str, &'a str)>,
}

fn owner(tenant: &str, subject: &str) -> (String, String) {
    (tenant.to_owned(), subject.to_owned())
}

/// A subject with a quota, for all creations of the batch: the greatest limit, the instant of the
/// first creation, and the number of creations.
struct Limited<'a> {
    tenant: &'a str,
    subject: &'a str,
    max: u32,
    at: Timestamp,
    creations: usize,
}

impl<'a> Live<'a> {
    /// Reads, for each subject, as many of its live sessions as are needed to enforce its limit.
    async fn read(
        connection: &mut PooledConnection<'_>,
        oldest_live: &OldestLive,
        creations: &[&'a Creation],
    ) -> Result<Self, Fault> {
        let mut limited: Vec<Limited<'a>> = vec![];
        let mut indexes = HashMap::new();
        for Creation { session, max_sessions: max, .. } in creations {
            if *max == 0 {
                continue;
            }
            let index =
                *indexes.entry((&*session.tenant, &*session.subject)).or_insert_with(|| {
                    let (tenant, subject, at) =
                        (&*session.tenant, &*session.subject, session.created_at);
                    limited.push(Limited { tenant, subject, max: *max, at, creations: 0 });
                    limited.len() - 1
                });
            let Some(subject) = limited.get_mut(index) else { continue };
            if (subject.max <= MOST_READ) != (*max <= MOST_READ) {
                let problem = "limits of both kinds are asked for a subject at once";
                return Err(Fault::Conflict(StoreError::Unavailable(problem.to_owned())));
            }
            subject.max = subject.max.max(*max);
            subject.creations += 1;
        }
        let mut live = Self { of: HashMap::new(), large: vec![] };
        let mut counts = Vec::with_capacity(limited.len());
        for subject in &limited {
            if subject.max <= MOST_READ {
                counts.push(None);
                continue;
            }
            let (count, is_stored) = count(connection, subject).await?;
            live.large.extend(is_stored.then_some((subject.tenant, subject.subject)));
            counts.push(Some(count));
        }
        let reads = limited.iter().zip(&counts).map(|(subject, count)| {
            let start = oldest_live.start(subject.tenant, subject.subject, subject.at);
            let most = match count {
                Some(count) => LiveSessions::to_read_of(*count, subject.max, subject.creations),
                None => LiveSessions::to_read(subject.max),
            };
            Read {
                subject,
                start,
                most,
                expected: most.min(usize::try_from(subject.max).unwrap_or(usize::MAX)),
            }
        });
        let oldest = oldest(connection, oldest_live, reads.collect()).await?;
        for ((subject, count), oldest) in limited.iter().zip(counts).zip(oldest) {
            let sessions = match count {
                Some(count) => LiveSessions::counted(count, oldest.into()),
                None => LiveSessions::read(oldest.into(), subject.max),
            };
            live.of.insert(owner(subject.tenant, subject.subject), sessions);
        }
        Ok(live)
    }

    /// Writes the new number of sessions of each subject in [`Self::large`].
    async fn keep_counts(&self, connection: &mut PooledConnection<'_>) -> Result<(), Fault> {
        for (tenant, subject) in &self.large {
            let Some(live) = self.of.get(&owner(tenant, subject)) else { continue };
            statement::<()>(
                "UPDATE large_subjects SET sessions = ? WHERE tenant = ? AND subject = ?",
            )
            .bind::<BigInt, _>(i64::try_from(live.count).unwrap_or(i64::MAX))
            .bind::<Text, _>(*tenant)
            .bind::<Text, _>(*subject)
            .execute(&mut **connection)
            .await?;
        }
        Ok(())
    }
}

/// A read of the oldest live sessions of a subject.
#[derive(Clone, Copy)]
struct Read<'a> {
    subject: &'a Limited<'a>,
    start: Start,
    most: usize,
    /// The number of sessions that the read should find. If it finds fewer, there may be others
    /// before the start. For a limit up to [`MOST_READ`], the limit itself is expected: no creation
    /// exceeds the limit, so a read that has found that many sessions has found all.
    expected: usize,
}

/// Reads the oldest live sessions of each subject, with their idle expiries, the oldest first: as
/// many as each read asks for.
///
/// A read begins where [`OldestLive`] remembers the oldest session. If a remembered start is too
/// late, the limit is enforced nevertheless: the read finds fewer sessions than expected, and the
/// subject is read again from the beginning. There is one exception: if a subject has more sessions
/// than its limit, or a limit above [`MOST_READ`], the read may miss the oldest session for as long
/// as the start is trusted. A newer session is then evicted in its place.
async fn oldest(
    connection: &mut PooledConnection<'_>,
    oldest_live: &OldestLive,
    mut reads: Vec<Read<'_>>,
) -> Result<Vec<Vec<(SessionId, Timestamp)>>, Fault> {
    let mut found = live_from(connection, &reads).await?;
    let mut again = vec![];
    for (read, found) in reads.iter_mut().zip(&mut found) {
        if found.len() < read.expected && !read.start.is_beginning() {
            read.start = Start::beginning(read.subject.at);
            again.push((*read, found));
        }
    }
    if !again.is_empty() {
        let (reads, slots): (Vec<_>, Vec<_>) = again.into_iter().unzip();
        for (slot, found) in slots.into_iter().zip(live_from(connection, &reads).await?) {
            *slot = found;
        }
    }
    for (Read { subject, start, expected, .. }, found) in reads.iter().zip(&found) {
        // If a subject has room, none of its sessions was evicted, so its reads need no remembered
        // start.
        if let [(oldest, _), ..] = found.as_slice()
            && found.len() >= *expected
        {
            oldest_live.remember(subject.tenant, subject.subject, *start, *oldest);
        }
    }
    Ok(found)
}

/// Reads the live sessions of each subject from the start of its read on.
async fn live_from(
    connection: &mut PooledConnection<'_>,
    reads: &[Read<'_>],
) -> Result<Vec<Vec<(SessionId, Timestamp)>>, Fault> {
    let mut found = vec![vec![]; reads.len()];
    if reads.is_empty() {
        return Ok(found);
    }
    let column = |most: usize| i64::try_from(most).unwrap_or(i64::MAX);
    let rows: Vec<(i64, Uuid, PgTimestamp)> = statement::<(BigInt, SqlUuid, Timestamptz)>(
        "SELECT given.ordinal, s.id, s.idle_expires_at
        FROM unnest(?, ?, ?, ?, ?) WITH ORDINALITY AS given
            (tenant, subject, at, start, most, ordinal)
        CROSS JOIN LATERAL (
            SELECT id, idle_expires_at
            FROM sessions
            WHERE tenant = given.tenant AND subject = given.subject AND NOT is_over
                AND id >= given.start AND ended_at IS NULL AND idle_expires_at > given.at
            ORDER BY id
            LIMIT given.most
        ) AS s
        ORDER BY given.ordinal, s.id",
    )
    .bind::<Array<Text>, _>(reads.iter().map(|read| read.subject.tenant).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(reads.iter().map(|read| read.subject.subject).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(
        reads.iter().map(|read| instant(read.subject.at)).collect::<Vec<_>>(),
    )
    .bind::<Array<SqlUuid>, _>(
        reads.iter().map(|read| uuid(read.start.id.bytes())).collect::<Vec<_>>(),
    )
    .bind::<Array<BigInt>, _>(reads.iter().map(|read| column(read.most)).collect::<Vec<_>>())
    .load(&mut **connection)
    .await?;
    for (ordinal, id, idle_expires_at) in rows {
        let index = usize::try_from(ordinal).ok().and_then(|ordinal| ordinal.checked_sub(1));
        if let Some(sessions) = index.and_then(|index| found.get_mut(index)) {
            sessions.push((SessionId::from_bytes(id.into_bytes()), timestamp(idle_expires_at)));
        }
    }
    Ok(found)
}

/// Returns an upper bound for the number of a subject's live sessions, and whether this number is
/// stored in `large_subjects`. This is for a limit that is too great to read all sessions.
async fn count(
    connection: &mut PooledConnection<'_>,
    subject: &Limited<'_>,
) -> Result<(u64, bool), Fault> {
    let kept: Vec<(i64, PgTimestamp)> = statement::<(BigInt, Timestamptz)>(
        "SELECT sessions, counted_at FROM large_subjects WHERE tenant = ? AND subject = ?",
    )
    .bind::<Text, _>(subject.tenant)
    .bind::<Text, _>(subject.subject)
    .load(&mut **connection)
    .await?;
    let tally = kept.into_iter().next().map(|(sessions, counted_at)| Tally {
        sessions: sessions.try_into().unwrap_or_default(),
        counted_at: timestamp(counted_at),
    });
    if let Some(tally) =
        tally.filter(|tally| tally.is_trusted(subject.at, subject.max, subject.creations))
    {
        return Ok((tally.sessions, true));
    }
    if tally.is_none() {
        let few = count_live(connection, subject, i64::from(MOST_READ) + 1).await?;
        if few <= MOST_READ.into() {
            return Ok((few, false));
        }
    }
    let counted = count_live(connection, subject, i64::MAX).await?;
    statement::<()>(
        "INSERT INTO large_subjects (tenant, subject, sessions, counted_at) VALUES (?, ?, ?, ?)
        ON CONFLICT (tenant, subject) DO UPDATE
        SET sessions = excluded.sessions, counted_at = excluded.counted_at",
    )
    .bind::<Text, _>(subject.tenant)
    .bind::<Text, _>(subject.subject)
    .bind::<BigInt, _>(i64::try_from(counted).unwrap_or(i64::MAX))
    .bind::<Timestamptz, _>(instant(subject.at))
    .execute(&mut **connection)
    .await?;
    Ok((counted, true))
}

/// Counts the live sessions of a subject, up to `most`. The statement begins at the newest session,
/// because the index still has entries of evicted sessions, all of which come before the oldest
/// live session.
async fn count_live(
    connection: &mut PooledConnection<'_>,
    subject: &Limited<'_>,
    most: i64,
) -> Result<u64, Fault> {
    let count: i64 = statement::<BigInt>(
        "SELECT count(*) FROM (
            SELECT
            FROM sessions
            WHERE tenant = ? AND subject = ? AND NOT is_over AND ended_at IS NULL
                AND idle_expires_at > ?
            ORDER BY id DESC
            LIMIT ?
        ) AS few",
    )
    .bind::<Text, _>(subject.tenant)
    .bind::<Text, _>(subject.subject)
    .bind::<Timestamptz, _>(instant(subject.at))
    .bind::<BigInt, _>(most)
    .get_result(&mut **connection)
    .await?;
    Ok(count.try_into().unwrap_or_default())
}
