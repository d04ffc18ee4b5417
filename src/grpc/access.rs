//! Which call is which operation, and what is open to everybody.

use crate::domain::permission::Operation;

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing: health, and the public keys.
    Open,
    /// A caller who is known: reflection, and calls that do not exist, so that a stranger does not
    /// learn which do.
    Known,
    /// A caller who may do this.
    Allowed(Operation),
}

/// The call of Envoy and others who speak its protocol.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// What the call on this path needs.
pub fn needed(path: &str) -> Access {
    use Access::{Allowed, Known, Open};

    if let Some(method) = path.strip_prefix("/countersign.v1.SessionService/") {
        return match method {
            "Validate" => Allowed(Operation::Validate),
            "BatchValidate" => Allowed(Operation::BatchValidate),
            "CreateSession" => Allowed(Operation::CreateSession),
            "Refresh" => Allowed(Operation::Refresh),
            // Revocation of a tenant is looked at again once it is known that it is one.
            "Revoke" => Allowed(Operation::Revoke),
            "GetSession" => Allowed(Operation::GetSession),
            "ListSessions" => Allowed(Operation::ListSessions),
            _ => Known,
        };
    }
    match path {
        "/countersign.v1.KeyService/GetJwks" => Open,
        "/countersign.v1.KeyService/ListKeys" => Allowed(Operation::ListKeys),
        "/countersign.v1.KeyService/RotateKey" => Allowed(Operation::RotateKey),
        "/countersign.v1.KeyService/RevokeKey" => Allowed(Operation::RevokeKey),
        CHECK => Allowed(Operation::Check),
        "/grpc.health.v1.Health/Check" | "/grpc.health.v1.Health/Watch" => Open,
        _ => Known,
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;
    use crate::proto::DESCRIPTORS;

    #[test]
    fn every_method_of_ours_needs_something_of_its_own() {
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        let mut seen = vec![];
        for service in pool.services() {
            for method in service.methods() {
                let path = format!("/{}/{}", service.full_name(), method.name());
                let access = needed(&path);
                assert_ne!(access, Access::Known, "{path} has been forgotten");
                assert!(
                    access == Access::Open || !seen.contains(&access),
                    "{path} is taken for another"
                );
                seen.push(access);
            }
        }
        assert_eq!(
            seen.iter().filter(|access| **access == Access::Open).count(),
            1,
            "only GetJwks"
        );
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
