//! Callers of this service: their name, their roles, and the tenants and audiences that they are
//! limited to.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

pub use countersign_verification::reach::Reach;

use super::{
    call_id::CallId,
    permission::{self, Operation},
    role::Role,
    text::CallerName,
};

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
    use super::{super::text::Tenant, *};

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
    fn operations_that_concern_all_tenants_need_a_caller_without_a_limit() {
        assert!(caller(Role::Admin, None).may(Operation::RotateKey));
        assert!(!caller(Role::Admin, Some(&["acme"])).may(Operation::RotateKey));
        assert!(caller(Role::Admin, Some(&["acme"])).may(Operation::RevokeTenant));
    }
}
