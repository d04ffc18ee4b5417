//! The tenants and audiences whose tokens a caller may learn about.

use std::collections::BTreeSet;

use crate::text::{Audience, Tenant};

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

#[cfg(test)]
mod tests {
    use super::*;

    fn limited_to(tenants: &[&str]) -> Reach {
        let tenants =
            tenants.iter().map(|name| Tenant::try_from((*name).to_owned()).unwrap()).collect();
        Reach { tenants: Some(tenants), audiences: None }
    }

    #[test]
    fn a_limit_allows_only_the_listed_tenants_and_a_missing_limit_allows_all() {
        let limited = limited_to(&["acme", ""]);
        assert!(limited.has_tenant("acme") && limited.has_tenant("") && !limited.has_tenant("acm"));
        assert!(!limited.is_everything() && limited.has_audience("anything"));
        let nothing = limited_to(&[]);
        assert!(!nothing.has_tenant("") && !nothing.has_tenant("acme"));
        assert!(Reach::default().is_everything() && Reach::default().has_tenant("acme"));
    }
}
