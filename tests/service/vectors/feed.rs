//! Writes a feed: the steps of a watcher, and what it must answer after them.

use std::time::Duration;

use countersign::{
    domain::time::Timestamp,
    proto::{
        RevokedId, RevokedSessions, ValidateRequest, WatchKeys, WatchLease, WatchReset,
        WatchResponse, WatchRevocations, WatchRules,
        revoked_sessions::{Instant, Where},
        watch_response::Event,
    },
};
use countersign_test_support::{
    forge::Forge,
    server::{START, Server, at},
    vectors::{self, bytes},
};
use prost::Message;
use serde_json::{Map, Value, json};

/// The length of the leases.
pub const VALID_FOR: Duration = Duration::from_millis(1700);
/// The margin of the leases.
pub const MARGIN: Duration = Duration::from_millis(250);
/// The lifetime of the tokens.
const LIFETIME: i64 = 600;

/// The tokens and the keys of the feeds.
pub struct Site {
    forge: Forge,
    good: String,
    pub jwks: Value,
}

impl Site {
    pub async fn of(server: &Server) -> Self {
        let forge = Forge::of(server).await;
        let good = server.sign_in("alice").await.access;
        let jwks = serde_json::from_str(&forge.ring.jwks().json).unwrap();
        Self { forge, good, jwks }
    }

    /// Returns a token of alice in tenant `acme` with these changes of its claims.
    pub fn token(&self, changes: Value) -> String {
        let (iat, mut claims) = (START.seconds(), changes);
        let members = claims.as_object_mut().unwrap();
        members.entry("iat").or_insert(iat.into());
        members.entry("exp").or_insert((iat + LIFETIME).into());
        members.entry("client_id").or_insert("web".into());
        self.forge.resign(&self.good, claims)
    }

    /// Returns the name of the key that has signed the tokens.
    pub fn kid(&self) -> String {
        self.forge.ring.signing().unwrap().kid.clone()
    }
}

/// Returns the rules of the feeds.
pub fn usual_rules() -> WatchRules {
    WatchRules {
        issuer: "https://auth.test".to_owned(),
        max_lifetime: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        leeway: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
        lease_margin: Some(MARGIN.try_into().unwrap()),
        ..Default::default()
    }
}

/// Returns the instant at which the usual tokens expire.
pub fn expiry() -> Timestamp {
    Timestamp::from_seconds(START.seconds() + LIFETIME)
}

/// Returns the `sid` of a session that was created at an instant.
pub fn session_at(created_at: Timestamp, number: u8) -> String {
    let digits = format!("{:012x}", created_at.micros() / 1000);
    format!("{}-{}-7000-8000-0000000000{number:02x}", &digits[..8], &digits[8..])
}

/// Returns the revocation of one id.
pub fn id(id: &str) -> WatchRevocations {
    let id = id.parse::<uuid::Uuid>().unwrap().as_bytes().to_vec();
    WatchRevocations {
        ids: vec![RevokedId { id, expires_at: Some(at(expiry())) }],
        ..WatchRevocations::default()
    }
}

/// Returns the revocation of the sessions of a tenant that were created up to an instant, with
/// changes.
pub fn sessions(
    tenant: &str,
    up_to: Timestamp,
    change: impl FnOnce(&mut RevokedSessions),
) -> WatchRevocations {
    let mut sessions = RevokedSessions {
        r#where: Some(Where::Tenant(tenant.to_owned())),
        instant: Some(Instant::CreatedUpTo(at(up_to))),
        expires_at: Some(at(expiry())),
        ..Default::default()
    };
    change(&mut sessions);
    WatchRevocations { sessions: vec![sessions], ..WatchRevocations::default() }
}

/// A feed.
pub struct Feed {
    name: String,
    is_recorded: bool,
    tokens: Map<String, Value>,
    steps: Vec<Value>,
    cursor: Vec<u8>,
    cursors: u8,
    /// The number of renewals on the stream.
    pub renewals: u64,
}

impl Feed {
    /// Begins a feed, whose stream is not open yet.
    pub fn new(name: &str) -> Self {
        let (name, is_recorded) = (name.to_owned(), false);
        let (tokens, steps, cursor) = (Map::new(), vec![], vec![]);
        Self { name, is_recorded, tokens, steps, cursor, cursors: 0, renewals: 0 }
    }

    /// Begins a feed of the messages that a service sends.
    pub fn recorded(name: &str) -> Self {
        Self { is_recorded: true, ..Self::new(name) }
    }

    /// Begins a feed of a watcher that has a complete copy, and a lease.
    pub fn leased(name: &str, site: &Site) -> Self {
        let mut feed = Self::new(name);
        feed.open();
        feed.snapshot(site);
        feed.renew();
        feed.lease();
        feed
    }

