//! GetSession and ListSessions: what support staff and users see of sessions.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::task::yield_now;

use super::{Authority, error::AuthorityError};
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

/// Which sessions to list.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Of this tenant.
    pub tenant: Tenant,
    /// Of this subject, or of all.
    pub subject: Option<Subject>,
    /// Live ones, ended ones, or both.
    pub live: Option<bool>,
    /// How many.
    pub page_size: u16,
    /// Where the page before ended; empty for the first.
    pub page_token: String,
}

/// Whether a page took the session that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It did.
    Taken,
    /// It has no room for it: the session is the first of the next page.
    Full,
}

/// Most sessions that are read at once. Sessions differ a hundredfold in size, so a long page is
/// read in parts, and only as far as it has room.
const READ_AT_ONCE: usize = 64;

/// Most calls that read and convert sessions of a page at the same time. Others wait, so that many
/// long pages do not keep short calls from the processor.
pub(super) const PAGES_AT_ONCE: usize = 4;

/// Sessions converted before other calls get a turn: one with wide claims takes some 60
/// microseconds.
const TURN: usize = 8;

impl Authority {
    /// Reads a session, and the instant for which it is shown.
    pub async fn session(
        &self,
        by: &Actor,
        id: SessionId,
    ) -> Result<(Session, Timestamp), AuthorityError> {
        let session =
            self.store.session(id).await?.filter(|session| by.reach().has_tenant(&session.tenant));
        let session = session.ok_or(AuthorityError::SessionNotFound)?;
        Ok((session, self.clock.now()))
    }

    /// Gives the sessions of a page to `take`, the newest first, each with the instant for which it
    /// is shown, until the page is full. Returns the token of the next page, which is empty after
    /// the last one.
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
                    "does not belong to this request: send what the page before answered",
                )
            })?),
        };
        let mut room = usize::from(listing.page_size);
        loop {
            // One more than the page has room for tells whether there is a next page.
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
            for part in sessions.chunks(TURN) {
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

/// The last session of a page, and a checksum that ties it to the request.
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
