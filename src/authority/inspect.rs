//! GetSession and ListSessions: what support staff and users see of sessions.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{Authority, error::AuthorityError};
use crate::{
    domain::{
        caller::Actor,
        ids::SessionId,
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

/// A page of sessions.
#[derive(Debug)]
pub struct Page {
    /// The sessions, the newest first.
    pub sessions: Vec<Session>,
    /// For the next page; empty at the end.
    pub next_page_token: String,
    /// The instant for which they are shown.
    pub now: Timestamp,
}

impl Authority {
    /// Reads a session, and the instant for which it is shown.
    pub async fn session(&self, by: &Actor, id: SessionId) -> Result<(Session, Timestamp), AuthorityError> {
        let session = self.store.session(id).await?.filter(|session| by.reach().has_tenant(&session.tenant));
        let session = session.ok_or(AuthorityError::SessionNotFound)?;
        Ok((session, self.clock.now()))
    }

    /// Lists sessions, a page at a time.
    pub async fn sessions(&self, by: &Actor, listing: Listing) -> Result<Page, AuthorityError> {
        if !by.reach().has_tenant(&listing.tenant) {
            return Err(self.not_allowed(by, "tenant is not among its tenants"));
        }
        let now = self.clock.now();
        let before = match listing.page_token.as_str() {
            "" => None,
            token => Some(read_page_token(token, &listing).ok_or_else(|| {
                AuthorityError::field(
                    "page_token",
                    "does not belong to this request: send what the page before answered",
                )
            })?),
        };
        let page_size = usize::from(listing.page_size);
        let query = SessionQuery {
            tenant: listing.tenant.clone(),
            subject: listing.subject.clone(),
            live: listing.live,
            now,
            before,
            // One more than asked for tells whether there is a next page.
            limit: i64::from(listing.page_size) + 1,
        };
        let mut sessions = self.store.sessions(query).await?;
        let more = sessions.len() > page_size;
        sessions.truncate(page_size);
        let next_page_token = match sessions.last() {
            Some(last) if more => page_token(last.id, &listing),
            _ => String::new(),
        };
        Ok(Page { sessions, next_page_token, now })
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
