//! Roles of callers.

use std::{fmt, str::FromStr};

/// A role of a caller. [`super::permission::TABLE`] says which operations each role allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A login service, which creates sessions and refreshes them.
    Issuer,
    /// A microservice or gateway, which validates tokens.
    Validator,
    /// Security staff and their tools, which revoke sessions.
    Revoker,
    /// Support staff, who read sessions and change nothing.
    Viewer,
    /// An operator, who may do everything.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] =
        [Self::Issuer, Self::Validator, Self::Revoker, Self::Viewer, Self::Admin];

    /// Returns the name of the role in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Issuer => "issuer",
            Self::Validator => "validator",
            Self::Revoker => "revoker",
            Self::Viewer => "viewer",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|role| role.as_str() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("{name:?} must be one of {known}")
        })
    }
}
