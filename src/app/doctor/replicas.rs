//! Checks the register of the replicas.

use super::finding::Finding;
use crate::store::{
    StoreError,
    replicas::{Member, Register},
};

/// Checks whether all replicas in the register renew their leases.
pub fn check(register: &Result<Register, StoreError>) -> Finding {
    const CHECK: &str = "replicas";
    let register = match register {
        Ok(register) => register,
        Err(error) => {
            return Finding::error(
                CHECK,
                &format!("the register cannot be read: {error}"),
                "give the role of the service the rights in docs/postgresql.md (Roles and rights)",
            );
        }
    };
    let (live, gone): (Vec<_>, Vec<_>) =
        register.members.iter().partition(|member| member.is_live());
    if !gone.is_empty() {
        let names: Vec<_> = gone.iter().map(|member| describe(member)).collect();
        return Finding::warn(
            CHECK,
            format!("not all replicas renew their leases: {}", names.join(", ")),
            "start these replicas again if they should run; another replica removes them from the \
             register (`countersign replica list`)",
        );
    }
    if !register.is_settled() && !live.is_empty() {
        return Finding::warn(
            CHECK,
            "there was a failover, and replicas may be missing in the register",
            "wait until a replica has completed it; revocations take longer meanwhile",
        );
    }
    let finding = match live.as_slice() {
        [] => "no replica serves from the database".to_owned(),
        [member] => format!("1 replica serves: {}", member.name),
        members => {
            let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
            format!("{} replicas serve: {}", members.len(), names.join(", "))
        }
    };
    Finding::ok(CHECK, finding)
}

fn describe(member: &Member) -> String {
    let Member { name, address, renewed_ago, .. } = member;
    let seconds = renewed_ago.as_secs();
    match address.as_str() {
        "" => format!("{name} was last heard of {seconds} s ago"),
        address => format!("{name} at {address} was last heard of {seconds} s ago"),
    }
}
