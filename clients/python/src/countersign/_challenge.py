"""The challenge to a client whose request may not pass.

It follows RFC 6750 (section 3) and RFC 9470 (section 3), and is that of the service's answers to
gateways.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from countersign._clock import SECOND
from countersign.demands import Demands
from countersign.reasons import InactiveReason


class DenialKind(Enum):
    """The kind of a denial. The values are the errors of RFC 6750 where there is only one."""

    NO_TOKEN = "unauthorized"  # noqa: S105 (It is no token.)
    SEVERAL_TOKENS = "several_tokens"
    CONFLICTING_COOKIES = "conflicting_cookies"
    INACTIVE = "invalid_token"
    UNKNOWN = "temporarily_unavailable"


_TEXTS: Final = {
    DenialKind.NO_TOKEN: "an access token is needed",
    DenialKind.SEVERAL_TOKENS: "more than one access token was sent",
    DenialKind.CONFLICTING_COOKIES: (
        "several cookies of the same name were sent with different values: clear the cookies of "
        "this site and its parent domains, and sign in again"
    ),
    DenialKind.UNKNOWN: "the access token cannot be checked at the moment: try again",
}
_ELSEWHERE: Final = "the access token is not meant for this resource"
_INACTIVE_TEXTS: Final = {
    InactiveReason.INSUFFICIENT_SCOPE: "the access token lacks a scope",
    InactiveReason.EXPIRED: "the access token has expired",
    InactiveReason.NOT_YET_VALID: "the access token is not valid yet",
    InactiveReason.REVOKED: "the access token has been revoked",
    InactiveReason.WRONG_AUDIENCE: _ELSEWHERE,
    InactiveReason.FOREIGN_TENANT: _ELSEWHERE,
}


@dataclass(frozen=True, slots=True)
class Denial:
    """The reason for which a request may not pass."""

    kind: DenialKind
    reason: InactiveReason | None = None
    """The reason if the token is inactive."""

    def code(self) -> str:
        """Returns the error code of RFC 6750 or RFC 9470."""
        if self.kind in (DenialKind.SEVERAL_TOKENS, DenialKind.CONFLICTING_COOKIES):
            return "invalid_request"
        if self.reason is InactiveReason.INSUFFICIENT_SCOPE:
            return "insufficient_scope"
        if self.reason is InactiveReason.STEP_UP_REQUIRED:
            return "insufficient_user_authentication"
        return str(self.kind.value)

    def description(self, demands: Demands) -> str:
        """Describes the problem for the developer of the client."""
        if self.reason is None:
            return _TEXTS[self.kind]
        if self.reason is InactiveReason.STEP_UP_REQUIRED:
            return _step_up(demands)
        return _INACTIVE_TEXTS.get(self.reason, "the access token is not valid")

    def challenge(self, realm: str | None, demands: Demands) -> str:
        """Returns the value of `WWW-Authenticate`."""
        parameters: list[tuple[str, str]] = []
        if realm is not None:
            parameters.append(("realm", realm))
        # A request without a token gets no error code (RFC 6750, section 3.1).
        if self.kind is not DenialKind.NO_TOKEN:
            parameters.append(("error", self.code()))
            parameters.append(("error_description", self.description(demands)))
        parameters += self.unmet(demands)
        if self.kind is DenialKind.NO_TOKEN and (scopes := _joined(demands.scopes)):
            parameters.append(("scope", scopes))
        if not parameters:
            return "Bearer"
        return "Bearer " + ", ".join(f'{name}="{_quoted(value)}"' for name, value in parameters)

    def unmet(self, demands: Demands) -> list[tuple[str, str]]:
        """Returns the demands that are not met, by the names of RFC 6750 and RFC 9470."""
        found: list[tuple[str, str | None]] = []
        if self.reason is InactiveReason.INSUFFICIENT_SCOPE:
            found = [("scope", _joined(demands.scopes))]
        elif self.reason is InactiveReason.STEP_UP_REQUIRED:
            age = demands.shortest_age()
            found = [
                ("acr_values", _joined(demands.acr_values)),
                ("max_age", None if age is None else str(age)),
            ]
        return [(name, value) for name, value in found if value]


def _joined(values: Iterable[str]) -> str:
    return " ".join(values)


def _step_up(demands: Demands) -> str:
    """Describes the authentication that a route demands.

    RFC 9470 has no parameter for methods, so the text names them.
    """
    methods = [
        method if age is None else f"{method} within {age // SECOND} seconds"
        for method, age in demands.factor_ages
    ]
    text = "a stronger or more recent authentication is needed"
    return text + (": the route demands " + ", ".join(methods) if methods else "")


def _quoted(text: str) -> str:
    """Escapes a text for a quoted string (RFC 9110, section 5.6.4)."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
