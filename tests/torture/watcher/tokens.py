"""Decides whether a token is active, by a copy of the keys, the rules and the revocations.

Everything here follows the comments in proto/countersign/v1/revocation_service.proto.
"""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import jwt
from countersign.v1 import revocation_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
MAX_BYTES = 8192
# The tokens whose signature has been verified are kept, up to this number.
MAX_VERIFIED = 10_000


class UnknownMessage(Exception):
    """The service sent something that this watcher does not know."""


class Inactive(Exception):
    """The token is not active, for this reason."""


def nanoseconds(value: Duration | Timestamp) -> int:
    return value.seconds * SECOND + value.nanos


@dataclass(frozen=True)
class Claims:
    """The claims that decide. Instants are in nanoseconds since 1970."""

    kid: str
    issuer: str
    subject: str
    client_id: str
    tenant: str
    audiences: frozenset[str]
    session_id: UUID
    token_id: UUID
    authentication_id: UUID
    issued_at: int
    not_before: int
    expires_at: int
    authenticated_at: int

    @classmethod
    def read(cls, kid: str, payload: bytes) -> "Claims":
        try:
            claims: dict[str, Any] = json.loads(payload)
            audience = claims["aud"]
            audiences = [audience] if isinstance(audience, str) else map(text, audience)
            session_id = UUID(claims["sid"])
            return cls(
                kid=kid,
                issuer=text(claims["iss"]),
                subject=text(claims["sub"]),
                client_id=text(claims["client_id"]),
                tenant=text(claims.get("tenant", "")),
                audiences=frozenset(audiences),
                session_id=session_id,
                token_id=UUID(claims["jti"]),
                authentication_id=authentication_id(claims, session_id),
                issued_at=instant(claims["iat"]),
                not_before=instant(claims.get("nbf", claims["iat"])),
                expires_at=instant(claims["exp"]),
                authenticated_at=instant(claims["auth_time"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Inactive("MALFORMED") from error


def text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def instant(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("not a number of seconds")
    return value * SECOND


def authentication_id(claims: dict[str, Any], session_id: UUID) -> UUID:
    named = claims.get("countersign_authentication_id")
    if named is not None:
        return UUID(named)
    # The version, 7, is the first digit of the third group.
    return UUID(int=session_id.int ^ ((7 ^ 8) << 76))


class Keys:
    """The keys by their `kid`."""

    def __init__(self, keys: pb.WatchKeys) -> None:
        known = json.loads(keys.jwks)["keys"]
        self.keys = {key["kid"]: jwt.PyJWK(key, key["alg"]) for key in known}
        self.revoked = frozenset(keys.revoked)

    def find(self, kid: str) -> jwt.PyJWK:
        if kid in self.revoked:
            raise Inactive("REVOKED")
        if kid not in self.keys:
            raise Inactive("UNKNOWN_KEY")
        return self.keys[kid]


@dataclass(frozen=True)
class RevokedSessions:
    """A revocation of many sessions."""

    condition: pb.RevokedSessions
    expires_at: int

    def stops(self, claims: Claims) -> bool:
        condition = self.condition
        in_all_tenants = condition.WhichOneof("where") == "all_tenants"
        if condition.HasField("created_up_to"):
            created = claims.session_id.int >> 80
            is_earlier = created <= nanoseconds(condition.created_up_to) // MILLISECOND
        else:
            is_earlier = claims.authenticated_at <= nanoseconds(condition.authenticated_up_to)
        return (
            is_earlier
            and (in_all_tenants or condition.tenant == claims.tenant)
            and condition.subject in ("", claims.subject)
            and condition.client_id in ("", claims.client_id)
            and condition.spared_session_id != str(claims.session_id)
        )


class Copy:
    """The keys, the rules and the revocations. One thread changes it while another one reads."""

    def __init__(self) -> None:
        self.rules: pb.WatchRules | None = None
        self.keys: Keys | None = None
        self.ids: dict[bytes, int] = {}
        # A tuple is replaced as a whole, so a reader sees all of it.
        self.sessions: tuple[RevokedSessions, ...] = ()
        self.expired_up_to = 0
        self.verified: dict[str, Claims] = {}

    def add(self, revocations: pb.WatchRevocations) -> None:
        for revoked in revocations.ids:
            if len(revoked.id) != 16:
                raise UnknownMessage("an id that is not a UUID")
            self.ids[revoked.id] = nanoseconds(revoked.expires_at)
        more = []
        for condition in revocations.sessions:
            if condition.WhichOneof("where") is None or condition.WhichOneof("instant") is None:
                raise UnknownMessage("a revocation without its tenants or its time")
            more.append(RevokedSessions(condition, nanoseconds(condition.expires_at)))
        if more:
            self.sessions += tuple(more)

    def expire(self, up_to: int) -> None:
        """Drops the revocations whose tokens have expired."""
        if up_to <= self.expired_up_to:
            return
        # A check that misses a dropped revocation must see this instant.
        self.expired_up_to = up_to
        expired = [revoked for revoked, expires_at in self.ids.items() if expires_at <= up_to]
        for revoked in expired:
            del self.ids[revoked]
        self.sessions = tuple(one for one in self.sessions if one.expires_at > up_to)

    def look_up(self, token: str) -> tuple[Claims, bool]:
        """Returns the claims of a token, and whether it was revoked."""
        claims = self.verified.get(token)
        if claims is None:
            claims = self.verify(token)
            if len(self.verified) < MAX_VERIFIED:
                self.verified[token] = claims
        elif self.keys is not None:
            self.keys.find(claims.kid)
        return claims, self.is_revoked(claims)

    def verify(self, token: str) -> Claims:
        if self.keys is None or len(token.encode()) > MAX_BYTES:
            raise Inactive("MALFORMED")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as error:
            raise Inactive("MALFORMED") from error
        if header.get("typ") != "at+jwt":
            raise Inactive("WRONG_TYPE")
        kid = header.get("kid")
        if not isinstance(kid, str) or "crit" in header or "b64" in header:
            raise Inactive("MALFORMED")
        key = self.keys.find(kid)
        try:
            payload: bytes = jwt.api_jws.decode(token, key=key, algorithms=[key.algorithm_name])
        except jwt.InvalidTokenError as error:
            raise Inactive("BAD_SIGNATURE") from error
        return Claims.read(kid, payload)

    def is_revoked(self, claims: Claims) -> bool:
        identifiers = (claims.session_id, claims.token_id, claims.authentication_id)
        if any(identifier.bytes in self.ids for identifier in identifiers):
            return True
        return any(revoked.stops(claims) for revoked in self.sessions)

    def judge(self, claims: Claims, is_revoked: bool, now: int) -> None:
        """Raises the reason if a token that was looked up before is inactive at this time."""
        rules = self.rules
        if rules is None:
            raise Inactive("MALFORMED")
        if claims.issuer != rules.issuer:
            raise Inactive("WRONG_ISSUER")
        if not 0 <= claims.expires_at - claims.issued_at <= nanoseconds(rules.max_lifetime):
            raise Inactive("MALFORMED")
        if rules.tenants and claims.tenant not in rules.tenants:
            raise Inactive("FOREIGN_TENANT")
        if claims.expires_at <= now or claims.expires_at <= self.expired_up_to:
            raise Inactive("EXPIRED")
        if max(claims.issued_at, claims.not_before) > now + nanoseconds(rules.leeway):
            raise Inactive("NOT_YET_VALID")
        if is_revoked:
            raise Inactive("REVOKED")
        if rules.audiences and claims.audiences.isdisjoint(rules.audiences):
            raise Inactive("WRONG_AUDIENCE")
