//! Refreshes sessions. One statement makes the rotations that write nothing but the session. The
//! other attempts are decided one by one, on the rows that were read.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use diesel::{
    ExpressionMethods, QueryDsl, SelectableHelper,
    sql_types::{Array, BigInt, Binary, Interval, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;

use super::{
    super::{
        batch::{self, BatchWrite},
        connection::{
            fault::Fault,
            pool::{Pool, PooledConnection},
        },
        feed::entries,
        rows::{SessionRow, array, instant, interval, uuid},
        schema::{new_columns, sessions, with_new_columns},
        sql::{Statement, first_uncovered, is_uncovered, statement, wide_keys},
    },
    batch_state::{BatchState, EntryIndex, Positions},
    lock,
};
use crate::{
    domain::{
        ids::SessionId,
        live_policy::LivePolicies,
        policy::Policy,
        refresh::{RefreshAttempt, RefreshDecision},
        revocation::FeedPosition,
        session::{Device, Session},
    },
    store::{Refreshed, StoreError, batch::BatchOutcome},
};

/// Commits a batch of attempts.
pub async fn commit(pool: &Pool, attempts: &[RefreshAttempt]) -> BatchOutcome<Refreshed> {
    batch::commit_in_two(pool, attempts, FastPath, SlowPath).await
}

/// Expands to the statement that refreshes the sessions for which [`Session::judge_refresh`] would
/// decide to rotate, provided that their policies revoke no access token at a refresh. `$no_limit`
/// is a further condition.
macro_rules! rotate {
    ($no_limit:literal) => {
        concat!(
    "UPDATE sessions AS s
    SET refreshed_at = given.instant,
        idle_expires_at = least(given.instant + s.idle_timeout, s.expires_at),
        sweep_on = least(s.sweep_on, given.instant + s.idle_timeout),
        generation = CASE s.refresh_mode
            WHEN 'reuse' THEN s.generation
            ELSE s.generation + 1
        END,
        refresh_key = CASE s.refresh_mode
            WHEN 'reuse' THEN s.refresh_key
            ELSE given.next_key
        END,
        access_token_id = given.next_access_token_id,
        user_agent = coalesce(given.user_agent, s.user_agent),
        ip_address = coalesce(given.ip_address, s.ip_address),
        device_label = coalesce(given.device_label, s.device_label),
        device_id = coalesce(nullif(given.device_id, ''), s.device_id),
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
            unnest(?) AS device_id,
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
    $no_limit,
    "RETURNING given.ordinal, ",
    new_columns!("s."),
    ", s.authentication_id, s.reauthentication_id, s.reauthentication_fingerprint, s.extended_at, \
     s.earlier_tokens_expire_at, s.ended_at, s.end_reason, s.end_note, s.is_over"
        )
    };
}

/// The statement if no policy applies to live sessions, which is the most frequent case.
const ROTATE: &str = rotate!("");
/// The statement if some policies apply to live sessions. It leaves out the sessions for which
/// [`Session::tightened`] would return stricter limits.
const ROTATE_UNLIMITED: &str = rotate!(
    "AND NOT EXISTS (
        SELECT
        FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS live (
            name, access_token_ttl, idle_timeout, absolute_lifetime, refresh_mode, refresh_grace,
            replay, replay_limit, on_refresh, reauthentication_lifetime
        )
        WHERE live.name = s.policy
            AND (
                s.access_token_ttl > live.access_token_ttl
                OR s.idle_timeout > live.idle_timeout
                OR s.expires_at > coalesce(s.extended_at, s.created_at) + live.absolute_lifetime
                OR s.refresh_mode = 'reuse' AND live.refresh_mode = 'rotate'
                OR live.refresh_mode = 'rotate'
                    AND (
                        s.refresh_grace > live.refresh_grace
                        OR s.replay = 'until_used' AND live.replay = 'grace'
                        OR s.replay_limit > live.replay_limit
                    )
                OR live.on_refresh = 'revoke_access_token'
                OR s.reauthentication_lifetime IS NOT NULL
                    AND (
                        live.reauthentication_lifetime IS NULL
                        OR s.reauthentication_lifetime > live.reauthentication_lifetime
                    )
            )
    ) "
);

/// The rotations of a batch. Each row is the ordinal of an attempt, and its session.
type Rotations<'a> = Statement<'a, (BigInt, sessions::SqlType)>;
/// The attempts of a batch with their ordinals, in the order of the identifiers of their sessions.
type Sorted<'a> = [(usize, &'a RefreshAttempt)];

