//! Maps the path of a call to the access that the call needs.

use crate::domain::permission::{Operation, TABLE};

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

/// The path of BatchValidate, whose requests may be larger.
pub const BATCH_VALIDATE: &str = "/countersign.v1.SessionService/BatchValidate";
/// The path of the call that is made by Envoy, and by other proxies that speak Envoy's protocol.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The calls that are open to everybody.
const OPEN: [&str; 3] = [
    "/countersign.v1.KeyService/GetJwks",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];

/// Returns the path of the gRPC call that requests an operation, or `None` if there is no such
/// call.
const fn path_of(operation: Operation) -> Option<&'static str> {
    Some(match operation {
        Operation::Validate => "/countersign.v1.SessionService/Validate",
        Operation::BatchValidate => BATCH_VALIDATE,
        Operation::CreateSession => "/countersign.v1.SessionService/CreateSession",
        Operation::Refresh => "/countersign.v1.SessionService/Refresh",
        Operation::Revoke => "/countersign.v1.SessionService/Revoke",
        Operation::GetSession => "/countersign.v1.SessionService/GetSession",
        Operation::ListSessions => "/countersign.v1.SessionService/ListSessions",
        Operation::ListKeys => "/countersign.v1.KeyService/ListKeys",
        Operation::RotateKey => "/countersign.v1.KeyService/RotateKey",
        Operation::RevokeKey => "/countersign.v1.KeyService/RevokeKey",
        Operation::Check => CHECK,
        // `ForwardAuth` and `Introspect` are HTTP requests. `RevokeTenant` arrives as a call of
        // Revoke. Its permission is checked by the use case, because only the use case knows that
        // the target is a tenant.
        Operation::ForwardAuth | Operation::Introspect | Operation::RevokeTenant => return None,
    })
}

/// Returns the access that the call on this path needs.
pub fn needed(path: &str) -> Access {
    let mut operations = TABLE.iter().map(|(operation, _)| *operation);
    match operations.find(|operation| path_of(*operation) == Some(path)) {
        Some(operation) => Access::Allowed(operation),
        None if OPEN.contains(&path) => Access::Open,
        None => Access::Known,
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;
    use crate::proto::DESCRIPTORS;

    #[test]
    fn every_method_of_our_services_has_an_access_of_its_own() {
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        let mut seen = vec![];
        for service in pool.services() {
            for method in service.methods() {
                let path = format!("/{}/{}", service.full_name(), method.name());
                let access = needed(&path);
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
        let paths = TABLE.iter().filter_map(|(operation, _)| path_of(*operation));
        let of_ours = paths.filter(|path| *path != CHECK).count();
        assert_eq!(seen.len(), of_ours + 1, "each path of an operation is the path of a method");
        for path in [
            "",
            "/",
            "/countersign.v1.SessionService/validate",
            "/countersign.v1.SessionService/Validate/",
            "/x",
        ] {
            assert_eq!(needed(path), Access::Known, "{path}");
        }
    }
}
