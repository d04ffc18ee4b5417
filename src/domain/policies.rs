//! Chooses the policy and the audience of a new session. The rules may come from the request, and
//! from the configuration of the tenant, the client, and the client within the tenant.

use std::collections::BTreeMap;

use super::{
    policy::{DEFAULT, Policy},
    text::{Audience, PolicyName},
};

/// The rules that the configuration sets for the sessions of one tenant, of one client, or of one
/// client within a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The policy for sessions whose request names no policy.
    pub policy: Option<PolicyName>,
    /// The audiences that these sessions may have; empty if the rules allow all.
    pub audiences: Vec<Audience>,
}

/// The rules of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantRules {
    /// The rules for all its sessions.
    pub rules: Rules,
    /// The rules for its sessions of individual clients, by the name of the client.
    pub clients: BTreeMap<String, Rules>,
}

/// The policies, and the rules that choose among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policies {
    /// The policies by name. One of them is named [`DEFAULT`].
    pub by_name: BTreeMap<String, Policy>,
    /// The rules of those tenants that have rules of their own, by the name of the tenant.
    pub tenants: BTreeMap<String, TenantRules>,
    /// The rules of those clients that have rules of their own, by the name of the client.
    pub clients: BTreeMap<String, Rules>,
    /// The audience of sessions for which neither the request nor a rule names one.
    pub default_audience: Audience,
}

/// The request names a policy that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not configured; the configured policies are: {known}")]
pub struct UnknownPolicy {
    /// The name in the request.
    pub name: String,
    /// The names of all policies.
    pub known: String,
}

/// A session cannot have the audience that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AudienceError {
    /// A rule does not allow the audience with this index in the request.
    #[error("is not among the audiences of this {owner}")]
    NotAllowed {
        /// The index in the request.
        index: usize,
        /// The owner of the rule: `tenant` or `client`.
        owner: &'static str,
    },
    /// The request names no audience, and the rules have no audience in common.
    #[error("must be named: the audiences of this tenant and of this client have none in common")]
    NoneInCommon,
}

/// The rules that concern a session, and the word for their owner in errors.
type Concerned<'a> = (&'a Rules, &'static str);

