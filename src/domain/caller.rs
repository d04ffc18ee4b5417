//! Callers of this service: their name, their roles, and the tenants and audiences that they are
//! limited to.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    call_id::CallId,
    permission::{self, Operation},
    role::Role,
    text::{Audience, CallerName, Tenant},
};

/// The tenants and audiences that a caller is limited to. `None` means no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The tenants whose sessions the caller may access.
    pub tenants: Option<BTreeSet<Tenant>>,
    /// The audiences whose sessions the caller may access.
    pub audiences: Option<BTreeSet<Audience>>,
}

impl Reach {
    /// Returns whether there is no limit of either kind.
    pub const fn is_everything(&self) -> bool {
        self.tenants.is_none() && self.audiences.is_none()
    }

    /// Returns whether the reach includes a tenant.
    pub fn has_tenant(&self, tenant: &str) -> bool {
        self.tenants
            .as_ref()
            .is_none_or(|tenants| tenants.iter().any(|allowed| **allowed == *tenant))
    }

    /// Returns whether the reach includes an audience.
    pub fn has_audience(&self, audience: &str) -> bool {
        self.audiences
            .as_ref()
            .is_none_or(|audiences| audiences.iter().any(|allowed| **allowed == *audience))
    }
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The name of the caller in the configuration.
    pub name: CallerName,
    /// The roles of the caller.
    pub roles: BTreeSet<Role>,
    /// The tenants and audiences that the caller is limited to.
    pub reach: Arc<Reach>,
}

impl Caller {
    /// Returns the caller that stands for everybody if the configuration names no callers. This
    /// caller may do everything.
    pub fn anybody() -> Self {
        Self {
            name: CallerName::anybody(),
            roles: BTreeSet::from([Role::Admin]),
            reach: Arc::default(),
        }
    }

    /// Returns whether the caller's roles allow an operation. An operation that concerns all
    /// tenants and audiences also requires a caller without limits. For other operations, the use
    /// case compares the tenant and the audience with the caller's reach.
    pub fn may(&self, operation: Operation) -> bool {
        let within = !operation.concerns_everybody() || self.reach.is_everything();
        within && self.roles.iter().any(|role| permission::allows(*role, operation))
    }

    /// Returns the error message for an operation that the caller may not perform. The message says
    /// which callers may perform it.
    pub fn why_not(&self, operation: Operation) -> String {
        let (name, call) = (&*self.name, operation.as_str());
        let has_role = self.roles.iter().any(|role| permission::allows(*role, operation));
        if has_role {
            // A role allows the operation, so the caller's limited reach must be the reason.
            return format!(
                "the caller {name} may not call {call}, which concerns all tenants and audiences: \
                 only a caller with the role admin that is not limited to tenants or audiences may \
                 call it"
            );
        }
        let roles = permission::roles(operation).map(Role::as_str).collect::<Vec<_>>().join(" or ");
        format!("the caller {name} may not call {call}: that takes the role {roles}")
    }
}

/// The caller of one call, the address that it calls from, and the call.
#[derive(Clone, Debug)]
pub struct Actor {
    /// The caller.
    pub caller: Arc<Caller>,
    /// The address that the caller calls from, if known.
    pub peer: Option<IpAddr>,
    /// The identifier of the call, if it has one.
    pub call: Option<CallId>,
}

impl Actor {
    /// Returns the tenants and audiences that the caller is limited to.
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
    fn every_role_is_read_back_from_its_name() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert_eq!(
            "boss".parse::<Role>(),
            Err("\"boss\" must be one of issuer, validator, revoker, viewer, admin".to_owned())
        );
    }

    #[test]
    fn a_limit_allows_only_the_listed_tenants_and_a_missing_limit_allows_all() {
        let limited = caller(Role::Admin, Some(&["acme", ""])).reach;
        assert!(limited.has_tenant("acme") && limited.has_tenant("") && !limited.has_tenant("acm"));
        assert!(!limited.is_everything() && limited.has_audience("anything"));
        let nothing = caller(Role::Admin, Some(&[])).reach;
        assert!(!nothing.has_tenant("") && !nothing.has_tenant("acme"));
        assert!(Reach::default().is_everything() && Reach::default().has_tenant("acme"));
    }

    #[test]
    fn operations_that_concern_all_tenants_need_a_caller_without_a_limit() {
        assert!(caller(Role::Admin, None).may(Operation::RotateKey));
        assert!(!caller(Role::Admin, Some(&["acme"])).may(Operation::RotateKey));
        assert!(caller(Role::Admin, Some(&["acme"])).may(Operation::RevokeTenant));
    }
}
