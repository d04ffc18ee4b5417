//! The engines decide some writes in SQL, because that is faster. These tests compare the decisions
//! of the engines with those of the domain.
//!
//! Sessions, revocations and attempts are generated at random, and so close to each other in time
//! that values on both sides of every limit occur.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use countersign::{
    domain::{
        caller::Reach,
        cut_off::{Coverable, Covering, CutOff, CutOffKey, CutOffKind, Scope},
        ids::{SessionId, TokenId},
        live_policy::LivePolicies,
        policy::{OnQuota, OnRefresh, Policy, RefreshMode, Replay},
        quota::LiveSessions,
        refresh::{RefreshAttempt, RefreshDecision},
        revocation::{
            BlacklistEntry, Coverage, EarlierEntry, Revocation, RevocationTarget, Revoked,
        },
        revoke::{
            MOST_ENDED_AT_ONCE, OldestLive, RevocationDecision, RevocationState, Survey,
            UncoveredCount,
        },
        session::{Device, EndReason, Ended, LineageSecret, RequestFingerprint, Session},
        text::{Subject, Tenant},
        time::Timestamp,
    },
    store::{Created, Creation, Refreshed, RevocationOutcome, Store},
};
use futures_util::future::join_all;
use proptest::{
    prelude::*,
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};

use crate::support::{
    LONGEST_TOKEN, START, after, attempt, create_all, ended, entries, live_policy, read,
    revoke_session, rich_session, seconds, session, text, texts, unlimited,
};

fn draw<T>(runner: &mut TestRunner, strategy: &impl Strategy<Value = T>) -> T {
    strategy.new_tree(runner).unwrap().current()
}

const TENANTS: [&str; 3] = ["acme", "globex", "initech"];
const SUBJECTS: [&str; 3] = ["alice", "bob", "carol"];

const CLIENTS: [&str; 3] = ["web", "app", "tv"];

/// An instant within four milliseconds of the start.
fn instant() -> impl Strategy<Value = Timestamp> {
    (0_u64..4_000).prop_map(|micros| START.plus(Duration::from_micros(micros)))
}

/// A session whose identifier was made within four milliseconds of the start.
fn drawn_session(n: u32) -> impl Strategy<Value = Session> {
    let identity = (0..TENANTS.len(), 0..SUBJECTS.len(), instant());
    let reuses = prop_oneof![3 => Just(false), 1 => Just(true)];
    let policy = (any::<bool>(), any::<bool>(), 600_u64..604, reuses);
    let state = (
        prop_oneof![8 => 1_u32..4, 1 => Just(u32::MAX)],
        prop_oneof![8 => 1_u32..4, 1 => Just(u32::MAX)],
        600_u64..604,
    );
    (identity, policy, state, any::<bool>()).prop_map(
        move |(
            (tenant, subject, at),
            (keeps, until_used, idle, reuses),
            (generation, revision, expires),
            many,
        )| {
            let mut drawn = if n.is_multiple_of(2) { rich_session(n) } else { session(n) };
            let [.., a, b, c, d] = *drawn.id.bytes();
            drawn.id = SessionId::new(at, [0, 0, 0, 0, 0, 0, a, b, c, d]);
            (drawn.tenant, drawn.subject) = (text(TENANTS[tenant]), text(SUBJECTS[subject]));
            drawn.client_id = text(CLIENTS[n as usize % CLIENTS.len()]);
            drawn.authentication.at =
                START.minus(seconds(10)).plus(Duration::from_millis(u64::from(n) * 37 % 12_000));
            drawn.audience = if many { texts(&["api", "billing"]) } else { texts(&["api"]) };
            drawn.policy.on_refresh =
                if keeps { OnRefresh::KeepAccessToken } else { OnRefresh::RevokeAccessToken };
            drawn.policy.replay = if until_used { Replay::UntilUsed } else { Replay::Grace };
            drawn.policy.refresh = if reuses { RefreshMode::Reuse } else { RefreshMode::Rotate };
            drawn.policy.idle_timeout = seconds(idle);
            drawn.scopes = texts(&["read", "write"]);
            drawn.policy.refresh_grace = seconds(10);
            (drawn.created_at, drawn.refreshed_at) = (at, at);
            drawn.idle_expires_at = at.plus(seconds(idle));
            drawn.expires_at = at.plus(seconds(600 + expires));
            drawn.lineage.generation = generation;
            drawn.revision = revision;
            drawn
        },
    )
}