/// Binds the attempts.
fn bind_attempts<'a>(rotate: Rotations<'a>, sorted: &Sorted<'a>) -> Rotations<'a> {
    fn column<'a, T>(sorted: &Sorted<'a>, of: impl Fn(&'a RefreshAttempt) -> T) -> Vec<T> {
        sorted.iter().map(|(_, attempt)| of(attempt)).collect()
    }
    fn device<'a>(
        of: impl Fn(&'a Device) -> &'a str,
    ) -> impl Fn(&'a RefreshAttempt) -> Option<&'a str> {
        move |attempt| attempt.device.as_ref().map(&of)
    }
    rotate
        .bind::<Array<BigInt>, _>(
            sorted
                .iter()
                .map(|(ordinal, _)| i64::try_from(*ordinal).unwrap_or(i64::MAX))
                .collect::<Vec<_>>(),
        )
        .bind::<Array<SqlUuid>, _>(column(sorted, |attempt| uuid(attempt.session_id.bytes())))
        .bind::<Array<Binary>, _>(column(sorted, |attempt| attempt.secret.0.to_vec()))
        .bind::<Array<BigInt>, _>(column(sorted, |attempt| i64::from(attempt.generation)))
        .bind::<Array<Text>, _>(column(sorted, |attempt| array(&attempt.scopes)))
        .bind::<Array<Timestamptz>, _>(column(sorted, |attempt| instant(attempt.now)))
        .bind::<Array<Binary>, _>(column(sorted, |attempt| attempt.next_key.0.to_vec()))
        .bind::<Array<SqlUuid>, _>(column(sorted, |attempt| {
            uuid(attempt.next_access_token_id.bytes())
        }))
        .bind::<Array<Nullable<Text>>, _>(column(sorted, device(|device| &*device.user_agent)))
        .bind::<Array<Nullable<Text>>, _>(column(sorted, device(|device| &*device.ip_address)))
        .bind::<Array<Nullable<Text>>, _>(column(sorted, device(|device| &*device.label)))
        .bind::<Array<Nullable<Text>>, _>(column(sorted, device(|device| &*device.id)))
        .bind::<Array<Nullable<Text>>, _>(column(sorted, |attempt| {
            attempt.reach.tenants.as_ref().map(array)
        }))
        .bind::<Array<Nullable<Text>>, _>(column(sorted, |attempt| {
            attempt.reach.audiences.as_ref().map(array)
        }))
}

/// Returns the policies that apply to live sessions. Two attempts of a batch may come from before
/// and after a change of the configuration. Then a session takes the fast path only if neither
/// version limits it.
fn live_policies<'a>(sorted: &Sorted<'a>) -> Vec<&'a Policy> {
    let mut versions: Vec<&'a Arc<LivePolicies>> = vec![];
    for (_, attempt) in sorted {
        if !versions.iter().any(|version| Arc::ptr_eq(version, &attempt.live_policies)) {
            versions.push(&attempt.live_policies);
        }
    }
    versions.into_iter().flat_map(|version| version.iter()).collect()
}

/// Binds the policies that apply to live sessions.
fn bind_live<'a>(rotate: Rotations<'a>, live: &[&'a Policy]) -> Rotations<'a> {
    fn column<'a, T>(live: &[&'a Policy], of: impl Fn(&'a Policy) -> T) -> Vec<T> {
        live.iter().map(|policy| of(policy)).collect()
    }
    let intervals = |of: fn(&Policy) -> Duration| column(live, |policy| interval(of(policy)));
    rotate
        .bind::<Array<Text>, _>(column(live, |policy| &*policy.session.name))
        .bind::<Array<Interval>, _>(intervals(|policy| policy.session.access_token_ttl))
        .bind::<Array<Interval>, _>(intervals(|policy| policy.session.idle_timeout))
        .bind::<Array<Interval>, _>(intervals(|policy| policy.absolute_lifetime))
        .bind::<Array<Text>, _>(column(live, |policy| policy.session.refresh.as_str()))
        .bind::<Array<Interval>, _>(intervals(|policy| policy.session.refresh_grace))
        .bind::<Array<Text>, _>(column(live, |policy| policy.session.replay.as_str()))
        .bind::<Array<Interval>, _>(intervals(|policy| policy.session.replay_limit))
        .bind::<Array<Text>, _>(column(live, |policy| policy.session.on_refresh.as_str()))
        .bind::<Array<Nullable<Interval>>, _>(column(live, |policy| {
            policy.reauthentication_extends.then(|| interval(policy.absolute_lifetime))
        }))
}

/// An attempt on the fast path: it may be a rotation that writes nothing but the session.
struct FastPath<'a>(&'a RefreshAttempt);

