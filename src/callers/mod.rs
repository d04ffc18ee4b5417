//! Identifies callers by an API key or a certificate, and admits their calls within their limits.

pub mod api_key;
pub mod meter;

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use prometheus_client::metrics::counter::Counter;

use self::{
    api_key::ApiKeyHash,
    meter::{CallPermit, CallerLimits, Ceilings, ConcurrencyLimits, Meter, Work, WorkPermit},
};
use crate::{
    clock::Clock,
    domain::{caller::Caller, certificate_name::CertificateName, permission::Operation, who::Who},
};

/// The reason why a call was not admitted. The call has had no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There are no credentials, or they belong to no caller.
    Unknown,
    /// The caller is known, but may not perform the operation.
    NotAllowed {
        /// The caller.
        caller: Arc<Caller>,
        /// The operation that the caller asked for.
        operation: Operation,
    },
    /// The caller has too many calls under way, or began too many within a short time.
    OverLimit {
        /// The time after which it may try again.
        wait: Duration,
    },
    /// The service has reached a limit for all callers together.
    Overloaded {
        /// The time after which it may try again.
        wait: Duration,
    },
}

impl Refusal {
    /// Returns the caller for the audit record of a denied call. Returns `None` if a limit was
    /// reached, because the audit does not record such refusals.
    pub fn denied_caller(&self) -> Option<Who> {
        match self {
            Self::Unknown => Some(Who::Unknown),
            Self::NotAllowed { caller, .. } => Some(Who::from(&**caller)),
            Self::OverLimit { .. } | Self::Overloaded { .. } => None,
        }
    }
}

/// A caller in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The caller, and what it may do.
    pub caller: Arc<Caller>,
    /// The hashes of its API keys.
    pub keys: Vec<ApiKeyHash>,
    /// The names in its certificates.
    pub certificate_names: Vec<CertificateName>,
    /// The limits of the caller.
    pub limits: CallerLimits,
}

/// The credentials of a call. They need not belong to a caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credentials<'a> {
    /// The API key, if one was sent.
    pub api_key: Option<&'a str>,
    /// The names in the client's certificate, which the TLS handshake has verified.
    pub certificate_names: &'a [CertificateName],
    /// The name of the caller, if one was sent. It must be the name of the caller to which the key
    /// or the certificate belongs.
    pub name: Option<&'a str>,
}

/// The numbers of refused calls since the start of the process.
#[derive(Debug, Default)]
pub struct Refused {
    /// Calls whose credentials are missing or belong to no caller.
    pub unknown: Counter,
    /// Calls that the caller's roles or reach do not allow.
    pub not_allowed: Counter,
    /// Calls beyond the limits of one caller.
    pub over_limit: Counter,
    /// Calls beyond the limits of all callers together.
    pub overloaded: Counter,
}

#[derive(Clone, Debug)]
struct Known {
    registration: Registration,
    meter: Arc<Meter>,
}

/// The callers of one version of the configuration.
#[derive(Debug, Default)]
struct Table {
    /// The callers by the first bytes of the hash of an API key.
    by_key: HashMap<[u8; 8], Vec<(ApiKeyHash, Arc<Known>)>>,
    by_certificate: HashMap<CertificateName, Arc<Known>>,
    all: Vec<Arc<Known>>,
    /// The caller that represents everybody if no caller is configured.
    anybody: Option<Arc<Known>>,
}

/// The known callers. They can be replaced while the service runs.
#[derive(Debug)]
pub struct Callers {
    table: ArcSwap<Table>,
    concurrency: Arc<ConcurrencyLimits>,
    clock: ClockHandle,
    refused: Refused,
}

/// A clock that implements `Debug`, as `Callers` requires.
struct ClockHandle(Arc<dyn Clock>);

impl std::fmt::Debug for ClockHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Callers {
    /// Creates the table of these callers. If there are none, everybody may do everything.
    pub fn new(
        registrations: Vec<Registration>,
        ceilings: Ceilings,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let callers = Self {
            table: ArcSwap::default(),
            concurrency: Arc::new(ConcurrencyLimits::new(ceilings, clock.clone())),
            clock: ClockHandle(clock),
            refused: Refused::default(),
        };
        callers.replace(registrations);
        callers
    }

