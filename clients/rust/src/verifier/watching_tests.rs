use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign_verification::{
    access::{Signer, sign},
    claims::AccessClaims,
    clock::SettableClock,
    ids::{SessionId, TokenId},
    inactive::InactiveReason,
    json_object::JsonObject,
};

use super::*;
use crate::{
    Demands,
    proto::{RevokedId, WatchReset},
};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
/// Longer than a lease.
const OVER: Duration = Duration::from_secs(2);

/// A watcher that is handed the messages of a stream.
struct Site {
    watching: Watching,
    stream: StreamState,
    clock: Arc<SettableClock>,
    local: Arc<Local>,
}

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

/// Returns a token of session 1, which the pair of this seed has signed.
fn token(seed: u8) -> String {
    let claims = AccessClaims {
        issuer: "https://auth.test".to_owned(),
        session_id: SessionId::new(NOW, [1; 10]),
        token_id: TokenId::new([1; 16]),
        authentication_id: None,
        subject: "alice".to_owned(),
        tenant: String::new(),
        client_id: String::new(),
        audience: vec!["a".to_owned()],
        scopes: vec![],
        issued_at: NOW,
        expires_at: NOW.plus(Duration::from_secs(60)),
        not_before: None,
        authenticated_at: NOW,
        acr: String::new(),
        amr: vec![],
        amr_verified_at: vec![],
        custom: JsonObject::default(),
    };
    let sign_bytes = |message: &[u8]| Some(pair(seed).sign(message).as_ref().to_vec());
    sign(&claims, Signer { kid: "key", algorithm: "EdDSA", sign: sign_bytes }).unwrap()
}

fn instant(at: Timestamp) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: at.seconds(), nanos: 0 })
}

fn rules_of(issuer: &str) -> Event {
    rules_for(issuer, &[])
}

/// Returns rules that limit the caller to these tenants.
fn rules_for(issuer: &str, tenants: &[&str]) -> Event {
    let span = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    Event::Rules(WatchRules {
        issuer: issuer.to_owned(),
        max_lifetime: span(3600),
        leeway: span(0),
        tenants: tenants.iter().map(|&name| name.to_owned()).collect(),
        lease_margin: Some(prost_types::Duration { seconds: 0, nanos: 250_000_000 }),
        ..Default::default()
    })
}

fn keys_of(seed: u8) -> Event {
    let x = URL_SAFE_NO_PAD.encode(pair(seed).public_key().as_ref());
    let jwks = format!(
        r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"key","x":"{x}"}}]}}"#
    );
    Event::Keys(WatchKeys { jwks, revoked: vec![] })
}

/// Returns the revocation of the session of [`token`].
fn revocation() -> Event {
    let id = SessionId::new(NOW, [1; 10]).bytes().to_vec();
    let expires_at = instant(NOW.plus(Duration::from_secs(60)));
    let ids = vec![RevokedId { id, expires_at }];
    Event::Revocations(WatchRevocations { ids, sessions: vec![] })
}

impl Site {
    fn new() -> Self {
        let clock = Arc::new(SettableClock::at(NOW));
        let local = Arc::new(Local::new(clock.clone(), 1 << 20));
        let client = Client::builder("http://127.0.0.1:1").build().unwrap();
        let watching = Watching::new(client, local.clone());
        Self { watching, stream: StreamState::default(), clock, local }
    }

    /// Creates a watcher that has a snapshot without revocations, and a lease.
    fn started() -> Self {
        let mut site = Self::new();
        site.snapshot();
        site.lease().unwrap();
        assert_eq!(site.check(&token(1)), Some(Ok(())));
        site
    }

    fn snapshot(&mut self) {
        self.hear(Event::Reset(WatchReset {})).unwrap();
        self.hear(rules_of("https://auth.test")).unwrap();
        self.hear(keys_of(1)).unwrap();
        self.apply(Event::Revocations(WatchRevocations::default()), &[1]).unwrap();
    }

