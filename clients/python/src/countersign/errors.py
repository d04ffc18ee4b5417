"""The errors of calls."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Final, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

_DETAILS: Final = "grpc-status-details-bin"
# gRPC has no other sign that a call has not left this process. An unknown text means that the call
# may have taken effect, which is safe.
_NOT_CONNECTED: Final = ("failed to connect to all addresses", "DNS resolution failed")


class BuildError(ValueError):
    """The client cannot be built from its settings."""


class Reason(StrEnum):
    """The reason of an error. The values are those of `ErrorInfo.reason`."""

    INVALID_FIELD = "INVALID_FIELD"
    """A field of the request is not valid. `CountersignError.fields` names it."""
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    """The request id belongs to another request, or to another caller."""
    CALLER_UNKNOWN = "CALLER_UNKNOWN"
    """The API key or the client certificate is missing or unknown."""
    CALLER_NOT_ALLOWED = "CALLER_NOT_ALLOWED"
    """The caller lacks the role, or the tenant or audience is not one of the caller's."""
    CALLER_OVER_LIMIT = "CALLER_OVER_LIMIT"
    """The caller has too many calls under way, or began too many recently."""
    REFRESH_TOKEN_INVALID = "REFRESH_TOKEN_INVALID"  # noqa: S105
    """The refresh token is malformed, forged, or from another service."""
    REFRESH_TOKEN_REUSED = "REFRESH_TOKEN_REUSED"  # noqa: S105
    """The refresh token was exchanged before, so two parties have it. The session has ended."""
    SESSION_REVOKED = "SESSION_REVOKED"
    """The session was ended."""
    SESSION_EXPIRED_IDLE = "SESSION_EXPIRED_IDLE"
    """The session was not refreshed within its idle time-out."""
    SESSION_EXPIRED_ABSOLUTE = "SESSION_EXPIRED_ABSOLUTE"
    """The session has reached the end of its lifetime."""
    SESSION_QUOTA_EXCEEDED = "SESSION_QUOTA_EXCEEDED"
    """The subject has as many sessions as its policy allows."""
    ETAG_MISMATCH = "ETAG_MISMATCH"
    """The session has changed since it was read."""
    SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
    """There is no such session."""
    KEY_NOT_FOUND = "KEY_NOT_FOUND"
    """There is no such key."""
    KEY_TOO_NEW = "KEY_TOO_NEW"
    """The pending key was published so recently that verifiers may not know it."""
    TOO_MANY_KEYS = "TOO_MANY_KEYS"
    """There are too many keys."""
    BLACKLIST_FULL = "BLACKLIST_FULL"
    """The blacklist is full."""
    TOO_MANY_WATCHERS = "TOO_MANY_WATCHERS"
    """Too many watchers are connected to the replica."""
    WATCHER_TOO_SLOW = "WATCHER_TOO_SLOW"
    """The watcher does not read fast enough."""
    NOT_SENT = "NOT_SENT"
    """The watcher has confirmed something that was not sent."""
    OVERLOADED = "OVERLOADED"
    """The service is overloaded, and has done nothing."""
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    """The database is not available. A write may or may not have taken effect."""
    NOT_CURRENT = "NOT_CURRENT"
    """The replica starts, stops, or does not know the latest revocations."""
    NO_ACTIVE_KEY = "NO_ACTIVE_KEY"
    """No key is active at the moment."""
    AUDIT_TABLE_OFF = "AUDIT_TABLE_OFF"
    """The service keeps no audit in its database."""
    INTERNAL = "INTERNAL"
    """A bug of the service, or damaged data. The service's log has the details."""
    MALFORMED_REQUEST = "MALFORMED_REQUEST"
    """The service could not read the request."""
    UNIMPLEMENTED = "UNIMPLEMENTED"
    """The service does not have the call; it may be older than this library."""
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    """The deadline of the call has passed. A write may or may not have taken effect."""
    UNREACHABLE = "UNREACHABLE"
    """No replica could be reached, or the connection was lost during the call."""
    OTHER = ""
    """A reason that this version of the library does not know, or none."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of a request that is not valid."""

    field: str
    """The path of the field, such as `audience[3]`."""
    description: str
    """The problem with it."""


class Failure(Protocol):
    """What the synchronous and the asynchronous errors of gRPC have in common."""

    def code(self) -> grpc.StatusCode:
        """Returns the code."""

    def details(self) -> str | None:
        """Returns the message."""

    def trailing_metadata(self) -> object:
        """Returns pairs of names and values."""