    /// Replaces the callers. A caller that has the same name and limits as before keeps its meter,
    /// so that its calls under way still count.
    pub fn replace(&self, registrations: Vec<Registration>) {
        let before = self.table.load();
        let mut table = Table::default();
        for registration in registrations {
            let name = &registration.caller.name;
            let same = before.all.iter().find(|known| {
                known.registration.caller.name == *name
                    && known.meter.limits() == registration.limits
            });
            let meter =
                same.map_or_else(|| self.meter(registration.limits), |known| known.meter.clone());
            // A registration that has not changed keeps its identity, see `is_in_force`.
            let known = match same {
                Some(known) if known.registration == registration => known.clone(),
                _ => Arc::new(Known { registration, meter }),
            };
            for key in &known.registration.keys {
                table.by_key.entry(key.index()).or_default().push((*key, known.clone()));
            }
            for name in &known.registration.certificate_names {
                table.by_certificate.insert(name.clone(), known.clone());
            }
            table.all.push(known);
        }
        if table.all.is_empty() {
            let limits = CallerLimits { calls: usize::MAX, per_second: None };
            let caller = Arc::new(Caller::anybody());
            let registration =
                Registration { caller, keys: vec![], certificate_names: vec![], limits };
            table.anybody = Some(Arc::new(Known { registration, meter: self.meter(limits) }));
        }
        self.table.store(Arc::new(table));
    }

    fn meter(&self, limits: CallerLimits) -> Arc<Meter> {
        Arc::new(Meter::new(limits, self.concurrency.clone(), self.clock.0.clone()))
    }

    /// Returns whether no caller is configured, so that everybody may do everything.
    pub fn is_open(&self) -> bool {
        self.table.load().anybody.is_some()
    }

    /// Returns whether the registration of a caller that was admitted earlier is still the same: its
    /// roles, its limits, its keys and its certificates.
    pub fn is_in_force(&self, caller: &Arc<Caller>) -> bool {
        let table = self.table.load();
        table
            .all
            .iter()
            .chain(&table.anybody)
            .any(|known| Arc::ptr_eq(&known.registration.caller, caller))
    }

    /// Returns the number of configured callers.
    pub fn count(&self) -> usize {
        self.table.load().all.len()
    }

    /// Returns the number of calls under way.
    pub fn calls_under_way(&self) -> usize {
        self.concurrency.calls()
    }

    /// Returns the counters of refused calls.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// Admits a call if the caller is known, may perform the operation, and is within the limits.
    pub fn admit(
        &self,
        credentials: Credentials<'_>,
        operation: Operation,
    ) -> Result<(Arc<Caller>, CallPermit), Refusal> {
        let admitted =
            self.table.load().identify(credentials).ok_or(Refusal::Unknown).and_then(|known| {
                let caller = &known.registration.caller;
                if !caller.may(operation) {
                    return Err(Refusal::NotAllowed { caller: caller.clone(), operation });
                }
                Ok((caller.clone(), known.meter.begin(operation.cost_class())?))
            });
        if let Err(refusal) = &admitted {
            self.count_refusal(refusal);
        }
        admitted
    }

    /// Returns whether the credentials belong to a known caller.
    pub fn knows(&self, credentials: Credentials<'_>) -> bool {
        let is_known = self.table.load().identify(credentials).is_some();
        if !is_known {
            self.count_refusal(&Refusal::Unknown);
        }
        is_known
    }

    /// Admits work of a call that was admitted before. The work counts until the permit is dropped.
    pub fn begin(&self, work: Work) -> Result<WorkPermit, Refusal> {
        self.concurrency.acquire(work).ok_or_else(|| {
            let refusal = Refusal::Overloaded { wait: meter::QUEUE_RETRY_DELAY };
            self.count_refusal(&refusal);
            refusal
        })
    }

    fn count_refusal(&self, refusal: &Refusal) {
        match refusal {
            Refusal::Unknown => &self.refused.unknown,
            Refusal::NotAllowed { .. } => &self.refused.not_allowed,
            Refusal::OverLimit { .. } => &self.refused.over_limit,
            Refusal::Overloaded { .. } => &self.refused.overloaded,
        }
        .inc();
    }
}

