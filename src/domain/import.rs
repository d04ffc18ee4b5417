//! Decides how long a session of another system lives on in this one.

use std::time::Duration;

use super::{policy::Policy, time::Timestamp};

/// The times of a session in the other system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportedTimes {
    /// The instant at which the session began.
    pub created_at: Timestamp,
    /// The instant of the last refresh; none if there was none.
    pub refreshed_at: Option<Timestamp>,
    /// The instant at which the user authenticated; none if that was the beginning of the session.
    pub authenticated_at: Option<Timestamp>,
    /// The end of the session's lifetime; none if the policy alone decides.
    pub expires_at: Option<Timestamp>,
}

/// The times that an imported session has here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The instant at which the session began.
    pub created_at: Timestamp,
    /// The instant of the last refresh.
    pub refreshed_at: Timestamp,
    /// The instant at which the user authenticated.
    pub authenticated_at: Timestamp,
    /// The instant at which the session expires unless it is refreshed.
    pub idle_expires_at: Timestamp,
    /// The instant at which the session expires even if it is refreshed.
    pub expires_at: Timestamp,
}

/// A time that no session can have. The displayed text completes a sentence that starts with the
/// name of the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeProblem {
    /// Identifiers of sessions hold the time of creation as milliseconds since 1970.
    #[error("is before 1970")]
    TooEarly,
    /// The instant is later than now.
    #[error("is in the future")]
    InTheFuture,
    /// The session was refreshed before it began.
    #[error("is before created_at")]
    BeforeCreation,
}

impl ImportedTimes {
    /// Returns the times of the session under a policy, or the name of the field with a problem. An
    /// import never makes a lifetime longer: both time-outs of the policy count from the times of
    /// the other system. `leeway` is the time by which the clock of that system may be ahead;
    /// instants within it count as `now`.
    pub fn under(
        self,
        policy: &Policy,
        now: Timestamp,
        leeway: Duration,
    ) -> Result<Lifetime, (&'static str, TimeProblem)> {
        let past = |field: &'static str, at: Timestamp| match at > now.plus(leeway) {
            true => Err((field, TimeProblem::InTheFuture)),
            false => Ok(at.min(now)),
        };
        if self.created_at < Timestamp::from_micros(0) {
            return Err(("created_at", TimeProblem::TooEarly));
        }
        let created_at = past("created_at", self.created_at)?;
        let refreshed_at = past("refreshed_at", self.refreshed_at.unwrap_or(created_at))?;
        if refreshed_at < created_at {
            return Err(("refreshed_at", TimeProblem::BeforeCreation));
        }
        let authenticated_at =
            past("authenticated_at", self.authenticated_at.unwrap_or(created_at))?;
        let latest = created_at.plus(policy.absolute_lifetime);
        let expires_at = self.expires_at.map_or(latest, |expires_at| expires_at.min(latest));
        let idle_expires_at = policy.session.idle_expiry(refreshed_at, expires_at);
        Ok(Lifetime { created_at, refreshed_at, authenticated_at, idle_expires_at, expires_at })
    }
}

impl Lifetime {
    /// Returns whether the session is live at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        now < self.idle_expires_at
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{policy::OnQuota, session::tests::session},
        *,
    };

    const NOW: Timestamp = Timestamp::from_seconds(1_700_000_000);
    const SECOND: Duration = Duration::from_secs(1);
    const LEEWAY: Duration = Duration::from_secs(5);
    const TICK: Duration = Duration::from_micros(1);

    /// A policy with an idle time-out of ten minutes and a lifetime of an hour.
    fn policy() -> Policy {
        Policy {
            session: session().policy,
            absolute_lifetime: SECOND * 3600,
            reauthentication_extends: false,
            max_sessions_per_subject: 1,
            on_quota: OnQuota::Refuse,
            apply_to_live: false,
        }
    }

    fn times(created_at: Timestamp) -> ImportedTimes {
        ImportedTimes { created_at, refreshed_at: None, authenticated_at: None, expires_at: None }
    }

    fn under(times: ImportedTimes) -> Result<Lifetime, (&'static str, TimeProblem)> {
        times.under(&policy(), NOW, LEEWAY)
    }

    #[test]
    fn both_time_outs_count_from_the_times_of_the_other_system() {
        let created_at = NOW.minus(SECOND * 3000);
        let refreshed_at = NOW.minus(SECOND * 100);
        let lifetime =
            under(ImportedTimes { refreshed_at: Some(refreshed_at), ..times(created_at) });
        let lifetime = lifetime.unwrap();
        assert_eq!(lifetime.expires_at, created_at.plus(SECOND * 3600));
        assert_eq!(lifetime.idle_expires_at, refreshed_at.plus(SECOND * 600));
        assert_eq!(lifetime.authenticated_at, created_at);
        assert!(lifetime.is_live(NOW));

        let idle = under(times(NOW.minus(SECOND * 600))).unwrap();
        assert!(!idle.is_live(NOW), "at the very instant it has ended");
        assert!(idle.is_live(NOW.minus(TICK)));
    }

    #[test]
    fn a_given_end_may_only_be_earlier_than_that_of_the_policy() {
        let latest = NOW.plus(SECOND * 3600);
        for (given, expected) in [
            (latest.plus(TICK), latest),
            (latest.minus(TICK), latest.minus(TICK)),
            (NOW.plus(SECOND), NOW.plus(SECOND)),
        ] {
            let lifetime = under(ImportedTimes { expires_at: Some(given), ..times(NOW) }).unwrap();
            assert_eq!(lifetime.expires_at, expected);
            assert!(lifetime.idle_expires_at <= expected);
        }
        let ended = under(ImportedTimes { expires_at: Some(NOW), ..times(NOW) }).unwrap();
        assert!(!ended.is_live(NOW));
    }

    #[test]
    fn times_in_the_future_are_refused_beyond_the_leeway_and_count_as_now_within_it() {
        let (ahead, edge) = (NOW.plus(LEEWAY + TICK), NOW.plus(LEEWAY));
        assert_eq!(under(times(ahead)), Err(("created_at", TimeProblem::InTheFuture)));
        assert_eq!(under(times(edge)), under(times(NOW)));
        for (field, given) in [
            ("refreshed_at", ImportedTimes { refreshed_at: Some(ahead), ..times(NOW) }),
            ("authenticated_at", ImportedTimes { authenticated_at: Some(ahead), ..times(NOW) }),
        ] {
            assert_eq!(under(given), Err((field, TimeProblem::InTheFuture)));
        }
    }

    #[test]
    fn times_that_contradict_each_other_are_refused() {
        let before = ImportedTimes { refreshed_at: Some(NOW.minus(TICK)), ..times(NOW) };
        assert_eq!(under(before), Err(("refreshed_at", TimeProblem::BeforeCreation)));
        let early = times(Timestamp::from_micros(-1));
        assert_eq!(under(early), Err(("created_at", TimeProblem::TooEarly)));
        assert!(under(times(Timestamp::from_micros(0))).is_ok(), "it has expired");
    }
}
