//! GetSession, ListSessions and CountSessions: show sessions to support staff and users.

use async_trait::async_trait;

use super::{
    Authority,
    error::AuthorityError,
    note_session,
    page::{Items, POOR_READS, PageRequest, Room},
};
use crate::{
    domain::{
        caller::Actor,
        ids::SessionId,
        permission::Operation,
        search::{Part, SessionQuery, SessionSearch},
        session::Session,
        text::Tenant,
        time::Timestamp,
    },
    store::{Store, StoreError},
};

/// A request for one page of a list of sessions.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The search whose sessions are listed.
    pub search: SessionSearch,
    /// The page.
    pub page: PageRequest,
}

/// The number of sessions that a search finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionCount {
    /// The number that was counted.
    pub sessions: i64,
    /// True if the counting stopped early, so that there may be more.
    pub may_be_more: bool,
}

/// The sessions that a search finds.
struct FoundSessions<'a> {
    store: &'a dyn Store,
    search: SessionSearch,
    now: Timestamp,
}

#[async_trait]
impl Items<16> for FoundSessions<'_> {
    type Item = Session;

    fn place_of(session: &Session) -> [u8; 16] {
        *session.id.bytes()
    }

    async fn read(
        &self,
        after: Option<[u8; 16]>,
        limit: i64,
    ) -> Result<Part<Vec<Session>, [u8; 16]>, StoreError> {
        let after = after.map(SessionId::from_bytes);
        let query = SessionQuery { search: self.search.clone(), now: self.now, after, limit };
        let Part { found, last } = self.store.sessions(query).await?;
        Ok(Part { found, last: last.map(|last| *last.bytes()) })
    }
}

/// The number of sessions from which a count stops.
const COUNTED_EXACTLY: i64 = 10_000;

impl Authority {
    /// Returns a session. The response shows the state that the session has at the returned
    /// instant.
    pub async fn session(
        &self,
        by: &Actor,
        id: SessionId,
    ) -> Result<(Session, Timestamp), AuthorityError> {
        let session =
            self.store.session(id).await?.filter(|session| by.reach().has_tenant(&session.tenant));
        let session = session.ok_or(AuthorityError::SessionNotFound)?;
        note_session(Some(&session.tenant), Some(session.id));
        Ok((session, self.clock.now()))
    }

    /// Passes the sessions of a page to `take`, in the order of the search, until the page is full.
    /// The response shows the state that each session has at the instant that is passed with it.
    /// Returns the token of the next page, which is empty after the last one.
    pub async fn sessions(
        &self,
        by: &Actor,
        listing: Listing,
        mut take: impl FnMut(&Session, Timestamp) -> Result<Room, AuthorityError>,
    ) -> Result<String, AuthorityError> {
        let Listing { search, page } = listing;
        self.check_search(by, Operation::ListSessions, &search.tenant)?;
        let now = self.clock.now();
        let found = FoundSessions { store: &*self.store, search, now };
        page.fill(found, &self.pages, |session| take(session, now)).await
    }

    /// Counts sessions. The count is exact if there are at most 10,000 and the service had to look
    /// at no more than 50,000 to find them.
    pub async fn count_sessions(
        &self,
        by: &Actor,
        search: SessionSearch,
    ) -> Result<SessionCount, AuthorityError> {
        self.check_search(by, Operation::CountSessions, &search.tenant)?;
        let now = self.clock.now();
        let (mut sessions, mut after) = (0, None);
        let _turn = self.pages.acquire().await.map_err(|_| AuthorityError::Internal)?;
        for _ in 0..POOR_READS {
            let query = SessionQuery { search: search.clone(), now, after, limit: 0 };
            let part = self.store.count_sessions(query).await?;
            sessions += part.found;
            after = part.last;
            if after.is_none() || sessions > COUNTED_EXACTLY {
                break;
            }
        }
        Ok(SessionCount { sessions, may_be_more: after.is_some() })
    }

    fn check_search(
        &self,
        by: &Actor,
        operation: Operation,
        tenant: &Tenant,
    ) -> Result<(), AuthorityError> {
        if by.reach().has_tenant(tenant) {
            return Ok(());
        }
        Err(self.not_allowed(by, operation, "tenant is not among its tenants"))
    }
}
