use std::cell::Cell;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use jsonwebtoken::{Algorithm, DecodingKey};

use super::*;
use crate::{
    access::{Signer, sign},
    ids::{SessionId, TokenId},
    json_object::JsonObject,
    revocation::{FeedEntry, RETENTION_MARGIN, Revoked, Seq},
    text::Tenant,
};

const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);
const KID: &str = "the-key";
const HELD: Held = Held::FOR_EVER;

fn pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap()
}

/// One key, which may be revoked.
struct OneKey {
    key: VerifyingKey,
    is_revoked: Cell<bool>,
}

impl VerifyingKeys for OneKey {
    fn verifying(&self, kid: &str) -> Found<'_> {
        match (kid, self.is_revoked.get()) {
            (KID, true) => Found::Revoked,
            (KID, false) => Found::Good(&self.key),
            _ => Found::Unknown,
        }
    }
}

struct Site {
    keys: OneKey,
    cache: VerifiedCache,
    index: Index,
    reach: Reach,
    clocks: ClockTolerance,
    max_ttl: Duration,
}

impl Site {
    fn new() -> Self {
        let decoding = DecodingKey::from_ed_der(pair().public_key().as_ref());
        let key = VerifyingKey::new(Algorithm::EdDSA, &decoding).unwrap();
        Self {
            keys: OneKey { key, is_revoked: Cell::new(false) },
            cache: VerifiedCache::with_capacity(1 << 20),
            index: Index::default(),
            reach: Reach::default(),
            clocks: ClockTolerance { leeway: Duration::ZERO, max_clock_skew: Duration::ZERO },
            max_ttl: Duration::from_secs(3600),
        }
    }

    fn verifier(&self) -> Verifier<'_, OneKey> {
        Verifier {
            authenticator: Authenticator {
                expected: Expectations { issuer: "https://issuer", max_ttl: self.max_ttl },
                keys: &self.keys,
                cache: &self.cache,
            },
            index: &self.index,
            reach: &self.reach,
            clocks: self.clocks,
        }
    }

    /// Returns the reason why a token is inactive at `now`, or none if it is active.
    fn reason(&self, question: &Question<'_>, now: Timestamp) -> Option<InactiveReason> {
        self.verifier().answer(question, HELD, |_| Some(now)).unwrap().outcome.err()
    }

    fn revoke(&self, session: SessionId) {
        let revoked = Revoked::Session(session);
        let expires_at = NOW.plus(Duration::from_secs(900));
        self.index.apply(&FeedEntry { seq: Seq(1), revoked, tenant: None, expires_at });
    }
}

fn claims() -> AccessClaims {
    AccessClaims {
        issuer: "https://issuer".to_owned(),
        session_id: SessionId::new(NOW, [2; 10]),
        token_id: TokenId::new([3; 16]),
        authentication_id: None,
        subject: "alice".to_owned(),
        tenant: "acme".to_owned(),
        client_id: "web".to_owned(),
        audience: vec!["api".to_owned()],
        scopes: vec!["read".to_owned()],
        issued_at: NOW,
        expires_at: NOW.plus(Duration::from_secs(600)),
        not_before: None,
        authenticated_at: NOW,
        acr: String::new(),
        amr: vec![],
        amr_verified_at: vec![],
        custom: JsonObject::default(),
    }
}

fn token(claims: &AccessClaims) -> String {
    let sign_bytes = |message: &[u8]| Some(pair().sign(message).as_ref().to_vec());
    sign(claims, Signer { kid: KID, algorithm: "EdDSA", sign: sign_bytes }).unwrap()
}

fn about(access_token: &str) -> Question<'_> {
    Question {
        access_token,
        audience: "",
        scopes: &[],
        acr_values: &[],
        max_authentication_age: None,
        factors: vec![],
    }
}

/// Rule 11 of decision 34, and step 4 of Validate: a lease that was checked before the look-up
/// could have ended when the look-up was made.
#[test]
fn the_lease_is_checked_after_the_look_up_and_without_one_there_is_no_answer() {
    let (site, token) = (Site::new(), token(&claims()));
    let question = about(&token);
    assert!(site.verifier().answer(&question, HELD, |_| None).is_none());
    let answer = site.verifier().answer(&question, HELD, |_| {
        site.revoke(claims().session_id);
        Some(NOW)
    });
    let answer = answer.unwrap();
    assert_eq!(answer.checked_at, NOW);
    assert!(answer.outcome.is_ok(), "the look-up preceded the check, which added the entry");
    assert_eq!(site.reason(&question, NOW), Some(InactiveReason::Revoked));
}

