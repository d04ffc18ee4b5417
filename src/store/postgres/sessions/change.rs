//! Changes sessions: reauthentications and updates.

use async_trait::async_trait;
use diesel::sql_types::{Array, Binary, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use super::{
    super::{
        batch::BatchWrite,
        connection::{fault::Fault, pool::PooledConnection},
        feed::entries,
        rows::{array, instant, uuid},
        sql::{column, statement},
    },
    batch_state::{BatchState, EntryIndex, Positions},
    jsonb::to_jsonb,
    lock,
};
use crate::{
    domain::{
        change::{ChangeDecision, SessionChange},
        ids::SessionId,
        revocation::FeedPosition,
        session::Session,
    },
    store::{Changed, StoreError},
};

#[async_trait]
impl BatchWrite for SessionChange {
    type Outcome = Changed;

    async fn apply(
        connection: &mut PooledConnection<'_>,
        changes: &[Self],
    ) -> Result<Vec<Result<Changed, StoreError>>, Fault> {
        let mut ids: Vec<SessionId> = changes.iter().map(|change| change.session_id).collect();
        ids.sort_unstable();
        ids.dedup();
        connection.begin().await?;
        let current = lock::lock_sessions(connection, &ids).await?;
        let mut batch = BatchState::of(connection, current).await?;
        let decided: Vec<_> = changes.iter().map(|change| decide(&mut batch, change)).collect();
        save_changes(connection, &batch.changed()).await?;
        let positions = batch.write(connection).await?;
        // The head of the feed is read after the entries of this batch were written, because a
        // repeated change may have to wait for one of them.
        let newest = entries::feed_head(connection).await?;
        connection.commit().await?;
        Ok(decided
            .into_iter()
            .map(|(decision, entry)| outcome(decision, entry, &positions, newest))
            .collect())
    }
}

/// Decides a change. Also returns the index of its entry, if it has one.
fn decide(batch: &mut BatchState, change: &SessionChange) -> (ChangeDecision, Option<EntryIndex>) {
    let session = batch.session(change.session_id);
    let Ok(decision) = change.decide(session, |session| batch.is_covered(session));
    let entry = match &decision {
        ChangeDecision::Change { session, entry } => batch.apply(session, entry.as_ref()),
        ChangeDecision::End { session, entry } => batch.apply(session, Some(entry)),
        ChangeDecision::Keep { .. } | ChangeDecision::Refuse(_) => None,
    };
    (decision, entry)
}

/// Returns the outcome of a decision, given the feed positions of the batch's entries and the head
/// of the feed.
fn outcome(
    decision: ChangeDecision,
    entry: Option<EntryIndex>,
    positions: &Positions,
    newest: FeedPosition,
) -> Result<Changed, StoreError> {
    Ok(match decision {
        ChangeDecision::Change { session, .. } => {
            Changed::Changed { session, position: positions.of(entry) }
        }
        ChangeDecision::Keep { session, may_have_entry } => {
            Changed::Kept { session, position: may_have_entry.then_some(newest) }
        }
        ChangeDecision::End { session, .. } => {
            Changed::Ended { session, position: positions.required(entry)? }
        }
        ChangeDecision::Refuse(refusal) => Changed::Refused(refusal),
    })
}

/// Writes those columns of locked sessions that a reauthentication or an update alters, and a
/// refresh or a revocation does not.
async fn save_changes(
    connection: &mut PooledConnection<'_>,
    changed: &[Session],
) -> Result<(), Fault> {
    if changed.is_empty() {
        return Ok(());
    }
    statement::<()>(
        "UPDATE sessions AS s
        SET lineage_secret = given.lineage_secret,
            authentication_id = given.authentication_id,
            acr = given.acr,
            amr = given.amr::text[],
            amr_verified_at = given.amr_verified_at::jsonb,
            authenticated_at = given.authenticated_at,
            extended_at = given.extended_at,
            scopes = given.scopes::text[],
            claims = given.claims::jsonb,
            metadata = given.metadata::jsonb,
            reauthentication_id = given.reauthentication_id,
            reauthentication_fingerprint = given.reauthentication_fingerprint
        FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS given (
            id, lineage_secret, authentication_id, acr, amr, amr_verified_at, authenticated_at,
            extended_at, scopes, claims, metadata, reauthentication_id, reauthentication_fingerprint
        )
        WHERE s.id = given.id",
    )
    .bind::<Array<SqlUuid>, _>(column(changed, |session| uuid(session.id.bytes())))
    .bind::<Array<Binary>, _>(column(changed, |session| session.lineage.secret.0.to_vec()))
    .bind::<Array<Nullable<SqlUuid>>, _>(column(changed, |session| {
        session.authentication.id.map(|id| uuid(id.bytes()))
    }))
    .bind::<Array<Text>, _>(column(changed, |session| &*session.authentication.acr))
    .bind::<Array<Text>, _>(column(changed, |session| array(&session.authentication.amr)))
    .bind::<Array<Text>, _>(column(changed, |session| {
        session.authentication.amr_verified_at.to_json()
    }))
    .bind::<Array<Timestamptz>, _>(column(changed, |session| instant(session.authentication.at)))
    .bind::<Array<Nullable<Timestamptz>>, _>(column(changed, |session| {
        session.extended_at.map(instant)
    }))
    .bind::<Array<Text>, _>(column(changed, |session| array(&session.scopes)))
    .bind::<Array<Text>, _>(column(changed, |session| to_jsonb(session.claims.object())))
    .bind::<Array<Text>, _>(column(changed, |session| to_jsonb(session.metadata.object())))
    .bind::<Array<Nullable<Text>>, _>(column(changed, |session| {
        session.reauthentication.as_ref().map(|request| &*request.id)
    }))
    .bind::<Array<Nullable<Binary>>, _>(column(changed, |session| {
        session.reauthentication.as_ref().map(|request| request.fingerprint.0.to_vec())
    }))
    .execute(&mut **connection)
    .await?;
    Ok(())
}
