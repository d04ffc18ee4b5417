//! Counts the outcomes of requests, separately for each kind of caller.

use prometheus_client::metrics::counter::Counter;

use crate::domain::inactive::InactiveReason;

/// The kind of caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Envoy, and other proxies that speak Envoy's protocol.
    ExtAuthz,
    /// Gateways that ask over HTTP.
    ForwardAuth,
    /// Callers that introspect tokens (RFC 7662).
    Introspection,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::ExtAuthz, Self::ForwardAuth, Self::Introspection];

    /// Returns the name of the kind in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExtAuthz => "ext_authz",
            Self::ForwardAuth => "forward_auth",
            Self::Introspection => "introspection",
        }
    }
}

/// The outcome if the request may pass.
pub const PASSED: &str = "passed";
/// The outcome if no decision could be made. In this case the request may not pass.
pub const UNAVAILABLE: &str = "unavailable";
/// The outcome if the cookies for the token differ.
pub const CONFLICTING_COOKIES: &str = "conflicting_cookies";
/// All outcomes other than the reasons for which a token is inactive.
const OTHERS: [&str; 7] = [
    PASSED,
    UNAVAILABLE,
    "no_credential",
    "several_credentials",
    CONFLICTING_COOKIES,
    "bad_demand",
    "identity_not_told",
];

/// The number of requests with each outcome.
#[derive(Debug)]
pub struct Outcomes(Vec<(Kind, &'static str, Counter)>);

impl Default for Outcomes {
    fn default() -> Self {
        let names = || OTHERS.into_iter().chain(InactiveReason::ALL.map(InactiveReason::as_str));
        let of_kind = |kind| names().map(move |name| (kind, name, Counter::default()));
        Self(Kind::ALL.into_iter().flat_map(of_kind).collect())
    }
}

impl Outcomes {
    /// Counts an outcome.
    pub fn count(&self, kind: Kind, outcome: &str) {
        // The search needs no lock. It is cheap, because the list has a few dozen entries, with the
        // most frequent outcome of each kind first.
        if let Some((_, _, counter)) =
            self.0.iter().find(|(of, name, _)| *of == kind && *name == outcome)
        {
            counter.inc();
        }
    }

    /// Returns the counts.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, &Counter)> {
        self.0.iter().map(|(kind, name, counter)| (kind.as_str(), *name, counter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{
        demands::{Demands, DemandsError},
        denial::Denial,
        identity::HeaderTooLong,
    };

    #[test]
    fn every_outcome_is_counted() {
        let outcomes = Outcomes::default();
        let header = http::header::VIA;
        let denials = [
            Denial::NoCredential(Demands::default()),
            Denial::SeveralCredentials,
            Denial::ConflictingCookies,
            Denial::Demands(DemandsError::Twice("scope")),
            Denial::Identity(HeaderTooLong { header, bytes: 1, limit: 0 }),
        ];
        let inactive =
            InactiveReason::ALL.map(|reason| Denial::Inactive(reason, Demands::default()));
        for kind in Kind::ALL {
            denials
                .iter()
                .chain(&inactive)
                .for_each(|denial| outcomes.count(kind, denial.as_str()));
            outcomes.count(kind, PASSED);
            outcomes.count(kind, UNAVAILABLE);
        }
        for (kind, name, counter) in outcomes.iter() {
            assert_eq!(counter.get(), 1, "{kind} {name}");
        }
    }
}
