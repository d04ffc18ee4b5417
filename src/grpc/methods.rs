//! The methods of the gRPC port: the access that each needs, and the number under which its calls
//! are counted.

use crate::domain::permission::{CostClass, Operation};

/// The access that a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No credentials are needed: health, and the public keys.
    Open,
    /// Any known caller may make the call. This is the access of reflection, and also of calls that
    /// do not exist, so that an unknown caller cannot find out which calls exist.
    Known,
    /// A caller with the permission for this operation.
    Allowed(Operation),
}

/// A method, or all methods that do not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// The position of the method in [`METHODS`].
    pub number: usize,
    /// The path of the method.
    pub path: &'static str,
    /// The access that a call to it needs.
    pub access: Access,
    /// True if calls of the method are so frequent and so cheap that a span for each of them would
    /// cost a considerable part of its time.
    pub is_frequent: bool,
}

/// The path of BatchValidate, whose requests may be larger.
pub const BATCH_VALIDATE: &str = "/countersign.v1.SessionService/BatchValidate";
/// The path of ImportSessions, whose requests may be larger.
pub const IMPORT_SESSIONS: &str = "/countersign.v1.SessionService/ImportSessions";
/// The path of the call that is made by Envoy, and by other proxies that speak Envoy's protocol.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The path of Watch, whose calls last.
pub const WATCH: &str = "/countersign.v1.RevocationService/Watch";

/// The path that stands for all methods that do not exist.
const OTHER: &str = "/other/other";

/// The paths of all methods with their accesses, the most frequent method first. The last entry
/// stands for every other path.
pub const METHODS: [(&str, Access); 25] = [
    ("/countersign.v1.SessionService/Validate", Access::Allowed(Operation::Validate)),
    (CHECK, Access::Allowed(Operation::Check)),
    (BATCH_VALIDATE, Access::Allowed(Operation::BatchValidate)),
    ("/countersign.v1.SessionService/Refresh", Access::Allowed(Operation::Refresh)),
    ("/countersign.v1.SessionService/CreateSession", Access::Allowed(Operation::CreateSession)),
    ("/countersign.v1.SessionService/Reauthenticate", Access::Allowed(Operation::Reauthenticate)),
    ("/countersign.v1.SessionService/UpdateSession", Access::Allowed(Operation::UpdateSession)),
    (IMPORT_SESSIONS, Access::Allowed(Operation::ImportSessions)),
    ("/countersign.v1.SessionService/Revoke", Access::Allowed(Operation::Revoke)),
    ("/countersign.v1.SessionService/GetSession", Access::Allowed(Operation::GetSession)),
    ("/countersign.v1.SessionService/ListSessions", Access::Allowed(Operation::ListSessions)),
    ("/countersign.v1.SessionService/CountSessions", Access::Allowed(Operation::CountSessions)),
    ("/countersign.v1.AuditService/ListAudit", Access::Allowed(Operation::ListAudit)),
    ("/countersign.v1.SessionService/ListRevocations", Access::Allowed(Operation::ListRevocations)),
    (WATCH, Access::Allowed(Operation::Watch)),
    ("/countersign.v1.KeyService/GetJwks", Access::Open),
    ("/countersign.v1.KeyService/ListKeys", Access::Allowed(Operation::ListKeys)),
    ("/countersign.v1.KeyService/RotateKey", Access::Allowed(Operation::RotateKey)),
    ("/countersign.v1.KeyService/RevokeKey", Access::Allowed(Operation::RevokeKey)),
    ("/grpc.health.v1.Health/Check", Access::Open),
    ("/grpc.health.v1.Health/Watch", Access::Open),
    ("/grpc.health.v1.Health/List", Access::Known),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Access::Known),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Access::Known),
    (OTHER, Access::Known),
];

impl Method {
    /// Returns the method with this path.
    pub fn of(path: &str) -> Self {
        let found = METHODS.iter().enumerate().find(|(_, (known, _))| *known == path);
        let (number, (path, access)) =
            found.unwrap_or((METHODS.len() - 1, &(OTHER, Access::Known)));
        let is_frequent = match access {
            Access::Allowed(operation) => {
                matches!(operation.cost_class(), CostClass::Light | CostClass::Batch)
            }
            Access::Open | Access::Known => true,
        };
        Self { number, path, access: *access, is_frequent }
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;
    use crate::{domain::permission::TABLE, proto::DESCRIPTORS};

    #[test]
    fn every_method_of_our_services_has_an_access_of_its_own() {
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        let mut seen = vec![];
        for service in pool.services() {
            for method in service.methods() {
                let path = format!("/{}/{}", service.full_name(), method.name());
                let access = Method::of(&path).access;
                assert_ne!(access, Access::Known, "{path} is not in the table");
                assert!(
                    access == Access::Open || !seen.contains(&access),
                    "{path} has the access of another method"
                );
                seen.push(access);
            }
        }
        assert_eq!(
            seen.iter().filter(|access| **access == Access::Open).count(),
            1,
            "only GetJwks"
        );
        for (operation, _) in TABLE {
            // The first two are HTTP requests. The others arrive as a Revoke; its use case checks
            // the permission, because only it knows the target.
            let has_none = matches!(
                operation,
                Operation::ForwardAuth
                    | Operation::Introspect
                    | Operation::RevokeTenant
                    | Operation::RevokeEverywhere
            );
            let methods =
                METHODS.iter().filter(|(_, access)| *access == Access::Allowed(operation)).count();
            assert_eq!(methods, usize::from(!has_none), "{operation:?}");
        }
        let known = METHODS.iter().filter(|(path, _)| path.starts_with("/countersign.")).count();
        assert_eq!(known, seen.len(), "each path is that of a method");
        for path in [
            "",
            "/",
            "/countersign.v1.SessionService/validate",
            "/countersign.v1.SessionService/Validate/",
            "/x",
        ] {
            assert_eq!(Method::of(path).path, OTHER, "{path}");
        }
    }
}
