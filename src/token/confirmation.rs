//! Confirmations, by which a dry run allows the revocation of sessions of all tenants. They are
//! opaque to callers, and no replica has to remember them.
//!
//! A confirmation is, in base64url, `version | key id | expiry | number of sessions | MAC`. The MAC
//! is HMAC-SHA-256 (RFC 2104) under the refresh key that the key id names, which all replicas know.
//! It covers a label, by which it differs from the MAC of every refresh token, the bytes before it,
//! and the target and the caller that are confirmed.

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::domain::{key::RefreshKeyId, time::Timestamp};

/// The first bytes of the message of each MAC. The message of a refresh token begins with another
/// byte.
const LABEL: &[u8] = b"countersign confirmation\0";
const VERSION: u8 = 1;
const HEADER: usize = 1 + 8 + 8 + 8;
const MAC: usize = 32;

/// The content of a confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The number of sessions that the dry run counted.
    pub sessions: i64,
    /// The instant from which the confirmation is not accepted any more.
    pub expires_at: Timestamp,
}

/// Creates a confirmation of `about`.
pub fn issue(confirmed: Confirmed, about: &str, key_id: RefreshKeyId, key: &hmac::Key) -> String {
    let mut bytes = Vec::with_capacity(HEADER + MAC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&key_id.0);
    bytes.extend_from_slice(&confirmed.expires_at.micros().to_be_bytes());
    bytes.extend_from_slice(&confirmed.sessions.to_be_bytes());
    let mac = hmac::sign(key, &message(&bytes, about));
    bytes.extend_from_slice(mac.as_ref());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a confirmation. Returns none if it is not an authentic confirmation of `about`.
pub fn read<'k>(
    text: &str,
    about: &str,
    key: impl FnOnce(RefreshKeyId) -> Option<&'k hmac::Key>,
) -> Option<Confirmed> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (header, mac) = bytes.split_at_checked(HEADER)?;
    let (version, rest) = header.split_first()?;
    let (key_id, rest) = rest.split_first_chunk()?;
    let (expires_at, rest) = rest.split_first_chunk()?;
    let sessions = rest.first_chunk()?;
    let key = key(RefreshKeyId(*key_id))?;
    hmac::verify(key, &message(header, about), mac).ok()?;
    (*version == VERSION).then(|| Confirmed {
        sessions: i64::from_be_bytes(*sessions),
        expires_at: Timestamp::from_micros(i64::from_be_bytes(*expires_at)),
    })
}

fn message(header: &[u8], about: &str) -> Vec<u8> {
    [LABEL, header, about.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: RefreshKeyId = RefreshKeyId([7; 8]);
    const CONFIRMED: Confirmed =
        Confirmed { sessions: 42, expires_at: Timestamp::from_seconds(1_700_000_000) };

    fn key(byte: u8) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &[byte; 32])
    }

    #[test]
    fn a_confirmation_is_read_back_only_for_what_it_confirms_and_under_its_key() {
        let (right, wrong) = (key(1), key(2));
        let text = issue(CONFIRMED, "everything", KEY, &right);
        let find = |key| move |id| (id == KEY).then_some(key);
        assert_eq!(read(&text, "everything", find(&right)), Some(CONFIRMED));
        assert_eq!(read(&text, "something", find(&right)), None);
        assert_eq!(read(&text, "everything", find(&wrong)), None);
        assert_eq!(read(&text, "everything", |_| None), None);
        for index in 0..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[index] = if altered[index] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).unwrap();
            assert_eq!(read(&altered, "everything", |_| Some(&right)), None, "{index}");
            assert_eq!(read(&text[..index], "everything", |_| Some(&right)), None, "{index}");
        }
    }
}
