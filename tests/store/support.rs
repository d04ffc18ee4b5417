//! Sessions, attempts and revocations for the tests of stores, and functions that check the
//! results.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use countersign::{
    domain::{
        claims::CustomClaims,
        factors::FactorTimes,
        ids::{Incarnation, SessionId, TokenId},
        key::RefreshKeyId,
        legacy_token::LegacyTokenHash,
        metadata::Metadata,
        policy::{OnQuota, OnRefresh, Policy, RefreshMode, Replay, SessionPolicy},
        refresh::RefreshAttempt,
        revocation::{Revocation, RevocationTarget, Seq},
        search::{SessionQuery, SessionSearch},
        session::{
            Authentication, Device, EndReason, Ended, Lineage, LineageSecret, RequestFingerprint,
            Session,
        },
        text::{Amr, Note, Tenant},
        time::Timestamp,
        who::Who,
    },
    store::{
        Created, Creation, CutOffEntry, FeedEntry, Refreshed, RevocationOutcome, Store, StoreError,
        Walk,
        replicas::{Answer, Newcomer, RenewalClient, RenewalOutcome, RenewalRequest},
    },
};
use serde_json::{Value, json};

pub const START: Timestamp = Timestamp::from_seconds(1_700_000_000);

/// The longest lifetime of an access token.
pub const LONGEST_TOKEN: Duration = Duration::from_secs(3600);

/// A limit greater than the number of rows that any test writes.
pub const ALL: i64 = 1_000_000;

pub fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Returns the instant `count` seconds after [`START`].
pub fn after(count: u64) -> Timestamp {
    START.plus(seconds(count))
}

pub fn text<T: TryFrom<String, Error: std::fmt::Debug>>(text: impl Into<String>) -> T {
    T::try_from(text.into()).unwrap()
}

pub fn texts<T: TryFrom<String, Error: std::fmt::Debug>>(items: &[&str]) -> Vec<T> {
    items.iter().map(|item| text(*item)).collect()
}

pub fn metadata(value: Value) -> Metadata {
    let Value::Object(map) = value else { panic!("metadata are an object, not {value}") };
    Metadata::try_from(map).unwrap()
}

pub fn factor_times(times: &[(&str, Timestamp)]) -> FactorTimes {
    let amr: Vec<Amr> = times.iter().map(|(method, _)| text(*method)).collect();
    let times = times.iter().map(|(method, at)| ((*method).to_owned(), *at));
    FactorTimes::new(times, &amr).unwrap()
}

pub fn claims(value: Value) -> CustomClaims {
    let Value::Object(map) = value else { panic!("claims are an object, not {value}") };
    CustomClaims::try_from(map).unwrap()
}

/// Returns alice's `n`th session, created `n` seconds after the start. It expires after ten idle
/// minutes, and after an hour at the latest.
pub fn session(n: u32) -> Session {
    let at = after(n.into());
    let [a, b, c, d] = n.to_be_bytes();
    Session {
        id: SessionId::new(at, [0, 0, 0, 0, 0, 0, a, b, c, d]),
        tenant: Tenant::default(),
        subject: text("alice"),
        client_id: text("web"),
        audience: texts(&["api"]),
        scopes: texts(&["read", "write"]),
        claims: CustomClaims::default(),
        metadata: Metadata::default(),
        authentication: Authentication {
            id: None,
            acr: text(""),
            amr: vec![],
            amr_verified_at: FactorTimes::default(),
            at,
        },
        device: Device::default(),
        policy: SessionPolicy {
            name: text("default"),
            access_token_ttl: seconds(60),
            idle_timeout: seconds(600),
            refresh: RefreshMode::Rotate,
            refresh_grace: seconds(10),
            replay: Replay::Grace,
            replay_limit: seconds(86_400),
            on_refresh: OnRefresh::KeepAccessToken,
            reauthentication_lifetime: None,
        },
        created_at: at,
        created_by: None,
        extended_at: None,
        refreshed_at: at,
        idle_expires_at: at.plus(seconds(600)),
        expires_at: at.plus(seconds(3600)),
        earlier_tokens_expire_at: None,
        lineage: Lineage {
            generation: 1,
            secret: LineageSecret([a, b, c, d, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]),
            key: RefreshKeyId([1; 8]),
        },
        access_token_id: TokenId::new([a, b, c, d, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]),
        request_id: None,
        request_fingerprint: None,
        reauthentication: None,
        ended: None,
        expiry_recorded: false,
        revision: 1,
    }
}

