//! Changes sessions: reauthentications and updates.

use std::collections::HashMap;

use async_trait::async_trait;
use diesel::sql_types::{Array, Binary, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;

use super::{
    super::{
        batch::BatchWrite,
        connection::{fault::Fault, pool::PooledConnection},
        feed::{
            cut_offs::{self, CutOffs},
            entries,
        },
        rows::{array, instant, uuid},
        sql::statement,
    },
    jsonb::to_jsonb,
    lock,
};
use crate::{
    domain::{
        change::{ChangeDecision, SessionChange},
        ids::SessionId,
        revocation::{BlacklistEntry, FeedPosition},
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
        let cut_offs = cut_offs::read(connection, current.values()).await?;
        let mut batch = Batch { current, cut_offs, changed: HashMap::new(), entries: vec![] };
        let decisions: Vec<_> = changes.iter().map(|change| batch.decide(change)).collect();
        let changed: Vec<Session> = batch.changed.into_values().collect();
        lock::save_sessions(connection, &changed).await?;
        save_changes(connection, &changed).await?;
        let positions = entries::insert_entries(connection, &batch.entries).await?;
        // The head of the feed is read after the entries of this batch were written, because a
        // repeated change may have to wait for one of them.
        let newest = entries::feed_head(connection).await?;
        connection.commit().await?;
        Ok(decisions.into_iter().map(|decided| decided.changed(&positions, newest)).collect())
    }
}

/// The state that decisions are based on, and the changes so far.
struct Batch {
    current: HashMap<SessionId, Session>,
    cut_offs: CutOffs,
    changed: HashMap<SessionId, Session>,
    entries: Vec<BlacklistEntry>,
}

/// A decision, and the index of its entry among the entries of the batch, if it has one.
struct Decided {
    decision: ChangeDecision,
    entry: Option<usize>,
}

impl Batch {
    fn decide(&mut self, change: &SessionChange) -> Decided {
        let session = self.current.get(&change.session_id).cloned();
        let is_covered = |session: &Session| -> Result<bool, std::convert::Infallible> {
            Ok(self.cut_offs.covered_up_to(session).is_some())
        };
        let Ok(decision) = change.decide(session, is_covered);
        let (changed, entry) = match &decision {
            ChangeDecision::Change { session, entry } => (Some(session), entry.as_ref()),
            ChangeDecision::End { session, entry } => (Some(session), Some(entry)),
            ChangeDecision::Keep { .. } | ChangeDecision::Refuse(_) => (None, None),
        };
        if let Some(session) = changed {
            self.current.insert(session.id, (**session).clone());
            self.changed.insert(session.id, (**session).clone());
        }
        let entry = entry.map(|entry| {
            self.entries.push(entry.clone());
            self.entries.len() - 1
        });
        Decided { decision, entry }
    }
}

impl Decided {
    /// Returns the outcome. `positions` are those of the batch's entries, and `newest` is the head
    /// of the feed.
    fn changed(
        self,
        positions: &[FeedPosition],
        newest: FeedPosition,
    ) -> Result<Changed, StoreError> {
        let position = self.entry.and_then(|entry| positions.get(entry)).copied();
        Ok(match self.decision {
            ChangeDecision::Change { session, .. } => Changed::Changed { session, position },
            ChangeDecision::Keep { session, may_have_entry } => {
                Changed::Kept { session, position: may_have_entry.then_some(newest) }
            }
            ChangeDecision::End { session, .. } => {
                let missing = || StoreError::Refused("an entry without a position".to_owned());
                Changed::Reused { session, position: position.ok_or_else(missing)? }
            }
            ChangeDecision::Refuse(refusal) => Changed::Refused(refusal),
        })
    }
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
    fn column<'a, T>(changed: &'a [Session], of: impl Fn(&'a Session) -> T) -> Vec<T> {
        changed.iter().map(of).collect()
    }
    statement::<()>(
        "UPDATE sessions AS s
        SET lineage_secret = given.lineage_secret,
            authentication_id = given.authentication_id,
            acr = given.acr,
            amr = given.amr::text[],
            authenticated_at = given.authenticated_at,
            expires_at = given.expires_at,
            scopes = given.scopes::text[],
            claims = given.claims::jsonb,
            metadata = given.metadata::jsonb,
            reauthentication_id = given.reauthentication_id,
            reauthentication_fingerprint = given.reauthentication_fingerprint
        FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS given (
            id, lineage_secret, authentication_id, acr, amr, authenticated_at, expires_at, scopes,
            claims, metadata, reauthentication_id, reauthentication_fingerprint
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
    .bind::<Array<Timestamptz>, _>(column(changed, |session| instant(session.authentication.at)))
    .bind::<Array<Timestamptz>, _>(column(changed, |session| instant(session.expires_at)))
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
