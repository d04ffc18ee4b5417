//! Identifiers: 128 bits each, so that the in-memory blacklist keeps them in 16 bytes.

use std::{fmt, str::FromStr};

use aws_lc_rs::digest::{Context, SHA256};
use uuid::{Builder, Uuid};

use super::{
    text::{Subject, Tenant},
    time::Timestamp,
};

/// The `sid` of a session: a UUID of version 7, so that its first 48 bits tell when it was created.
/// The 12 bits of `rand_a` tell whose it is, as far as they can ([`subject_hash`]), unless an older
/// version has made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Uuid);

/// The 12 bits that stand for a subject in the identifiers of its sessions: the first of SHA-256
/// over the tenant, a zero byte and the subject, in UTF-8. No text has a zero byte.
///
/// They are the same for ever, because databases may be divided by them (decision 25).
pub fn subject_hash(tenant: &Tenant, subject: &Subject) -> u16 {
    let mut context = Context::new(&SHA256);
    context.update(tenant.as_bytes());
    context.update(&[0]);
    context.update(subject.as_bytes());
    match *context.finish().as_ref() {
        [first, second, ..] => u16::from_be_bytes([first, second]) >> 4,
        _ => 0,
    }
}

impl SessionId {
    /// An identifier for a session of a subject created at `at`. Of the eight random bytes 62 bits
    /// are kept.
    pub fn of_subject(at: Timestamp, tenant: &Tenant, subject: &Subject, random: [u8; 8]) -> Self {
        let [high, low] = subject_hash(tenant, subject).to_be_bytes();
        let [a, b, c, d, e, f, g, h] = random;
        Self::new(at, [high, low, a, b, c, d, e, f, g, h])
    }

    /// The 12 bits that stand for its subject. Older versions drew them at random.
    pub fn subject_hash(self) -> u16 {
        let [_, _, _, _, _, _, high, low, ..] = *self.0.as_bytes();
        u16::from_be_bytes([high, low]) & 0x0fff
    }