/// Returns a session in which every field has a value of its own, so that a test notices if columns
/// are mixed up.
pub fn rich_session(n: u32) -> Session {
    let at = session(n).created_at;
    let micros = |count| at.plus(Duration::from_micros(count));
    Session {
        tenant: text("acme"),
        subject: text("zoë@example.com"),
        client_id: text("mobile"),
        audience: texts(&["orders", "billing", "a,b\"c"]),
        scopes: texts(&["orders:read", "orders:write", "openid"]),
        claims: claims(json!({
            "roles": ["admin", "ops"],
            "quota": { "per_day": 18_446_744_073_709_551_615_u64, "debt": -7 },
            "ratio": 0.5, "vip": true, "none": null, "deep": [[{ "k": [] }]],
            "emoji": "🦀", "quote": "\"\\/",
        })),
        metadata: metadata(json!({ "ticket": "T-7", "tags": ["a", { "b": 0.5 }], "no": null })),
        authentication: Authentication {
            id: None,
            acr: text("urn:mace:incommon:iap:gold"),
            amr: texts(&["pwd", "otp"]),
            amr_verified_at: factor_times(&[("otp", micros(3))]),
            at,
        },
        device: Device {
            user_agent: text("Mozilla/5.0 (X11; Linux x86_64)"),
            ip_address: text("2001:db8::7"),
            label: text("Zoë’s Telefon"),
            id: text("device \"1\", Zoë"),
        },
        created_by: Some(Who::Named(text("login.example"))),
        policy: SessionPolicy {
            name: text("strict"),
            access_token_ttl: Duration::from_millis(90_500),
            idle_timeout: seconds(700),
            refresh: RefreshMode::Rotate,
            refresh_grace: Duration::from_micros(5_000_001),
            replay: Replay::UntilUsed,
            replay_limit: Duration::from_micros(300_000_001),
            on_refresh: OnRefresh::RevokeAccessToken,
            reauthentication_lifetime: Some(Duration::from_micros(7_000_000_001)),
        },
        created_at: micros(1),
        refreshed_at: micros(2),
        idle_expires_at: at.plus(seconds(700)),
        expires_at: at.plus(seconds(7000)),
        lineage: Lineage { generation: 2, key: RefreshKeyId([0xf1; 8]), ..session(n).lineage },
        request_id: Some(text(format!("request {n}"))),
        request_fingerprint: Some(RequestFingerprint([0xf2; 32])),
        revision: 3,
        ..session(n)
    }
}

/// Returns the session with this identifier of its device.
pub fn on_device(id: &str, session: Session) -> Session {
    Session { device: Device { id: text(id), ..session.device }, ..session }
}

/// Returns a creation that sets no limit on the number of the subject's sessions.
pub fn unlimited(session: Session) -> Creation {
    Creation { session, max_sessions: 0, on_quota: OnQuota::Refuse, legacy_token: None }
}

/// Returns the creation of an imported session with a refresh token of another system.
pub fn with_legacy_token(session: Session, token: &str) -> Creation {
    Creation { legacy_token: Some(LegacyTokenHash::of(token)), ..unlimited(session) }
}

/// Returns the scripts that take back the migrations of an engine from this version on, the newest
/// first, and the statement that forgets them.
pub fn take_back_migrations(engine: &str, from: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(engine);
    let mut migrations: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    migrations.retain(|path| path.file_name().unwrap().to_str().unwrap() >= from);
    migrations.sort();
    assert!(!migrations.is_empty(), "no migration of {engine} from {from} on");
    let scripts = migrations.iter().rev();
    let scripts = scripts.map(|path| fs::read_to_string(path.join("down.sql")).unwrap());
    let forget = format!("DELETE FROM __diesel_schema_migrations WHERE version >= '{from}'");
    scripts.chain([forget]).collect()
}

