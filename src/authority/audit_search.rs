//! ListAudit: shows records of the audit.

use async_trait::async_trait;

use super::{
    Authority,
    error::AuthorityError,
    page::{Items, PageRequest, Room},
};
use crate::{
    domain::{
        audit::AuditEntry,
        caller::Actor,
        ids::AuditId,
        permission::Operation,
        search::{AuditQuery, AuditSearch, Part},
        text::Tenant,
        time::Timestamp,
    },
    store::{Store, StoreError},
};

/// A request for one page of records of the audit.
#[derive(Clone, Debug)]
pub struct AuditListing {
    /// The search whose records are listed.
    pub search: AuditSearch,
    /// The page.
    pub page: PageRequest,
}

/// A place as it is written to a page token: the microseconds of the instant, and the identifier.
const PLACE_BYTES: usize = 24;
type PlaceBytes = [u8; PLACE_BYTES];

fn place_bytes(at: Timestamp, id: AuditId) -> PlaceBytes {
    let mut bytes = [0; PLACE_BYTES];
    let (instant, identifier) = bytes.split_at_mut(8);
    instant.copy_from_slice(&at.micros().to_be_bytes());
    identifier.copy_from_slice(id.bytes());
    bytes
}

fn read_place(bytes: PlaceBytes) -> Option<(Timestamp, AuditId)> {
    let (micros, id) = bytes.split_first_chunk::<8>()?;
    let id = id.first_chunk::<16>()?;
    Some((Timestamp::from_micros(i64::from_be_bytes(*micros)), AuditId::from_bytes(*id)))
}

/// The records that a search finds.
struct FoundRecords<'a> {
    store: &'a dyn Store,
    search: AuditSearch,
}

#[async_trait]
impl Items<PLACE_BYTES> for FoundRecords<'_> {
    type Item = AuditEntry;

    fn place_of(entry: &AuditEntry) -> PlaceBytes {
        place_bytes(entry.record.at, entry.id)
    }

    async fn read(
        &self,
        after: Option<PlaceBytes>,
        limit: i64,
    ) -> Result<Part<Vec<AuditEntry>, PlaceBytes>, StoreError> {
        let after = after.and_then(read_place);
        let query = AuditQuery { search: self.search.clone(), after, limit };
        let Part { found, last } = self.store.audit(query).await?;
        Ok(Part { found, last: last.map(|(at, id)| place_bytes(at, id)) })
    }
}

impl Authority {
    /// Passes the records of a page to `take`, the newest first, until the page is full. Returns
    /// the token of the next page, which is empty after the last one.
    pub async fn audit_records(
        &self,
        by: &Actor,
        listing: AuditListing,
        take: impl FnMut(&AuditEntry) -> Result<Room, AuthorityError>,
    ) -> Result<String, AuthorityError> {
        self.check_audit_search(by, listing.search.tenant.as_ref())?;
        if !self.audit.has_table() {
            return Err(AuthorityError::AuditTableOff);
        }
        let AuditListing { search, page } = listing;
        page.fill(FoundRecords { store: &*self.store, search }, &self.pages, take).await
    }

    /// A caller that is limited to tenants sees only their records.
    fn check_audit_search(
        &self,
        by: &Actor,
        tenant: Option<&Tenant>,
    ) -> Result<(), AuthorityError> {
        let problem = match tenant {
            Some(tenant) if !by.reach().has_tenant(tenant) => "tenant is not among its tenants",
            None if by.reach().tenants.is_some() => {
                "it is limited to some tenants, and tenant does not name one of them"
            }
            _ => return Ok(()),
        };
        Err(self.not_allowed(by, Operation::ListAudit, problem))
    }
}
