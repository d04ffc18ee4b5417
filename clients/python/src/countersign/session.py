"""The session of a verified token."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from countersign._clock import SECOND, saturated
from countersign._token import Token, parse_uuid
from countersign.proto import ValidateResponse
from countersign.structs import Json, from_struct

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)


class _Answered:
    """The claims in an answer of Validate, by the names that a `Token` gives them."""

    __slots__ = (
        *("session_id", "subject", "tenant", "client_id", "audience", "scopes", "issued_at"),
        *("expires_at", "authenticated_at", "acr", "amr", "amr_verified_at", "_claims"),
    )

    def __init__(self, answer: ValidateResponse) -> None:
        parse_uuid(answer.session_id)
        for name in ("issued_at", "expires_at", "authenticated_at"):
            if not answer.HasField(name):
                raise ValueError(f"{name} is missing")
        self.session_id = answer.session_id
        self.subject = answer.subject
        self.tenant = answer.tenant
        self.client_id = answer.client_id
        self.audience = tuple(answer.audience)
        self.scopes = tuple(answer.scopes)
        self.issued_at = saturated(answer.issued_at.seconds)
        self.expires_at = saturated(answer.expires_at.seconds)
        self.authenticated_at = saturated(answer.authenticated_at.seconds)
        self.acr = answer.acr
        self.amr = tuple(answer.amr)
        times = answer.amr_verified_at
        self.amr_verified_at = {name: saturated(times[name].seconds) for name in times}
        self._claims = answer.claims

    @property
    def claims(self) -> dict[str, Any]:
        return dict(from_struct(self._claims))


def _datetime(at: int) -> datetime:
    """Converts an instant. One that a `datetime` cannot express becomes the first or the last."""
    try:
        return _EPOCH + timedelta(microseconds=at)
    except OverflowError:
        return _FIRST if at < 0 else _LAST


class Session:
    """The session that an active token belongs to, with the claims of the token.

    It cannot be changed. Its text form has the identifier of the session, but neither the token nor
    the claims. Instants are in whole seconds, with the time zone UTC.
    """

    __slots__ = ("_claims",)

    def __init__(self, claims: Token | ValidateResponse) -> None:
        """Takes the claims of a verified token, or of an answer of Validate.

        Raises `ValueError` if the answer is incomplete. Applications get sessions from a verifier.
        """
        self._claims = _Answered(claims) if isinstance(claims, ValidateResponse) else claims

    @property
    def id(self) -> str:
        """The identifier of the session (`sid`), a UUID."""
        return self._claims.session_id

    @property
    def subject(self) -> str:
        """The user (`sub`)."""
        return self._claims.subject

    @property
    def tenant(self) -> str:
        """The tenant; empty for the default tenant."""
        return self._claims.tenant

    @property
    def client_id(self) -> str:
        """The OAuth client; may be empty."""
        return self._claims.client_id

    @property
    def audience(self) -> tuple[str, ...]:
        """The services that the token is meant for (`aud`)."""
        return self._claims.audience

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of the token."""
        return self._claims.scopes

    def has_scope(self, scope: str) -> bool:
        """Returns whether the token carries a scope."""
        return scope in self._claims.scopes

    @property
    def issued_at(self) -> datetime:
        """The time at which the token was issued."""
        return _datetime(self._claims.issued_at)

    @property
    def expires_at(self) -> datetime:
        """The time at which the token expires."""
        return _datetime(self._claims.expires_at)

    @property
    def authenticated_at(self) -> datetime:
        """The time at which the user authenticated (`auth_time`)."""
        return _datetime(self._claims.authenticated_at)

    @property
    def acr(self) -> str:
        """The authentication context class; may be empty."""
        return self._claims.acr

    @property
    def amr(self) -> tuple[str, ...]:
        """The authentication methods (RFC 8176)."""
        return self._claims.amr

    def verified_at(self, method: str) -> datetime | None:
        """Returns the time at which an authentication method was verified, if it is known."""
        at = self._claims.amr_verified_at.get(method)
        return None if at is None else _datetime(at)

    def claim(self, name: str) -> Json:
        """Returns a claim of the session's own, and `None` if there is no such claim."""
        return self.claims.get(name)

    @property
    def claims(self) -> dict[str, Json]:
        """All claims of the session's own. They are decoded anew each time."""
        return self._claims.claims

    def to_dict(self) -> dict[str, Json]:
        """Returns everything as plain values, by the names that `ValidateResponse` has.

        Instants are in seconds since 1970. Unlike the text form, the result may hold personal data.
        """
        it = self._claims
        return {
            "session_id": it.session_id,
            "subject": it.subject,
            "tenant": it.tenant,
            "client_id": it.client_id,
            "audience": list(it.audience),
            "scopes": list(it.scopes),
            "issued_at": it.issued_at // SECOND,
            "expires_at": it.expires_at // SECOND,
            "authenticated_at": it.authenticated_at // SECOND,
            "acr": it.acr,
            "amr": list(it.amr),
            "amr_verified_at": {name: at // SECOND for name, at in it.amr_verified_at.items()},
            "claims": self.claims,
        }

    def __repr__(self) -> str:
        return f"Session(id={self.id!r})"
