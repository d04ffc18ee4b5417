//! ListSessions and CountSessions.

use countersign_test_support::refusal::Refusal;

use super::{Model, Session};

/// A search for sessions.
#[derive(Clone, Debug)]
pub struct Search {
    pub tenant: u8,
    pub subject: Option<u8>,
    pub client: Option<u8>,
    /// True for live sessions, false for those that are recorded as ended.
    pub live: Option<bool>,
    pub oldest_first: bool,
}

impl Model {
    /// ListSessions and CountSessions. No index serves the client, so such a search must name a
    /// subject.
    pub fn search(&self, search: &Search) -> Result<Vec<usize>, Refusal> {
        match (search.client, search.subject) {
            (Some(_), None) => Err(Refusal::field("filter")),
            _ => Ok(self.list(search)),
        }
    }

    /// Returns the sessions that a search finds. An expired session is neither live, nor ended
    /// before a sweep has recorded its expiry.
    pub(super) fn list(&self, search: &Search) -> Vec<usize> {
        let passes = |session: &Session| {
            let whom = session.whom;
            let is_live = session.is_live(self.now);
            let is_ended = session.ended.is_some() || session.expiry_is_recorded;
            !session.is_deleted
                && whom.tenant == search.tenant
                && search.subject.is_none_or(|subject| subject == whom.subject)
                && search.client.is_none_or(|client| client == whom.client)
                && search.live.is_none_or(|live| if live { is_live } else { is_ended })
        };
        let mut found: Vec<_> =
            (0..self.sessions.len()).filter(|&index| passes(&self.sessions[index])).collect();
        found.sort_by_key(|&index| &self.sessions[index].id);
        if !search.oldest_first {
            found.reverse();
        }
        found
    }
}