/// A policy that applies to a live session, and is stricter than its own in some limits.
fn drawn_live_policy(session: &Session) -> impl Strategy<Value = Policy> + use<> {
    let same = live_policy(session);
    let span = |own: Duration, other: u64| prop_oneof![6 => Just(own), 1 => Just(seconds(other)), 1 => Just(own * 2)];
    let spans = (
        span(same.session.access_token_ttl, 2),
        span(same.session.idle_timeout, 10),
        span(same.absolute_lifetime, 10),
        span(same.session.refresh_grace, 1),
        span(same.session.replay_limit, 12),
    );
    let rarely = || prop_oneof![6 => Just(false), 1 => Just(true)];
    (spans, rarely(), rarely(), rarely(), rarely()).prop_map(
        move |((ttl, idle, absolute, grace, limit), mode, replay, on_refresh, extends)| {
            let mut drawn = same.clone();
            drawn.session.access_token_ttl = ttl;
            drawn.session.idle_timeout = idle;
            drawn.absolute_lifetime = absolute;
            drawn.session.refresh_grace = grace;
            drawn.session.replay_limit = limit;
            if mode {
                drawn.session.refresh = match drawn.session.refresh {
                    RefreshMode::Rotate => RefreshMode::Reuse,
                    RefreshMode::Reuse => RefreshMode::Rotate,
                };
            }
            if replay {
                drawn.session.replay = Replay::Grace;
            }
            if on_refresh {
                drawn.session.on_refresh = OnRefresh::RevokeAccessToken;
            }
            drawn.reauthentication_extends ^= extends;
            drawn
        },
    )
}

/// An attempt to refresh a session with a valid or an invalid token.
fn drawn_attempt(session: &Session) -> impl Strategy<Value = RefreshAttempt> + use<> {
    let session = session.clone();
    let token = (
        prop_oneof![6 => Just(1), 1 => Just(0), 1 => Just(2)],
        prop_oneof![9 => Just(true), 1 => Just(false)],
    );
    let now = prop_oneof![4 => 0_u64..20, 2 => 598_u64..606];
    let asked = (
        proptest::sample::subsequence(vec!["read", "write", "delete"], 0..=2),
        prop_oneof![6 => Just(None), 1 => Just(Some("acme"))],
        prop_oneof![6 => Just(None), 1 => Just(Some("api"))],
        any::<bool>(),
    );
    let live = proptest::option::of(drawn_live_policy(&session));
    (token, now, asked, live).prop_map(
        move |((generation, has_secret), now, (scopes, tenant, audience, device), live)| {
            let mut drawn = attempt(&session, session.refreshed_at.plus(seconds(now)));
            drawn.generation =
                session.lineage.generation.saturating_sub(1).saturating_add(generation);
            if !has_secret {
                drawn.secret = LineageSecret([7; 16]);
            }
            drawn.scopes = texts(&scopes);
            drawn.reach = Arc::new(Reach {
                tenants: tenant.map(|tenant| BTreeSet::from([text(tenant)])),
                audiences: audience.map(|audience| BTreeSet::from([text(audience)])),
            });
            drawn.device = device.then(|| Device { label: text("phone"), ..Device::default() });
            drawn.next_access_token_id = TokenId::new([8; 16]);
            drawn.live_policies = Arc::new(LivePolicies::among(&live));
            drawn
        },
    )
}

