//! The challenge to a client whose request may not pass, according to RFC 6750 (section 3) and RFC
//! 9470 (section 3). It is that of the service's answers to gateways.

use std::fmt::Write;

use countersign_verification::inactive::InactiveReason;

use crate::Demands;

/// The reason for which a request may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// The request has no token.
    NoToken,
    /// The request has several tokens.
    SeveralTokens,
    /// The request has several cookies for the token, with different values.
    ConflictingCookies,
    /// The token is inactive, or does not meet the demands.
    Inactive(InactiveReason),
    /// It is not known whether the token is active.
    Unknown,
}

impl Denial {
    /// Returns the error code of RFC 6750 or RFC 9470.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::NoToken => "unauthorized",
            Self::SeveralTokens | Self::ConflictingCookies => "invalid_request",
            Self::Inactive(InactiveReason::InsufficientScope) => "insufficient_scope",
            Self::Inactive(InactiveReason::StepUpRequired) => "insufficient_user_authentication",
            Self::Inactive(_) => "invalid_token",
            Self::Unknown => "temporarily_unavailable",
        }
    }

    /// Describes the problem for the developer of the client.
    pub(super) fn description(self, demands: &Demands) -> String {
        use InactiveReason as R;

        let text = match self {
            Self::NoToken => "an access token is needed",
            Self::SeveralTokens => "more than one access token was sent",
            Self::ConflictingCookies => {
                "several cookies of the same name were sent with different values: clear the \
                 cookies of this site and its parent domains, and sign in again"
            }
            Self::Inactive(R::InsufficientScope) => "the access token lacks a scope",
            Self::Inactive(R::StepUpRequired) => return step_up(demands),
            Self::Inactive(R::Expired) => "the access token has expired",
            Self::Inactive(R::NotYetValid) => "the access token is not valid yet",
            Self::Inactive(R::Revoked) => "the access token has been revoked",
            Self::Inactive(R::WrongAudience | R::ForeignTenant) => {
                "the access token is not meant for this resource"
            }
            Self::Inactive(_) => "the access token is not valid",
            Self::Unknown => "the access token cannot be checked at the moment: try again",
        };
        text.to_owned()
    }

    /// Returns the value of `WWW-Authenticate`.
    pub(super) fn challenge(self, realm: Option<&str>, demands: &Demands) -> String {
        let mut parameters = vec![];
        let mut add = |name, value: &str| parameters.push(format!("{name}=\"{}\"", quoted(value)));
        if let Some(realm) = realm {
            add("realm", realm);
        }
        // A request without a token gets no error code (RFC 6750, section 3.1).
        if self != Self::NoToken {
            add("error", self.code());
            add("error_description", &self.description(demands));
        }
        let is_scope =
            matches!(self, Self::NoToken | Self::Inactive(InactiveReason::InsufficientScope));
        if is_scope && !demands.scopes.is_empty() {
            add("scope", &demands.scopes.join(" "));
        }
        if self == Self::Inactive(InactiveReason::StepUpRequired) {
            if !demands.acr_values.is_empty() {
                add("acr_values", &demands.acr_values.join(" "));
            }
            if let Some(age) = demands.shortest_age() {
                add("max_age", &age.as_secs().to_string());
            }
        }
        match parameters.is_empty() {
            true => "Bearer".to_owned(),
            false => format!("Bearer {}", parameters.join(", ")),
        }
    }
}

/// Describes the authentication that a route demands. RFC 9470 has no parameter for methods, so the
/// text names them.
fn step_up(demands: &Demands) -> String {
    let mut description = "a stronger or more recent authentication is needed".to_owned();
    for (index, factor) in demands.factors.iter().enumerate() {
        let start = if index == 0 { ": the route demands " } else { ", " };
        description.extend([start, &*factor.method]);
        if let Some(age) = factor.max_age {
            // Writing to a string does not fail.
            let _ = write!(description, " within {} seconds", age.as_secs());
        }
    }
    description
}

/// Escapes a text for a quoted string (RFC 9110, section 5.6.4).
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_challenge_names_the_error_and_the_demands_that_are_not_met() {
        let demands = Demands::new()
            .scope("read")
            .scope("write")
            .acr_values(["gold", "silver"])
            .max_authentication_age(Duration::from_secs(300))
            .recent_factor("hwk", Duration::from_secs(60));
        let challenge = |denial: Denial| denial.challenge(Some("a\"b"), &demands);
        assert_eq!(challenge(Denial::NoToken), "Bearer realm=\"a\\\"b\", scope=\"read write\"");
        assert_eq!(Denial::NoToken.challenge(None, &Demands::new()), "Bearer");
        assert_eq!(
            Denial::Inactive(InactiveReason::InsufficientScope).challenge(None, &demands),
            "Bearer error=\"insufficient_scope\", error_description=\"the access token lacks a \
             scope\", scope=\"read write\""
        );
        assert_eq!(
            Denial::Inactive(InactiveReason::StepUpRequired).challenge(None, &demands),
            "Bearer error=\"insufficient_user_authentication\", error_description=\"a stronger or \
             more recent authentication is needed: the route demands hwk within 60 seconds\", \
             acr_values=\"gold silver\", max_age=\"60\""
        );
        for reason in InactiveReason::ALL {
            assert!(challenge(Denial::Inactive(reason)).contains("error=\""), "{reason:?}");
        }
    }
}
