"""The messages and enumerations of the protocol.

Their comments are those of the proto files. The text form of messages with tokens or claims has
neither.
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from countersign.v1.audit_service_pb2 import (
    AuditRecord,
    ListAuditRequest,
    ListAuditResponse,
)
from countersign.v1.key_service_pb2 import (
    GetJwksRequest,
    GetJwksResponse,
    Key,
    KeyPurpose,
    KeyState,
    ListKeysRequest,
    ListKeysResponse,
    RevokeKeyRequest,
    RevokeKeyResponse,
    RotateKeyRequest,
    RotateKeyResponse,
)
from countersign.v1.revocation_service_pb2 import (
    RevokedId,
    RevokedSessions,
    WatchKeys,
    WatchLease,
    WatchRenewal,
    WatchRequest,
    WatchReset,
    WatchResponse,
    WatchRevocations,
    WatchRules,
    WatchStart,
)
from countersign.v1.session_pb2 import (
    Device,
    DeviceKind,
    EndReason,
    OnRefresh,
    RefreshMode,
    Replay,
    Session,
    SessionPolicy,
    SessionState,
    Tokens,
)
from countersign.v1.session_service_pb2 import (
    BatchValidateRequest,
    BatchValidateResponse,
    CountSessionsRequest,
    CountSessionsResponse,
    CreateSessionRequest,
    CreateSessionResponse,
    DryRun,
    FactorDemand,
    GetSessionRequest,
    GetSessionResponse,
    ImportedSession,
    ImportResult,
    ImportSessionsRequest,
    ImportSessionsResponse,
    ImportStatus,
    InactiveReason,
    ListRevocationsRequest,
    ListRevocationsResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    ReauthenticateRequest,
    ReauthenticateResponse,
    RefreshRequest,
    RefreshResponse,
    Revocation,
    RevokeExtent,
    RevokeRequest,
    RevokeResponse,
    SessionFilter,
    SessionsTarget,
    SubjectsTarget,
    SubjectTarget,
    UpdateSessionRequest,
    UpdateSessionResponse,
    ValidateRequest,
    ValidateResponse,
    ValidateView,
)

__all__ = [
    "AuditRecord",
    "BatchValidateRequest",
    "BatchValidateResponse",
    "CountSessionsRequest",
    "CountSessionsResponse",
    "CreateSessionRequest",
    "CreateSessionResponse",
    "Device",
    "DeviceKind",
    "DryRun",
    "EndReason",
    "FactorDemand",
    "GetJwksRequest",
    "GetJwksResponse",
    "GetSessionRequest",
    "GetSessionResponse",
    "ImportResult",
    "ImportSessionsRequest",
    "ImportSessionsResponse",
    "ImportStatus",
    "ImportedSession",
    "InactiveReason",
    "Key",
    "KeyPurpose",
    "KeyState",
    "ListAuditRequest",
    "ListAuditResponse",
    "ListKeysRequest",
    "ListKeysResponse",
    "ListRevocationsRequest",
    "ListRevocationsResponse",
    "ListSessionsRequest",
    "ListSessionsResponse",
    "OnRefresh",
    "ReauthenticateRequest",
    "ReauthenticateResponse",
    "RefreshMode",
    "RefreshRequest",
    "RefreshResponse",
    "Replay",
    "Revocation",
    "RevokeExtent",
    "RevokeKeyRequest",
    "RevokeKeyResponse",
    "RevokeRequest",
    "RevokeResponse",
    "RevokedId",
    "RevokedSessions",
    "RotateKeyRequest",
    "RotateKeyResponse",
    "Session",
    "SessionFilter",
    "SessionPolicy",
    "SessionState",
    "SessionsTarget",
    "SubjectTarget",
    "SubjectsTarget",
    "Tokens",
    "UpdateSessionRequest",
    "UpdateSessionResponse",
    "ValidateRequest",
    "ValidateResponse",
    "ValidateView",
    "WatchKeys",
    "WatchLease",
    "WatchRenewal",
    "WatchRequest",
    "WatchReset",
    "WatchResponse",
    "WatchRevocations",
    "WatchRules",
    "WatchStart",
]


# The fields whose values are secrets, or may hold personal data.
_SECRET_FIELDS = frozenset(
    {"access_token", "refresh_token", "legacy_refresh_token", "token", "claims", "metadata"}
)


def _fields(  # The types of descriptors differ between the implementations of protobuf.
    descriptor: Any,  # noqa: ANN401
    seen: set[str],
) -> Iterator[str]:
    """Yields the names of the fields of a message, and of the messages within it."""
    if descriptor.full_name in seen:
        return
    seen.add(descriptor.full_name)
    for field in descriptor.fields:
        yield field.name
        if field.message_type is not None:
            yield from _fields(field.message_type, seen)


def _redacted(message: Message) -> str:
    return f"{message.DESCRIPTOR.name} {{ [redacted] }}"


def _redact(messages: dict[str, object]) -> None:
    """Gives messages with secrets a text form without them."""
    for message in messages.values():
        if not (isinstance(message, type) and issubclass(message, Message)):
            continue
        if any(name in _SECRET_FIELDS for name in _fields(message.DESCRIPTOR, set())):
            for name in ("__repr__", "__str__"):
                setattr(message, name, _redacted)


_redact({name: globals()[name] for name in __all__})
