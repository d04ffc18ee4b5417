//! The authorization table, which says which role may perform which operation. No other code
//! decides this.

use super::role::Role::{self, Issuer, Revoker, Validator, Viewer};

/// An operation that a caller may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// SessionService.CreateSession
    CreateSession,
    /// SessionService.Refresh
    Refresh,
    /// SessionService.Reauthenticate
    Reauthenticate,
    /// SessionService.UpdateSession
    UpdateSession,
    /// SessionService.ImportSessions
    ImportSessions,
    /// SessionService.Validate
    Validate,
    /// SessionService.BatchValidate
    BatchValidate,
    /// Authorization.Check of Envoy
    Check,
    /// `/forward-auth`
    ForwardAuth,
    /// `/oauth2/introspect` (RFC 7662)
    Introspect,
    /// SessionService.Revoke of a token, a session, a subject; `/oauth2/revoke` (RFC 7009)
    Revoke,
    /// SessionService.Revoke of a tenant, or of those of its sessions that a client or an instant
    /// selects
    RevokeTenant,
    /// SessionService.Revoke of sessions of all tenants
    RevokeEverywhere,
    /// SessionService.ListRevocations
    ListRevocations,
    /// RevocationService.Watch
    Watch,
    /// SessionService.GetSession
    GetSession,
    /// SessionService.ListSessions
    ListSessions,
    /// SessionService.CountSessions
    CountSessions,
    /// AuditService.ListAudit
    ListAudit,
    /// KeyService.ListKeys
    ListKeys,
    /// KeyService.RotateKey
    RotateKey,
    /// KeyService.RevokeKey
    RevokeKey,
}

/// The resource that an operation uses most. Operations of one class can delay each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CostClass {
    /// A processor, for microseconds.
    Light,
    /// A processor, for milliseconds.
    Batch,
    /// A connection that reads the database.
    Read,
    /// The queue of new sessions that wait for the database.
    Creation,
    /// The queue of refreshes that wait for the database.
    Refresh,
    /// No local resource: the operation waits for the database, and for other replicas.
    Change,
}

use Operation::{
    BatchValidate, Check, CountSessions, CreateSession, ForwardAuth, GetSession, ImportSessions,
    Introspect, ListAudit, ListKeys, ListRevocations, ListSessions, Reauthenticate, Refresh,
    Revoke, RevokeEverywhere, RevokeKey, RevokeTenant, RotateKey, UpdateSession, Validate, Watch,
};

/// The operations, each with the roles that may perform it. Admins may perform all of them.
///
/// Health checks, the public keys (GetJwks), and reflection, where it is enabled, need no
/// authentication.
pub const TABLE: [(Operation, &[Role]); 22] = [
    (CreateSession, &[Issuer]),
    (Refresh, &[Issuer]),
    (Reauthenticate, &[Issuer]),
    (UpdateSession, &[Issuer]),
    (ImportSessions, &[]),
    (GetSession, &[Issuer, Viewer]),
    (ListSessions, &[Issuer, Viewer]),
    (CountSessions, &[Issuer, Viewer]),
    (ListAudit, &[Viewer]),
    (Validate, &[Validator]),
    (BatchValidate, &[Validator]),
    (Check, &[Validator]),
    (ForwardAuth, &[Validator]),
    (Introspect, &[Validator]),
    (Watch, &[Validator]),
    (Revoke, &[Revoker]),
    (RevokeTenant, &[]),
    (RevokeEverywhere, &[]),
    (ListRevocations, &[Revoker]),
    (ListKeys, &[]),
    (RotateKey, &[]),
    (RevokeKey, &[]),
];

/// Returns whether a role may perform an operation.
pub fn allows(role: Role, operation: Operation) -> bool {
    role == Role::Admin
        || TABLE.iter().any(|(listed, roles)| *listed == operation && roles.contains(&role))
}

/// Returns the roles that may perform an operation.
pub fn roles(operation: Operation) -> impl Iterator<Item = Role> {
    Role::ALL.into_iter().filter(move |role| allows(*role, operation))
}

impl Operation {
    /// Returns the name of the operation. It is the name of the gRPC method, if the operation has a
    /// method of its own.
    pub const fn as_str(self) -> &'static str {
        match self {
            CreateSession => "CreateSession",
            Refresh => "Refresh",
            Reauthenticate => "Reauthenticate",
            UpdateSession => "UpdateSession",
            ImportSessions => "ImportSessions",
            Validate => "Validate",
            BatchValidate => "BatchValidate",
            Check => "Check",
            ForwardAuth => "forward-auth",
            Introspect => "introspection",
            Revoke => "Revoke",
            RevokeTenant => "Revoke of a tenant",
            RevokeEverywhere => "Revoke of all tenants",
            ListRevocations => "ListRevocations",
            Watch => "Watch",
            GetSession => "GetSession",
            ListSessions => "ListSessions",
            CountSessions => "CountSessions",
            ListAudit => "ListAudit",
            ListKeys => "ListKeys",
            RotateKey => "RotateKey",
            RevokeKey => "RevokeKey",
        }
    }

    /// Returns whether the operation affects all tenants and audiences. A caller that is limited to
    /// some of them may not perform it.
    pub const fn concerns_everybody(self) -> bool {
        matches!(self, RevokeEverywhere | ListKeys | RotateKey | RevokeKey)
    }

    /// Returns the cost class of the operation.
    pub const fn cost_class(self) -> CostClass {
        match self {
            Validate | Check | ForwardAuth | Introspect | Watch => CostClass::Light,
            BatchValidate => CostClass::Batch,
            GetSession | ListSessions | CountSessions | ListRevocations | ListAudit | ListKeys => {
                CostClass::Read
            }
            CreateSession | ImportSessions => CostClass::Creation,
            Refresh | Reauthenticate | UpdateSession => CostClass::Refresh,
            Revoke | RevokeTenant | RevokeEverywhere | RotateKey | RevokeKey => CostClass::Change,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lists_each_operation_once_and_allows_admins_all_of_them() {
        for (index, (operation, _)) in TABLE.iter().enumerate() {
            assert!(
                TABLE.iter().skip(index + 1).all(|(other, _)| other != operation),
                "{operation:?}"
            );
            assert!(allows(Role::Admin, *operation));
        }
    }
}
