//! Authentications: how strong, by which methods, and when.

use countersign_test_support::refusal::Refusal;

use super::{LEEWAY, Micros};

/// The values of `acr` from the weakest to the strongest. The last one is not in
/// `tokens.acr_order`, so it cannot be compared with others.
pub const ACRS: [&str; 4] = ["", "low", "high", "other"];
const INCOMPARABLE: u8 = 3;

/// The times at which the first two of all methods were verified.
pub type Verified = [Option<Micros>; 2];

/// An authentication, as a request describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Authentication {
    pub acr: u8,
    /// The number of methods. They are the first ones of all methods.
    pub amr: u8,
    pub verified_at: Verified,
    /// None for now.
    pub at: Option<Micros>,
}

impl Authentication {
    /// Checks that each time belongs to a method of the authentication.
    pub fn check_methods(&self) -> Result<(), Refusal> {
        let others = self.verified_at.iter().skip(self.amr.into());
        match others.flatten().next() {
            None => Ok(()),
            Some(_) => Err(Refusal::field("amr_verified_at")),
        }
    }

    /// Checks that nothing is in the future, and that the authentication is the last event.
    pub fn check_times(&self, now: Micros) -> Result<(), Refusal> {
        let latest = now + LEEWAY;
        if self.at.is_some_and(|at| at > latest) {
            return Err(Refusal::field("authenticated_at"));
        }
        let latest = self.at.unwrap_or(latest);
        match self.verified_at.iter().flatten().any(|at| *at > latest) {
            false => Ok(()),
            true => Err(Refusal::field("amr_verified_at")),
        }
    }
}

/// Returns whether an `acr` is weaker than the present one.
pub fn is_weaker(acr: u8, present: u8) -> bool {
    let is_comparable = acr == 0 || ![acr, present].contains(&INCOMPARABLE);
    is_comparable && acr < present
}
