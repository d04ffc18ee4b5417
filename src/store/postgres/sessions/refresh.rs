//! Refreshes sessions. One statement makes the rotations that write nothing but the session. The
//! other attempts are decided one by one, on the rows that were read.

use std::collections::HashMap;

use async_trait::async_trait;
use diesel::{
    ExpressionMethods, QueryDsl, SelectableHelper,
    sql_types::{Array, BigInt, Binary, Nullable, Text, Timestamptz, Uuid as SqlUuid},
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
        rows::{SessionRow, array, instant, uuid},
        schema::{new_columns, sessions, with_new_columns},
        sql::{first_uncovered, is_uncovered, statement, wide_keys},
    },
    batch_state::{BatchState, EntryIndex, Positions},
    lock,
};
use crate::{
    domain::{
        ids::SessionId,
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

/// Rotates the sessions for which [`Session::judge_refresh`] would decide to rotate, provided that
/// their policies revoke no access token at a refresh.
const ROTATE: &str = concat!(
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
    "RETURNING given.ordinal, ",
    new_columns!("s."),
    ", s.authentication_id, s.reauthentication_id, s.reauthentication_fingerprint, s.ended_at, \
     s.end_reason, s.end_note, s.is_over"
);

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
        let rotated: Vec<(i64, SessionRow)> = statement::<(BigInt, sessions::SqlType)>(ROTATE)
            .bind::<Array<BigInt>, _>(
                sorted
                    .iter()
                    .map(|(ordinal, _)| i64::try_from(*ordinal).unwrap_or(i64::MAX))
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
                Refreshed::Reused { session, position: positions.required(entry)? }
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