    /// Ends the feed.
    pub fn end(self) -> Value {
        json!({
            "name": self.name,
            "is_recorded": self.is_recorded,
            "wall_ms": START.micros() / 1000,
            "tokens": self.tokens,
            "steps": self.steps,
        })
    }

    fn step(&mut self, step: Value) {
        self.steps.push(step);
    }

    /// Names a token.
    pub fn token(&mut self, name: &str, token: &str) {
        self.tokens.insert(name.to_owned(), token.into());
    }

    /// The watcher opens a stream with its cursor.
    pub fn open(&mut self) {
        self.renewals = 0;
        let cursor = bytes(&self.cursor);
        self.step(json!({ "step": "open", "cursor": cursor }));
    }

    /// The watcher receives a message.
    pub fn receive(&mut self, response: &WatchResponse) {
        let mut what = match &response.event {
            Some(Event::Reset(_)) => "a reset",
            Some(Event::Rules(_)) => "rules",
            Some(Event::Keys(_)) => "keys",
            Some(Event::Revocations(_)) => "revocations",
            Some(Event::Lease(_)) => "a lease",
            None => "nothing",
        }
        .to_owned();
        if !response.cursor.is_empty() {
            what.push_str(" with a cursor");
            self.cursor.clone_from(&response.cursor);
        }
        if matches!(response.event, Some(Event::Reset(_))) {
            self.cursor.clear();
        }
        let message = bytes(&response.encode_to_vec());
        self.step(json!({ "step": "receive", "what": what, "message": message }));
    }

    /// The watcher receives a message without a cursor.
    pub fn hear(&mut self, event: Event) {
        self.receive(&WatchResponse { cursor: vec![], event: Some(event) });
    }

    /// The watcher receives a message with the next cursor.
    pub fn apply(&mut self, event: Event) {
        self.cursors += 1;
        self.receive(&WatchResponse { cursor: vec![self.cursors], event: Some(event) });
    }

    /// The watcher receives a message that it cannot follow: it ends its lease and the stream.
    pub fn refuse(&mut self, what: &str, message: &[u8]) {
        let message = bytes(message);
        self.step(json!({ "step": "refuse", "what": what, "message": message }));
    }

    /// The watcher receives a snapshot without revocations.
    pub fn snapshot(&mut self, site: &Site) {
        self.snapshot_with(site, usual_rules());
    }

    /// The watcher receives a snapshot without revocations, and with these rules.
    pub fn snapshot_with(&mut self, site: &Site, rules: WatchRules) {
        self.hear(Event::Reset(WatchReset {}));
        self.hear(Event::Rules(rules));
        self.keys(&site.jwks, &[]);
        self.apply(Event::Revocations(WatchRevocations::default()));
    }

    /// The watcher receives keys.
    pub fn keys(&mut self, jwks: &Value, revoked: &[&str]) {
        let revoked = revoked.iter().map(ToString::to_string).collect();
        self.hear(Event::Keys(WatchKeys { jwks: jwks.to_string(), revoked }));
    }

    /// The watcher sends a renewal, which confirms its cursor.
    pub fn renew(&mut self) {
        self.renewals += 1;
        let applied = bytes(&self.cursor);
        self.step(json!({ "step": "renew", "applied": applied }));
    }

    /// Returns the lease that answers the last renewal.
    pub fn next_lease(&self) -> WatchLease {
        WatchLease {
            number: self.renewals,
            valid_for: Some(VALID_FOR.try_into().unwrap()),
            expired_up_to: Some(at(Timestamp::from_seconds(0))),
            now: Some(at(START)),
        }
    }

    /// The watcher receives the lease that answers its last renewal.
    pub fn lease(&mut self) {
        self.hear(Event::Lease(self.next_lease()));
    }

    /// Both clocks advance.
    pub fn advance(&mut self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap();
        self.step(json!({ "step": "advance", "wall_ms": by, "uptime_ms": by }));
    }

    /// Only the wall clock moves.
    pub fn set_wall_clock(&mut self, milliseconds: i64) {
        self.step(json!({ "step": "advance", "wall_ms": milliseconds, "uptime_ms": 0 }));
    }

    /// The watcher is asked about a token, and must give this answer.
    pub fn check(&mut self, token: &str, answer: &str) {
        assert!(self.tokens.contains_key(token), "{token}");
        self.step(json!({ "step": "check", "token": token, "answer": answer }));
    }

    /// The watcher is asked about all tokens, and must give the answers of the service.
    pub async fn check_all(&mut self, server: &Server) {
        for (name, token) in self.tokens.clone() {
            let access_token = token.as_str().unwrap().to_owned();
            let request = ValidateRequest { access_token, ..Default::default() };
            let answer = server.validate(request).await.unwrap();
            let word = vectors::word(&answer);
            self.check(&name, word);
        }
    }
}
