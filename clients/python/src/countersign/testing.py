"""An authority within the process, for the tests of an application.

It issues tokens, revokes them, and can be unavailable. It needs neither a server nor a network.

```python
from countersign import Demands
from countersign.testing import Authority

authority = Authority()
verifier = authority.verifier()  # give it to your application
token = authority.token("alice", scopes=["orders:write"])
assert verifier.verify_locally(token, Demands(scopes=["orders:write"]))
authority.revoke(token)
assert not verifier.verify_locally(token)
```
"""

import json
import secrets
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from countersign import aio
from countersign._clock import SECOND, Clock, SettableClock, SystemClock
from countersign._keys import KeySet
from countersign._local import Local, Rules
from countersign._token import AMR_VERIFIED_AT, REGISTERED, TYPE, InactiveError, Token, verify
from countersign._verifying import ANY_MARGIN, Mode, Source
from countersign.structs import Json
from countersign.verifier import Verifier

__all__ = ["AUDIENCE", "ISSUER", "Authority", "Clock", "SettableClock", "SystemClock"]

ISSUER: Final = "https://authority.test"
"""The issuer of the tokens."""
AUDIENCE: Final = "https://api.test"
"""The audience of tokens that name no other."""

_KID: Final = "testing"
_MICROSECOND: Final = timedelta(microseconds=1)
_LIFETIME: Final = timedelta(minutes=15)
_LONGEST_LIFETIME: Final = timedelta(days=366)


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _encode_json(value: object) -> str:
    return _encode(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


class Authority:
    """An authority within the process.

    Its clock starts at the present time, and moves only when `advance` is called.
    """

    def __init__(self) -> None:
        """Creates an authority with a key of its own."""
        self._key = Ed25519PrivateKey.generate()
        self._clock = SettableClock(SystemClock().wall())
        self._local = Local(self._clock, 8 << 20)
        jwk = {
            "kty": "OKP",
            "crv": "Ed25519",
            "alg": "EdDSA",
            "kid": _KID,
            "x": _encode(self.public_key.public_bytes_raw()),
        }
        keys = KeySet.read(json.dumps({"keys": [jwk]}), ())
        if keys is None:
            raise AssertionError("the key of the authority cannot be read")
        rules = Rules(
            issuer=ISSUER,
            max_lifetime=_LONGEST_LIFETIME // _MICROSECOND,
            leeway=0,
            lease_margin=ANY_MARGIN,
        )
        self._keys = keys
        self._local.replace(keys, rules).lease.take_for_ever()

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that verifies the tokens."""
        return self._key.public_key()

    def verifier(self) -> Verifier:
        """Returns a verifier that accepts the tokens of this authority."""
        return Verifier(Source(Mode.TESTING, self._local))

    def aio_verifier(self) -> aio.Verifier:
        """Returns a verifier for asyncio that accepts the tokens of this authority."""
        return aio.Verifier(Source(Mode.TESTING, self._local))

    def token(  # noqa: PLR0913 (They are named.)
        self,
        subject: str,
        *,
        tenant: str = "",
        client_id: str = "",
        audience: Iterable[str] = (AUDIENCE,),
        scopes: Iterable[str] = (),
        acr: str = "",
        factors: Iterable[str] = (),
        authenticated_ago: timedelta = timedelta(),
        lifetime: timedelta = _LIFETIME,
        claims: Mapping[str, Json] | None = None,
    ) -> str:
        """Issues a token of a session of its own.

        Args:
            subject: The user.
            tenant: The tenant.
            client_id: The OAuth client.
            audience: The services that the token is meant for.
            scopes: The scopes.
            acr: The authentication context class.
            factors: The authentication methods. Each was verified when the user authenticated.
            authenticated_ago: The time since the user authenticated.
            lifetime: The lifetime of the token.
            claims: Claims of the session's own.

        Raises:
            ValueError: A claim has the name of another parameter, or of a registered claim.
        """
        taken = REGISTERED.intersection(claims or {})
        if taken:
            raise ValueError(f"these claims have names that are taken: {sorted(taken)}")
        now = self._clock.wall() // SECOND
        authenticated_at = now - authenticated_ago // timedelta(seconds=1)
        methods = list(factors)
        payload: dict[str, Json] = {
            "iss": ISSUER,
            "sub": subject,
            "aud": list(audience),
            "client_id": client_id,
            "iat": now,
            "exp": now + lifetime // timedelta(seconds=1),
            "jti": str(uuid.uuid4()),
            "sid": str(self._session_id()),
            "auth_time": authenticated_at,
        }
        if tenant:
            payload["tenant"] = tenant
        if scope := " ".join(scopes):
            payload["scope"] = scope
        if acr:
            payload["acr"] = acr
        if methods:
            payload["amr"] = list[Json](methods)
            payload[AMR_VERIFIED_AT] = dict.fromkeys(methods, authenticated_at)
        payload |= claims or {}
        header = {"typ": TYPE, "alg": "EdDSA", "kid": _KID}
        signed = f"{_encode_json(header)}.{_encode_json(payload)}"
        return f"{signed}.{_encode(self._key.sign(signed.encode()))}"

    def _session_id(self) -> uuid.UUID:
        """Makes a UUID of version 7 (RFC 9562, section 5.7)."""
        millis = (self._clock.wall() // 1000) << 80
        return uuid.UUID(int=millis | (7 << 76) | secrets.randbits(76) & ~(0xC << 60) | (8 << 60))

    def revoke(self, token: str) -> None:
        """Revokes the session of a token.

        Raises `ValueError` if the token is not from this authority.
        """
        revoked = self._read(token)
        self._local.copy.index.add_id(revoked.session, revoked.expires_at)

    def _read(self, token: str) -> Token:
        try:
            return verify(token, self._keys, ISSUER)
        except InactiveError:
            raise ValueError("the token is not from this authority") from None

    def set_unavailable(self, is_unavailable: bool) -> None:  # noqa: FBT001 (It is the only one.)
        """Sets whether the authority is unavailable. Then each answer is `Unknown`."""
        if is_unavailable:
            self._local.copy.lease.end()
        else:
            self._local.copy.lease.take_for_ever()

    def advance(self, span: timedelta) -> None:
        """Moves the clock forward, for instance until a token has expired."""
        self._clock.advance(span // _MICROSECOND)

    def __repr__(self) -> str:
        return "Authority()"
