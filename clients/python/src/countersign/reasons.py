"""The reasons for which tokens are inactive, and nothing is known of them."""

from enum import StrEnum


class InactiveReason(StrEnum):
    """The reason for which a token is inactive.

    If several apply, it is the first in this order: form, key (also a revoked one) and signature,
    tenant, time, revocation, audience, demands. The values are the names in metrics.
    """

    MALFORMED = "malformed"
    """The token is not a JWT of the form that the service issues."""
    BAD_SIGNATURE = "bad_signature"
    """The signature was not made by the key that the token names."""
    UNKNOWN_KEY = "unknown_key"
    """The token names a key that is not known."""
    WRONG_TYPE = "wrong_type"
    """The token is not an access token."""
    EXPIRED = "expired"
    """The token has expired."""
    NOT_YET_VALID = "not_yet_valid"
    """The token is not valid yet."""
    WRONG_ISSUER = "wrong_issuer"
    """The token is from another issuer."""
    WRONG_AUDIENCE = "wrong_audience"
    """The token is not meant for the demanded audience."""
    INSUFFICIENT_SCOPE = "insufficient_scope"
    """The token lacks a demanded scope."""
    STEP_UP_REQUIRED = "step_up_required"
    """The authentication is too weak or too old for the demand (RFC 9470)."""
    REVOKED = "revoked"
    """The session, the token, or the key that signed it was revoked."""
    FOREIGN_TENANT = "foreign_tenant"
    """The caller may not see tokens of this tenant."""


class UnknownReason(StrEnum):
    """The reason why it is not known whether a token is active."""

    NO_LEASE = "no_lease"
    """This process has no lease: it is starting, or is cut off, or was suspended."""
    NOT_ANSWERED = "not_answered"
    """The service did not answer the question."""
    NOT_UNDERSTOOD = "not_understood"
    """The answer of the service cannot be understood; it may be newer than this library."""