/// Records every session that expired before an instant, as the sweeper does.
pub async fn record_expiries(store: &dyn Store, until: Timestamp) {
    while !store.record_expiries(until, ALL, false).await.unwrap().is_last {}
}

pub async fn create(store: &dyn Store, session: Session) -> Session {
    let created = store.create_session(unlimited(session.clone())).await.unwrap();
    assert_eq!(created, Created::New { eviction: None });
    session
}

pub async fn create_all(
    store: &dyn Store,
    sessions: impl IntoIterator<Item = Session>,
) -> Vec<Session> {
    let mut created = vec![];
    for session in sessions {
        created.push(create(store, session).await);
    }
    created
}

pub async fn read(store: &dyn Store, session: &Session) -> Session {
    store.session(session.id).await.unwrap().expect("the session is there")
}

/// Checks that the store holds these sessions with every field unchanged.
pub async fn assert_unchanged(store: &dyn Store, sessions: &[Session]) {
    for session in sessions {
        assert_eq!(read(store, session).await, *session);
    }
}

/// Returns an attempt to refresh a session with its current token.
pub fn attempt(session: &Session, now: Timestamp) -> RefreshAttempt {
    RefreshAttempt {
        session_id: session.id,
        generation: session.lineage.generation,
        secret: session.lineage.secret,
        scopes: vec![],
        device: None,
        reach: std::sync::Arc::default(),
        now,
        next_access_token_id: TokenId::new([4; 16]),
        next_key: RefreshKeyId([2; 8]),
        live_policies: std::sync::Arc::default(),
    }
}

/// Returns a policy of this session's name that applies to live sessions, and has its limits.
pub fn live_policy(session: &Session) -> Policy {
    Policy {
        session: session.policy.clone(),
        absolute_lifetime: session.expires_at.since(session.created_at),
        reauthentication_extends: session.policy.reauthentication_lifetime.is_some(),
        max_sessions_per_subject: 0,
        on_quota: OnQuota::Refuse,
        apply_to_live: true,
    }
}

pub async fn rotate(store: &dyn Store, session: &Session, now: Timestamp) -> Session {
    match store.refresh_session(attempt(session, now)).await.unwrap() {
        Refreshed::Rotated { session, .. } => *session,
        other => panic!("the current token must rotate: {other:?}"),
    }
}

pub fn ended(at: Timestamp) -> Ended {
    Ended { at, reason: EndReason::Administrative, note: text("ticket 4711, „dringend“") }
}

pub async fn revoke(
    store: &dyn Store,
    target: RevocationTarget,
    at: Timestamp,
) -> Result<RevocationOutcome, StoreError> {
    store
        .revoke(Revocation {
            target,
            ended: ended(at),
            room: usize::MAX,
            longest_token: LONGEST_TOKEN,
            fallback_entry: None,
        })
        .await
}

pub async fn revoke_session(
    store: &dyn Store,
    session: &Session,
    at: Timestamp,
) -> RevocationOutcome {
    revoke(store, RevocationTarget::Session(session.id), at).await.unwrap()
}

pub async fn revoke_tenant(store: &dyn Store, tenant: &Tenant, at: Timestamp) -> RevocationOutcome {
    let target = RevocationTarget::Tenant(tenant.clone());
    revoke(store, target, at).await.unwrap()
}

/// Revokes one access token, which expires a minute after `at`.
pub async fn revoke_token(
    store: &dyn Store,
    session: &Session,
    token: TokenId,
    at: Timestamp,
) -> RevocationOutcome {
    let target =
        RevocationTarget::Token { token, session_id: session.id, expires_at: at.plus(seconds(60)) };
    revoke(store, target, at).await.unwrap()
}

/// Returns a walk that began at the start and has come to this session.
pub fn walk(after: Option<SessionId>) -> Walk {
    Walk { began_at: START, after }
}

