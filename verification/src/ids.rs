//! Identifiers of 128 bits. They are kept in memory and in the database as 16 bytes.

use std::{fmt, str::FromStr};

use aws_lc_rs::digest::{Context, SHA256};
use uuid::{Builder, Uuid};

use crate::{
    text::{Subject, Tenant},
    time::Timestamp,
};

/// The `sid` of a session: a UUID of version 7, whose first 48 bits are the time of its creation in
/// milliseconds. The 12 bits of `rand_a` are a hash of its tenant and subject ([`subject_hash`]),
/// unless an older release of this service created it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Uuid);

/// Returns the 12 bits that stand for a subject in the identifiers of its sessions: the first 12
/// bits of SHA-256 over the tenant, a zero byte and the subject, in UTF-8. Neither of the two can
/// contain a zero byte.
///
/// This function must never change, because sessions may be sharded over databases by these bits
/// (decision 25).
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
    /// Creates the identifier of a session of this subject that is created at `at`. The identifier
    /// keeps 62 of the 64 random bits.
    pub fn of_subject(at: Timestamp, tenant: &Tenant, subject: &Subject, random: [u8; 8]) -> Self {
        let [high, low] = subject_hash(tenant, subject).to_be_bytes();
        let [a, b, c, d, e, f, g, h] = random;
        Self::new(at, [high, low, a, b, c, d, e, f, g, h])
    }

    /// Returns the 12 bits that stand for the session's subject. They are random if an older
    /// release of this service created the identifier.
    pub fn subject_hash(self) -> u16 {
        let [_, _, _, _, _, _, high, low, ..] = *self.0.as_bytes();
        u16::from_be_bytes([high, low]) & 0x0fff
    }

    /// Creates an identifier from the time of creation and the ten bytes that follow it, of which
    /// 74 bits are kept (RFC 9562, section 5.7).
    pub fn new(at: Timestamp, random: [u8; 10]) -> Self {
        let millis = u64::try_from(at.millis()).unwrap_or(0);
        Self(Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// Returns the instant at which the session was created, in milliseconds since the Unix epoch.
    pub fn created_millis(self) -> i64 {
        let [a, b, c, d, e, f, ..] = *self.0.as_bytes();
        i64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// Returns the greatest identifier that a session created in the millisecond of `at` can have.
    /// No session that was created in that millisecond or before sorts after this identifier.
    pub fn last_of_millisecond(at: Timestamp) -> Self {
        Self::last_created(at.millis())
    }

    /// Returns the greatest identifier that a session can have that was created `millis`
    /// milliseconds after the Unix epoch. A number of more than 48 bits yields the greatest
    /// identifier of all; a negative number counts as zero.
    pub fn last_created(millis: i64) -> Self {
        const LAST: u64 = (1 << 48) - 1;
        let millis = u64::try_from(millis).unwrap_or(0).min(LAST);
        Self(Builder::from_unix_timestamp_millis(millis, &[0xff; 10]).into_uuid())
    }

    /// Returns the lowest identifier that a session can have that was created in the millisecond of
    /// `at`. No session that was created earlier sorts after this identifier.
    pub fn first_of_millisecond(at: Timestamp) -> Self {
        Self::new(at, [0; 10])
    }

    /// Returns the 16 bytes, which sort in the same order as the identifiers.
    pub fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Creates the identifier from its 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

/// The `jti` of an access token: a random UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenId(Uuid);

impl TokenId {
    /// Creates an identifier from sixteen random bytes (RFC 9562, section 5.4).
    pub fn new(random: [u8; 16]) -> Self {
        Self(Builder::from_random_bytes(random).into_uuid())
    }

    /// Returns the 16 bytes.
    pub fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Creates the identifier from its 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

/// The identifier of an authentication of a session's user. Access tokens rest on an
/// authentication, and all tokens that rest on one can be revoked together. The identifier never
/// equals that of a session or a token, because each kind is a UUID of another version, or random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AuthenticationId(Uuid);

impl AuthenticationId {
    /// Creates the identifier of a later authentication from sixteen random bytes (RFC 9562,
    /// section 5.4).
    pub fn new(random: [u8; 16]) -> Self {
        Self(Builder::from_random_bytes(random).into_uuid())
    }

    /// Returns the identifier of the authentication with which a session was created: the
    /// identifier of the session as a UUID of version 8 (RFC 9562, section 5.8).
    pub fn first_of(session: SessionId) -> Self {
        Self(Builder::from_custom_bytes(*session.bytes()).into_uuid())
    }

    /// Returns the identifier under which the tokens that rest on the authentication are revoked.
    pub fn token_id(self) -> TokenId {
        TokenId(self.0)
    }

    /// Returns the 16 bytes.
    pub fn bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Creates the identifier from its 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

/// The text is not a UUID in the form that this service issues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a UUID like 0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22")]
pub struct NotAnId;

/// Parses a UUID in the canonical lower-case form. Other forms are refused, so that each identifier
/// has only one spelling.
pub fn parse_canonical(text: &str) -> Result<Uuid, NotAnId> {
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

impl FromStr for AuthenticationId {
    type Err = NotAnId;
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        parse_canonical(text).map(Self)
    }
}

impl fmt::Display for AuthenticationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
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
    fn session_ids_contain_their_time_of_creation_and_sort_by_it() {
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

    /// Other programs may use these bits to choose the database of a session, so the values must
    /// stay the same as in decision 25.
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
