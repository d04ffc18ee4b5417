//! An authority within the process, for the tests of an application: it issues tokens, revokes
//! them, and can be unavailable. It needs neither a server nor a runtime.
//!
//! ```
//! use countersign_client::{Demands, InactiveReason, testing::Authority};
//!
//! let authority = Authority::new();
//! let verifier = authority.verifier();
//! let token = authority.token("alice").scope("orders:write").issue();
//! let demands = Demands::new().scope("orders:write");
//! assert!(verifier.verify_locally(&token, &demands).is_active());
//!
//! authority.revoke(&token);
//! let answer = verifier.verify_locally(&token, &demands);
//! assert_eq!(answer.inactive_reason(), Some(InactiveReason::Revoked));
//! ```

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{
    rand,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
pub use countersign_verification::clock::{Clock, SettableClock};
use countersign_verification::{
    access::{Expectations, Signer, Unverified, sign},
    claims::AccessClaims,
    clock::SystemClock,
    ids::{SessionId, TokenId},
    json_object::JsonObject,
    keys::{Found, VerifyingKeys},
    reach::Reach,
    revocation::{FeedEntry, RETENTION_MARGIN, Revoked, Seq},
};
use serde_json::{Map, Value};

use crate::verifier::{KeySet, Local, LocalCopy, Mode, Rules, Verifier};

/// The issuer of the tokens.
pub const ISSUER: &str = "https://authority.test";
/// The audience of tokens that name no other.
pub const AUDIENCE: &str = "https://api.test";

const KID: &str = "testing";
/// The lifetime of tokens that set no other.
const LIFETIME: Duration = Duration::from_secs(900);
const LONGEST_LIFETIME: Duration = Duration::from_secs(366 * 86_400);

/// An authority within the process. Its clock starts at the present time, and moves only when
/// [`advance`](Self::advance) is called.
pub struct Authority {
    pair: Ed25519KeyPair,
    clock: Arc<SettableClock>,
    local: Arc<Local>,
    copy: Arc<LocalCopy>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// Creates an authority with a key of its own.
    ///
    /// # Panics
    /// If the cryptographic library cannot make a key.
    pub fn new() -> Self {
        let clock = Arc::new(SettableClock::at(SystemClock.now()));
        let authority = Self::with_clocks(clock.clone(), clock);
        authority.copy.lease.take_for_ever();
        authority
    }

    /// Creates an authority whose verifier has a lease and reads the clocks of the system for each
    /// check, as it does outside tests. This is for benchmarks.
    #[doc(hidden)]
    pub fn with_system_clock() -> Self {
        let clock = Arc::new(SettableClock::at(SystemClock.now()));
        let authority = Self::with_clocks(clock, Arc::new(SystemClock));
        authority.local.take(&authority.copy, authority.copy.lease.start(), LONGEST_LIFETIME);
        authority
    }

    #[allow(clippy::panic)] // This is for tests.
    fn with_clocks(clock: Arc<SettableClock>, checking: Arc<dyn Clock>) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&random::<32>());
        let Ok(pair) = pair else { panic!("no key can be made") };
        let local = Arc::new(Local::new(checking, 1 << 20));
        let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let jwks = format!(
            r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"{KID}","x":"{x}"}}]}}"#
        );
        let rules = Rules {
            issuer: ISSUER.to_owned(),
            max_lifetime: LONGEST_LIFETIME,
            leeway: Duration::ZERO,
            reach: Reach::default(),
            lease_margin: Duration::MAX,
        };
        let keys = Arc::new(KeySet::read(&jwks, vec![]).unwrap_or_default());
        let copy = local.replace(keys, Arc::new(rules), None);
        Self { pair, clock, local, copy }
    }

    /// Returns a verifier that accepts the tokens of this authority.
    pub fn verifier(&self) -> Verifier {
        Verifier::new(Mode::Testing, Some(self.local.clone()), None, None)
    }

    /// Begins a token of a session of its own, for this user.
    pub fn token(&self, subject: impl Into<String>) -> TokenBuilder<'_> {
        let now = self.clock.now().floor_to_second();
        let claims = AccessClaims {
            issuer: ISSUER.to_owned(),
            session_id: SessionId::new(self.clock.now(), random()),
            token_id: TokenId::new(random()),
            authentication_id: None,
            subject: subject.into(),
            tenant: String::new(),
            client_id: String::new(),
            audience: vec![],
            scopes: vec![],
            issued_at: now,
            expires_at: now.plus(LIFETIME),
            not_before: None,
            authenticated_at: now,
            acr: String::new(),
            amr: vec![],
            amr_verified_at: vec![],
            custom: JsonObject::default(),
        };
        TokenBuilder { authority: self, claims, custom: Map::new() }
    }

    /// Revokes the session of a token of this authority.
    ///
    /// # Panics
    /// If the token is not from this authority.
    #[allow(clippy::panic)] // This is for tests.
    pub fn revoke(&self, token: &str) {
        let Some(claims) = self.claims(token) else {
            panic!("the token is not from this authority")
        };
        self.copy.index.apply(&FeedEntry {
            seq: Seq::default(),
            revoked: Revoked::Session(claims.session_id),
            tenant: None,
            expires_at: claims.expires_at.plus(RETENTION_MARGIN),
        });
    }

    fn claims(&self, token: &str) -> Option<AccessClaims> {
        let unverified = Unverified::parse(token).ok()?;
        let Found::Good(key) = self.copy.keys().verifying(&unverified.kid) else { return None };
        let expected = Expectations { issuer: ISSUER, max_ttl: LONGEST_LIFETIME };
        unverified.verify(key, &expected).ok()
    }

    /// Sets whether the authority is unavailable. Then each answer is
    /// [`Unknown`](crate::Answer::Unknown).
    pub fn set_unavailable(&self, is_unavailable: bool) {
        match is_unavailable {
            true => self.copy.lease.end(),
            false => self.copy.lease.take_for_ever(),
        }
    }

    /// Moves the clock forward, for instance until a token has expired.
    pub fn advance(&self, span: Duration) {
        self.clock.advance(span);
    }
}

