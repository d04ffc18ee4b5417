//! Who calls: a name, roles, and the tenants and audiences to which they reach.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    permission::{self, Operation},
    role::Role,
    text::{Audience, CallerName, Tenant},
};

/// What a caller may touch: none stands for no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Sessions of these tenants.
    pub tenants: Option<BTreeSet<Tenant>>,
    /// Sessions for these audiences.
    pub audiences: Option<BTreeSet<Audience>>,
}

impl Reach {
    /// Returns whether there is no limit at all.
    pub const fn is_everything(&self) -> bool {
        self.tenants.is_none() && self.audiences.is_none()
    }

    /// Returns whether a tenant is within it.
    pub fn has_tenant(&self, tenant: &str) -> bool {
        self.tenants
            .as_ref()
            .is_none_or(|tenants| tenants.iter().any(|allowed| **allowed == *tenant))
    }

    /// Returns whether an audience is within it.
    pub fn has_audience(&self, audience: &str) -> bool {
        self.audiences
            .as_ref()
            .is_none_or(|audiences| audiences.iter().any(|allowed| **allowed == *audience))
    }
}

/// Somebody who is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub name: CallerName,
    /// What it is there for.
    pub roles: BTreeSet<Role>,
    /// What it may touch.
    pub reach: Arc<Reach>,
}

impl Caller {
    /// Whoever reaches a service that knows no callers: may everything.
    pub fn anybody() -> Self {
        Self {
            name: CallerName::anybody(),
            roles: BTreeSet::from([Role::Admin]),
            reach: Arc::default(),
        }
    }

    /// Returns whether it may do something at all. To what, its reach says.
    pub fn may(&self, operation: Operation) -> bool {
        let within = !operation.concerns_everybody() || self.reach.is_everything();
        within && self.roles.iter().any(|role| permission::allows(*role, operation))
    }

    /// Says why it may not do something, and who may.
    pub fn why_not(&self, operation: Operation) -> String {
        let (name, call) = (&*self.name, operation.as_str());
        let has_role = self.roles.iter().any(|role| permission::allows(*role, operation));
        if has_role {
            // Only its reach is in the way.
            return format!(
                "the caller {name} may not call {call}, which concerns all tenants and audiences: \
                 that takes a caller with the role admin and without tenants and audiences"
            );
        }
        let roles = permission::roles(operation).map(Role::as_str).collect::<Vec<_>>().join(" or ");
        format!("the caller {name} may not call {call}: that takes the role {roles}")
    }
}

/// Who makes a call, and from where.
#[derive(Clone, Debug)]
pub struct Actor {
    /// Who.
    pub caller: Arc<Caller>,
    /// From which address, if it is known.
    pub peer: Option<IpAddr>,
}

impl Actor {
    /// What the caller may touch.
    pub fn reach(&self) -> &Arc<Reach> {
        &self.caller.reach
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: Role, tenants: Option<&[&str]>) -> Caller {
        let tenants = tenants.map(|names| {
            names.iter().map(|name| Tenant::try_from((*name).to_owned()).unwrap()).collect()
        });
        Caller {
            roles: BTreeSet::from([role]),
            reach: Arc::new(Reach { tenants, audiences: None }),
            ..Caller::anybody()
        }
    }

    #[test]
    fn every_role_has_one_name_of_its_own() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert_eq!(
            "boss".parse::<Role>(),
            Err("\"boss\" must be one of issuer, validator, revoker, viewer, admin".to_owned())
        );
    }

    #[test]
    fn a_limit_names_all_that_is_within_and_no_limit_has_everything_within() {
        let limited = caller(Role::Admin, Some(&["acme", ""])).reach;
        assert!(limited.has_tenant("acme") && limited.has_tenant("") && !limited.has_tenant("acm"));
        assert!(!limited.is_everything() && limited.has_audience("anything"));
        let nothing = caller(Role::Admin, Some(&[])).reach;
        assert!(!nothing.has_tenant("") && !nothing.has_tenant("acme"));
        assert!(Reach::default().is_everything() && Reach::default().has_tenant("acme"));
    }

    #[test]
    fn what_concerns_everybody_is_for_those_without_a_limit() {
        assert!(caller(Role::Admin, None).may(Operation::RotateKey));
        assert!(!caller(Role::Admin, Some(&["acme"])).may(Operation::RotateKey));
        assert!(caller(Role::Admin, Some(&["acme"])).may(Operation::RevokeTenant));
    }
}
