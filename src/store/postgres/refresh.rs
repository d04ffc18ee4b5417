//! Refreshing sessions: rotations that need nothing else go in one statement, the rest is judged on
//! the row.

use std::collections::HashMap;

use async_trait::async_trait;
use diesel::{
    ExpressionMethods, QueryDsl, SelectableHelper,
    sql_types::{Array, BigInt, Binary, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;

use super::{
    pool::{self, BatchWrite, Fault, Pool, PooledConnection},
    reads,
    rows::{SessionRow, array, instant, uuid},
    schema::sessions,
    sql::{first_uncovered, is_uncovered, statement},
    writes::{self, CutOffs},
};
use crate::{
    domain::{
        ids::SessionId,
        policy::OnRefresh,
        refresh::{RefreshAttempt, RefreshRefusal, RefreshVerdict},
        revocation::{BlacklistEntry, FeedPosition},
        session::{Device, EndReason, Ended, Session},
        text::Note,
    },
    store::{Refreshed, StoreError, batch::BatchOutcome},
};

/// Commits a batch of attempts.
pub async fn commit(pool: &Pool, attempts: &[RefreshAttempt]) -> BatchOutcome<Refreshed> {
    pool::commit_in_two(pool, attempts, FastPath, SlowPath).await
}

/// An attempt that may be a plain rotation.
struct FastPath<'a>(&'a RefreshAttempt);

#[async_trait]
impl BatchWrite for FastPath<'_> {
    /// None if it is not a plain rotation.
    type Outcome = Option<Refreshed>;

    /// The condition says what [`Session::judge_refresh`] says of a rotation, for policies that
    /// stop no access token. Of several attempts with one token, one rotates. Rows are locked in
    /// the order of their identifiers.
    async fn apply(
        connection: &mut PooledConnection<'_>,
        attempts: &[Self],
    ) -> Result<Vec<Result<Option<Refreshed>, StoreError>>, Fault> {
        let mut sorted: Vec<_> =
            attempts.iter().map(|Self(attempt)| *attempt).enumerate().collect();
        sorted.sort_by_key(|(_, attempt)| attempt.session_id);
        fn column<'a, T>(
            sorted: &[(usize, &'a RefreshAttempt)],
            of: impl Fn(&'a RefreshAttempt) -> T,
        ) -> Vec<T> {
            sorted.iter().map(|(_, attempt)| of(attempt)).collect()
        }
        fn device<'a>(
            of: impl Fn(&'a Device) -> &'a str,
        ) -> impl Fn(&'a RefreshAttempt) -> Option<&'a str> {
            move |attempt| attempt.device.as_ref().map(&of)
        }
        let rotated: Vec<(i64, SessionRow)> = statement::<(BigInt, sessions::SqlType)>(concat!(
            "UPDATE sessions AS s
            SET refreshed_at = given.instant,
                idle_expires_at = least(given.instant + s.idle_timeout, s.expires_at),
                sweep_on = least(s.sweep_on, given.instant + s.idle_timeout),
                generation = s.generation + 1,
                refresh_key = given.next_key,
                access_token_id = given.next_access_token_id,
                user_agent = coalesce(given.user_agent, s.user_agent),
                ip_address = coalesce(given.ip_address, s.ip_address),
                device_label = coalesce(given.device_label, s.device_label),
                revision = s.revision + 1
            FROM (
                SELECT
                    unnest(?) AS ordinal,
                    unnest(?) AS id,
                    unnest(?) AS lineage_secret,
                    unnest(?) AS generation,
                    unnest(?) AS scopes,
                    unnest(?) AS instant,
                    unnest(?) AS next_key,
                    unnest(?) AS next_access_token_id,
                    unnest(?) AS user_agent,
                    unnest(?) AS ip_address,
                    unnest(?) AS device_label,
                    unnest(?) AS tenants,
                    unnest(?) AS audiences
            ) AS given
            WHERE s.id = given.id
                AND s.lineage_secret = given.lineage_secret
                AND s.generation = given.generation
                AND s.ended_at IS NULL
                AND NOT s.is_over
                AND s.idle_expires_at > given.instant
                AND s.scopes @> given.scopes::text[]
                AND (given.tenants IS NULL OR s.tenant = ANY (given.tenants::text[]))
                AND (given.audiences IS NULL OR s.audience <@ given.audiences::text[])
                AND s.on_refresh = 'keep_access_token'
                AND s.generation < 4294967295
                AND s.revision < 4294967295
                AND ",
            is_uncovered!("s"),
            "RETURNING
                given.ordinal, s.id, s.access_token_id, s.authenticated_at, s.created_at,
                s.refreshed_at,
                s.idle_expires_at, s.expires_at, s.ended_at, s.access_token_ttl, s.idle_timeout,
                s.refresh_grace, s.replay_limit, s.generation, s.revision, s.tenant, s.subject,
                s.client_id,
                s.audience, s.scopes, s.claims, s.acr, s.amr, s.user_agent, s.ip_address,
                s.device_label,
                s.policy, s.on_refresh, s.replay, s.lineage_secret, s.refresh_key, s.request_id,
                s.request_fingerprint, s.end_reason, s.end_note, s.is_over"
        ))
        .bind::<Array<BigInt>, _>(
            sorted
                .iter()
                .map(|(position, _)| i64::try_from(*position).unwrap_or(i64::MAX))
                .collect::<Vec<_>>(),
        )
        .bind::<Array<SqlUuid>, _>(column(&sorted, |attempt| uuid(attempt.session_id.bytes())))
        .bind::<Array<Binary>, _>(column(&sorted, |attempt| attempt.secret.0.to_vec()))
        .bind::<Array<BigInt>, _>(column(&sorted, |attempt| i64::from(attempt.generation)))
        .bind::<Array<Text>, _>(column(&sorted, |attempt| array(&attempt.scopes)))
        .bind::<Array<Timestamptz>, _>(column(&sorted, |attempt| instant(attempt.now)))
        .bind::<Array<Binary>, _>(column(&sorted, |attempt| attempt.next_key.0.to_vec()))
        .bind::<Array<SqlUuid>, _>(column(&sorted, |attempt| {
            uuid(attempt.next_access_token_id.bytes())
        }))
        .bind::<Array<Nullable<Text>>, _>(column(&sorted, device(|device| &*device.user_agent)))
        .bind::<Array<Nullable<Text>>, _>(column(&sorted, device(|device| &*device.ip_address)))
        .bind::<Array<Nullable<Text>>, _>(column(&sorted, device(|device| &*device.label)))
        .bind::<Array<Nullable<Text>>, _>(column(&sorted, |attempt| {
            attempt.reach.tenants.as_ref().map(array)
        }))
        .bind::<Array<Nullable<Text>>, _>(column(&sorted, |attempt| {
            attempt.reach.audiences.as_ref().map(array)
        }))
        .load(&mut **connection)
        .await?;

        let mut outcomes: Vec<_> = attempts.iter().map(|_| Ok(None)).collect();
        for (position, row) in rotated {
            if let Some(outcome) =
                usize::try_from(position).ok().and_then(|position| outcomes.get_mut(position))
            {
                // A damaged row has rotated all the same, and hurts nobody else.
                *outcome = Session::try_from(row).map(|session| {
                    Some(Refreshed::Rotated { session: Box::new(session), position: None })
                });
            }
        }
        Ok(outcomes)
    }
}

/// An attempt to be judged.
struct SlowPath<'a>(&'a RefreshAttempt);

#[async_trait]
impl BatchWrite for SlowPath<'_> {
    type Outcome = Refreshed;

    async fn apply(
        connection: &mut PooledConnection<'_>,
        attempts: &[Self],
    ) -> Result<Vec<Result<Refreshed, StoreError>>, Fault> {
        let mut ids: Vec<SessionId> =
            attempts.iter().map(|Self(attempt)| attempt.session_id).collect();
        ids.sort_unstable();
        ids.dedup();
        // Most are replays and refusals, which change nothing and need no lock.
        let there = read(connection, &ids).await?;
        let cut_offs = writes::cut_offs(connection, there.values()).await?;
        let judged: Vec<_> =
            attempts.iter().map(|Self(attempt)| judge(attempt, &there, &cut_offs).0).collect();
        if judged.iter().all(Option::is_some) {
            let mut outcomes: Vec<Refreshed> = judged.into_iter().flatten().collect();
            wait_for_entries(connection, &mut outcomes).await?;
            return Ok(outcomes.into_iter().map(Ok).collect());
        }

        connection.begin().await?;
        let mut there = writes::lock(connection, &ids).await?;
        let cut_offs = writes::cut_offs(connection, there.values()).await?;
        let mut changed = HashMap::new();
        let mut entries = vec![];
        let mut outcomes = Vec::with_capacity(attempts.len());
        for Self(attempt) in attempts {
            let (outcome, change) = judge(attempt, &there, &cut_offs);
            let refreshed = match (outcome, change) {
                (Some(refreshed), _) => (refreshed, None),
                (None, Some(change)) => {
                    let entry = change.entry.map(|entry| {
                        entries.push(entry);
                        entries.len() - 1
                    });
                    there.insert(change.session.id, change.session.clone());
                    changed.insert(change.session.id, change.session.clone());
                    (change.outcome, entry)
                }
                (None, None) => {
                    return Err(
                        StoreError::Refused("an attempt without a verdict".to_owned()).into()
                    );
                }
            };
            outcomes.push(refreshed);
        }
        let changed: Vec<_> = changed.into_values().collect();
        writes::save(connection, &changed).await?;
        let positions = writes::insert_entries(connection, &entries).await?;
        let (mut outcomes, entries): (Vec<_>, Vec<_>) = outcomes.into_iter().unzip();
        // After the entries of this batch, which may be those that are meant.
        wait_for_entries(connection, &mut outcomes).await?;
        connection.commit().await?;
        let outcomes = outcomes.into_iter().zip(entries).map(|(mut refreshed, entry)| {
            let given = entry.and_then(|entry: usize| positions.get(entry)).copied();
            match (&mut refreshed, given) {
                (Refreshed::Rotated { position, .. }, given) => *position = given,
                (Refreshed::Reused { position, .. }, Some(given)) => *position = given,
                _ => {}
            }
            Ok(refreshed)
        });
        Ok(outcomes.collect())
    }
}

/// Whoever gets an answer once more may get it before everybody knows what the first one has
/// stopped.
async fn wait_for_entries(
    connection: &mut PooledConnection<'_>,
    outcomes: &mut [Refreshed],
) -> Result<(), Fault> {
    let stops = |session: &Session| session.policy.on_refresh == OnRefresh::RevokeAccessToken;
    let mut head = None;
    for outcome in outcomes {
        if let Refreshed::Replayed { session, position } = outcome
            && stops(session)
        {
            if head.is_none() {
                head = Some(reads::feed_head(connection).await?);
            }
            *position = head;
        }
    }
    Ok(())
}

/// What an attempt changes.
struct Change {
    session: Session,
    entry: Option<BlacklistEntry>,
    /// Without its position in the feed.
    outcome: Refreshed,
}

/// Judges an attempt: an outcome if nothing changes, a change otherwise.
fn judge(
    attempt: &RefreshAttempt,
    there: &HashMap<SessionId, Session>,
    cut_offs: &CutOffs,
) -> (Option<Refreshed>, Option<Change>) {
    let Some(session) = there.get(&attempt.session_id) else {
        return (Some(Refreshed::Refused(RefreshRefusal::Unknown)), None);
    };
    let verdict = session.judge_refresh(attempt);
    // The job that ends the sessions of a revoked tenant or subject may not have come to this one
    // yet.
    if !matches!(verdict, RefreshVerdict::Refuse(_)) && cut_offs.covering(session).is_some() {
        return (Some(Refreshed::Refused(RefreshRefusal::Ended)), None);
    }
    match verdict {
        RefreshVerdict::Refuse(refusal) => (Some(Refreshed::Refused(refusal)), None),
        RefreshVerdict::Replay => {
            (Some(Refreshed::Replayed { session: Box::new(session.clone()), position: None }), None)
        }
        RefreshVerdict::Reuse => {
            let ended = Ended {
                at: attempt.now,
                reason: EndReason::RefreshTokenReused,
                note: Note::default(),
            };
            let entry = Some(BlacklistEntry::for_session(session, &ended));
            let session = session.clone().end(ended);
            let outcome = Refreshed::Reused {
                session: Box::new(session.clone()),
                position: FeedPosition::default(),
            };
            (None, Some(Change { session, entry, outcome }))
        }
        RefreshVerdict::Rotate(next) => {
            let entry = match next.policy.on_refresh {
                OnRefresh::KeepAccessToken => None,
                OnRefresh::RevokeAccessToken => {
                    Some(BlacklistEntry::superseded(session, attempt.now))
                }
            };
            let session = (*next).clone();
            (
                None,
                Some(Change {
                    session,
                    entry,
                    outcome: Refreshed::Rotated { session: next, position: None },
                }),
            )
        }
    }
}

async fn read(
    connection: &mut PooledConnection<'_>,
    ids: &[SessionId],
) -> Result<HashMap<SessionId, Session>, Fault> {
    let ids: Vec<_> = ids.iter().map(|id| uuid(id.bytes())).collect();
    let rows: Vec<SessionRow> = sessions::table
        .filter(sessions::id.eq_any(ids))
        .select(SessionRow::as_select())
        .load(&mut **connection)
        .await?;
    rows.into_iter().map(|row| Ok((row.id(), Session::try_from(row)?))).collect()
}
