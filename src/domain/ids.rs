//! Identifiers of 128 bits. They are kept in memory and in the database as 16 bytes.

use std::{fmt, str::FromStr};

use countersign_verification::ids::parse_canonical;
use uuid::{Builder, Uuid};

pub use countersign_verification::ids::{AuthenticationId, NotAnId, SessionId, TokenId};

use super::time::Timestamp;

/// The identifier of one membership of a replica: a random UUID. A process that joins again after
/// it lost its row in the table of replicas has a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation(Uuid);

impl Incarnation {
    /// Creates an identifier from sixteen random bytes (RFC 9562, section 5.4).
    pub fn new(random: [u8; 16]) -> Self {
        Self(Builder::from_random_bytes(random).into_uuid())
    }

    /// Returns the 16 bytes.
    pub fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Creates the identifier from its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The identifier of an audit record in the log and in the table: a UUID of version 7, so that the
/// records of one process, apart from those of expiries, sort in the order in which they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuditId(Uuid);

impl AuditId {
    /// Creates the identifier of the `count`th record of a process whose random salt is `salt` (RFC
    /// 9562, section 6.2, method 1). The identifier holds the lowest 26 bits of the count. An
    /// identifier would repeat only if the clock showed the same millisecond again after 2^26
    /// records.
    pub fn new(at: Timestamp, count: u32, salt: [u8; 6]) -> Self {
        let millis = u64::try_from(at.millis()).unwrap_or(0);
        // Of the first byte, the UUID keeps only the lowest four bits, and of the third byte only
        // the lowest six bits. The version and the variant replace the other bits.
        let [_, a, b, c] = count.to_be_bytes();
        let [first, ..] = (count >> 22).to_le_bytes();
        let second = (a << 2) | (b >> 6);
        let [d, e, f, g, h, i] = salt;
        Self(
            Builder::from_unix_timestamp_millis(millis, &[first, second, b, c, d, e, f, g, h, i])
                .into_uuid(),
        )
    }

    /// Creates the identifier of a record that is made at most once for each session. Bits of the
    /// session's identifier replace the count and the salt, so that the record has the same
    /// identifier if it is made again, and adds no second row.
    pub fn of_session(at: Timestamp, id: SessionId) -> Self {
        let [.., a, b, c, d, e, f, g, h, i] = *id.bytes();
        Self::new(at, u32::from_be_bytes([0, a, b, c]), [d, e, f, g, h, i])
    }

    /// Returns the 16 bytes, which sort in the same order as the identifiers.
    pub fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Creates the identifier from its 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// Returns the instant at which the record was made, in milliseconds since the Unix epoch.
    pub fn millis(&self) -> i64 {
        let [a, b, c, d, e, f, ..] = *self.0.as_bytes();
        i64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

impl FromStr for AuditId {
    type Err = NotAnId;
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        parse_canonical(text).map(Self)
    }
}

impl fmt::Display for AuditId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_ids_of_a_process_are_unique_and_sort_by_their_count() {
        let at = Timestamp::from_micros(1_700_000_000_123_456);
        let counts =
            [0, 1, 63, 64, 255, 256, 16_383, 16_384, 65_536, 4_194_303, 4_194_304, 0x03ff_ffff];
        let ids = counts.map(|count| AuditId::new(at, count, [0xff; 6]));
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        assert!(AuditId::new(at.plus(std::time::Duration::from_millis(1)), 0, [0; 6]) > ids[11]);
        assert_ne!(AuditId::new(at, 1, [0; 6]), AuditId::new(at, 1, [1, 0, 0, 0, 0, 0]));
        let ids = ids.map(|id| id.to_string().parse::<AuditId>().unwrap());
        assert!(ids.iter().all(|id| id.millis() == at.millis()), "{ids:?}");
    }
}
