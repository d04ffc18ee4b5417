//! Fetches the public keys for a verifier that knows nothing else.

use std::{sync::Arc, time::Duration};

use countersign_verification::lease::Start;
use tokio::time::{sleep, timeout};

use super::{KeySet, Local, Rules, revocations::duration};
use crate::{Client, proto::GetJwksRequest};

/// The least time between two fetches.
const LEAST_DELAY: Duration = Duration::from_secs(1);
/// The time after which keys are fetched again that the service would allow to cache for longer.
const LONGEST_DELAY: Duration = Duration::from_secs(600);

/// The background task of a verifier without a watch.
pub(super) struct Fetching {
    pub(super) client: Client,
    pub(super) local: Arc<Local>,
    pub(super) rules: Arc<Rules>,
    pub(super) keys_valid_for: Duration,
}

impl Fetching {
    /// Fetches the keys again and again.
    pub(super) async fn run(self) {
        loop {
            self.local.count_connection();
            let start = self.local.copy().lease.start();
            let delay = match self.client.get_jwks(GetJwksRequest {}).await {
                Ok(answer) => {
                    self.take(&answer.jwks, start);
                    duration(answer.max_age).unwrap_or_default()
                }
                Err(error) => {
                    tracing::warn!(%error, "the public keys could not be fetched");
                    Duration::ZERO
                }
            };
            sleep(LEAST_DELAY).await;
            // A token with a new key may have arrived.
            let _ = timeout(delay.min(LONGEST_DELAY), self.local.unknown_key.notified()).await;
        }
    }

    fn take(&self, jwks: &str, start: Start) {
        let Some(keys) = KeySet::read(jwks, vec![]) else {
            tracing::error!("the public keys that the service has sent cannot be read");
            return;
        };
        let copy = self.local.replace(Arc::new(keys), self.rules.clone());
        self.local.take(&copy, start, self.keys_valid_for);
    }
}
