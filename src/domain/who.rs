//! The parties that act on sessions and keys.

use std::fmt;

use super::{
    caller::{Actor, Caller},
    text::{ANYBODY, CallerName, SERVICE, TextError, UNKNOWN},
};

/// The party that performed an action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// A caller that the configuration names.
    Named(CallerName),
    /// Any caller, if the configuration names no callers. Then whoever reaches the port may do
    /// everything.
    Anybody,
    /// A caller that could not be authenticated. Its records are logged, but not stored in the
    /// table, because otherwise anybody could fill the table.
    Unknown,
    /// The service itself, by its schedule or by its command line.
    Service,
}

impl Who {
    /// Returns the name under which the party is logged and stored. No two parties have the same
    /// name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Anybody => ANYBODY,
            Self::Unknown => UNKNOWN,
            Self::Service => SERVICE,
        }
    }

    /// Returns the party with this name.
    pub fn from_name(name: String) -> Result<Self, TextError> {
        match name.as_str() {
            ANYBODY => Ok(Self::Anybody),
            UNKNOWN => Ok(Self::Unknown),
            SERVICE => Ok(Self::Service),
            _ => CallerName::try_from(name).map(Self::Named),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<&Caller> for Who {
    fn from(caller: &Caller) -> Self {
        match &caller.name {
            name if **name == *ANYBODY => Self::Anybody,
            name => Self::Named(name.clone()),
        }
    }
}

impl From<&Actor> for Who {
    fn from(actor: &Actor) -> Self {
        Self::from(&*actor.caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_party_is_found_by_its_name() {
        let named = CallerName::try_from("login".to_owned()).unwrap();
        let names = ["login", "anybody", "unknown", "countersign"];
        for (who, name) in
            [Who::Named(named), Who::Anybody, Who::Unknown, Who::Service].into_iter().zip(names)
        {
            assert_eq!(who.as_str(), name);
            assert_eq!(Who::from_name(name.to_owned()), Ok(who));
        }
        assert!(Who::from_name("log in".to_owned()).is_err());
    }
}
