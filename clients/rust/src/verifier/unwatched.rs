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
            let _ = timeout(self.delay(delay), self.local.unknown_key.notified()).await;
        }
    }

    /// Returns the time until keys are fetched again that the service allows to cache for
    /// `max_age`. It must be well before they may no longer be used.
    fn delay(&self, max_age: Duration) -> Duration {
        max_age.min(LONGEST_DELAY).min(self.keys_valid_for / 2)
    }

    fn take(&self, jwks: &str, start: Start) {
        let Some(keys) = KeySet::read(jwks, vec![]) else {
            tracing::error!("the public keys that the service has sent cannot be read");
            return;
        };
        let lease = (start, self.keys_valid_for);
        let copy = self.local.replace(Arc::new(keys), self.rules.clone(), Some(lease));
        self.local.take(&copy, start, self.keys_valid_for);
    }
}

#[cfg(test)]
mod tests {
    use countersign_verification::{clock::SystemClock, reach::Reach};

    use super::*;

    #[tokio::test]
    async fn keys_are_fetched_again_before_they_may_no_longer_be_used() {
        let fetching = |keys_valid_for| Fetching {
            client: Client::builder("http://127.0.0.1:1").build().unwrap(),
            local: Arc::new(Local::new(Arc::new(SystemClock), 0)),
            rules: Arc::new(Rules {
                issuer: String::new(),
                max_lifetime: Duration::ZERO,
                leeway: Duration::ZERO,
                reach: Reach::default(),
                lease_margin: Duration::MAX,
            }),
            keys_valid_for,
        };
        let (max_age, hour) = (Duration::from_secs(300), Duration::from_secs(3600));
        assert_eq!(fetching(hour).delay(max_age), max_age);
        assert_eq!(fetching(hour).delay(hour), LONGEST_DELAY);
        let brief = Duration::from_secs(30);
        assert_eq!(fetching(brief).delay(max_age), brief / 2);
    }
}
