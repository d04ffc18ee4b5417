//! `[tenants.NAME]`, `[clients.NAME]` and `[tenants.NAME.clients.NAME]`: the policies and audiences of
//! the sessions of tenants and clients. Those without rules of their own need no entry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    error::{ConfigError, invalid, unknown_word},
    policies::Policies,
};
use crate::domain::{
    policies::{Rules, TenantRules},
    text::{Audience, ClientId, PolicyName, Tenant},
};

/// The rules of a client before they are checked.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRules {
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    audiences: Vec<String>,
}

/// The rules of a tenant before they are checked.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTenant {
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    audiences: Vec<String>,
    #[serde(deserialize_with = "super::section::read_named")]
    clients: BTreeMap<String, RawRules>,
}

/// The rules of clients, by the name of the client.
pub type Clients = BTreeMap<String, Rules>;

/// The rules of tenants, by the name of the tenant.
pub type Tenants = BTreeMap<String, TenantRules>;

/// Checks the rules of tenants.
pub fn check_tenants(
    raw: &BTreeMap<String, RawTenant>,
    policies: &Policies,
) -> Result<Tenants, ConfigError> {
    let mut tenants = Tenants::new();
    for (name, tenant) in raw {
        let section = format!("tenants.{name}");
        Tenant::try_from(name.clone()).map_err(|error| invalid(&section, error))?;
        let RawTenant { policy, audiences, clients } = tenant.clone();
        let rules = check(&section, &RawRules { policy, audiences }, policies)?;
        let clients = check_clients(&format!("{section}.clients"), &clients, policies)?;
        for (client, of_client) in &clients {
            let limits = [&rules.audiences, &of_client.audiences];
            let has_common = of_client.audiences.iter().any(|one| rules.audiences.contains(one));
            if !has_common && limits.iter().all(|limit| !limit.is_empty()) {
                return Err(invalid(
                    format!("{section}.clients.{client}.audiences"),
                    format!("has no audience in common with {section}.audiences"),
                ));
            }
        }
        tenants.insert(name.clone(), TenantRules { rules, clients });
    }
    Ok(tenants)
}

/// Checks the rules of clients. `path` is the name of their section.
pub fn check_clients(
    path: &str,
    raw: &BTreeMap<String, RawRules>,
    policies: &Policies,
) -> Result<Clients, ConfigError> {
    let mut clients = Clients::new();
    for (name, rules) in raw {
        let section = format!("{path}.{name}");
        if name.is_empty() {
            return Err(invalid(path, "must not name an empty client"));
        }
        ClientId::try_from(name.clone()).map_err(|error| invalid(&section, error))?;
        if rules.policy.is_none() && rules.audiences.is_empty() {
            return Err(invalid(section, "has no effect: set its policy or its audiences"));
        }
        clients.insert(name.clone(), check(&section, rules, policies)?);
    }
    Ok(clients)
}

fn check(section: &str, raw: &RawRules, policies: &Policies) -> Result<Rules, ConfigError> {
    let setting = |name: &str| format!("{section}.{name}");
    let policy = raw.policy.clone().map(|policy| match PolicyName::try_from(policy) {
        Ok(policy) if policies.contains_key(&*policy) => Ok(policy),
        Ok(policy) => {
            let known: Vec<_> = policies.keys().map(String::as_str).collect();
            Err(unknown_word(setting("policy"), &policy, &known))
        }
        Err(error) => Err(invalid(setting("policy"), error)),
    });
    let audiences =
        raw.audiences.iter().cloned().map(Audience::try_from).collect::<Result<Vec<_>, _>>();
    let audiences = audiences.map_err(|error| invalid(setting("audiences"), error))?;
    Ok(Rules { policy: policy.transpose()?, audiences })
}