/// Ends the sessions that an entry covers, at most `limit` at a time. Returns the number of calls
/// that this took.
pub async fn end_covered(store: &dyn Store, entry: &CutOffEntry, limit: i64) -> usize {
    let mut last = None;
    let mut calls = 1;
    while let Some(batch) =
        store.end_covered_sessions(entry.clone(), walk(last), limit).await.unwrap()
    {
        let next = batch.last;
        assert!(Some(next) > last, "the cursor went back");
        last = Some(next);
        calls += 1;
    }
    calls
}

/// Returns the details of a session's end for this reason, without a note.
pub fn ended_without_note(at: Timestamp, reason: EndReason) -> Ended {
    Ended { at, reason, note: Note::default() }
}

/// Joins as a replica, reads at most `limit` entries of the feed after a sequence number, and
/// leaves.
pub async fn read_feed(store: &dyn Store, after: Seq, limit: i64) -> Answer {
    let mut reader = Reader::join(store).await;
    let answer = reader.read(after, limit).await;
    reader.leave(store).await;
    answer
}

/// Joins as this replica, and returns its renewal client.
pub async fn join(store: &dyn Store, newcomer: Newcomer) -> Box<dyn RenewalClient> {
    let mut renewals = store.renewal_client();
    renewals.join(newcomer, seconds(60)).await.unwrap();
    renewals
}

/// A replica that only reads the feed.
pub struct Reader {
    renewals: Box<dyn RenewalClient>,
    incarnation: Incarnation,
    number: i64,
}

impl Reader {
    pub async fn join(store: &dyn Store) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let [a, b, c, d, e, f, g, h] = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let incarnation = Incarnation::new([7, 7, 7, 7, 7, 7, 7, 7, a, b, c, d, e, f, g, h]);
        let renewals = join(store, newcomer(incarnation)).await;
        Self { renewals, incarnation, number: 0 }
    }

    pub async fn read(&mut self, after: Seq, limit: i64) -> Answer {
        self.number += 1;
        let renewal = RenewalRequest {
            incarnation: self.incarnation,
            number: self.number,
            confirmed: 0,
            watchers: 0,
            applied: after,
            after,
            limit,
            timeout: seconds(60),
        };
        match self.renewals.renew(&renewal).await.unwrap() {
            RenewalOutcome::Answer(answer) => answer,
            RenewalOutcome::Gone => {
                panic!("the row of the replica is gone, although it has joined")
            }
        }
    }

    pub async fn leave(self, store: &dyn Store) {
        if let Some(members) = store.members() {
            members.leave(self.incarnation).await.unwrap();
        }
    }
}

pub fn newcomer(incarnation: Incarnation) -> Newcomer {
    Newcomer {
        incarnation,
        name: "host".to_owned(),
        address: "192.0.2.7:50051".to_owned(),
        version: "1.2.3",
        max_validity: seconds(3),
    }
}

/// Returns the whole blacklist, in the order of the feed.
pub async fn entries(store: &dyn Store) -> Vec<FeedEntry> {
    read_feed(store, Seq::default(), ALL).await.entries
}

/// Returns the latest expiry of all entries that were ever deleted.
pub async fn purge_watermark(store: &dyn Store) -> Timestamp {
    read_feed(store, Seq::default(), ALL).await.purge_watermark
}

/// Returns a search for all sessions of a tenant.
pub fn search(tenant: &Tenant) -> SessionSearch {
    SessionSearch { tenant: tenant.clone(), ..SessionSearch::default() }
}

/// Returns a query for all sessions of a search in one page.
pub fn query(search: SessionSearch) -> SessionQuery {
    SessionQuery { search, now: START, after: None, limit: ALL }
}

pub async fn list(store: &dyn Store, query: SessionQuery) -> Vec<SessionId> {
    store.sessions(query).await.unwrap().found.into_iter().map(|session| session.id).collect()
}

pub fn ids<'a>(sessions: impl IntoIterator<Item = &'a Session>) -> Vec<SessionId> {
    sessions.into_iter().map(|session| session.id).collect()
}