    /// An identifier for a session created at `at`, with these ten bytes behind the instant, of
    /// which 74 bits are kept (RFC 9562, section 5.7).
    pub fn new(at: Timestamp, random: [u8; 10]) -> Self {
        let millis = u64::try_from(at.millis()).unwrap_or(0);
        Self(Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// The instant at which the session was created, in milliseconds since the epoch.
    pub fn created_millis(self) -> i64 {
        let [a, b, c, d, e, f, ..] = *self.0.as_bytes();
        i64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The identifier that sorts after those of all sessions created up to the end of this
    /// millisecond.
    pub fn last_of_millisecond(at: Timestamp) -> Self {
        Self::last_created(at.millis())
    }

    /// The same, by milliseconds since the epoch. What 48 bits cannot tell is after all sessions.
    pub fn last_created(millis: i64) -> Self {
        const LAST: u64 = (1 << 48) - 1;
        let millis = u64::try_from(millis).unwrap_or(0).min(LAST);
        Self(Builder::from_unix_timestamp_millis(millis, &[0xff; 10]).into_uuid())
    }

    /// The 16 bytes, in the order in which they sort.
    pub fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From the 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

/// The `jti` of an access token: a random UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenId(Uuid);

impl TokenId {
    /// From sixteen random bytes (RFC 9562, section 5.4).
    pub fn new(random: [u8; 16]) -> Self {
        Self(Builder::from_random_bytes(random).into_uuid())
    }

    /// The 16 bytes.
    pub fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From the 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

/// One life of a replica: a random UUID, drawn anew by each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation(Uuid);

impl Incarnation {
    /// From sixteen random bytes (RFC 9562, section 5.4).
    pub fn new(random: [u8; 16]) -> Self {
        Self(Builder::from_random_bytes(random).into_uuid())
    }

    /// The 16 bytes.
    pub fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From the 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Names a record of the audit, in the log and in the table: a UUID of version 7, so that those of
/// a process sort in the order in which they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuditId(Uuid);

impl AuditId {
    /// The `count`th of a process that has drawn `salt` at random (RFC 9562, section 6.2, method
    /// 1). The last 26 bits of the count are told: as many as come between two leaps of the clock
    /// to the same millisecond.
    pub fn new(at: Timestamp, count: u32, salt: [u8; 6]) -> Self {
        let millis = u64::try_from(at.millis()).unwrap_or(0);
        // Four bits of the first byte and six of the third are ours.
        let [_, a, b, c] = count.to_be_bytes();
        let [first, ..] = (count >> 22).to_le_bytes();
        let second = (a << 2) | (b >> 6);
        let [d, e, f, g, h, i] = salt;
        Self(
            Builder::from_unix_timestamp_millis(millis, &[first, second, b, c, d, e, f, g, h, i])
                .into_uuid(),
        )
    }

    /// The identifier of the record that is made once for a session. It takes the place of count
    /// and salt from the random bits of the session's identifier.
    pub fn of_session(at: Timestamp, id: SessionId) -> Self {
        let [.., a, b, c, d, e, f, g, h, i] = *id.bytes();
        Self::new(at, u32::from_be_bytes([0, a, b, c]), [d, e, f, g, h, i])
    }

    /// The 16 bytes, in the order in which they sort.
    pub fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The instant at which the record was made, in milliseconds since the epoch.
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

/// The text is not a UUID in the form that this service issues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a UUID like 0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22")]
pub struct NotAnId;

/// Only the canonical lower-case form is accepted, so that one identifier has one spelling.
fn parse_canonical(text: &str) -> Result<Uuid, NotAnId> {
    let uuid = Uuid::try_parse(text).map_err(|_| NotAnId)?;
    let mut buffer = Uuid::encode_buffer();
    if uuid.hyphenated().encode_lower(&mut buffer) == text { Ok(uuid) } else { Err(NotAnId) }
}

impl FromStr for SessionId {
    type Err = NotAnId;
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        parse_canonical(text).map(Self)
    }
}

impl FromStr for TokenId {
    type Err = NotAnId;
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        parse_canonical(text).map(Self)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_tells_when_it_was_created_and_sorts_by_it() {
        let at = Timestamp::from_micros(1_700_000_000_123_456);
        let id = SessionId::new(at, [7; 10]);
        assert_eq!(id.created_millis(), 1_700_000_000_123);
        assert!(id < SessionId::new(Timestamp::from_micros(at.micros() + 1_000), [0; 10]));
        assert!(id <= SessionId::last_of_millisecond(at));
        assert!(
            SessionId::new(Timestamp::from_micros(at.micros() + 1_000), [0; 10])
                > SessionId::last_of_millisecond(at)
        );
    }

    /// Other programs find a session's database by these bits: they are in decision 25, too.
    #[test]
    fn a_session_id_carries_the_published_hash_of_its_subject() {
        let at = Timestamp::from_micros(1_700_000_000_123_456);
        for (tenant, subject, hash) in [
            ("", "alice", 0x125),
            ("acme", "alice", 0xdea),
            ("", "bob", 0x680),
            ("acme", "zoë@example.com", 0xfc6),
            ("a", "bc", 0x40b),
            ("ab", "c", 0x6c0),
        ] {
            let (tenant, subject) = (
                Tenant::try_from(tenant.to_owned()).unwrap(),
                Subject::try_from(subject.to_owned()).unwrap(),
            );
            assert_eq!(subject_hash(&tenant, &subject), hash, "{tenant} {subject}");
            let ids = [[0; 8], [0xff; 8]]
                .map(|random| SessionId::of_subject(at, &tenant, &subject, random));
            assert_eq!(ids.map(SessionId::subject_hash), [hash; 2]);
            assert!(ids.iter().all(|id| id.created_millis() == at.millis()), "{ids:?}");
            assert!(ids[0] < ids[1] && ids[1] <= SessionId::last_of_millisecond(at), "{ids:?}");
            assert_eq!(ids[1].bytes()[6] >> 4, 7, "the version");
        }
        let alice = Subject::try_from("alice".to_owned()).unwrap();
        let id = SessionId::of_subject(at, &Tenant::default(), &alice, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(id.to_string(), "018bcfe5-687b-7125-8102-030405060708");
    }

    #[test]
    fn records_of_a_process_sort_in_their_order_and_no_two_are_the_same() {
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

    #[test]
    fn only_the_canonical_spelling_is_an_id() {
        let id = SessionId::new(Timestamp::from_micros(1), [0xab; 10]).to_string();
        assert!(id.parse::<SessionId>().is_ok());
        for wrong in [
            id.to_uppercase(),
            id.replace('-', ""),
            format!("{{{id}}}"),
            format!("urn:uuid:{id}"),
            String::new(),
        ] {
            assert_eq!(wrong.parse::<SessionId>(), Err(NotAnId), "{wrong}");
        }
    }
}
