//! The use cases: the operations that the service performs for its callers. The database, the keys,
//! the index and the clock are passed to them.

pub mod audit;
pub mod audit_search;
mod authentication_times;
pub mod change;
pub mod counts;
pub mod create;
mod cut_offs;
pub mod error;
mod fingerprint;
pub mod import;
pub mod inspect;
pub mod issue;
pub mod keys;
pub mod metadata;
pub mod new_authentication;
pub mod new_session;
pub mod page;
pub mod rate_limiter;
pub mod ready;
pub mod refresh;
mod refresh_token;
pub mod revoke;
pub mod sessions_target;
mod slow_clock;
pub mod sweep;
pub mod validate;
pub mod watch;
pub mod wide_revoke;

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use countersign_verification::validate::ClockTolerance;
use tokio::sync::{Mutex, OnceCell, Semaphore};
use tracing::{Instrument, Span};

use self::{
    audit::Audit, counts::Counts, error::AuthorityError, import::IMPORTS_AT_ONCE, keys::Rotating,
    page::PAGES_AT_ONCE, sweep::Sweeper,
};
use crate::{
    clock::Clock,
    domain::{
        caller::Actor, ids::SessionId, key::RefreshKeyId, live_policy::LivePolicies,
        permission::Operation, policies::Policies, revocation::FeedPosition,
        rotation::RotationRules, text::Acr,
    },
    instruments::times::{Part, part},
    keys::keeper::Keeper,
    revocation::replica::{AckError, Epoch, Replica},
    rng::{Rng, random},
    store::{Store, counts::StoreCounts},
    token::verified_cache::VerifiedCache,
};

/// The part of the configuration that the use cases need. It may be replaced while calls are under
/// way ([`Authority::replace_settings`]); each decision uses one version.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The `iss` of access tokens.
    pub issuer: String,
    /// The time by which the clock of an issuer may be ahead of the clock of a validator.
    pub leeway: Duration,
    /// The time by which the clock of a replica may differ from the clock of the database; zero if
    /// there is only one process.
    pub max_clock_skew: Duration,
    /// The longest lifetime that an access token may have.
    pub max_access_token_ttl: Duration,
    /// The longest lifetime that an access token may have had under any settings since the start.
    /// An entry for sessions that have no row is kept for as long.
    pub longest_token: Duration,
    /// The order of `acr` values, from the weakest to the strongest.
    pub acr_order: Arc<[Acr]>,
    /// True if refresh tokens of another system are accepted for sessions that were imported with
    /// them.
    pub legacy_refresh_tokens: bool,
    /// The policies of sessions, and the rules that choose among them.
    pub policies: Policies,
    /// The policies that apply to live sessions.
    pub live_policies: Arc<LivePolicies>,
    /// The largest number of blacklist entries. Once there are so many, Revoke adds no new ones.
    pub max_blacklist_entries: usize,
    /// The number of rows that are deleted in one transaction.
    pub sweep_batch: i64,
    /// The time for which a session is kept after it has ended.
    pub session_retention: Duration,
    /// True if audit records are stored in a table.
    pub audit_table: bool,
    /// The time for which an audit record is kept in the table.
    pub audit_retention: Duration,
    /// The size of the cache of verified tokens, in bytes. It is read only at the start.
    pub token_cache_bytes: u64,
    /// The rotation of the keys of access tokens.
    pub signing_rotation: RotationRules,
    /// The rotation of the keys of refresh tokens.
    pub refresh_rotation: RotationRules,
    /// The time for which a verifier may use the public keys before it fetches them again.
    pub jwks_max_age: Duration,
}

impl Settings {
    /// Returns the tolerance for clocks.
    fn clock_tolerance(&self) -> ClockTolerance {
        ClockTolerance { leeway: self.leeway, max_clock_skew: self.max_clock_skew }
    }
}

/// The parts that the use cases need.
pub struct Dependencies {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The keys.
    pub keeper: Arc<Keeper>,
    /// The index of revocations and its lease.
    pub replica: Arc<Replica>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub rng: Arc<dyn Rng>,
    /// The audit.
    pub audit: Audit,
}

/// All use cases.
pub struct Authority {
    store: Arc<dyn Store>,
    keeper: Arc<Keeper>,
    replica: Arc<Replica>,
    verified: VerifiedCache,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    audit: Audit,
    settings: ArcSwap<Settings>,
    sweeper: Mutex<Sweeper>,
    rotating: Mutex<Rotating>,
    /// Limits the number of calls that read and convert the sessions of a page at the same time.
    pages: Semaphore,
    /// Limits the number of imports that write at the same time.
    imports: Semaphore,
    /// Set once the database has on record that there are watchers.
    watched: OnceCell<()>,
    counts: Counts,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("settings", &self.settings.load()).finish_non_exhaustive()
    }
}