/// Writes cut-offs of every kind, and ends none of the sessions that they cover. In the service, a
/// job ends those sessions later.
async fn draw_cut_offs(
    store: &dyn Store,
    runner: &mut TestRunner,
    sessions: &[Session],
) -> Vec<Revoked> {
    let tenant = |n: usize| -> Tenant { text(TENANTS[n]) };
    let client = |n: usize| text(CLIENTS[n]);
    let mut scopes = vec![Scope::Tenant(tenant(0))];
    scopes.extend(SUBJECTS[..2].iter().map(|name| Scope::Subject(tenant(1), text(*name))));
    scopes.extend([Scope::Client(tenant(2), client(0)), Scope::ClientEverywhere(client(1))]);
    let mut cut_offs = vec![];
    for scope in scopes {
        let up_to = draw(runner, &instant());
        let all = CutOff::up_to(up_to);
        let spared = sessions.iter().find(|session| {
            Some(&session.tenant) == scope.tenant()
                && Some(&session.subject) == scope.subject()
                && all.covers_created(session.id)
        });
        let cut_off = CutOff { up_to, spared: spared.map(|session| session.id) };
        cut_offs.push(Revoked::Sessions { key: CutOffKey::created(scope), cut_off });
    }
    // Few sessions are created or authenticated this early.
    let early = START.plus(Duration::from_micros(300));
    let key = CutOffKey::created(Scope::Everywhere);
    cut_offs.push(Revoked::Sessions { key, cut_off: CutOff::up_to(early) });
    for (scope, seconds) in [
        (Scope::Everywhere, 1),
        (Scope::Tenant(tenant(1)), 2),
        (Scope::Client(tenant(1), client(0)), 3),
        (Scope::ClientEverywhere(client(2)), 2),
    ] {
        let key = CutOffKey::authenticated(scope).unwrap();
        let before = START.minus(Duration::from_secs(10 - seconds));
        let cut_off = CutOff::up_to(before.minus(Duration::from_micros(1)));
        cut_offs.push(Revoked::Sessions { key, cut_off });
    }
    let kinds: BTreeSet<_> = cut_offs.iter().map(|revoked| kind_of(revoked).as_str()).collect();
    assert_eq!(kinds.len(), CutOffKind::ALL.len(), "a kind is missing: {kinds:?}");
    for revoked in &cut_offs {
        let lost = Revocation::of_lost(revoked.clone(), None, ended(START), after(9_999));
        store.revoke(lost).await.unwrap();
    }
    cut_offs
}

fn kind_of(revoked: &Revoked) -> CutOffKind {
    match revoked {
        Revoked::Sessions { key, .. } => key.kind(),
        other => panic!("{other:?}"),
    }
}

/// Returns which of the cut-offs cover a session.
fn covering(session: &Session, cut_offs: &[Revoked]) -> Covering {
    let coverable = Coverable::from(session);
    let of_session = cut_offs.iter().filter_map(|revoked| match revoked {
        Revoked::Sessions { key, cut_off } if coverable.key(key.kind()) == key.borrowed() => {
            Some((key.kind(), *cut_off))
        }
        _ => None,
    });
    Covering::of(coverable, of_session)
}

pub async fn random_refreshes_are_decided_as_the_domain_decides(store: &dyn Store) {
    const SESSIONS: u32 = 400;
    let mut runner = TestRunner::deterministic();
    let drawn = (0..SESSIONS).map(|n| draw(&mut runner, &drawn_session(n)));
    let sessions = create_all(store, drawn.collect::<Vec<_>>()).await;
    for session in sessions.iter().step_by(9) {
        revoke_session(store, session, session.created_at.plus(seconds(1))).await;
    }
    let cut_offs = draw_cut_offs(store, &mut runner, &sessions).await;

    let mut attempts = vec![];
    for session in &sessions {
        attempts.push((read(store, session).await, draw(&mut runner, &drawn_attempt(session))));
    }
    let refreshes = attempts.iter().map(|(_, attempt)| store.refresh_session(attempt.clone()));
    let mut seen = BTreeSet::new();
    for ((session, attempt), refreshed) in attempts.iter().zip(join_all(refreshes).await) {
        let is_covered = |session: &Session| -> Result<bool, Infallible> {
            Ok(covering(session, &cut_offs).is_covered())
        };
        let Ok(expected) = RefreshDecision::of(attempt, Some(session.clone()), is_covered);
        let case = format!("{attempt:?} of {session:?}");
        let changed = match (expected, refreshed.unwrap()) {
            (
                RefreshDecision::Rotate { session, entry },
                Refreshed::Rotated { session: now, position },
            ) => {
                assert_eq!((&session, entry.is_some()), (&now, position.is_some()), "{case}");
                seen.insert(match (session.earlier_tokens_expire_at, &entry) {
                    (Some(_), _) => "limited",
                    (None, Some(_)) => "rotated and stopped",
                    (None, None) => "rotated",
                });
                *session
            }
            (
                RefreshDecision::Replay { session, may_have_entry },
                Refreshed::Replayed { session: now, position },
            ) => {
                assert_eq!((&session, may_have_entry), (&now, position.is_some()), "{case}");
                seen.insert("replayed");
                *session
            }
            (RefreshDecision::End { session, .. }, Refreshed::Ended { session: now, .. }) => {
                assert_eq!(session, now, "{case}");
                let reason = now.ended.as_ref().unwrap().reason;
                seen.insert(match reason {
                    EndReason::RefreshTokenReused => "ended",
                    _ => "ended by limits",
                });
                *session
            }
            (RefreshDecision::Refuse(refusal), Refreshed::Refused(now)) => {
                assert_eq!(refusal, now, "{case}");
                seen.insert("refused");
                session.clone()
            }
            (expected, refreshed) => panic!("{case}: {refreshed:?} instead of {expected:?}"),
        };
        assert_eq!(read(store, session).await, changed, "{case}");
    }
    assert_eq!(seen.len(), 7, "some kind of decision never occurred: {seen:?}");
}