    fn apply(&mut self, event: Event, cursor: &[u8]) -> Result<bool, Ended> {
        let response = WatchResponse { cursor: cursor.to_vec(), event: Some(event) };
        self.watching.apply(&mut self.stream, response)
    }

    /// Applies a message without a cursor.
    fn hear(&mut self, event: Event) -> Result<bool, Ended> {
        self.apply(event, &[])
    }

    fn renew(&mut self) -> u64 {
        let (requests, mut sent) = mpsc::channel(1);
        self.watching.renew(&mut self.stream, &requests);
        let message = sent.try_recv().unwrap().message;
        let Some(Message::Renewal(renewal)) = message else { panic!("{message:?}") };
        renewal.number
    }

    fn lease_of(&self, number: u64, expired_up_to: Timestamp) -> Event {
        Event::Lease(WatchLease {
            number,
            valid_for: Some(prost_types::Duration { seconds: 1, nanos: 700_000_000 }),
            expired_up_to: instant(expired_up_to),
            now: instant(NOW),
        })
    }

    /// Renews, and hands the watcher a lease.
    fn lease(&mut self) -> Result<bool, Ended> {
        let number = self.renew();
        self.hear(self.lease_of(number, Timestamp::from_seconds(0)))
    }

    /// Checks a token by the copy in force; `None` without a lease.
    fn check(&self, token: &str) -> Option<Result<(), InactiveReason>> {
        check(&self.local.copy(), token)
    }
}

fn check(copy: &LocalCopy, token: &str) -> Option<Result<(), InactiveReason>> {
    copy.answer(&Demands::new().question(token)).map(|answer| answer.outcome.map(drop))
}

#[tokio::test]
async fn a_lease_counts_from_before_its_renewal_and_needs_everything_before_it() {
    let mut site = Site::new();
    assert_eq!(site.check(&token(1)), None);
    site.snapshot();
    assert_eq!(site.check(&token(1)), None, "there is no lease yet");
    let number = site.renew();
    site.clock.advance(Duration::from_millis(1600));
    site.hear(site.lease_of(number, Timestamp::from_seconds(0))).unwrap();
    assert_eq!(site.check(&token(1)), Some(Ok(())));
    site.clock.advance(Duration::from_millis(100));
    assert_eq!(site.check(&token(1)), None);

    for missing in 0..3 {
        let mut site = Site::new();
        site.hear(Event::Reset(WatchReset {})).unwrap();
        let rest = [rules_of("https://auth.test"), keys_of(1), revocation()];
        for (place, event) in rest.into_iter().enumerate().filter(|(place, _)| *place != missing) {
            let cursor: &[u8] = if place == 2 { &[1] } else { &[] };
            site.apply(event, cursor).unwrap();
        }
        assert!(site.lease().is_err(), "{missing}");
        assert_eq!(site.check(&token(1)), None);
    }
}

#[tokio::test]
async fn only_a_lease_that_was_asked_for_is_taken() {
    for number in [0, 2, u64::MAX] {
        let mut site = Site::new();
        site.snapshot();
        assert_eq!(site.renew(), 1);
        assert!(site.hear(site.lease_of(number, NOW)).is_err(), "{number}");
        assert_eq!(site.check(&token(1)), None);
    }
    let mut site = Site::started();
    let [first, second] = [site.renew(), site.renew()];
    site.hear(site.lease_of(second, Timestamp::from_seconds(0))).unwrap();
    assert!(site.hear(site.lease_of(first, Timestamp::from_seconds(0))).is_err());
}

#[tokio::test]
async fn a_message_with_a_cursor_is_confirmed_at_once() {
    let mut site = Site::started();
    assert!(!site.hear(revocation()).unwrap());
    assert!(site.apply(revocation(), &[2]).unwrap());
    assert_eq!(site.watching.cursor, [2]);
    assert_eq!(site.check(&token(1)), Some(Err(InactiveReason::Revoked)));
}

