//! Collects the items of a page within the limits on the size of an answer.

use prost::Message;

use super::overload::unsent::{Reservation, TooManyUnsentBytes};
use crate::authority::{error::AuthorityError, page::Room};

/// The maximum size of a page in bytes. Only a page of a single item may be larger. A client can
/// read a page of this size in one go, and other clients do not wait long while it does so.
const MAX_PAGE_BYTES: usize = 1 << 20;
/// The number of bytes that are reserved for a page before the first query, so that a call is
/// refused without a query if there is no room for its answer.
const FIRST_PAGE_BYTES: usize = 64 << 10;
/// The maximum number of bytes that an element of a repeated field takes in addition to its own
/// encoding.
pub const FIELD_BYTES: usize = 8;

/// A page that is being filled.
pub struct Page<Item> {
    items: Vec<Item>,
    bytes: usize,
    max_bytes: usize,
    reserved: Reservation,
    refused: Option<TooManyUnsentBytes>,
}

impl<Item: Message> Page<Item> {
    /// Creates an empty page of an answer that may have `max_answer_bytes`.
    pub fn new(
        mut reserved: Reservation,
        max_answer_bytes: usize,
    ) -> Result<Self, TooManyUnsentBytes> {
        let max_bytes = MAX_PAGE_BYTES.min(max_answer_bytes);
        reserved.try_grow(FIRST_PAGE_BYTES.min(max_bytes))?;
        Ok(Self { items: vec![], bytes: 0, max_bytes, reserved, refused: None })
    }

    /// Adds an item if there is room.
    pub fn add(&mut self, item: Item) -> Result<Room, AuthorityError> {
        let with_it = self.bytes + FIELD_BYTES + item.encoded_len();
        if !self.items.is_empty() && with_it > self.max_bytes {
            return Ok(Room::Full);
        }
        let more = with_it.saturating_sub(self.reserved.bytes());
        if let Err(refused) = self.reserved.try_grow(more) {
            self.refused = Some(refused);
            return Err(AuthorityError::Overloaded);
        }
        self.items.push(item);
        self.bytes = with_it;
        Ok(Room::Taken)
    }

    /// Returns the items, and the reservation of their bytes. Fails if an item did not fit into the
    /// limit on unsent bytes.
    pub fn finish(mut self) -> Result<(Vec<Item>, Reservation), TooManyUnsentBytes> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        self.reserved.shrink_to(self.bytes);
        Ok((self.items, self.reserved))
    }
}