class CountersignError(Exception):
    """The error of a call. It holds no token.

    There is a class for each reason that the service names in `ErrorInfo`, so that
    `except RefreshTokenReusedError` catches what it says.
    """

    code: grpc.StatusCode
    """The gRPC code."""
    reason: Reason
    """The reason; `Reason.OTHER` if this version of the library does not know it."""
    name: str
    """The name of the reason in `ErrorInfo.reason`; empty if there is none."""
    message: str
    """The message, which is for people."""
    retry_after: float | None
    """The seconds after which the call may be repeated (`RetryInfo`).

    The library has waited for them already as far as the deadline allowed."""
    fields: tuple[FieldViolation, ...]
    """The fields that are not valid (`BadRequest`)."""
    is_refused: bool
    """True if the call certainly had no effect.

    It did not reach the service, or the service refused it before doing anything."""

    _classes: ClassVar[dict[Reason, type["CountersignError"]]] = {}

    def __init_subclass__(cls, *, reason: Reason) -> None:
        super().__init_subclass__()
        CountersignError._classes[reason] = cls

    def __init__(  # noqa: PLR0913 (Applications need not create errors.)
        self,
        code: grpc.StatusCode,
        reason: Reason,
        message: str,
        *,
        name: str | None = None,
        retry_after: float | None = None,
        fields: tuple[FieldViolation, ...] = (),
        is_refused: bool = False,
    ) -> None:
        """Creates an error. `CountersignError.of` creates one of the class for its reason."""
        self.code = code
        self.reason = reason
        self.name = reason.value if name is None else name
        self.message = message
        self.retry_after = retry_after
        self.fields = fields
        self.is_refused = is_refused or reason in _REFUSALS
        super().__init__(f"{self.name} ({code.name}): {message}")

    def __reduce__(self) -> tuple[object, ...]:
        details = (self.code, self.reason, self.message, self.name)
        return (_restore, (*details, self.retry_after, self.fields, self.is_refused))

    @property
    def is_temporary(self) -> bool:
        """Whether the call may succeed later, without a change of the request."""
        return self.code is grpc.StatusCode.UNAVAILABLE or self.retry_after is not None

    @classmethod
    def of(  # noqa: PLR0913
        cls,
        code: grpc.StatusCode,
        reason: Reason,
        message: str,
        *,
        name: str | None = None,
        retry_after: float | None = None,
        fields: tuple[FieldViolation, ...] = (),
        is_refused: bool = False,
    ) -> "CountersignError":
        """Creates an error of the class for its reason."""
        return cls._classes.get(reason, CountersignError)(
            code,
            reason,
            message,
            name=name,
            retry_after=retry_after,
            fields=fields,
            is_refused=is_refused,
        )

    @classmethod
    def deadline_exceeded(cls) -> "CountersignError":
        """Creates the error of a call whose deadline has passed."""
        message = "no replica has answered within the deadline"
        return cls.of(grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED, message)

    @classmethod
    def from_grpc(cls, failure: Failure) -> "CountersignError":
        """Reads an error of gRPC."""
        code = failure.code()
        message = failure.details() or ""
        info, retry, bad_request = _read_details(failure)
        if info is not None:
            name = info.reason
            reason = _REASONS.get(name, Reason.OTHER)
        else:
            reason = _WITHOUT_INFO.get(code, Reason.OTHER)
            name = "" if reason is Reason.OTHER else reason.value
        violations = bad_request.field_violations if bad_request is not None else ()
        return cls.of(
            code,
            reason,
            message,
            name=name,
            retry_after=retry,
            fields=tuple(FieldViolation(it.field, it.description) for it in violations),
            is_refused=reason is Reason.UNREACHABLE and message.startswith(_NOT_CONNECTED),
        )


def _restore(  # noqa: PLR0913, PLR0917
    code: grpc.StatusCode,
    reason: Reason,
    message: str,
    name: str,
    retry_after: float | None,
    fields: tuple[FieldViolation, ...],
    is_refused: bool,  # noqa: FBT001
) -> CountersignError:
    return CountersignError.of(
        code,
        reason,
        message,
        name=name,
        retry_after=retry_after,
        fields=fields,
        is_refused=is_refused,
    )


_REFUSALS: Final = frozenset(
    {Reason.NOT_CURRENT, Reason.NO_ACTIVE_KEY, Reason.OVERLOADED, Reason.CALLER_OVER_LIMIT}
)
_REASONS: Final = {reason.value: reason for reason in Reason}
_WITHOUT_INFO: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE: Reason.UNREACHABLE,
}


def _read_details(
    failure: Failure,
) -> tuple[ErrorInfo | None, float | None, BadRequest | None]:
    """Reads the details of an error (`google.rpc.Status`)."""
    info, retry, bad_request = ErrorInfo(), RetryInfo(), BadRequest()
    has_info, wait, has_fields = False, None, False
    for detail in _unpack(failure):
        if detail.Unpack(info):
            has_info = True
        elif detail.Unpack(retry):
            wait = max(0.0, retry.retry_delay.ToMicroseconds() / 1e6)
        elif detail.Unpack(bad_request):
            has_fields = True
    return info if has_info else None, wait, bad_request if has_fields else None