pub async fn random_creations_are_decided_as_the_domain_decides(store: &dyn Store) {
    const SESSIONS: u32 = 600;
    let mut runner = TestRunner::deterministic();
    let drawn: Vec<_> = (0..SESSIONS).map(|n| draw(&mut runner, &drawn_session(n))).collect();
    let cut_offs = draw_cut_offs(store, &mut runner, &drawn).await;

    // All creations run at once, so that they share batches.
    let creations = drawn.iter().map(|session| store.create_session(unlimited(session.clone())));
    let created = join_all(creations).await;
    let mut covered = 0;
    for (session, created) in drawn.iter().zip(&created) {
        let covering = covering(session, &cut_offs);
        let expected = match (covering.authenticated_up_to, covering.created_up_to) {
            (Some(up_to), _) => Created::AuthenticationRevoked { up_to },
            (None, Some(up_to)) => Created::Revoked { up_to },
            (None, None) => Created::New { eviction: None },
        };
        assert_eq!(created.as_ref().unwrap(), &expected, "{session:?} under {cut_offs:?}");
        covered += usize::from(expected != Created::New { eviction: None });
    }
    assert!(
        (10..drawn.len() - 10).contains(&covered),
        "too few sessions are covered, or too few are not: {covered}"
    );

    // These creations run one after the other, so the domain can decide each of them from the live
    // sessions of its subject.
    let mut evictions = BTreeSet::new();
    for n in 0..60 {
        let (tenant, max, evicts) =
            draw(&mut runner, &(0..TENANTS.len(), 1_u32..40, any::<bool>()));
        let at = after(draw(&mut runner, &(590_u64..606)));
        let mut new = session(SESSIONS + n);
        (new.tenant, new.subject) = (text(TENANTS[tenant]), text(SUBJECTS[2]));
        let [.., a, b, c, d] = *new.id.bytes();
        new.id = SessionId::new(at, [0, 0, 0, 0, 0, 0, a, b, c, d]);
        (new.created_at, new.refreshed_at) = (at, at);
        new.idle_expires_at = at.plus(seconds(600));
        new.request_id = n.is_multiple_of(2).then(|| text(format!("another request {n}")));
        new.request_fingerprint = new.request_id.as_ref().map(|_| RequestFingerprint([1; 32]));

        let mut live = vec![];
        let known = drawn
            .iter()
            .zip(&created)
            .filter(|(_, created)| matches!(created.as_ref().unwrap(), Created::New { .. }));
        for (session, _) in known {
            if (&session.tenant, &session.subject) == (&new.tenant, &new.subject)
                && read(store, session).await.is_live(at)
            {
                live.push((session.id, session.idle_expires_at));
            }
        }
        live.sort_unstable();
        let on_quota = if evicts { OnQuota::EvictOldest } else { OnQuota::Refuse };
        let expected = LiveSessions::read(live.clone().into(), max).make_room(at, max, on_quota);
        let creation =
            Creation { session: new.clone(), max_sessions: max, on_quota, legacy_token: None };
        let result = store.create_session(creation).await.unwrap();
        let case = format!("{max} of {live:?} at {at:?}");
        match (expected, result) {
            (Ok(evicted), Created::New { eviction }) => {
                evictions.insert(evicted.len());
                let eviction = eviction.map_or_else(Vec::new, |eviction| eviction.sessions);
                assert_eq!(eviction, evicted, "{case}");
                // The new session is revoked, so that only generated sessions are live in the next
                // round.
                revoke_session(store, &new, at).await;
            }
            (Err(_), Created::QuotaExceeded) => {
                evictions.insert(usize::MAX);
            }
            (expected, result) => panic!("{case}: {result:?} instead of {expected:?}"),
        }
    }
    assert!(
        evictions.len() > 3,
        "too few different numbers of sessions were evicted: {evictions:?}"
    );
}