impl Table {
    /// Finds the caller to which the credentials belong. If a key was sent, the certificate is
    /// ignored, even if the key is wrong.
    fn identify(&self, credentials: Credentials<'_>) -> Option<&Arc<Known>> {
        if let Some(anybody) = &self.anybody {
            return Some(anybody);
        }
        let found = match credentials.api_key {
            Some(api_key) => {
                let hash = ApiKeyHash::of(api_key);
                let found = self.by_key.get(&hash.index())?;
                found.iter().find(|(key, _)| key.is(&hash)).map(|(_, known)| known)
            }
            None => {
                credentials.certificate_names.iter().find_map(|name| self.by_certificate.get(name))
            }
        };
        found.filter(|known| {
            credentials.name.is_none_or(|name| name == &*known.registration.caller.name)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{api_key::ApiKey, *};
    use crate::{
        clock::SettableClock,
        domain::{role::Role, text::CallerName, time::Timestamp},
        rng::SystemRng,
    };

    const LIMITS: CallerLimits = CallerLimits { calls: 1, per_second: None };

    fn registration(name: &str, role: Role, key: &ApiKey, certificate: &str) -> Registration {
        let name = CallerName::try_from(name.to_owned()).unwrap();
        let caller = Arc::new(Caller { name, roles: BTreeSet::from([role]), ..Caller::anybody() });
        let certificate_names = vec![certificate.parse().unwrap()];
        Registration { caller, keys: vec![key.hash()], certificate_names, limits: LIMITS }
    }

    fn callers(registrations: Vec<Registration>) -> Callers {
        let clock = Arc::new(SettableClock::at(Timestamp::from_micros(0)));
        Callers::new(
            registrations,
            Ceilings { calls: 100, reads: 100, writes: 100, batches: 1 },
            clock,
        )
    }

    fn key() -> ApiKey {
        ApiKey::generate(&SystemRng::default()).unwrap()
    }

    #[test]
    fn a_caller_is_identified_by_its_key_or_certificate_and_unknown_callers_are_refused() {
        let (login, gateway) = (key(), key());
        let callers = callers(vec![
            registration("login", Role::Issuer, &login, "login.test"),
            registration("gateway", Role::Validator, &gateway, "uri:spiffe://test/gateway"),
        ]);
        let name = |api_key, certificate_names: &[&str], operation| {
            let certificate_names: Vec<CertificateName> =
                certificate_names.iter().map(|name| name.parse().unwrap()).collect();
            let credentials =
                Credentials { api_key, certificate_names: &certificate_names, name: None };
            callers.admit(credentials, operation).map(|(caller, _)| caller.name.to_string())
        };
        assert_eq!(name(Some(login.reveal()), &[], Operation::Refresh).as_deref(), Ok("login"));
        assert_eq!(
            name(None, &["x", "uri:spiffe://test/gateway"], Operation::Validate).as_deref(),
            Ok("gateway")
        );
        assert!(matches!(
            name(Some(login.reveal()), &[], Operation::Validate),
            Err(Refusal::NotAllowed { .. })
        ));
        let stranger = key();
        for nobody in [None, Some(""), Some("cs_ck_"), Some(stranger.reveal())] {
            assert_eq!(
                name(nobody, &["other.test"], Operation::Validate),
                Err(Refusal::Unknown),
                "{nobody:?}"
            );
        }
        assert_eq!(
            name(Some(stranger.reveal()), &["login.test"], Operation::Refresh),
            Err(Refusal::Unknown),
            "a valid certificate does not help if the key is wrong"
        );
        let refused = callers.refused();
        assert_eq!((refused.unknown.get(), refused.not_allowed.get()), (5, 1));
    }

    #[test]
    fn without_configured_callers_everybody_may_do_everything() {
        let callers = callers(vec![]);
        assert!(callers.is_open());
        let (caller, _) = callers.admit(Credentials::default(), Operation::RevokeKey).unwrap();
        assert_eq!(&*caller.name, "anybody");
    }

    #[test]
    fn calls_under_way_still_count_after_the_callers_were_replaced() {
        let (old, new) = (key(), key());
        let callers = callers(vec![registration("login", Role::Issuer, &old, "a")]);
        let admit = |key: &ApiKey| {
            callers.admit(
                Credentials { api_key: Some(key.reveal()), ..Credentials::default() },
                Operation::Refresh,
            )
        };
        let under_way = admit(&old).unwrap();
        callers.replace(vec![registration("login", Role::Issuer, &new, "a")]);
        assert_eq!(admit(&old).unwrap_err(), Refusal::Unknown, "the old key is no longer valid");
        assert!(
            matches!(admit(&new), Err(Refusal::OverLimit { .. })),
            "the earlier call is still under way"
        );
        drop(under_way);
        assert!(admit(&new).is_ok());
        callers.replace(vec![]);
        assert!(callers.is_open());
    }
}