#[async_trait]
impl BatchWrite for FastPath<'_> {
    /// None leaves the attempt to the slow path.
    type Outcome = Option<Refreshed>;

    /// Rotates by one statement. Its conditions are those under which [`Session::judge_refresh`]
    /// decides to rotate, and that the policy does not revoke the previous access token. Of several
    /// attempts with the same refresh token, one rotates. Rows are locked in the order of their
    /// identifiers.
    async fn apply(
        connection: &mut PooledConnection<'_>,
        attempts: &[Self],
    ) -> Result<Vec<Result<Option<Refreshed>, StoreError>>, Fault> {
        let mut sorted: Vec<_> =
            attempts.iter().map(|Self(attempt)| *attempt).enumerate().collect();
        sorted.sort_by_key(|(_, attempt)| attempt.session_id);
        let live = live_policies(&sorted);
        let rotate = match live.is_empty() {
            true => bind_attempts(statement(ROTATE), &sorted),
            false => bind_live(bind_attempts(statement(ROTATE_UNLIMITED), &sorted), &live),
        };
        let rotated: Vec<(i64, SessionRow)> = rotate.load(&mut **connection).await?;

        let mut outcomes: Vec<_> = attempts.iter().map(|_| Ok(None)).collect();
        for (ordinal, row) in rotated {
            if let Some(outcome) =
                usize::try_from(ordinal).ok().and_then(|ordinal| outcomes.get_mut(ordinal))
            {
                // A damaged row was rotated all the same. Its error must not make the other
                // attempts fail.
                *outcome = Session::try_from(row).map(|session| {
                    Some(Refreshed::Rotated { session: Box::new(session), position: None })
                });
            }
        }
        Ok(outcomes)
    }
}

/// An attempt on the slow path: it is decided on the row that was read.
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
        // Most of these attempts are replays and refusals. They change nothing, and so need no
        // lock.
        let current = read(connection, &ids).await?;
        let mut batch = BatchState::of(connection, current).await?;
        let decided = decide_all(&mut batch, attempts);
        if batch.is_unchanged() {
            let newest = newest_entry(connection, &decided).await?;
            return Ok(outcomes(decided, &Positions::default(), newest));
        }

        connection.begin().await?;
        let current = lock::lock_sessions(connection, &ids).await?;
        let mut batch = BatchState::of(connection, current).await?;
        let decided = decide_all(&mut batch, attempts);
        let positions = batch.write(connection).await?;
        // The head of the feed is read after the entries of this batch were written, because a
        // replay may have to wait for one of them.
        let newest = newest_entry(connection, &decided).await?;
        connection.commit().await?;
        Ok(outcomes(decided, &positions, newest))
    }
}

/// A decision, and the index of its entry, if it has one.
type Decided = (RefreshDecision, Option<EntryIndex>);

fn decide_all(batch: &mut BatchState, attempts: &[SlowPath<'_>]) -> Vec<Decided> {
    attempts.iter().map(|SlowPath(attempt)| decide(batch, attempt)).collect()
}

fn decide(batch: &mut BatchState, attempt: &RefreshAttempt) -> Decided {
    let session = batch.session(attempt.session_id);
    let Ok(decision) = RefreshDecision::of(attempt, session, |session| batch.is_covered(session));
    let entry = match &decision {
        RefreshDecision::Rotate { session, entry } => batch.apply(session, entry.as_ref()),
        RefreshDecision::End { session, entry } => batch.apply(session, Some(entry)),
        RefreshDecision::Replay { .. } | RefreshDecision::Refuse(_) => None,
    };
    (decision, entry)
}

/// Reads the head of the feed if any attempt is a replay of a refresh that may have revoked an
/// access token. Such a replay must wait too, because some replica may not have applied that entry
/// yet.
async fn newest_entry(
    connection: &mut PooledConnection<'_>,
    decided: &[Decided],
) -> Result<Option<FeedPosition>, Fault> {
    let may_have_entry = |(decision, _): &Decided| {
        matches!(decision, RefreshDecision::Replay { may_have_entry: true, .. })
    };
    match decided.iter().any(may_have_entry) {
        true => Ok(Some(entries::feed_head(connection).await?)),
        false => Ok(None),
    }
}

/// Returns the outcomes of decisions, given the feed positions of the batch's entries and, for
/// replays, the head of the feed.
fn outcomes(
    decided: Vec<Decided>,
    positions: &Positions,
    newest: Option<FeedPosition>,
) -> Vec<Result<Refreshed, StoreError>> {
    let outcome = |(decision, entry)| {
        Ok(match decision {
            RefreshDecision::Rotate { session, .. } => {
                Refreshed::Rotated { session, position: positions.of(entry) }
            }
            RefreshDecision::Replay { session, may_have_entry } => {
                Refreshed::Replayed { session, position: newest.filter(|_| may_have_entry) }
            }
            RefreshDecision::End { session, .. } => {
                Refreshed::Ended { session, position: positions.required(entry)? }
            }
            RefreshDecision::Refuse(refusal) => Refreshed::Refused(refusal),
        })
    };
    decided.into_iter().map(outcome).collect()
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
