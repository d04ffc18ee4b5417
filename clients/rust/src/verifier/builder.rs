//! The settings of verifiers that verify locally.

use std::{sync::Arc, time::Duration};

use countersign_verification::{
    clock::{Clock, SystemClock},
    reach::Reach,
};
use tokio_util::task::AbortOnDropHandle;

use super::{Local, Mode, OnLapse, Rules, Verifier, unwatched::Fetching, watching::Watching};
use crate::Client;

/// The memory for tokens whose signature was verified, in bytes.
const CACHE_BYTES: u64 = 32 << 20;

/// The margin of a lease that no clock can break.
const ANY_MARGIN: Duration = Duration::MAX;

/// The settings of [`Verifier::local`].
#[must_use]
pub struct LocalBuilder {
    client: Client,
    on_lapse: OnLapse,
    cache_bytes: u64,
    clock: Arc<dyn Clock>,
}

impl LocalBuilder {
    pub(super) fn new(client: Client) -> Self {
        let (on_lapse, clock) = (OnLapse::default(), Arc::new(SystemClock));
        Self { client, on_lapse, cache_bytes: CACHE_BYTES, clock }
    }

    /// Sets the behaviour without a lease: [`OnLapse::Validate`] by default.
    pub fn on_lapse(mut self, on_lapse: OnLapse) -> Self {
        self.on_lapse = on_lapse;
        self
    }

    /// Sets the memory for tokens whose signature was verified: 32 MiB by default, which is room for
    /// some 30,000 tokens.
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Takes the time from this clock, for tests.
    #[cfg(feature = "testing")]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Starts the verifier, which connects in the background. Call this within a Tokio runtime, and
    /// wait for [`Verifier::ready`] before the first request if it must not cost a call.
    pub fn start(self) -> Verifier {
        let local = Arc::new(Local::new(self.clock, self.cache_bytes));
        let watching = Watching::new(self.client.clone(), local.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(watching.run()));
        let fallback = (self.on_lapse == OnLapse::Validate).then_some(self.client);
        Verifier::new(Mode::Local, Some(local), fallback, Some(task))
    }
}

/// The settings of [`Verifier::local_unwatched`].
#[must_use]
pub struct UnwatchedBuilder {
    client: Client,
    rules: Rules,
    keys_valid_for: Duration,
    cache_bytes: u64,
    clock: Arc<dyn Clock>,
}

impl UnwatchedBuilder {
    pub(super) fn new(client: Client, issuer: String) -> Self {
        let rules = Rules {
            issuer,
            max_lifetime: Duration::from_secs(3600),
            leeway: Duration::from_secs(5),
            reach: Reach::default(),
            lease_margin: ANY_MARGIN,
        };
        Self {
            client,
            rules,
            keys_valid_for: Duration::from_secs(3600),
            cache_bytes: CACHE_BYTES,
            clock: Arc::new(SystemClock),
        }
    }

    /// Sets the longest time between `iat` and `exp` of a token: 1 h by default. It should be the
    /// setting `tokens.max_access_token_ttl` of the service.
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.rules.max_lifetime = lifetime;
        self
    }

    /// Sets the time by which `iat` and `nbf` may be later than the clock: 5 s by default.
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.rules.leeway = leeway;
        self
    }

    /// Sets the time for which keys are used that cannot be fetched again: 1 h by default. After
    /// that nothing is known, and every answer is unknown.
    pub fn keys_valid_for(mut self, time: Duration) -> Self {
        self.keys_valid_for = time;
        self
    }

    /// Sets the memory for tokens whose signature was verified: 32 MiB by default.
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Takes the time from this clock, for tests.
    #[cfg(feature = "testing")]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Starts the verifier, which fetches the keys in the background. Call this within a Tokio
    /// runtime, and wait for [`Verifier::ready`] before the first request.
    pub fn start(self) -> Verifier {
        let local = Arc::new(Local::new(self.clock, self.cache_bytes));
        let fetching = Fetching {
            client: self.client,
            local: local.clone(),
            rules: Arc::new(self.rules),
            keys_valid_for: self.keys_valid_for,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(fetching.run()));
        Verifier::new(Mode::LocalUnwatched, Some(local), None, Some(task))
    }
}

macro_rules! opaque_debug {
    ($($builder:ident),+) => {
        $(impl std::fmt::Debug for $builder {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($builder))
                    .field("client", &self.client)
                    .finish_non_exhaustive()
            }
        })+
    };
}

opaque_debug!(LocalBuilder, UnwatchedBuilder);