/// A token that is being made.
#[must_use]
pub struct TokenBuilder<'a> {
    authority: &'a Authority,
    claims: AccessClaims,
    custom: Map<String, Value>,
}

impl std::fmt::Debug for TokenBuilder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenBuilder").finish_non_exhaustive()
    }
}

impl TokenBuilder<'_> {
    /// Sets the tenant.
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.claims.tenant = tenant.into();
        self
    }

    /// Sets the OAuth client.
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.claims.client_id = client_id.into();
        self
    }

    /// Adds an audience. Without any, it is [`AUDIENCE`].
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.claims.audience.push(audience.into());
        self
    }

    /// Adds a scope.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.claims.scopes.push(scope.into());
        self
    }

    /// Sets the authentication context class.
    pub fn acr(mut self, acr: impl Into<String>) -> Self {
        self.claims.acr = acr.into();
        self
    }

    /// Adds an authentication method that was verified now.
    pub fn factor(mut self, method: impl Into<String>) -> Self {
        let method = method.into();
        self.claims.amr.push(method.clone());
        self.claims.amr_verified_at.push((method, self.claims.issued_at));
        self
    }

    /// Makes the authentication older by this time.
    pub fn authenticated_ago(mut self, ago: Duration) -> Self {
        self.claims.authenticated_at = self.claims.issued_at.minus(ago);
        let at = self.claims.authenticated_at;
        self.claims.amr_verified_at.iter_mut().for_each(|(_, verified_at)| *verified_at = at);
        self
    }

    /// Sets the lifetime: 15 minutes by default.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.claims.expires_at = self.claims.issued_at.plus(lifetime).floor_to_second();
        self
    }

    /// Adds a claim of the session's own.
    pub fn claim(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.custom.insert(name.into(), value.into());
        self
    }

    /// Signs the token.
    ///
    /// # Panics
    /// If the cryptographic library fails.
    #[allow(clippy::panic)] // This is for tests.
    pub fn issue(mut self) -> String {
        if self.claims.audience.is_empty() {
            self.claims.audience.push(AUDIENCE.to_owned());
        }
        self.claims.custom = JsonObject::from(&self.custom);
        let pair = &self.authority.pair;
        let sign_bytes = |message: &[u8]| Some(pair.sign(message).as_ref().to_vec());
        let signer = Signer { kid: KID, algorithm: "EdDSA", sign: sign_bytes };
        sign(&self.claims, signer).unwrap_or_else(|error| panic!("{error}"))
    }
}

#[allow(clippy::panic)] // This is for tests.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if rand::fill(&mut bytes).is_err() {
        panic!("the generator of random numbers has failed");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Demands, InactiveReason};

    #[test]
    fn tokens_expire_are_revoked_and_cannot_be_checked_while_the_authority_is_unavailable() {
        let authority = Authority::new();
        let verifier = authority.verifier();
        let check = |token: &str| verifier.verify_locally(token, &Demands::new());
        let [token, other] = ["alice", "bob"]
            .map(|subject| authority.token(subject).tenant("acme").claim("plan", "gold").issue());
        let session = check(&token).session().unwrap().clone();
        assert_eq!((session.subject(), session.tenant()), ("alice", "acme"));
        assert_eq!(
            (session.audience(), session.claim("plan")),
            (&[AUDIENCE.to_owned()][..], Some("gold".into()))
        );
        authority.revoke(&token);
        assert_eq!(check(&token).inactive_reason(), Some(InactiveReason::Revoked));
        assert!(check(&other).is_active());
        authority.set_unavailable(true);
        assert!(matches!(check(&other), Answer::Unknown(_)));
        authority.set_unavailable(false);
        assert!(check(&other).is_active());
        authority.advance(LIFETIME);
        assert_eq!(check(&other).inactive_reason(), Some(InactiveReason::Expired));
        assert_eq!(
            Authority::new().verifier().verify_locally(&other, &Demands::new()).inactive_reason(),
            Some(InactiveReason::BadSignature),
            "each authority has a key of its own"
        );
    }
}
