//! `[[callers]]`: the programs that may call, their keys and certificates, and their roles.

use std::{
    collections::{BTreeSet, HashSet},
    fmt::Display,
    num::NonZeroU32,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    error::{ConfigError, invalid, unknown_word},
    limits::Limits,
};
use crate::{
    callers::{Registration, meter::CallerLimits},
    domain::{
        caller::{Caller, Reach},
        certificate_name::CertificateName,
        role::Role,
        text::CallerName,
    },
};

/// A caller before it is checked.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawCaller {
    name: String,
    roles: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenants: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audiences: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key_hashes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    certificate_names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_calls: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calls_per_second: Option<u32>,
}

/// Checks the callers. Names of certificates are refused unless `certificates_are_checked`, which
/// means that TLS checks client certificates against an authority.
pub fn check(
    raw: &[RawCaller],
    limits: &Limits,
    certificates_are_checked: bool,
) -> Result<Vec<Registration>, ConfigError> {
    let (mut names, mut keys, mut certificates) = (HashSet::new(), HashSet::new(), HashSet::new());
    let mut registrations = vec![];
    for (index, raw) in raw.iter().enumerate() {
        let setting = |field: &str| match raw.name.as_str() {
            "" => format!("callers[{index}].{field}"),
            name => format!("callers[{index}].{field} (caller {name:?})"),
        };
        let registration = raw.check(limits, &setting)?;
        if !names.insert(registration.caller.name.clone()) {
            return Err(invalid(setting("name"), "is the name of another caller too"));
        }
        if !registration.keys.iter().all(|key| keys.insert(*key)) {
            return Err(invalid(
                setting("key_hashes"),
                "has a key twice, or one of another caller",
            ));
        }
        if !registration.certificate_names.iter().all(|name| certificates.insert(name.clone())) {
            return Err(invalid(
                setting("certificate_names"),
                "has a name twice, or one of another caller",
            ));
        }
        if !registration.certificate_names.is_empty() && !certificates_are_checked {
            return Err(invalid(
                setting("certificate_names"),
                "needs tls.client_ca_file, by which they are checked",
            ));
        }
        registrations.push(registration);
    }
    Ok(registrations)
}

impl RawCaller {
    fn check(
        &self,
        limits: &Limits,
        setting: &impl Fn(&str) -> String,
    ) -> Result<Registration, ConfigError> {
        let name = CallerName::try_from(self.name.clone())
            .map_err(|error| invalid(setting("name"), error))?;
        let roles = self.roles.iter().map(|name| {
            let unknown = |_| unknown_word(setting("roles"), name, &Role::ALL.map(Role::as_str));
            name.parse::<Role>().map_err(unknown)
        });
        let roles = roles.collect::<Result<BTreeSet<_>, _>>()?;
        if roles.is_empty() {
            let known = Role::ALL.map(Role::as_str).join(", ");
            return Err(invalid(setting("roles"), format!("must name at least one of {known}")));
        }
        let reach = Reach {
            tenants: limited_to(&self.tenants)
                .map_err(|error| invalid(setting("tenants"), error))?,
            audiences: limited_to(&self.audiences)
                .map_err(|error| invalid(setting("audiences"), error))?,
        };
        let keys = self.key_hashes.iter().map(|hash| hash.parse()).collect::<Result<Vec<_>, _>>();
        let keys = keys.map_err(|error| invalid(setting("key_hashes"), error))?;
        let certificate_names = self.certificate_names.iter().map(|text| {
            let name = text.parse::<CertificateName>();
            name.map_err(|error| invalid(setting("certificate_names"), format!("{text:?} {error}")))
        });
        let certificate_names = certificate_names.collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() && certificate_names.is_empty() {
            let problem = "must have at least one, or certificate_names: `countersign caller new` \
                           makes a key";
            return Err(invalid(setting("key_hashes"), problem));
        }
        if self.max_calls == Some(0) {
            return Err(invalid(setting("max_calls"), "must be at least 1"));
        }
        let calls = self.max_calls.unwrap_or(limits.max_calls_per_caller);
        let per_second = self.calls_per_second.map_or_else(|| limits.rate(), NonZeroU32::new);
        Ok(Registration {
            caller: Arc::new(Caller { name, roles, reach: Arc::new(reach) }),
            keys,
            certificate_names,
            limits: CallerLimits { calls, per_second },
        })
    }
}

/// Returns the tenants or audiences to which a caller is limited; `None` if it is not limited. An
/// empty list is refused, because the caller could do nothing.
fn limited_to<T>(names: &Option<Vec<String>>) -> Result<Option<BTreeSet<T>>, String>
where
    T: TryFrom<String> + Ord,
    T::Error: Display,
{
    let Some(names) = names else { return Ok(None) };
    if names.is_empty() {
        return Err("must name at least one; leave it out for all".to_owned());
    }
    let read =
        |name: &String| T::try_from(name.clone()).map_err(|error| format!("{name:?} {error}"));
    names.iter().map(read).collect::<Result<_, _>>().map(Some)
}