#[tokio::test]
async fn after_a_reset_there_is_no_lease_and_the_former_copy_stays_as_it_was() {
    let mut site = Site::started();
    site.apply(revocation(), &[2]).unwrap();
    let former = site.local.copy();
    let number = site.renew();
    site.hear(Event::Reset(WatchReset {})).unwrap();
    assert_eq!(site.check(&token(1)), None);
    assert!(site.watching.cursor.is_empty());
    // A check that has loaded the former copy finishes by it.
    assert_eq!(check(&former, &token(1)), Some(Err(InactiveReason::Revoked)));
    assert!(site.hear(site.lease_of(number, NOW)).is_err(), "the snapshot is not complete");
    site.snapshot();
    site.lease().unwrap();
    assert_eq!(site.check(&token(1)), Some(Ok(())));
    site.clock.advance(OVER);
    site.lease().unwrap();
    assert_eq!(check(&former, &token(1)), None, "a former copy gets no later lease");
}

#[tokio::test]
async fn a_copy_with_earlier_keys_or_rules_gets_no_later_lease() {
    let mut site = Site::started();
    let former = site.local.copy();
    let revoked = vec!["key".to_owned()];
    site.hear(Event::Keys(WatchKeys { jwks: r#"{"keys":[]}"#.to_owned(), revoked })).unwrap();
    assert_eq!(site.check(&token(1)), Some(Err(InactiveReason::Revoked)));
    assert_eq!(check(&former, &token(1)), Some(Ok(())), "its lease has not ended");
    site.clock.advance(OVER);
    site.lease().unwrap();
    assert_eq!(site.check(&token(1)), Some(Err(InactiveReason::Revoked)));
    assert_eq!(check(&former, &token(1)), None);
}

#[tokio::test]
async fn verified_tokens_are_forgotten_with_their_issuer_and_their_key() {
    let mut site = Site::started();
    site.hear(rules_of("https://other.test")).unwrap();
    assert_eq!(site.check(&token(1)), Some(Err(InactiveReason::WrongIssuer)));
    let mut site = Site::started();
    site.hear(keys_of(2)).unwrap();
    assert_eq!(site.check(&token(1)), Some(Err(InactiveReason::BadSignature)));
    assert_eq!(site.check(&token(2)), Some(Ok(())));
}

#[tokio::test]
async fn a_message_that_cannot_be_understood_ends_the_lease() {
    let unknown = Event::Revocations(WatchRevocations {
        ids: vec![RevokedId { id: vec![1; 15], expires_at: instant(NOW) }],
        sessions: vec![],
    });
    let no_set = Event::Keys(WatchKeys { jwks: "[]".to_owned(), revoked: vec![] });
    let no_rules = Event::Rules(WatchRules::default());
    for event in [None, Some(unknown), Some(no_set), Some(no_rules)] {
        let mut site = Site::started();
        let response = WatchResponse { cursor: vec![2], event };
        assert!(site.watching.apply(&mut site.stream, response).is_err());
        assert_eq!(site.check(&token(1)), None);
        assert!(site.watching.cursor.is_empty(), "the next stream begins with a snapshot");
    }
}

#[tokio::test]
async fn expired_revocations_are_dropped_and_their_tokens_stay_expired() {
    let mut site = Site::started();
    site.apply(revocation(), &[2]).unwrap();
    site.clock.advance(OVER);
    let number = site.renew();
    let expiry = NOW.plus(Duration::from_secs(60));
    site.hear(site.lease_of(number, expiry.minus(Duration::from_secs(1)))).unwrap();
    assert_eq!(site.check(&token(1)), Some(Err(InactiveReason::Revoked)));
    let number = site.renew();
    site.hear(site.lease_of(number, expiry)).unwrap();
    // This is so at once, although the entry is dropped later, and the clock has not reached it.
    assert_eq!(site.check(&token(1)), Some(Err(InactiveReason::Expired)));
    let index = site.local.copy().index.clone();
    while !index.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(site.check(&token(1)), Some(Err(InactiveReason::Expired)));
}

#[tokio::test]
async fn no_lease_is_taken_while_the_clocks_differ_by_more_than_five_seconds() {
    for seconds in [5_i64, -5] {
        for (beyond, is_taken) in [(0, true), (1, false)] {
            let mut site = Site::new();
            site.snapshot();
            let micros = seconds * 1_000_000 + seconds.signum() * beyond;
            site.clock.jump_to(Timestamp::from_micros(NOW.micros() + micros));
            site.lease().unwrap();
            assert_eq!(site.local.copy().lease.remaining().is_some(), is_taken, "{micros}");
        }
    }
}

#[tokio::test]
async fn each_stream_must_bring_rules_and_keys_before_its_first_lease() {
    for missing in 0..2 {
        let mut site = Site::started();
        site.clock.advance(OVER);
        // Another stream goes on from the cursor, so there is no reset.
        site.stream = StreamState::default();
        let events = [rules_of("https://auth.test"), keys_of(1)];
        let sent = events.into_iter().enumerate().filter(|(place, _)| *place != missing);
        for (_, event) in sent {
            site.hear(event).unwrap();
        }
        assert!(site.lease().is_err(), "{missing}");
        assert_eq!(site.check(&token(1)), None);
    }
    let mut site = Site::started();
    site.clock.advance(OVER);
    site.stream = StreamState::default();
    site.hear(rules_of("https://auth.test")).unwrap();
    site.hear(keys_of(1)).unwrap();
    site.lease().unwrap();
    assert_eq!(site.check(&token(1)), Some(Ok(())));
}

#[tokio::test]
async fn other_tenants_need_a_snapshot() {
    let mut site = Site::new();
    site.hear(Event::Reset(WatchReset {})).unwrap();
    site.hear(rules_for("https://auth.test", &["globex"])).unwrap();
    site.hear(keys_of(1)).unwrap();
    site.apply(Event::Revocations(WatchRevocations::default()), &[1]).unwrap();
    site.lease().unwrap();
    site.stream = StreamState::default();
    site.hear(rules_for("https://auth.test", &["globex"])).unwrap();
    let ended = site.hear(rules_of("https://auth.test"));
    assert!(matches!(ended, Err(Ended::OtherTenants)), "{ended:?}");
    assert!(site.watching.cursor.is_empty() && site.check(&token(1)).is_none());
    // The snapshot may have any rules.
    site.snapshot();
    site.lease().unwrap();
    assert_eq!(site.check(&token(1)), Some(Ok(())));
}

#[tokio::test]
async fn what_has_expired_stays_expired_after_a_reset() {
    let mut site = Site::started();
    let number = site.renew();
    site.hear(site.lease_of(number, NOW.plus(Duration::from_secs(60)))).unwrap();
    assert_eq!(site.check(&token(1)), Some(Err(InactiveReason::Expired)));
    // Another replica may have dropped less.
    site.snapshot();
    site.lease().unwrap();
    assert_eq!(site.check(&token(1)), Some(Err(InactiveReason::Expired)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_check_finds_a_lapse_while_keys_or_rules_change() {
    let mut site = Site::started();
    let (local, token) = (site.local.clone(), token(1));
    let is_done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let checking = {
        let is_done = is_done.clone();
        std::thread::spawn(move || {
            let mut lapses = 0;
            while !is_done.load(std::sync::atomic::Ordering::SeqCst) {
                lapses += usize::from(check(&local.copy(), &token).is_none());
            }
            lapses
        })
    };
    for _ in 0..3_000 {
        site.hear(rules_of("https://auth.test")).unwrap();
        site.hear(keys_of(1)).unwrap();
    }
    is_done.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(checking.join().unwrap(), 0);
}
