"""The calls of the service, and when they are repeated."""

import random
import time
import uuid
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from google.protobuf.message import Message

from countersign import proto
from countersign._endpoints import Endpoints, Settings
from countersign.errors import CountersignError, Reason

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

_LEAST_DELAY: Final = 0.01
_LONGEST_DELAY: Final = 0.5
_FAILURES: Final = frozenset(
    {
        Reason.UNREACHABLE,
        Reason.NOT_CURRENT,
        Reason.STORE_UNAVAILABLE,
        Reason.OVERLOADED,
        Reason.DEADLINE_EXCEEDED,
    }
)


@dataclass(frozen=True, slots=True)
class Call(Generic[Q, R]):
    """A call of the service."""

    service: str
    method: str
    response: type[R]
    is_repeatable: bool = True
    """True if the call has the same effect however often it is made.

    Otherwise it is repeated only if the service has certainly done nothing."""
    is_revocation: bool = False
    """True if the call may wait for a replica or a watcher that has died."""

    @property
    def path(self) -> str:
        """The path of the method."""
        return f"/countersign.v1.{self.service}/{self.method}"


_SESSIONS: Final = "SessionService"
_KEYS: Final = "KeyService"
WATCH: Final = "/countersign.v1.RevocationService/Watch"

CREATE_SESSION: Final[Call[proto.CreateSessionRequest, proto.CreateSessionResponse]] = Call(
    _SESSIONS, "CreateSession", proto.CreateSessionResponse
)
REFRESH: Final[Call[proto.RefreshRequest, proto.RefreshResponse]] = Call(
    _SESSIONS, "Refresh", proto.RefreshResponse, is_repeatable=False
)
REAUTHENTICATE: Final[Call[proto.ReauthenticateRequest, proto.ReauthenticateResponse]] = Call(
    _SESSIONS, "Reauthenticate", proto.ReauthenticateResponse, is_revocation=True
)
UPDATE_SESSION: Final[Call[proto.UpdateSessionRequest, proto.UpdateSessionResponse]] = Call(
    _SESSIONS, "UpdateSession", proto.UpdateSessionResponse, is_repeatable=False, is_revocation=True
)
IMPORT_SESSIONS: Final[Call[proto.ImportSessionsRequest, proto.ImportSessionsResponse]] = Call(
    _SESSIONS, "ImportSessions", proto.ImportSessionsResponse, is_revocation=True
)
VALIDATE: Final[Call[proto.ValidateRequest, proto.ValidateResponse]] = Call(
    _SESSIONS, "Validate", proto.ValidateResponse
)
BATCH_VALIDATE: Final[Call[proto.BatchValidateRequest, proto.BatchValidateResponse]] = Call(
    _SESSIONS, "BatchValidate", proto.BatchValidateResponse
)
REVOKE: Final[Call[proto.RevokeRequest, proto.RevokeResponse]] = Call(
    _SESSIONS, "Revoke", proto.RevokeResponse, is_revocation=True
)
LIST_REVOCATIONS: Final[Call[proto.ListRevocationsRequest, proto.ListRevocationsResponse]] = Call(
    _SESSIONS, "ListRevocations", proto.ListRevocationsResponse
)
GET_SESSION: Final[Call[proto.GetSessionRequest, proto.GetSessionResponse]] = Call(
    _SESSIONS, "GetSession", proto.GetSessionResponse
)
LIST_SESSIONS: Final[Call[proto.ListSessionsRequest, proto.ListSessionsResponse]] = Call(
    _SESSIONS, "ListSessions", proto.ListSessionsResponse
)
COUNT_SESSIONS: Final[Call[proto.CountSessionsRequest, proto.CountSessionsResponse]] = Call(
    _SESSIONS, "CountSessions", proto.CountSessionsResponse
)
GET_JWKS: Final[Call[proto.GetJwksRequest, proto.GetJwksResponse]] = Call(
    _KEYS, "GetJwks", proto.GetJwksResponse
)
LIST_KEYS: Final[Call[proto.ListKeysRequest, proto.ListKeysResponse]] = Call(
    _KEYS, "ListKeys", proto.ListKeysResponse
)
ROTATE_KEY: Final[Call[proto.RotateKeyRequest, proto.RotateKeyResponse]] = Call(
    _KEYS, "RotateKey", proto.RotateKeyResponse, is_repeatable=False
)
REVOKE_KEY: Final[Call[proto.RevokeKeyRequest, proto.RevokeKeyResponse]] = Call(
    _KEYS, "RevokeKey", proto.RevokeKeyResponse, is_revocation=True
)
LIST_AUDIT: Final[Call[proto.ListAuditRequest, proto.ListAuditResponse]] = Call(
    "AuditService", "ListAudit", proto.ListAuditResponse
)


class Attempts:
    """The attempts at a call, from its start to its deadline."""

    def __init__(
        self, call: Call[Q, R], settings: Settings, endpoints: Endpoints, deadline: float | None
    ) -> None:
        """Starts the time of a call."""
        usual = settings.revocation_deadline if call.is_revocation else settings.deadline
        self._ends = time.monotonic() + (usual if deadline is None else deadline)
        self._is_repeatable = call.is_repeatable
        self._endpoints = endpoints
        self._failed = 0

    def remaining(self) -> float:
        """Returns the seconds until the deadline."""
        return max(0.0, self._ends - time.monotonic())

    def succeeded(self, replica: int) -> None:
        """Notes that a replica has answered."""
        self._endpoints.trust(replica)

    def failed(self, replica: int, error: CountersignError) -> float | None:
        """Notes a failure.

        Returns the seconds to wait before another attempt; `None` if there must be none.
        """
        note_failure(self._endpoints, replica, error)
        self._failed += 1
        may_repeat = self._is_repeatable or error.is_refused
        if not (may_repeat and error.is_temporary) or error.reason is Reason.KEY_TOO_NEW:
            return None
        delay = min(_LONGEST_DELAY, _LEAST_DELAY * 2 ** min(self._failed - 1, 10))
        # Many clients fail at the same time. The numbers need not be secret.
        delay += random.uniform(0, delay)  # noqa: S311
        # Another replica may answer at once. The wait that a replica asks for is for itself, except
        # that an overloaded service must get fewer calls.
        is_elsewhere = self._failed < len(self._endpoints) and error.reason != Reason.OVERLOADED
        if not is_elsewhere:
            delay = max(delay, error.retry_after or 0.0)
        return delay if delay < self.remaining() else None


def note_failure(endpoints: Endpoints, replica: int, error: CountersignError) -> None:
    """Keeps in mind that a replica has failed, or that it works."""
    if error.reason in _FAILURES:
        endpoints.avoid(replica)
    else:
        endpoints.trust(replica)


def with_create_id(request: proto.CreateSessionRequest) -> proto.CreateSessionRequest:
    """Returns the request with a request id, which is made once for all attempts."""
    if request.request_id:
        return request
    identified = proto.CreateSessionRequest()
    identified.CopyFrom(request)
    identified.request_id = str(uuid.uuid4())
    return identified


def with_reauthenticate_id(request: proto.ReauthenticateRequest) -> proto.ReauthenticateRequest:
    """Returns the request with a request id, which is made once for all attempts."""
    if request.request_id:
        return request
    identified = proto.ReauthenticateRequest()
    identified.CopyFrom(request)
    identified.request_id = str(uuid.uuid4())
    return identified