pub async fn random_entries_replace_earlier_ones_as_the_domain_decides(store: &dyn Store) {
    const PAIRS: u32 = 150;
    let mut runner = TestRunner::deterministic();
    let mut pairs = vec![];
    for n in 0..PAIRS {
        let (tenant, subject): (Tenant, Subject) = (text("acme"), text(format!("subject {n}")));
        let mut entry = |reason, note: &str| {
            let millis = |count| START.plus(Duration::from_millis(count));
            let (up_to, near, expires, at) =
                draw(&mut runner, &(0_u64..4, 0_u64..4, 0_u64..3, 0_u64..3));
            let spared = draw(&mut runner, &proptest::option::of(0_u8..2));
            let spared = spared.map(|n| SessionId::new(millis(near), [n; 10]));
            let up_to = millis(up_to).plus(Duration::from_micros(u64::from(n % 2)));
            let cut_off = CutOff { up_to, spared };
            let key = CutOffKey::created(Scope::Subject(tenant.clone(), subject.clone()));
            let revoked = Revoked::Sessions { key, cut_off };
            let ended = Ended { at: after(at), reason, note: text(note) };
            (revoked, ended, after(9_000 + expires))
        };
        pairs.push([
            entry(EndReason::Administrative, "the first"),
            entry(EndReason::SignedOut, "the second"),
        ]);
    }
    for pair in &pairs {
        for (revoked, ended, expires_at) in pair {
            let lost = Revocation::of_lost(revoked.clone(), None, ended.clone(), *expires_at);
            store.revoke(lost).await.unwrap();
        }
    }
    let entry = |(revoked, ended, expires_at): &(Revoked, Ended, Timestamp)| {
        let lost = Revocation::of_lost(revoked.clone(), None, ended.clone(), *expires_at);
        let RevocationTarget::Lost(entry) = lost.target else { panic!("{lost:?}") };
        entry
    };
    let expected = pairs.iter().map(|[one, other]| {
        let earlier = entry(one);
        in_place_of(entry(other), &earlier)
    });
    let expected: Vec<_> = expected.collect();
    let found = store.unfinished().await.unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        let ended =
            Ended { at: expected.revoked_at, reason: expected.reason, note: expected.note.clone() };
        assert_eq!(Some(found.cut_off), expected.revoked.cut_off());
        assert_eq!((&found.ended, found.expires_at), (&ended, expected.expires_at));
    }
}

fn in_place_of(entry: BlacklistEntry, earlier: &BlacklistEntry) -> BlacklistEntry {
    let BlacklistEntry { revoked_at, reason, ref note, expires_at, unfinished, .. } = *earlier;
    let cut_off = earlier.revoked.cut_off();
    let end = || -> Result<Ended, Infallible> {
        Ok(Ended { at: revoked_at, reason, note: note.clone() })
    };
    let Ok(entry) = entry.in_place_of(&EarlierEntry { cut_off, expires_at, unfinished }, end);
    entry
}

/// A model of the database: its sessions and its blacklist entries, in memory.
struct Model {
    sessions: BTreeMap<SessionId, Session>,
    entries: HashMap<String, BlacklistEntry>,
    /// The instant of the revocation that is being decided, and the session that it spares.
    now: Timestamp,
    except: Option<SessionId>,
}

