//! Checks the certificate of the service.

use std::{sync::Arc, time::Duration};

use super::finding::Finding;
use crate::{
    app::AppError,
    domain::time::Timestamp,
    net::tls::{Tls, format_rfc3339},
};

const CHECK: &str = "certificate";
const DAY: Duration = Duration::from_secs(86_400);
/// The time before the expiry of a certificate from which there is a warning.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// Checks the certificate, its key and the certificate authorities; `None` if nothing is encrypted.
pub fn check(opened: &Result<Option<Arc<Tls>>, AppError>, now: Timestamp) -> Option<Finding> {
    match opened {
        Ok(None) => None,
        Ok(Some(tls)) => Some(check_validity(
            &tls.files().certificate.display().to_string(),
            tls.begins_at(),
            tls.expires_at(),
            now,
        )),
        Err(error) => Some(Finding::error(
            CHECK,
            error,
            "correct the path, or put a certificate, its key and its authorities there that go \
             together, which the user of the service can read",
        )),
    }
}

/// Checks the time in which a certificate is valid. Its key has been found to match.
fn check_validity(
    file: &str,
    begins_at: Timestamp,
    expires_at: Timestamp,
    now: Timestamp,
) -> Finding {
    if now < begins_at {
        return Finding::fail(
            CHECK,
            format!("{file} is not valid before {}", format_rfc3339(begins_at)),
            "set the clock of this machine, or use a certificate that is valid now",
        );
    }
    let left = expires_at.since(now);
    let days = left.as_secs() / DAY.as_secs();
    let days = if days == 1 { "1 day".to_owned() } else { format!("{days} days") };
    let finding = format!(
        "{file} is valid until {}, for {days}, and its key matches",
        format_rfc3339(expires_at)
    );
    match left < SOON {
        true => {
            Finding::warn(CHECK, finding, "renew it; a running service loads the new one by itself")
        }
        false => Finding::ok(CHECK, finding),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Status, *};

    #[test]
    fn a_certificate_is_good_until_two_weeks_before_its_expiry() {
        let start = Timestamp::from_seconds(1_800_000_000);
        let end = start.plus(DAY * 30);
        let status = |now| check_validity("c.pem", start, end, now).status;
        assert_eq!(status(start.minus(Duration::from_secs(1))), Status::Fail);
        assert_eq!(status(start), Status::Ok);
        assert_eq!(status(end.minus(DAY * 14)), Status::Ok);
        let soon = check_validity("c.pem", start, end, end.minus(DAY * 13 + DAY / 2));
        assert_eq!(soon.status, Status::Warn);
        assert!(soon.finding.contains("for 13 days"), "{soon:?}");
    }
}
