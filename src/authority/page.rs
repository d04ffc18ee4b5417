//! Pages of lists: their size, the tokens that lead from one page to the next, and the reads that
//! fill a page.

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::{sync::Semaphore, task::yield_now};

use super::error::AuthorityError;
use crate::{domain::search::Part, store::StoreError};

/// A request for one page of a list.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// The largest number of items on the page.
    pub size: u16,
    /// The token that came with the previous page; empty for the first page.
    pub token: String,
    /// The request without the size and the token of the page, as an encoded message. A token leads
    /// only to a page of the same request.
    pub request: Vec<u8>,
}

/// The result of adding an item to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// The page has taken the item.
    Taken,
    /// The page has no room for the item, which will be the first of the next page.
    Full,
}

/// The items of a list, of which pages are made. A place has `N` bytes.
#[async_trait]
pub(super) trait Items<const N: usize>: Sync {
    /// An item.
    type Item: Send + Sync;

    /// Returns the place of an item.
    fn place_of(item: &Self::Item) -> [u8; N];

    /// Reads up to `limit` items after a place.
    async fn read(
        &self,
        after: Option<[u8; N]>,
        limit: i64,
    ) -> Result<Part<Vec<Self::Item>, [u8; N]>, StoreError>;
}

/// The largest number of items that are read at once. Items differ a hundredfold in size, so a long
/// page is read in parts until it is full.
const READ_AT_ONCE: usize = 64;

/// The largest number of reads that find fewer items than they were asked for, although there may
/// be more. Then the page ends, so that no call searches for long, however few items match.
pub(super) const POOR_READS: usize = 5;

/// The largest number of calls that read and convert items of a page at the same time. Further
/// calls wait, so that many long pages do not keep short calls from the processor.
pub(super) const PAGES_AT_ONCE: usize = 4;

/// The number of items that are converted before the task yields to others. A session with large
/// claims takes some 60 microseconds.
const YIELD_EVERY: usize = 8;

impl PageRequest {
    /// Reads the place of the last item of the previous page from the token. Returns none for the
    /// first page.
    pub(super) fn place<const N: usize>(&self) -> Result<Option<[u8; N]>, AuthorityError> {
        if self.token.is_empty() {
            return Ok(None);
        }
        let bytes = URL_SAFE_NO_PAD.decode(&self.token).unwrap_or_default();
        let parts = bytes.split_first_chunk::<N>();
        match parts.filter(|(place, sum)| **sum == self.checksum(*place)) {
            Some((place, _)) => Ok(Some(*place)),
            None => Err(AuthorityError::field(
                "page_token",
                "does not belong to this request: use the next_page_token of the previous page",
            )),
        }
    }

    /// Returns the token of the page that begins after a place.
    fn token_after<const N: usize>(&self, place: &[u8; N]) -> String {
        URL_SAFE_NO_PAD.encode([place.as_slice(), &self.checksum(place)].concat())
    }

    /// Ties a place to the request.
    fn checksum(&self, place: &[u8]) -> [u8; 8] {
        let sum = digest(&SHA256, &[place, &self.request].concat());
        sum.as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// Passes the items of the page to `take`, in their order, until the page is full. Returns the
    /// token of the next page, which is empty after the last one. `turns` limits the calls that
    /// fill a page at the same time.
    pub(super) async fn fill<I: Items<N>, const N: usize>(
        &self,
        items: I,
        turns: &Semaphore,
        mut take: impl FnMut(&I::Item) -> Result<Room, AuthorityError>,
    ) -> Result<String, AuthorityError> {
        let mut last = self.place::<N>()?;
        let token = |last: Option<[u8; N]>| last.map(|last| self.token_after(&last));
        let mut room = usize::from(self.size);
        let mut poor_reads = 0;
        loop {
            // One item more than the page has room for shows whether there is a next page.
            let limit = READ_AT_ONCE.min(room + 1);
            let _turn = turns.acquire().await.map_err(|_| AuthorityError::Internal)?;
            let part = items.read(last, i64::try_from(limit).unwrap_or(i64::MAX)).await?;
            for chunk in part.found.chunks(YIELD_EVERY) {
                for item in chunk {
                    if room == 0 || take(item)? == Room::Full {
                        return Ok(token(last).unwrap_or_default());
                    }
                    room -= 1;
                    last = Some(I::place_of(item));
                }
                yield_now().await;
            }
            if part.last.is_none() {
                return Ok(String::new());
            }
            last = part.last;
            poor_reads += usize::from(part.found.len() < limit);
            if poor_reads == POOR_READS {
                return Ok(token(last).unwrap_or_default());
            }
        }
    }
}