def _unpack(failure: Failure) -> Iterable[Any]:
    metadata = failure.trailing_metadata()
    status = Status()
    for name, value in metadata if isinstance(metadata, Iterable) else ():
        if name == _DETAILS and isinstance(value, bytes):
            try:
                status.ParseFromString(value)
            except DecodeError:
                return ()
    details: Iterable[Any] = status.details
    return details


class InvalidFieldError(CountersignError, reason=Reason.INVALID_FIELD):
    """A field of the request is not valid. `CountersignError.fields` names it."""


class RequestIdReusedError(CountersignError, reason=Reason.REQUEST_ID_REUSED):
    """The request id belongs to another request, or to another caller."""


class CallerUnknownError(CountersignError, reason=Reason.CALLER_UNKNOWN):
    """The API key or the client certificate is missing or unknown."""


class CallerNotAllowedError(CountersignError, reason=Reason.CALLER_NOT_ALLOWED):
    """The caller lacks the role, or the tenant or audience is not one of the caller's."""


class CallerOverLimitError(CountersignError, reason=Reason.CALLER_OVER_LIMIT):
    """The caller has too many calls under way, or began too many recently."""


class RefreshTokenInvalidError(CountersignError, reason=Reason.REFRESH_TOKEN_INVALID):
    """The refresh token is malformed, forged, or from another service."""


class RefreshTokenReusedError(CountersignError, reason=Reason.REFRESH_TOKEN_REUSED):
    """The refresh token was exchanged before, so two parties have it. The session has ended."""


class SessionRevokedError(CountersignError, reason=Reason.SESSION_REVOKED):
    """The session was ended."""


class SessionExpiredIdleError(CountersignError, reason=Reason.SESSION_EXPIRED_IDLE):
    """The session was not refreshed within its idle time-out."""


class SessionExpiredAbsoluteError(CountersignError, reason=Reason.SESSION_EXPIRED_ABSOLUTE):
    """The session has reached the end of its lifetime."""


class SessionQuotaExceededError(CountersignError, reason=Reason.SESSION_QUOTA_EXCEEDED):
    """The subject has as many sessions as its policy allows."""


class EtagMismatchError(CountersignError, reason=Reason.ETAG_MISMATCH):
    """The session has changed since it was read."""


class SessionNotFoundError(CountersignError, reason=Reason.SESSION_NOT_FOUND):
    """There is no such session."""


class KeyNotFoundError(CountersignError, reason=Reason.KEY_NOT_FOUND):
    """There is no such key."""


class KeyTooNewError(CountersignError, reason=Reason.KEY_TOO_NEW):
    """The pending key was published so recently that verifiers may not know it."""


class TooManyKeysError(CountersignError, reason=Reason.TOO_MANY_KEYS):
    """There are too many keys."""


class BlacklistFullError(CountersignError, reason=Reason.BLACKLIST_FULL):
    """The blacklist is full."""


class TooManyWatchersError(CountersignError, reason=Reason.TOO_MANY_WATCHERS):
    """Too many watchers are connected to the replica."""


class WatcherTooSlowError(CountersignError, reason=Reason.WATCHER_TOO_SLOW):
    """The watcher does not read fast enough."""


class NotSentError(CountersignError, reason=Reason.NOT_SENT):
    """The watcher has confirmed something that was not sent."""


class OverloadedError(CountersignError, reason=Reason.OVERLOADED):
    """The service is overloaded, and has done nothing."""


class StoreUnavailableError(CountersignError, reason=Reason.STORE_UNAVAILABLE):
    """The database is not available. A write may or may not have taken effect."""


class NotCurrentError(CountersignError, reason=Reason.NOT_CURRENT):
    """The replica starts, stops, or does not know the latest revocations."""


class NoActiveKeyError(CountersignError, reason=Reason.NO_ACTIVE_KEY):
    """No key is active at the moment."""


class AuditTableOffError(CountersignError, reason=Reason.AUDIT_TABLE_OFF):
    """The service keeps no audit in its database."""


class InternalError(CountersignError, reason=Reason.INTERNAL):
    """A bug of the service, or damaged data. The service's log has the details."""


class MalformedRequestError(CountersignError, reason=Reason.MALFORMED_REQUEST):
    """The service could not read the request."""


class UnimplementedError(CountersignError, reason=Reason.UNIMPLEMENTED):
    """The service does not have the call; it may be older than this library."""


class DeadlineExceededError(CountersignError, reason=Reason.DEADLINE_EXCEEDED):
    """The deadline of the call has passed. A write may or may not have taken effect."""


class UnreachableError(CountersignError, reason=Reason.UNREACHABLE):
    """No replica could be reached, or the connection was lost during the call."""
