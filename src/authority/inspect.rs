//! GetSession and ListSessions: show sessions to support staff and users.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::task::yield_now;

use super::{Authority, error::AuthorityError, note_session};
use crate::{
    domain::{
        caller::Actor,
        ids::SessionId,
        permission::Operation,
        session::Session,
        text::{Subject, Tenant},
        time::Timestamp,
    },
    store::SessionQuery,
};

/// A request for one page of a list of sessions.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The tenant of the sessions.
    pub tenant: Tenant,
    /// The subject of the sessions, or `None` for all subjects.
    pub subject: Option<Subject>,
    /// True to list live sessions, false to list ended sessions, and `None` to list both.
    pub live: Option<bool>,
    /// The largest number of sessions on the page.
    pub page_size: u16,
    /// The token that came with the previous page; empty for the first page.
    pub page_token: String,
}

/// The result of adding a session to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// The page has taken the session.
    Taken,
    /// The page has no room for the session, which will be the first of the next page.
    Full,
}

/// The largest number of sessions that are read at once. Sessions differ a hundredfold in size, so
/// a long page is read in parts until it is full.
const READ_AT_ONCE: usize = 64;

/// The largest number of calls that read and convert sessions of a page at the same time. Further
/// calls wait, so that many long pages do not keep short calls from the processor.
pub(super) const PAGES_AT_ONCE: usize = 4;

/// The number of sessions that are converted before the task yields to others. A session with large
/// claims takes some 60 microseconds.
const YIELD_EVERY: usize = 8;

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

    /// Passes the sessions of a page to `take`, the newest first, until the page is full. The
    /// response shows the state that each session has at the instant that is passed with it.
    /// Returns the token of the next page, which is empty after the last one.
    pub async fn sessions(
        &self,
        by: &Actor,
        listing: Listing,
        mut take: impl FnMut(&Session, Timestamp) -> Result<Room, AuthorityError>,
    ) -> Result<String, AuthorityError> {
        if !by.reach().has_tenant(&listing.tenant) {
            return Err(self.not_allowed(
                by,
                Operation::ListSessions,
                "tenant is not among its tenants",
            ));
        }
        let now = self.clock.now();
        let mut before = match listing.page_token.as_str() {
            "" => None,
            token => Some(read_page_token(token, &listing).ok_or_else(|| {
                AuthorityError::field(
                    "page_token",
                    "does not belong to this request: use the next_page_token of the previous page",
                )
            })?),
        };
        let mut room = usize::from(listing.page_size);
        loop {
            // One session more than the page has room for shows whether there is a next page.
            let limit = READ_AT_ONCE.min(room + 1);
            let query = SessionQuery {
                tenant: listing.tenant.clone(),
                subject: listing.subject.clone(),
                live: listing.live,
                now,
                before,
                limit: i64::try_from(limit).unwrap_or(i64::MAX),
            };
            let _permit = self.pages.acquire().await.map_err(|_| AuthorityError::Internal)?;
            let sessions = self.store.sessions(query).await?;
            for part in sessions.chunks(YIELD_EVERY) {
                for session in part {
                    if room == 0 || take(session, now)? == Room::Full {
                        return Ok(
                            before.map_or_else(String::new, |last| page_token(last, &listing))
                        );
                    }
                    room -= 1;
                    before = Some(session.id);
                }
                yield_now().await;
            }
            if sessions.len() < limit {
                return Ok(String::new());
            }
        }
    }
}

/// Encodes the last session of a page, and a checksum that ties it to the request.
fn page_token(last: SessionId, listing: &Listing) -> String {
    URL_SAFE_NO_PAD.encode([last.bytes().as_slice(), &checksum(last, listing)].concat())
}

fn read_page_token(token: &str, listing: &Listing) -> Option<SessionId> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (id, sum) = bytes.split_first_chunk::<16>()?;
    let id = SessionId::from_bytes(*id);
    (sum == checksum(id, listing)).then_some(id)
}

fn checksum(last: SessionId, listing: &Listing) -> [u8; 8] {
    let subject = listing.subject.as_deref().unwrap_or_default();
    let text = format!("{last}\0{}\0{subject}\0{:?}", &*listing.tenant, listing.live);
    digest(&SHA256, text.as_bytes()).as_ref().first_chunk().copied().unwrap_or_default()
}
