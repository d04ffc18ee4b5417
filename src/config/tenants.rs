//! `[tenants.NAME]`: rules for individual tenants. A tenant without rules of its own needs no
//! entry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    error::{ConfigError, invalid, unknown_word},
    policies::Policies,
};
use crate::domain::{
    policy::TenantRules,
    text::{Audience, PolicyName, Tenant},
};

/// A tenant before it is checked.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTenant {
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    audiences: Vec<String>,
}

/// The tenants by name.
pub type Tenants = BTreeMap<String, TenantRules>;

/// Checks the tenants.
pub fn check(
    raw: &BTreeMap<String, RawTenant>,
    policies: &Policies,
) -> Result<Tenants, ConfigError> {
    let mut tenants = Tenants::new();
    for (name, tenant) in raw {
        let section = |field: &str| format!("tenants.{name}{field}");
        Tenant::try_from(name.clone()).map_err(|error| invalid(section(""), error))?;
        let policy = tenant.policy.clone();
        let policy = policy.map(|policy| match PolicyName::try_from(policy) {
            Ok(policy) if policies.contains_key(&*policy) => Ok(policy),
            Ok(policy) => {
                let known: Vec<_> = policies.keys().map(String::as_str).collect();
                Err(unknown_word(section(".policy"), &policy, &known))
            }
            Err(error) => Err(invalid(section(".policy"), error)),
        });
        let audiences =
            tenant.audiences.iter().cloned().map(Audience::try_from).collect::<Result<Vec<_>, _>>();
        let audiences = audiences.map_err(|error| invalid(section(".audiences"), error))?;
        tenants.insert(name.clone(), TenantRules { policy: policy.transpose()?, audiences });
    }
    Ok(tenants)
}
