//! Warns of client certificates that were refused: their owners learn little from the alert of TLS,
//! and whoever runs the service would not know that a certificate was not renewed.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// After a burst, at most one line in this time.
const PERIOD: Duration = Duration::from_secs(10);
/// Lines that may come at once.
const BURST: u32 = 10;

/// The warnings of one port, so many at most: clients try again and again.
#[derive(Debug)]
pub struct RefusedCertificates {
    limiter: Option<DefaultDirectRateLimiter>,
    /// Refusals since the last line that have none of their own.
    omitted: AtomicU64,
}

impl Default for RefusedCertificates {
    fn default() -> Self {
        let burst = BURST.try_into().unwrap_or(std::num::NonZeroU32::MIN);
        let limiter = Quota::with_period(PERIOD).map(|quota| RateLimiter::direct(quota.allow_burst(burst)));
        Self { limiter, omitted: AtomicU64::new(0) }
    }
}

impl RefusedCertificates {
    /// Logs who showed which bad certificate, unless there were too many of late.
    pub fn warn(&self, peer: IpAddr, reason: &str) {
        if self.limiter.as_ref().is_some_and(|limiter| limiter.check().is_err()) {
            self.omitted.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let omitted = self.omitted.swap(0, Ordering::Relaxed);
        tracing::warn!(peer = %peer.to_canonical(), reason, omitted, "a client's certificate was refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_many_refusals_have_no_line_of_their_own_but_are_counted() {
        let refused = RefusedCertificates::default();
        (0..1000).for_each(|_| refused.warn([192, 0, 2, 1].into(), "it has expired"));
        assert!(refused.omitted.load(Ordering::Relaxed) > 900);
    }
}