impl Policies {
    /// Returns the rules that concern the sessions of a client of a tenant, in their order of
    /// precedence: those of the client within the tenant, those of the client, and those of the
    /// tenant.
    fn rules(&self, tenant: &str, client: &str) -> impl Iterator<Item = Concerned<'_>> + Clone {
        let tenant = self.tenants.get(tenant);
        let of_both = tenant.and_then(|tenant| tenant.clients.get(client));
        let ordered = [
            of_both.map(|rules| (rules, "client")),
            self.clients.get(client).map(|rules| (rules, "client")),
            tenant.map(|tenant| (&tenant.rules, "tenant")),
        ];
        ordered.into_iter().flatten()
    }

    /// Chooses the policy of a session. The request takes precedence over the rules, and the first
    /// rules that name a policy over the others.
    pub fn choose(
        &self,
        asked: Option<&PolicyName>,
        tenant: &str,
        client: &str,
    ) -> Result<&Policy, UnknownPolicy> {
        let by_rules = || self.rules(tenant, client).find_map(|(rules, _)| rules.policy.as_ref());
        let name = asked.or_else(by_rules).map_or(DEFAULT, |name| &**name);
        self.by_name.get(name).ok_or_else(|| UnknownPolicy {
            name: name.to_owned(),
            known: self.by_name.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    }

    /// Chooses the audience of a session.
    ///
    /// Audiences are limits, so no rules make up for those of others: all rules must allow an
    /// audience. If the request names none, the session gets those audiences of the first rules
    /// with any that the others allow.
    pub fn audience(
        &self,
        asked: &[Audience],
        tenant: &str,
        client: &str,
    ) -> Result<Vec<Audience>, AudienceError> {
        let limits = self.rules(tenant, client).filter(|(rules, _)| !rules.audiences.is_empty());
        let refusing = |audience: &Audience| {
            limits.clone().find(|(rules, _)| !rules.audiences.contains(audience))
        };
        if let Some((index, owner)) = asked
            .iter()
            .enumerate()
            .find_map(|(index, audience)| refusing(audience).map(|(_, owner)| (index, owner)))
        {
            return Err(AudienceError::NotAllowed { index, owner });
        }
        if !asked.is_empty() {
            return Ok(asked.to_vec());
        }
        let Some((first, _)) = limits.clone().next() else {
            return Ok(vec![self.default_audience.clone()]);
        };
        let allowed: Vec<_> =
            first.audiences.iter().filter(|one| refusing(one).is_none()).cloned().collect();
        match allowed.is_empty() {
            true => Err(AudienceError::NoneInCommon),
            false => Ok(allowed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::policy::tests::policy, *};

    fn text<T: TryFrom<String, Error: std::fmt::Debug>>(text: &str) -> T {
        T::try_from(text.to_owned()).unwrap()
    }

    fn rules(policy: Option<&str>, audiences: &[&str]) -> Rules {
        Rules {
            policy: policy.map(text),
            audiences: audiences.iter().map(|audience| text(audience)).collect(),
        }
    }

    fn policies() -> Policies {
        let named = |name: &str| {
            let mut policy = policy(60, 600, 6000, 10);
            policy.session.name = text(name);
            (name.to_owned(), policy)
        };
        Policies {
            by_name: ["default", "asked", "both", "client", "tenant"].map(named).into(),
            tenants: BTreeMap::from([(
                "acme".to_owned(),
                TenantRules {
                    rules: rules(Some("tenant"), &["a", "b", "c"]),
                    clients: BTreeMap::from([("app".to_owned(), rules(Some("both"), &["b", "c"]))]),
                },
            )]),
            clients: BTreeMap::from([
                ("app".to_owned(), rules(Some("client"), &["c", "d"])),
                ("web".to_owned(), rules(Some("client"), &["d"])),
                ("job".to_owned(), rules(None, &["b"])),
            ]),
            default_audience: text("everything"),
        }
    }

    #[test]
    fn the_most_specific_rules_choose_the_policy_unless_the_request_does() {
        let policies = policies();
        let chosen = |asked: Option<&str>, tenant, client| {
            let asked = asked.map(text);
            let policy = policies.choose(asked.as_ref(), tenant, client);
            policy.map(|policy| policy.session.name.to_string())
        };
        let expected = |name: &str| Ok(name.to_owned());
        assert_eq!(chosen(Some("asked"), "acme", "app"), expected("asked"));
        assert_eq!(chosen(None, "acme", "app"), expected("both"));
        assert_eq!(chosen(None, "other", "app"), expected("client"));
        assert_eq!(chosen(None, "acme", "web"), expected("client"));
        assert_eq!(chosen(None, "acme", "job"), expected("tenant"), "the client sets no policy");
        assert_eq!(chosen(None, "acme", ""), expected("tenant"));
        assert_eq!(chosen(None, "other", ""), expected("default"));
        let unknown = chosen(Some("x"), "acme", "app").unwrap_err().to_string();
        let known = "the configured policies are: asked, both, client, default, tenant";
        assert_eq!(unknown, format!("\"x\" is not configured; {known}"));
    }

    #[test]
    fn every_rule_limits_the_audience_and_the_most_specific_one_is_the_default() {
        let policies = policies();
        let chosen = |asked: &[&str], tenant, client| {
            let asked: Vec<_> = asked.iter().map(|audience| text(audience)).collect();
            let audience = policies.audience(&asked, tenant, client);
            audience.map(|chosen| chosen.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let expected = |names: &[&str]| Ok(names.iter().map(ToString::to_string).collect());
        assert_eq!(chosen(&[], "other", "other"), expected(&["everything"]));
        assert_eq!(chosen(&["x"], "other", "other"), expected(&["x"]));
        assert_eq!(chosen(&[], "acme", "other"), expected(&["a", "b", "c"]));
        assert_eq!(chosen(&[], "acme", "app"), expected(&["c"]), "in all three lists");
        assert_eq!(chosen(&[], "other", "app"), expected(&["c", "d"]));
        assert_eq!(chosen(&["c"], "acme", "app"), expected(&["c"]));
        let refused = |index, owner| Err(AudienceError::NotAllowed { index, owner });
        assert_eq!(chosen(&["c", "b"], "acme", "app"), refused(1, "client"));
        assert_eq!(chosen(&["d"], "acme", "web"), refused(0, "tenant"));
        assert_eq!(chosen(&[], "acme", "web"), Err(AudienceError::NoneInCommon));
    }
}
