//! Revocations as the feed names them, and the time for which an entry must be kept.

use std::time::Duration;

use crate::{
    cut_off::{CutOff, CutOffKey},
    ids::{SessionId, TokenId},
    text::{Tenant, TextError},
    time::Timestamp,
};

/// The sequence number of an entry in the feed: its place in the order of commits. The first number
/// is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seq(pub i64);

/// A history of the database. A standby that takes over begins a new timeline, which may lack the
/// last commits of the previous timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeline(pub i64);

/// A sequence number, together with the timeline in which it was given out. In another timeline,
/// the same number may belong to another revocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedPosition {
    /// The timeline.
    pub timeline: Timeline,
    /// The sequence number.
    pub seq: Seq,
}

/// Tokens or sessions that are no longer accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Revoked {
    /// Every token of a session.
    Session(SessionId),
    /// One access token, or all access tokens that rest on one authentication
    /// ([`AuthenticationId::token_id`](crate::ids::AuthenticationId::token_id)).
    Token(TokenId),
    /// Every session that a cut-off covers.
    Sessions {
        /// The sessions among which the cut-off chooses.
        key: CutOffKey,
        /// The sessions that are covered.
        cut_off: CutOff,
    },
}

impl Revoked {
    /// Returns the cut-off, if the value revokes the sessions that one covers.
    pub fn cut_off(&self) -> Option<CutOff> {
        match self {
            Self::Session(_) | Self::Token(_) => None,
            Self::Sessions { cut_off, .. } => Some(*cut_off),
        }
    }

    /// Returns the tenant to which the cut-off is limited, if the value has a cut-off and it is
    /// limited to one.
    pub fn cut_off_tenant(&self) -> Option<&Tenant> {
        match self {
            Self::Session(_) | Self::Token(_) => None,
            Self::Sessions { key, .. } => key.scope().tenant(),
        }
    }

    /// Replaces the cut-off, if the value has one.
    pub fn with_cut_off(self, cut_off: CutOff) -> Self {
        match self {
            Self::Sessions { key, .. } => Self::Sessions { key, cut_off },
            other @ (Self::Session(_) | Self::Token(_)) => other,
        }
    }
}

/// An entry of the feed. Replicas add these entries to their index in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedEntry {
    /// The position of the entry in the feed.
    pub seq: Seq,
    /// The sessions or the token that the entry revokes.
    pub revoked: Revoked,
    /// The tenant whose tokens the entry revokes; none if it revokes tokens of all tenants.
    pub tenant: Option<Tenant>,
    /// The instant from which the entry may be deleted.
    pub expires_at: Timestamp,
}

impl FeedEntry {
    /// Returns the tenant of an entry from the column that has its name. The column is empty for
    /// the default tenant, and for an entry that revokes tokens of all tenants.
    pub fn tenant_of(revoked: &Revoked, column: String) -> Result<Option<Tenant>, TextError> {
        match revoked.cut_off().is_some() && revoked.cut_off_tenant().is_none() {
            true => Ok(None),
            false => Tenant::try_from(column).map(Some),
        }
    }
}

/// An entry is kept for this much longer than its tokens are valid, because clocks may disagree.
pub const RETENTION_MARGIN: Duration = Duration::from_secs(60);