/// Each step adds a fault whose reason must hide the reasons of all faults before it.
#[test]
fn of_several_reasons_the_first_one_in_the_documented_order_is_returned() {
    use InactiveReason::*;

    let (mut site, good) = (Site::new(), token(&claims()));
    assert_eq!(site.reason(&about(&good), NOW), None);
    let demands = Question { max_authentication_age: Some(Duration::ZERO), ..about(&good) };
    let later = NOW.plus(Duration::from_secs(1));
    assert_eq!(site.reason(&demands, later), Some(StepUpRequired));
    let scopes = ["write".to_owned()];
    let demands = Question { scopes: &scopes, ..demands };
    assert_eq!(site.reason(&demands, later), Some(InsufficientScope));
    let demands = Question { audience: "other", ..demands };
    assert_eq!(site.reason(&demands, later), Some(WrongAudience));
    site.reach.audiences = Some([].into());
    assert_eq!(site.reason(&about(&good), later), Some(WrongAudience));
    site.revoke(claims().session_id);
    assert_eq!(site.reason(&demands, later), Some(Revoked));
    let end = claims().expires_at;
    assert_eq!(site.reason(&demands, end.minus(Duration::from_micros(1))), Some(Revoked));
    assert_eq!(site.reason(&demands, end), Some(Expired));
    site.reach.tenants = Some([Tenant::default()].into());
    assert_eq!(site.reason(&demands, end), Some(ForeignTenant));
    site.keys.is_revoked.set(true);
    assert_eq!(site.reason(&demands, end), Some(Revoked), "by its key");
}

#[test]
fn a_cached_token_is_checked_again_by_its_key_and_its_lifetime() {
    let (mut site, token) = (Site::new(), token(&claims()));
    assert_eq!(site.reason(&about(&token), NOW), None);
    assert_eq!(site.reason(&about(&token), NOW), None);
    let counts = site.cache.counts();
    assert_eq!((counts.misses, counts.hits, counts.tokens), (1, 1, 1));
    site.max_ttl = Duration::from_secs(599);
    assert_eq!(site.reason(&about(&token), NOW), Some(InactiveReason::Malformed));
    site.max_ttl = Duration::from_secs(600);
    assert_eq!(site.reason(&about(&token), NOW), None);
    site.keys.is_revoked.set(true);
    assert_eq!(site.reason(&about(&token), NOW), Some(InactiveReason::Revoked));
    assert_eq!(site.cache.counts().misses, 1);
}

#[test]
fn a_token_may_begin_in_the_future_only_by_the_tolerance_for_clocks() {
    let seconds = Duration::from_secs;
    for (leeway, max_clock_skew, ahead) in [(0, 0, 0), (5, 0, 5), (5, 4, 8), (0, 2, 4)] {
        let mut site = Site::new();
        site.clocks =
            ClockTolerance { leeway: seconds(leeway), max_clock_skew: seconds(max_clock_skew) };
        let not_before = Some(NOW.plus(seconds(20)));
        for (claims, begins) in
            [(claims(), NOW), (AccessClaims { not_before, ..claims() }, NOW.plus(seconds(20)))]
        {
            let (token, now) = (token(&claims), begins.minus(seconds(ahead)));
            assert_eq!(site.reason(&about(&token), now), None, "{leeway} {max_clock_skew}");
            let now = now.minus(Duration::from_micros(1));
            assert_eq!(site.reason(&about(&token), now), Some(InactiveReason::NotYetValid));
        }
    }
}

/// Rule 13 of decision 34.
#[test]
fn a_token_below_the_purge_watermark_has_expired_whatever_the_clock_says() {
    let (site, token) = (Site::new(), token(&claims()));
    let edge = claims().expires_at.plus(RETENTION_MARGIN);
    site.index.raise_purge_watermark(edge.minus(Duration::from_micros(1)));
    assert_eq!(site.reason(&about(&token), NOW), None);
    site.index.raise_purge_watermark(edge);
    assert_eq!(site.reason(&about(&token), NOW), Some(InactiveReason::Expired));
}
