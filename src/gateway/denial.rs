//! The answer to a client whose request may not pass. It has a status, and a challenge according to
//! RFC 6750 (section 3) and RFC 9470 (section 3).

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE},
};
use serde_json::json;

use super::{
    demands::{Demands, DemandsError},
    identity::HeaderTooLong,
};
use crate::domain::inactive::InactiveReason;

/// The reason for which a request may not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The request has no token.
    NoCredential(Demands),
    /// The request has several tokens.
    SeveralCredentials,
    /// The request has several cookies for the token, with different values.
    ConflictingCookies,
    /// The token is inactive, or does not meet the demands.
    Inactive(InactiveReason, Demands),
    /// The demands of the gateway cannot be understood.
    Demands(DemandsError),
    /// An identity header for the application would be too long.
    Identity(HeaderTooLong),
}

/// An error code of RFC 6750 or RFC 9470, and a description of the problem.
struct Error {
    code: &'static str,
    description: String,
}

impl Denial {
    /// Returns the name of the outcome in metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NoCredential(_) => "no_credential",
            Self::SeveralCredentials => "several_credentials",
            Self::ConflictingCookies => super::outcomes::CONFLICTING_COOKIES,
            Self::Inactive(reason, _) => reason.as_str(),
            Self::Demands(_) => "bad_demand",
            Self::Identity(_) => "identity_not_told",
        }
    }

    /// Returns the status: 401 if the client should send another token, otherwise 403. Gateways
    /// expect no other status.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Inactive(InactiveReason::InsufficientScope, _)
            | Self::Demands(_)
            | Self::Identity(_) => StatusCode::FORBIDDEN,
            Self::NoCredential(_)
            | Self::SeveralCredentials
            | Self::ConflictingCookies
            | Self::Inactive(..) => StatusCode::UNAUTHORIZED,
        }
    }

    /// Returns the headers of the answer. The realm is not escaped, because it is a URL.
    pub fn headers(&self, realm: &str) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(challenge) = self.challenge(realm) {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        headers
    }

    /// Returns the value of `WWW-Authenticate`, or `None` if the request could not pass with any
    /// token.
    fn challenge(&self, realm: &str) -> Option<HeaderValue> {
        let mut challenge = format!("Bearer realm=\"{realm}\"");
        let mut add = |name: &str, value: &str| {
            challenge.extend([", ", name, "=\"", value, "\""]);
        };
        match self {
            // A request without a token gets no error code (RFC 6750, section 3.1).
            Self::NoCredential(_) => {}
            Self::SeveralCredentials | Self::ConflictingCookies | Self::Inactive(..) => {
                let Error { code, description } = self.error();
                add("error", code);
                add("error_description", &description);
            }
            Self::Demands(_) | Self::Identity(_) => return None,
        }
        if let Self::NoCredential(demands)
        | Self::Inactive(InactiveReason::InsufficientScope, demands) = self
            && !demands.scopes.is_empty()
        {
            add("scope", &demands.scopes.join(" "));
        }
        if let Self::Inactive(InactiveReason::StepUpRequired, demands) = self {
            if !demands.acr_values.is_empty() {
                add("acr_values", &demands.acr_values.join(" "));
            }
            if let Some(age) = demands.shortest_age() {
                add("max_age", &age.as_secs().to_string());
            }
        }
        // This does not fail, because all parts are valid in a quoted string.
        HeaderValue::try_from(challenge).ok()
    }

    /// Returns the error as JSON, for clients that do not read the headers.
    pub fn body(&self) -> String {
        let Error { code, description } = self.error();
        json!({ "error": code, "error_description": description }).to_string()
    }

    fn error(&self) -> Error {
        let (code, description) = match self {
            Self::NoCredential(_) => ("unauthorized", "an access token is needed"),
            Self::SeveralCredentials => ("invalid_request", "more than one access token was sent"),
            Self::ConflictingCookies => (
                "invalid_request",
                "several cookies of the same name were sent with different values: clear the \
                 cookies of this site and its parent domains, and sign in again",
            ),
            Self::Inactive(reason, demands) => match reason {
                InactiveReason::InsufficientScope => {
                    ("insufficient_scope", "the access token lacks a scope")
                }
                InactiveReason::StepUpRequired => {
                    return Error {
                        code: "insufficient_user_authentication",
                        description: step_up(demands),
                    };
                }
                InactiveReason::Expired => ("invalid_token", "the access token has expired"),
                InactiveReason::NotYetValid => {
                    ("invalid_token", "the access token is not valid yet")
                }
                InactiveReason::Revoked => ("invalid_token", "the access token has been revoked"),
                InactiveReason::WrongAudience | InactiveReason::ForeignTenant => {
                    ("invalid_token", "the access token is not meant for this resource")
                }
                InactiveReason::Malformed
                | InactiveReason::BadSignature
                | InactiveReason::UnknownKey
                | InactiveReason::WrongType
                | InactiveReason::WrongIssuer => ("invalid_token", "the access token is not valid"),
            },
            Self::Demands(error) => {
                return Error { code: "access_denied", description: error.to_string() };
            }
            Self::Identity(error) => {
                return Error { code: "access_denied", description: error.to_string() };
            }
        };
        Error { code, description: description.to_owned() }
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
            description.push_str(&format!(" within {} seconds", age.as_secs()));
        }
    }
    description
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(denial: &Denial) -> String {
        denial.challenge("https://auth.test").unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn a_challenge_names_the_error_and_the_demands_that_are_not_met() {
        let demands = Demands::read([
            ("scope", "read write"),
            ("acr_values", "gold silver"),
            ("max_age", "300"),
        ])
        .unwrap();
        let none = Denial::NoCredential(demands.clone());
        assert_eq!(challenge(&none), "Bearer realm=\"https://auth.test\", scope=\"read write\"");
        assert_eq!(
            challenge(&Denial::NoCredential(Demands::default())),
            "Bearer realm=\"https://auth.test\""
        );
        let scope = Denial::Inactive(InactiveReason::InsufficientScope, demands.clone());
        assert_eq!(
            challenge(&scope),
            "Bearer realm=\"https://auth.test\", error=\"insufficient_scope\", \
             error_description=\"the access token lacks a scope\", scope=\"read write\""
        );
        assert_eq!(scope.status(), StatusCode::FORBIDDEN);
        let step_up = Denial::Inactive(InactiveReason::StepUpRequired, demands);
        assert_eq!(
            challenge(&step_up),
            "Bearer realm=\"https://auth.test\", error=\"insufficient_user_authentication\", \
             error_description=\"a stronger or more recent authentication is needed\", \
             acr_values=\"gold silver\", max_age=\"300\""
        );
        assert_eq!(step_up.status(), StatusCode::UNAUTHORIZED);
    }

    #[test]
    fn a_bad_token_is_answered_401_and_a_mistake_of_the_gateway_403_without_a_challenge() {
        for reason in InactiveReason::ALL {
            let denial = Denial::Inactive(reason, Demands::default());
            let is_scope = reason == InactiveReason::InsufficientScope;
            assert_eq!(
                denial.status(),
                if is_scope { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED }
            );
            assert!(challenge(&denial).contains("error=\""));
            assert!(
                serde_json::from_str::<serde_json::Value>(&denial.body()).unwrap()["error"]
                    .is_string()
            );
        }
        let mistake = Denial::Demands(DemandsError::Unknown { name: "x\"\r\n".to_owned() });
        assert_eq!((mistake.status(), mistake.challenge("r")), (StatusCode::FORBIDDEN, None));
    }
}