impl Model {
    fn key(revoked: &Revoked) -> String {
        match revoked {
            Revoked::Session(id) => format!("session {id}"),
            Revoked::Token(id) => format!("token {id}"),
            Revoked::Sessions { key, .. } => {
                format!("{} {}", key.kind().as_str(), key.borrowed().text())
            }
        }
    }

    fn of<'a>(
        &'a self,
        tenant: Option<&'a Tenant>,
        subject: Option<&'a Subject>,
    ) -> impl Iterator<Item = &'a Session> {
        self.sessions.values().filter(move |session| {
            tenant.is_none_or(|tenant| session.tenant == *tenant)
                && subject.is_none_or(|subject| session.subject == *subject)
        })
    }

    /// Decides a revocation, and applies the decision.
    fn revoke(&mut self, revocation: &Revocation) -> RevocationDecision {
        self.now = revocation.ended.at;
        self.except = match &revocation.target {
            RevocationTarget::Subject { except, .. } => *except,
            _ => None,
        };
        let Ok(decision) = revocation.decide(self);
        for session in &decision.ended {
            self.sessions.insert(session.id, session.clone());
        }
        for entry in decision.entries.clone() {
            let key = Self::key(&entry.revoked);
            let entry = match self.entries.get(&key) {
                Some(earlier) => in_place_of(entry, earlier),
                None => entry,
            };
            self.entries.insert(key, entry);
        }
        decision
    }
}

impl RevocationState for Model {
    type Error = Infallible;

    fn session(&mut self, id: SessionId) -> Result<Option<Session>, Infallible> {
        Ok(self.sessions.get(&id).cloned())
    }

    fn has_entry(&mut self, revoked: &Revoked) -> Result<bool, Infallible> {
        Ok(self.entries.contains_key(&Self::key(revoked)))
    }

    fn survey(&mut self, key: &CutOffKey) -> Result<Survey, Infallible> {
        let (tenant, subject) = (key.scope().tenant(), key.scope().subject());
        let cut_off = CutOff::up_to(START);
        let key = Self::key(&Revoked::Sessions { key: key.clone(), cut_off });
        let covered = self.entries.get(&key).and_then(|entry| entry.revoked.cut_off());
        let is_uncovered = |session: &&Session| {
            session.is_live(self.now)
                && Some(session.id) != self.except
                && !covered.is_some_and(|covered| covered.covers_created(session.id))
        };
        let uncovered = self.of(tenant, subject).filter(is_uncovered).count();
        let newest = self.of(tenant, subject).map(|session| session.id).max();
        Ok(Survey {
            coverage: Coverage { newest, covered },
            uncovered: Some(UncoveredCount {
                sessions: i64::try_from(uncovered).unwrap(),
                covered,
            }),
        })
    }

    fn live_sessions(
        &mut self,
        tenant: &Tenant,
        subject: &Subject,
    ) -> Result<OldestLive, Infallible> {
        let live = self.of(Some(tenant), Some(subject)).filter(|session| session.is_live(self.now));
        let mut sessions: Vec<_> = live.cloned().collect();
        let has_more = sessions.len() > MOST_ENDED_AT_ONCE;
        sessions.truncate(MOST_ENDED_AT_ONCE);
        Ok(OldestLive { sessions, has_more })
    }
}

