//! Validate with metadata: reads the metadata of the sessions whose tokens are active.

use std::{collections::HashMap, sync::Arc};

use super::{Authority, error::AuthorityError, validate::Answer};
use crate::{
    domain::{
        ids::SessionId,
        inactive::InactiveReason,
        metadata::{Metadata, SessionMetadata},
    },
    token::verified_cache::VerifiedToken,
};

/// A token that was found active.
#[derive(Debug)]
pub struct ActiveToken(Arc<VerifiedToken>);

impl ActiveToken {
    /// Returns the token of an answer if it is active.
    pub fn of(answer: Answer) -> Option<Self> {
        answer.outcome.ok().map(Self)
    }
}

impl Authority {
    /// Reads the metadata of the sessions of active tokens, by one query. Returns an outcome for
    /// each token, in the same order: the metadata, none if the row of the session was deleted in
    /// the meantime, or the reason why the token is inactive according to the row. A row may show a
    /// revocation that the index of this replica does not have yet.
    pub async fn metadata_of(
        &self,
        tokens: &[ActiveToken],
    ) -> Result<Vec<Result<Option<Metadata>, InactiveReason>>, AuthorityError> {
        let mut ids: Vec<SessionId> =
            tokens.iter().map(|token| token.0.claims.session_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let rows = self.store.metadata_of(ids).await?;
        let rows: HashMap<SessionId, SessionMetadata> =
            rows.into_iter().map(|row| (row.session_id, row)).collect();
        let outcome = |ActiveToken(token): &ActiveToken| match rows.get(&token.claims.session_id) {
            None => Ok(None),
            Some(row) if row.stops(&token.claims) => Err(InactiveReason::Revoked),
            Some(row) => Ok(Some(row.metadata.clone())),
        };
        Ok(tokens.iter().map(outcome).collect())
    }
}
