"""The revocations in force, and how messages of Watch describe them."""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from countersign._clock import LAST, saturated
from countersign._token import Token, parse_uuid
from countersign.proto import RevokedSessions, WatchRevocations

_MAX_TENANT: Final = 128
_MAX_TEXT: Final = 256
_SECONDS: Final = 1_000_000


class NotUnderstoodError(Exception):
    """The service has sent a message that this version of the library does not understand."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


@dataclass(frozen=True, slots=True)
class CutOff:
    """A revocation of all sessions of some kind up to an instant."""

    up_to: int
    spared: bytes | None
    expires_at: int
    by_authentication: bool

    def covers(self, session: bytes, created_ms: int, authenticated_at: int) -> bool:
        """Returns whether it covers a session, which is one of those among which it chooses."""
        if self.by_authentication:
            return authenticated_at <= self.up_to
        return created_ms <= self.up_to // 1000 and self.spared != session

    def union(self, other: "CutOff") -> "CutOff":
        """Returns the cut-off that covers exactly what at least one of the two covers."""
        earlier, later = (self, other) if self.up_to <= other.up_to else (other, self)
        spared = later.spared
        if spared is not None and earlier.covers(spared, int.from_bytes(spared[:6], "big"), 0):
            spared = None
        expires_at = max(self.expires_at, other.expires_at)
        return CutOff(later.up_to, spared, expires_at, self.by_authentication)


# The sessions among which a cut-off chooses: the tenant, the subject and the client, each `None`
# for any; and whether it compares the time of the authentication.
_Key = tuple[str | None, str | None, str | None, bool]


class Index:
    """The revocations. One thread changes them while others look tokens up."""

    __slots__ = ("_cut_offs", "_ids", "expired_up_to")

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._cut_offs: dict[_Key, CutOff] = {}
        # Tokens whose expiry is not later have expired, whatever the clock says, because their
        # revocations may have been dropped.
        self.expired_up_to = -LAST - 1

    def __len__(self) -> int:
        return len(self._ids) + len(self._cut_offs)

    def apply(self, revocations: WatchRevocations) -> None:
        """Adds revocations. Those that are in force stay so."""
        for revoked in revocations.ids:
            if len(revoked.id) != 16:  # noqa: PLR2004 (A UUID has 16 bytes.)
                raise NotUnderstoodError
            expires_at = timestamp(revoked, "expires_at", revoked.expires_at)
            self.add_id(revoked.id, expires_at)
        for sessions in revocations.sessions:
            key, cut_off = _read_sessions(sessions)
            existing = self._cut_offs.get(key)
            self._cut_offs[key] = cut_off if existing is None else existing.union(cut_off)

    def add_id(self, identifier: bytes, expires_at: int) -> None:
        """Adds a session, a token or an authentication."""
        self._ids[identifier] = max(expires_at, self._ids.get(identifier, expires_at))

    def stops(self, token: Token) -> bool:
        """Returns whether a revocation stops a token."""
        ids = self._ids
        if token.session in ids or token.token in ids or token.authentication in ids:
            return True
        cut_offs = self._cut_offs
        if not cut_offs:
            return False
        return any(
            (cut_off := cut_offs.get(key)) is not None
            and cut_off.covers(token.session, token.created_ms, token.authenticated_at)
            for key in _keys(token)
        )

    def forget_expired(self, up_to: int) -> None:
        """Drops the revocations whose tokens have all expired. The watermark is raised first."""
        if up_to <= self.expired_up_to:
            return
        self.expired_up_to = up_to
        # Tokens expire at whole seconds, so fractions make no difference.
        second = up_to // _SECONDS
        for identifier in [it for it, at in self._ids.items() if at // _SECONDS <= second]:
            del self._ids[identifier]
        for key in [it for it, cut in self._cut_offs.items() if cut.expires_at <= up_to]:
            del self._cut_offs[key]


def _keys(token: Token) -> Iterator[_Key]:
    """Yields the keys of the cut-offs that may cover a token."""
    tenant, client = token.tenant, token.client_id
    yield (tenant, token.subject, None, False)
    for by_authentication in (False, True):
        yield (tenant, None, None, by_authentication)
        yield (None, None, None, by_authentication)
        yield (tenant, None, client, by_authentication)
        yield (None, None, client, by_authentication)


def _read_sessions(message: RevokedSessions) -> tuple[_Key, CutOff]:
    subject = _text(message.subject, _MAX_TEXT) or None
    client = _text(message.client_id, _MAX_TEXT) or None
    match message.WhichOneof("where"):
        case "tenant":
            tenant: str | None = _text(message.tenant, _MAX_TENANT)
        case "all_tenants" if message.all_tenants and subject is None:
            tenant = None
        case _:
            raise NotUnderstoodError
    match message.WhichOneof("instant"):
        case "created_up_to":
            by_authentication = False
            up_to = timestamp(message, "created_up_to", message.created_up_to)
        case "authenticated_up_to" if subject is None:
            by_authentication = True
            up_to = timestamp(message, "authenticated_up_to", message.authenticated_up_to)
        case _:
            raise NotUnderstoodError
    if subject is not None and client is not None:
        raise NotUnderstoodError
    spared = None
    if message.spared_session_id:
        try:
            spared = parse_uuid(message.spared_session_id)
        except ValueError:
            raise NotUnderstoodError from None
    expires_at = timestamp(message, "expires_at", message.expires_at)
    key = (tenant, subject, client, by_authentication)
    return key, CutOff(up_to, spared, expires_at, by_authentication)


def _text(text: str, limit: int) -> str:
    if len(text.encode()) > limit or any(unicodedata.category(it) == "Cc" for it in text):
        raise NotUnderstoodError
    return text


def timestamp(message: Message, field: str, value: Timestamp) -> int:
    """Reads an instant of a message, which must not be missing."""
    if not message.HasField(field):
        raise NotUnderstoodError
    return min(LAST, saturated(value.seconds) + value.nanos // 1000)


def duration(message: Message, field: str, value: Duration) -> int:
    """Reads a span of a message, which must not be missing or negative."""
    span = value.seconds * _SECONDS + value.nanos // 1000
    if not message.HasField(field) or span < 0:
        raise NotUnderstoodError
    return span


def limits(names: Iterable[str], limit: int) -> frozenset[str] | None:
    """Reads names to which a caller is limited; `None` if there are none."""
    read = frozenset(_text(name, limit) for name in names)
    return read or None
