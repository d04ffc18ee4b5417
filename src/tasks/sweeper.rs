//! Runs the sweeps at the times of the schedule in the configuration.

use std::{sync::Arc, time::Duration};

use croner::Cron;
use jiff::tz::TimeZone;
use tokio::sync::watch;

use crate::{
    authority::{Authority, error::AuthorityError, sweep::Swept},
    clock::Clock,
    domain::time::Timestamp,
};

/// The wait before the schedule is evaluated again, if it has no next time.
const NEVER: Duration = Duration::from_secs(86_400);

/// Sweeps at the times of the schedule, but only while this replica holds a lease. Without a lease,
/// the clock may be wrong, and rows that have not expired may seem expired. In that case another
/// replica sweeps, or this replica at the next time.
pub async fn run(
    authority: Arc<Authority>,
    clock: Arc<dyn Clock>,
    mut schedule: watch::Receiver<Cron>,
) {
    loop {
        let wait = until_next(&schedule.borrow_and_update(), clock.now());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Ok(()) = schedule.changed() => continue,
        }
        if !authority.is_current() {
            tracing::info!("this sweep is skipped, because this replica holds no lease");
            continue;
        }
        let started = clock.uptime();
        match authority.sweep().await {
            Ok(swept) => {
                let took_ms = u64::try_from(clock.uptime().saturating_sub(started).as_millis())
                    .unwrap_or(u64::MAX);
                if swept == Swept::default() {
                    tracing::debug!(took_ms, "swept, nothing was due");
                } else {
                    let Swept { revocations, sessions, audit, expired } = swept;
                    tracing::info!(revocations, sessions, audit, expired, took_ms, "swept");
                }
            }
            // The rows stay due, so the next sweep deletes them.
            Err(AuthorityError::StoreUnavailable) => {
                tracing::warn!("the sweep stopped early; the next sweep continues")
            }
            Err(error) => {
                tracing::error!(%error, "the sweep stopped early; the next sweep continues")
            }
        }
    }
}

/// Returns the time to wait until the schedule's next time. The schedule is in UTC.
fn until_next(schedule: &Cron, now: Timestamp) -> Duration {
    let next = jiff::Timestamp::from_microsecond(now.micros())
        .ok()
        .and_then(|now| schedule.find_next_occurrence(&now.to_zoned(TimeZone::UTC), false).ok())
        .map(|next| Timestamp::from_micros(next.timestamp().as_microsecond()));
    next.map_or(NEVER, |next| next.since(now))
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[test]
    fn the_next_time_is_strictly_after_now() {
        let schedule = |pattern| Cron::from_str(pattern).unwrap();
        // 2023-11-14T22:13:20Z
        let now = Timestamp::from_seconds(1_700_000_000);
        assert_eq!(until_next(&schedule("* * * * *"), now), Duration::from_secs(40));
        assert_eq!(until_next(&schedule("0 0 * * *"), now), Duration::from_secs(6400));
        assert_eq!(until_next(&schedule("* * * * * *"), now), Duration::from_secs(1));
        assert_eq!(until_next(&schedule("0 0 30 2 *"), now), NEVER);
    }
}
