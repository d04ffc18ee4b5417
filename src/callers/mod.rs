//! Callers are known by an API key or a certificate, and let in as far as their limits go.

pub mod api_key;
pub mod meter;

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use prometheus_client::metrics::counter::Counter;

use self::{
    api_key::ApiKeyHash,
    meter::{BatchPermit, CallPermit, CallerLimits, Ceilings, ConcurrencyLimits, Meter},
};
use crate::{
    clock::Clock,
    domain::{
        audit::Who, caller::Caller, certificate_name::CertificateName, permission::Operation,
    },
};

/// A call is not let in. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody is known by the credentials, or there are none.
    Unknown,
    /// The caller is known, and may not do this.
    NotAllowed {
        /// The caller.
        caller: Arc<Caller>,
        /// The operation that it asked for.
        operation: Operation,
    },
    /// The caller has too many calls under way, or began too many of late.
    OverLimit {
        /// The time until the next one may come.
        wait: Duration,
    },
    /// The service has as much to do as it can.
    Overloaded {
        /// The time after which it may try again.
        wait: Duration,
    },
}

impl Refusal {
    /// The caller whom the audit says to have been denied something; `None` if the call is refused
    /// because of a limit, which is not recorded.
    pub fn denied_caller(&self) -> Option<Who> {
        match self {
            Self::Unknown => Some(Who::Unknown),
            Self::NotAllowed { caller, .. } => Some(Who::from(&**caller)),
            Self::OverLimit { .. } | Self::Overloaded { .. } => None,
        }
    }
}

/// A caller as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The caller, and what it may do.
    pub caller: Arc<Caller>,
    /// The hashes of its API keys.
    pub keys: Vec<ApiKeyHash>,
    /// The names in its certificates.
    pub certificate_names: Vec<CertificateName>,
    /// Its limits.
    pub limits: CallerLimits,
}

/// The credentials that come with a call, before they are believed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credentials<'a> {
    /// The API key, if one was sent.
    pub api_key: Option<&'a str>,
    /// The names in the client's certificate, which has been checked.
    pub certificate_names: &'a [CertificateName],
    /// The name of the caller, if it was sent too. It must be the one that the key belongs to.
    pub name: Option<&'a str>,
}

/// Calls that were refused, since the start.
#[derive(Debug, Default)]
pub struct Refused {
    /// For want of a known caller.
    pub unknown: Counter,
    /// For want of a role.
    pub not_allowed: Counter,
    /// For a caller's limit.
    pub over_limit: Counter,
    /// For want of room.
    pub overloaded: Counter,
}

#[derive(Clone, Debug)]
struct Known {
    registration: Registration,
    meter: Arc<Meter>,
}

/// The callers that are known at some time.
#[derive(Debug, Default)]
struct Table {
    /// By the first bytes of a key's hash.
    by_key: HashMap<[u8; 8], Vec<(ApiKeyHash, Arc<Known>)>>,
    by_certificate: HashMap<CertificateName, Arc<Known>>,
    all: Vec<Arc<Known>>,
    /// The one caller if none is configured: everybody.
    anybody: Option<Arc<Known>>,
}

/// The callers that are known. They may change while calls are made.
#[derive(Debug)]
pub struct Callers {
    table: ArcSwap<Table>,
    concurrency: Arc<ConcurrencyLimits>,
    clock: ClockHandle,
    refused: Refused,
}

/// A clock that prints nothing.
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

    /// Replaces the callers. The calls of one that has the same name and limits as before go on
    /// counting.
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
            let known = Arc::new(Known { registration, meter });
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

    /// The number of configured callers.
    pub fn count(&self) -> usize {
        self.table.load().all.len()
    }

    /// Calls under way.
    pub fn calls_under_way(&self) -> usize {
        self.concurrency.calls()
    }

    /// The counts of refused calls.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// Lets a call in if it is one of a known caller, who may make it and is within its limits.
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

    /// Returns whether somebody is known by these credentials.
    pub fn knows(&self, credentials: Credentials<'_>) -> bool {
        let is_known = self.table.load().identify(credentials).is_some();
        if !is_known {
            self.count_refusal(&Refusal::Unknown);
        }
        is_known
    }

    /// Lets a batch that was let in as a call be judged. It counts until its permit is dropped.
    pub fn begin_batch(&self) -> Result<BatchPermit, Refusal> {
        self.concurrency.acquire_batch().ok_or_else(|| {
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
    /// Finds the caller by its credentials. A key counts before a certificate, and a certificate
    /// does not make up for a wrong key.
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
    fn a_caller_is_known_by_its_key_or_its_certificate_and_nobody_else_is_known() {
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
            "a certificate does not make a wrong key good"
        );
        let refused = callers.refused();
        assert_eq!((refused.unknown.get(), refused.not_allowed.get()), (5, 1));
    }

    #[test]
    fn where_nobody_is_known_everybody_may_do_everything() {
        let callers = callers(vec![]);
        assert!(callers.is_open());
        let (caller, _) = callers.admit(Credentials::default(), Operation::RevokeKey).unwrap();
        assert_eq!(&*caller.name, "anybody");
    }

    #[test]
    fn who_is_known_may_change_and_what_is_under_way_goes_on_counting() {
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
        assert_eq!(admit(&old).unwrap_err(), Refusal::Unknown, "its key is gone");
        assert!(
            matches!(admit(&new), Err(Refusal::OverLimit { .. })),
            "the call of before is still under way"
        );
        drop(under_way);
        assert!(admit(&new).is_ok());
        callers.replace(vec![]);
        assert!(callers.is_open());
    }
}
