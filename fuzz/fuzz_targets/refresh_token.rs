//! Fuzzes the parser of refresh tokens. A token must have only one encoding, its parsed fields must
//! be those in its bytes, and it must be accepted as genuine only if it was issued with the key. A
//! genuine token must be accepted with the fields that it was issued with, and must be refused
//! after any change.
//!
//! The input is read as a token. Its first bytes are also used as the fields of a genuine token,
//! and the others as changes of that token.
#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::{
    domain::{
        ids::SessionId,
        inactive::InactiveReason,
        key::RefreshKeyId,
        session::{Lineage, LineageSecret},
    },
    token::{
        access,
        refresh::{NotAuthentic, PREFIX, RefreshClaims, Unverified, issue},
    },
};
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<hmac::Key> = LazyLock::new(|| hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]));
static OTHER: LazyLock<hmac::Key> = LazyLock::new(|| hmac::Key::new(hmac::HMAC_SHA256, &[2; 32]));

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = str::from_utf8(data) {
        check_text(text);
    }
    check_issued(data);
});

fn read(token: &str) -> Result<RefreshClaims, NotAuthentic> {
    Unverified::parse(token)?.verify(&KEY)
}

fn check_text(text: &str) {
    let Ok(unverified) = Unverified::parse(text) else { return };
    let encoded = text.strip_prefix(PREFIX).expect("the prefix");
    let bytes = URL_SAFE_NO_PAD.decode(encoded).expect("base64url");
    assert_eq!(bytes.len(), 77);
    assert_eq!(URL_SAFE_NO_PAD.encode(&bytes), encoded, "a second encoding");
    assert_eq!(bytes[0], 1);
    assert_eq!(unverified.key().0, bytes[1..9]);
    assert_eq!(unverified.session_id().bytes(), &bytes[9..25]);
    assert_eq!(unverified.generation().to_be_bytes(), bytes[25..29]);
    assert_eq!(access::Unverified::parse(text).unwrap_err(), InactiveReason::WrongType);
    if let Ok(claims) = unverified.verify(&KEY) {
        assert_eq!(issue(claims.session_id, &claims.lineage, &KEY), text, "forged");
    }
}

fn check_issued(data: &[u8]) {
    let mut rest = data;
    let mut take = || {
        let (first, others) = rest.split_at(rest.len().min(16));
        rest = others;
        let mut bytes = [0; 16];
        bytes[..first.len()].copy_from_slice(first);
        bytes
    };
    let (session, secret, [g0, g1, g2, g3, key @ ..]) = (take(), take(), take());
    let claims = RefreshClaims {
        session_id: SessionId::from_bytes(session),
        lineage: Lineage {
            generation: u32::from_be_bytes([g0, g1, g2, g3]),
            secret: LineageSecret(secret),
            key: RefreshKeyId(*key.first_chunk().unwrap()),
        },
    };
    let token = issue(claims.session_id, &claims.lineage, &KEY);
    assert_eq!(read(&token), Ok(claims));
    check_text(&token);
    assert_eq!(Unverified::parse(&token).unwrap().verify(&OTHER), Err(NotAuthentic));

    let mut changed = token.clone().into_bytes();
    for change in rest.chunks_exact(2) {
        let index = usize::from(change[0]) % changed.len();
        changed[index] = change[1];
    }
    if let Ok(changed) = str::from_utf8(&changed)
        && changed != token
    {
        assert_eq!(read(changed), Err(NotAuthentic), "{changed} is not {token}");
    }
}