/// A revocation of any kind, whose target may or may not exist.
fn drawn_revocation(sessions: Vec<Session>) -> impl Strategy<Value = Revocation> {
    let target = (0..8_usize, 0..sessions.len() + 3, any::<bool>());
    let rest = (
        0_u64..4_000,
        prop_oneof![9 => Just(usize::MAX), 1 => Just(0), 1 => Just(1)],
        any::<bool>(),
    );
    (target, rest).prop_map(move |((kind, n, spares), (micros, room, has_fallback))| {
        let unknown = session(u32::MAX - u32::try_from(n).unwrap());
        let named = sessions.get(n).unwrap_or(&unknown);
        let at = match kind {
            // Some sessions have expired by this time.
            0 | 1 => after(600).plus(Duration::from_millis(micros)),
            _ => START.plus(Duration::from_micros(micros)),
        };
        let ended = ended(at);
        let (tenant, subject) = (named.tenant.clone(), named.subject.clone());
        let token = named.access_token_id;
        let target = match kind {
            0 | 2 => RevocationTarget::Session(named.id),
            1 => RevocationTarget::Token { token, session_id: named.id, expires_at: after(700) },
            3 => RevocationTarget::Tenant(tenant),
            4 => {
                let except = spares.then_some(named.id);
                RevocationTarget::Subject { tenant, subject, except }
            }
            5 => {
                let other = sessions.get(n / 2).unwrap_or(&unknown).subject.clone();
                let mut subjects = vec![subject];
                subjects.extend((other != subjects[0]).then_some(other));
                RevocationTarget::Subjects { tenant, subjects }
            }
            6 => {
                let client_id = named.client_id.clone();
                let scope = match n % 4 {
                    0 => Scope::Everywhere,
                    1 => Scope::ClientEverywhere(client_id),
                    2 => Scope::Client(tenant, client_id),
                    _ => Scope::Tenant(tenant),
                };
                let before = START.plus(Duration::from_secs(micros / 1000));
                let last = before.minus(Duration::from_micros(1));
                let (key, up_to) = match (spares, micros % 2) {
                    (true, _) => (CutOffKey::authenticated(scope).unwrap(), Some(last)),
                    (false, 0) => (CutOffKey::created(scope), Some(last)),
                    (false, _) => (CutOffKey::created(scope), None),
                };
                RevocationTarget::Sessions { key, up_to }
            }
            _ => {
                let spared = named.id;
                let cut_off = CutOff { up_to: at, spared: spares.then_some(spared) };
                let key = CutOffKey::created(match spares {
                    true => Scope::Subject(tenant, subject),
                    false => Scope::Tenant(tenant),
                });
                let revoked = Revoked::Sessions { key, cut_off };
                return Revocation::of_lost(revoked, None, ended, after(9_000));
            }
        };
        let fallback = BlacklistEntry {
            unfinished: false,
            ..match kind {
                1 => BlacklistEntry::for_token(named, token, after(700), &ended),
                _ => BlacklistEntry::for_session(named, &ended),
            }
        };
        Revocation {
            target,
            ended,
            room,
            longest_token: LONGEST_TOKEN,
            fallback_entry: (has_fallback && kind <= 2).then_some(fallback),
        }
    })
}

pub async fn random_revocations_are_decided_as_the_domain_decides(store: &dyn Store) {
    const SESSIONS: u32 = 200;
    const REVOCATIONS: usize = 150;
    let mut runner = TestRunner::deterministic();
    // One subject has more sessions than one revocation ends at once.
    let many = (0..300).map(|n| Session {
        tenant: text("umbrella"),
        subject: text("dave"),
        ..session(SESSIONS + n)
    });
    let drawn = (0..SESSIONS).map(|n| draw(&mut runner, &drawn_session(n)));
    let sessions = create_all(store, drawn.collect::<Vec<_>>().into_iter().chain(many)).await;
    let mut model = Model {
        sessions: sessions.iter().map(|session| (session.id, session.clone())).collect(),
        entries: HashMap::new(),
        now: START,
        except: None,
    };
    let strategy = drawn_revocation(sessions);
    let mut seen = BTreeSet::new();
    for _ in 0..REVOCATIONS {
        let revocation = draw(&mut runner, &strategy);
        let outcome = store.revoke(revocation.clone()).await.unwrap();
        let expected = RevocationOutcome::new(&model.revoke(&revocation), outcome.position);
        assert_eq!(outcome, expected, "{revocation:?}");
        seen.insert((outcome.found, outcome.full, outcome.wrote, outcome.changed));
    }
    for session in model.sessions.values() {
        assert_eq!(read(store, session).await, *session);
    }
    let found: HashMap<_, _> = entries(store)
        .await
        .into_iter()
        .map(|entry| (Model::key(&entry.revoked), (entry.revoked, entry.expires_at)))
        .collect();
    let expected: HashMap<_, _> = model
        .entries
        .into_iter()
        .map(|(key, entry)| (key, (entry.revoked, entry.expires_at)))
        .collect();
    assert_eq!(found, expected);
    assert!(seen.len() >= 6, "too few different outcomes: {seen:?}");
}
