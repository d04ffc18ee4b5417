//! Logs client certificates that were refused. Without the log, operators would not notice that a
//! certificate was not renewed, because the TLS alert tells the client little.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::tls::RefusedCertificate;

/// The time after which another line may be logged once a burst is used up.
const PERIOD: Duration = Duration::from_secs(10);
/// The number of lines that may be logged in a burst.
const BURST: u32 = 10;

/// The warnings of one port. Each kind of warning has a limit of its own, so that probes without a
/// certificate do not hide an expired certificate.
#[derive(Debug, Default)]
pub struct RefusedCertificates {
    missing: Warnings,
    bad: Warnings,
}

impl RefusedCertificates {
    /// Logs a refused certificate and the reason, unless too many were refused lately.
    pub fn warn(&self, peer: IpAddr, refused: &RefusedCertificate) {
        match refused {
            RefusedCertificate::Missing => {
                self.missing
                    .warn(peer, "none was shown, and tls.client_certificates is \"required\"");
            }
            RefusedCertificate::Bad(reason) => self.bad.warn(peer, reason),
        }
    }
}

/// Warnings of one kind. Their number is limited, because clients try again and again.
#[derive(Debug)]
struct Warnings {
    limiter: Option<DefaultDirectRateLimiter>,
    /// The number of refusals since the last line, none of which was logged.
    omitted: AtomicU64,
}

impl Default for Warnings {
    fn default() -> Self {
        let burst = BURST.try_into().unwrap_or(std::num::NonZeroU32::MIN);
        let limiter =
            Quota::with_period(PERIOD).map(|quota| RateLimiter::direct(quota.allow_burst(burst)));
        Self { limiter, omitted: AtomicU64::new(0) }
    }
}

impl Warnings {
    fn warn(&self, peer: IpAddr, reason: &str) {
        if self.limiter.as_ref().is_some_and(|limiter| limiter.check().is_err()) {
            self.omitted.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let omitted = self.omitted.swap(0, Ordering::Relaxed);
        tracing::warn!(
            peer = %peer.to_canonical(),
            reason,
            omitted,
            "a client's certificate was refused"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_beyond_the_limit_are_counted_instead_of_logged() {
        let refused = RefusedCertificates::default();
        let expired = RefusedCertificate::Bad("it has expired".to_owned());
        (0..1000).for_each(|_| refused.warn([192, 0, 2, 1].into(), &expired));
        assert!(refused.bad.omitted.load(Ordering::Relaxed) > 900);
    }

    #[test]
    fn clients_without_a_certificate_do_not_hide_an_expired_one() {
        let refused = RefusedCertificates::default();
        (0..1000).for_each(|_| refused.warn([192, 0, 2, 1].into(), &RefusedCertificate::Missing));
        refused.warn([192, 0, 2, 2].into(), &RefusedCertificate::Bad("it has expired".to_owned()));
        assert!(refused.missing.omitted.load(Ordering::Relaxed) > 900);
        assert_eq!(refused.bad.omitted.load(Ordering::Relaxed), 0);
    }
}
