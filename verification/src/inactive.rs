//! The reasons why an access token may be inactive.

/// The reason why a token is inactive. If several reasons apply, the first in the following order
/// is returned: form, key (also a revoked one) and signature, tenant, time, blacklist, audience,
/// demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InactiveReason {
    /// The token is not a JWT of the form that this service issues.
    Malformed,
    /// The signature does not match the key that `kid` names.
    BadSignature,
    /// The key that `kid` names is not in the ring.
    UnknownKey,
    /// The token is not an access token.
    WrongType,
    /// The token has expired.
    Expired,
    /// The token is not valid yet.
    NotYetValid,
    /// The token is from another issuer.
    WrongIssuer,
    /// The token is not for the demanded audience, or it is for none of the audiences that the
    /// caller is limited to.
    WrongAudience,
    /// The token lacks a demanded scope.
    InsufficientScope,
    /// The authentication is too weak or too old for the demand.
    StepUpRequired,
    /// A blacklist entry stops the token, or its key has been revoked.
    Revoked,
    /// The token belongs to a tenant that the caller is not allowed to see.
    ForeignTenant,
}

impl InactiveReason {
    /// All reasons.
    pub const ALL: [Self; 12] = [
        Self::Malformed,
        Self::BadSignature,
        Self::UnknownKey,
        Self::WrongType,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongIssuer,
        Self::WrongAudience,
        Self::InsufficientScope,
        Self::StepUpRequired,
        Self::Revoked,
        Self::ForeignTenant,
    ];

    /// Returns the name of the reason in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::BadSignature => "bad_signature",
            Self::UnknownKey => "unknown_key",
            Self::WrongType => "wrong_type",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::InsufficientScope => "insufficient_scope",
            Self::StepUpRequired => "step_up_required",
            Self::Revoked => "revoked",
            Self::ForeignTenant => "foreign_tenant",
        }
    }
}
