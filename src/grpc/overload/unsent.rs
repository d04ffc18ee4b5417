//! Limits the memory of answers that clients have not read yet.
//!
//! HTTP/2 lets a client make calls without reading the answers. The server keeps unread answers for
//! a time between `limits.call_timeout` and twice that. Each answer of more than [`FREE_BYTES`]
//! therefore counts against two limits, one for its connection and one for all connections, until
//! it has been sent.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Answers up to this size do not count. Most answers of Validate are smaller, so they do not pay
/// for the counting.
pub const FREE_BYTES: usize = 1024;

/// The unsent answers have reached their limit, or one more would exceed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "answers of {limit} bytes wait to be read, as many as limits.max_unsent_bytes allows{}: read \
     them, then try again",
    if *.of_connection { " on a connection" } else { "" }
)]
pub struct TooManyUnsentBytes {
    limit: usize,
    of_connection: bool,
}

/// Counts the bytes of unsent answers, either of one connection or of all connections.
#[derive(Debug)]
pub struct UnsentBytes {
    bytes: AtomicUsize,
    limit: usize,
    /// The count of all connections; `None` if this is that count.
    all: Option<Arc<UnsentBytes>>,
}

impl UnsentBytes {
    /// Creates the count of all connections.
    pub fn of_all(limit: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), limit, all: None }
    }

    /// Creates the count of one connection, which also adds to the count of all.
    pub fn of_connection(all: Arc<UnsentBytes>, limit: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), limit, all: Some(all) }
    }

    /// Fails while the limit is reached, so that a call can be refused before any work is done for
    /// it.
    pub fn check(&self) -> Result<(), TooManyUnsentBytes> {
        if self.bytes.load(Ordering::Relaxed) < self.limit { Ok(()) } else { Err(self.too_many()) }
    }

    fn too_many(&self) -> TooManyUnsentBytes {
        TooManyUnsentBytes { limit: self.limit, of_connection: self.all.is_some() }
    }

    /// Adds bytes if they do not exceed the limit.
    fn try_add(&self, bytes: usize) -> Result<(), TooManyUnsentBytes> {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let added = match &self.all {
            _ if before.saturating_add(bytes) > self.limit => Err(self.too_many()),
            Some(all) => all.try_add(bytes),
            None => Ok(()),
        };
        if added.is_err() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        added
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(all) = &self.all {
            all.add(bytes);
        }
    }

    fn subtract(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(all) = &self.all {
            all.subtract(bytes);
        }
    }
}

/// The bytes of one answer. They count as unsent until the reservation is dropped.
#[derive(Debug)]
pub struct Reservation {
    unsent: Arc<UnsentBytes>,
    bytes: usize,
}

impl Reservation {
    /// Creates a reservation of no bytes.
    pub fn new(unsent: Arc<UnsentBytes>) -> Self {
        Self { unsent, bytes: 0 }
    }

    /// Returns the number of reserved bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reserves more bytes, or fails and reserves none of them.
    pub fn try_grow(&mut self, bytes: usize) -> Result<(), TooManyUnsentBytes> {
        self.unsent.try_add(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Raises the reservation to `bytes` regardless of the limit, because the answer already exists
    /// and must be sent.
    pub fn grow_to(&mut self, bytes: usize) {
        if let Some(more) = bytes.checked_sub(self.bytes) {
            self.unsent.add(more);
            self.bytes = bytes;
        }
    }

    /// Releases the bytes in excess of `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        if let Some(spare) = self.bytes.checked_sub(bytes) {
            self.unsent.subtract(spare);
            self.bytes = bytes;
        }
    }

    /// Moves all bytes to a new reservation, and leaves none in this one.
    pub fn take(&mut self) -> Self {
        Self { unsent: self.unsent.clone(), bytes: std::mem::take(&mut self.bytes) }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.unsent.subtract(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_connections(limit: usize) -> (Arc<UnsentBytes>, Arc<UnsentBytes>) {
        let all = Arc::new(UnsentBytes::of_all(limit));
        let connection = || Arc::new(UnsentBytes::of_connection(all.clone(), limit / 8));
        (connection(), connection())
    }

    #[test]
    fn a_connection_uses_its_share_until_its_answers_are_sent() {
        let (one, other) = two_connections(800);
        let mut first = Reservation::new(one.clone());
        assert_eq!(first.try_grow(60), Ok(()));
        assert_eq!(first.try_grow(41), Err(TooManyUnsentBytes { limit: 100, of_connection: true }));
        assert_eq!(first.try_grow(40), Ok(()));
        assert!(one.check().is_err() && other.check().is_ok(), "only this connection is full");
        assert!(Reservation::new(other).try_grow(100).is_ok());
        drop(first);
        assert!(one.check().is_ok());
    }

    #[test]
    fn an_answer_that_must_be_sent_counts_once_and_regardless_of_the_limit() {
        let (one, other) = two_connections(80);
        let mut large = Reservation::new(one.clone());
        large.grow_to(75);
        let refused = Reservation::new(other.clone()).try_grow(6);
        assert_eq!(refused, Err(TooManyUnsentBytes { limit: 80, of_connection: false }));
        let part = large.take();
        assert_eq!((large.bytes(), part.bytes()), (0, 75));
        drop(large);
        assert!(one.check().is_err(), "the part of the large answer is still unsent");
        let mut small = Reservation::new(other.clone());
        small.grow_to(7);
        small.grow_to(5);
        small.shrink_to(8);
        assert_eq!((small.bytes(), other.check()), (7, Ok(())));
        small.shrink_to(4);
        assert_eq!(
            Reservation::new(other.clone()).try_grow(1),
            Ok(()),
            "others may use the bytes that were given back"
        );
        drop((part, small));
        assert_eq!(Reservation::new(other).try_grow(10), Ok(()), "all bytes were released");
        assert_eq!(one.all.as_ref().unwrap().bytes.load(Ordering::Relaxed), 0);
    }
}