impl Authority {
    /// Creates the use cases.
    pub fn new(dependencies: Dependencies, settings: Settings) -> Self {
        let Dependencies { store, keeper, replica, clock, rng, audit } = dependencies;
        Self {
            store,
            keeper,
            replica,
            verified: VerifiedCache::with_capacity(settings.token_cache_bytes),
            sweeper: Mutex::new(Sweeper::new(&*clock)),
            rotating: Mutex::new(Rotating::new(&*clock)),
            clock,
            rng,
            audit,
            settings: ArcSwap::from_pointee(settings),
            pages: Semaphore::new(PAGES_AT_ONCE),
            imports: Semaphore::new(IMPORTS_AT_ONCE),
            watched: OnceCell::new(),
            counts: Counts::default(),
        }
    }

    /// Returns the settings in force.
    fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Replaces the settings. Calls that have begun continue with the earlier ones.
    pub fn replace_settings(&self, settings: Settings) {
        let longest_token = settings.longest_token.max(self.settings.load().longest_token);
        self.settings.store(Arc::new(Settings { longest_token, ..settings }));
    }

    /// Returns the audit, which records actions and denied calls.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Returns the counts of the use cases.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns the counts of the store.
    pub fn store_counts(&self) -> StoreCounts {
        self.store.counts()
    }

    /// Returns the cache of verified tokens.
    pub fn verified_tokens(&self) -> &VerifiedCache {
        &self.verified
    }

    /// Records that a caller asked for something out of its reach, and returns the error for it.
    fn not_allowed(
        &self,
        by: &Actor,
        operation: Operation,
        problem: impl ToString,
    ) -> AuthorityError {
        let problem = problem.to_string();
        self.audit.denied(by.into(), by.peer, by.call.clone(), &problem);
        AuthorityError::CallerNotAllowed {
            name: by.caller.name.to_string(),
            call: operation.as_str(),
            problem,
        }
    }

    /// Returns whether this replica holds a lease. If it holds none, its clock may be wrong, or it
    /// may be unable to reach the database.
    pub fn is_current(&self) -> bool {
        self.replica.lease().remaining().is_some()
    }

    /// Waits until this replica holds a lease, so that it does not issue tokens under a key that
    /// was revoked. If no key is active, waits for a renewal, because another replica may have
    /// activated the next key already.
    async fn ensure_current(&self) -> Result<(), AuthorityError> {
        if !self.is_current() || !self.keeper.ring().makes_tokens() {
            part(Part::Renewal, self.replica.renewed()).await.map_err(uncertain)?;
        }
        if self.keeper.ring().makes_tokens() { Ok(()) } else { Err(no_key()) }
    }

    /// Returns the key under which new refresh tokens are issued.
    fn refresh_key(&self) -> Result<RefreshKeyId, AuthorityError> {
        self.keeper.ring().active_refresh().ok_or_else(no_key)
    }

    fn random<const N: usize>(&self) -> Result<[u8; N], AuthorityError> {
        Ok(random(&*self.rng)?)
    }

    /// Waits until a renewal that is sent now has been committed. A decision that rests only on
    /// reads must wait for this, because after a failover the old primary may still answer reads,
    /// although it lacks later writes. The old primary can no longer commit a renewal.
    async fn wait_until_confirmed(&self) -> Result<(), AuthorityError> {
        part(Part::Renewal, self.replica.renewed()).await.map(drop).map_err(uncertain)
    }

    /// Waits until every replica either has applied the feed up to this position or no longer holds
    /// a lease. The transaction that committed at the position must have begun in this epoch. A
    /// call that found nothing to write passes the latest position of the feed that it read.
    async fn wait_until_acknowledged(
        &self,
        epoch: Epoch,
        position: FeedPosition,
    ) -> Result<(), AuthorityError> {
        let span = tracing::info_span!("acknowledgement");
        let waiting = self.replica.acknowledged(epoch, position).instrument(span);
        part(Part::Acknowledgement, waiting).await.map_err(uncertain)
    }
}

/// Records the session of the current call in the span of the call.
fn note_session(tenant: Option<&str>, session: Option<SessionId>) {
    let span = Span::current();
    if let Some(tenant) = tenant {
        span.record("tenant", tenant);
    }
    if let Some(session) = session {
        span.record("session_id", tracing::field::display(session));
    }
}

fn no_key() -> AuthorityError {
    let error = AuthorityError::NoActiveKey;
    tracing::error!("{error}");
    error
}

fn uncertain(error: AckError) -> AuthorityError {
    tracing::warn!(%error, "a call failed");
    match error {
        AckError::NotCurrent => AuthorityError::NotCurrent,
        AckError::NotAcknowledged => AuthorityError::StoreUnavailable,
    }
}
