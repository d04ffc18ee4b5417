"""The keys that verify access tokens, as a JWK set has them."""

import json
import logging
from binascii import a2b_base64
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

_log = logging.getLogger("countersign")

Verify = Callable[[bytes, bytes], bool]
"""Returns whether a signature, the first argument, is that of a message."""

_RSA_BITS: Final = range(2048, 8193)
_URL_SAFE: Final = str.maketrans("-_", "+/")
# The last digit of a group of two or three digits, whose unused bits must be zero.
_LAST: Final = {0: "", 2: "AQgw", 3: "AEIMQUYcgkosw048"}


def decode_base64url(text: str) -> bytes:
    """Decodes base64url without padding (RFC 7515, section 2).

    Raises `ValueError` for any other character, and for unused bits that are not zero.
    """
    last = _LAST.get(len(text) % 4)
    if last is None or "+" in text or "/" in text or "=" in text:
        raise ValueError("is not base64url without padding")
    if last and text[-1:].translate(_URL_SAFE) not in last:
        raise ValueError("has unused bits that are not zero")
    padded = text.translate(_URL_SAFE) + "=" * (-len(text) % 4)
    return a2b_base64(padded, strict_mode=True)


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key."""

    algorithm: str
    """The only algorithm with which the key may verify."""
    verify: Verify
    jwk: Mapping[str, object]


class KeySet:
    """The keys by their names (`kid`)."""

    __slots__ = ("keys", "revoked")

    def __init__(self, keys: Mapping[str, VerifyingKey], revoked: Collection[str]) -> None:
        self.keys = keys
        self.revoked = frozenset(revoked)

    @classmethod
    def read(cls, jwks: str, revoked: Collection[str]) -> "KeySet | None":
        """Reads a JWK set, and the names of revoked keys; `None` if it is not a JWK set.

        A key that this library cannot use is left out, so its tokens are refused.
        """
        try:
            parsed: object = json.loads(jwks)
        except (ValueError, RecursionError):
            return None
        found = parsed.get("keys") if isinstance(parsed, dict) else None
        if not isinstance(found, list):
            return None
        keys = {}
        for jwk in found:
            try:
                kid, key = _read_key(jwk)
            except (KeyError, TypeError, ValueError):
                _log.warning("a public key cannot be used: its tokens will be refused")
            else:
                keys[kid] = key
        return cls(keys, revoked)

    def includes(self, earlier: "KeySet") -> bool:
        """Returns whether the set has all keys of `earlier`.

        Only then is each signature still good that was verified with the earlier keys.
        """
        return all(
            (mine := self.keys.get(kid)) is not None and mine.jwk == key.jwk
            for kid, key in earlier.keys.items()
        )


def _read_key(jwk: object) -> tuple[str, VerifyingKey]:
    if not isinstance(jwk, dict):
        raise TypeError("is not an object")
    kid = _text(jwk, "kid")
    match _text(jwk, "alg"):
        case "EdDSA" as algorithm:
            verify = _ed25519(jwk)
        case "ES256" as algorithm:
            verify = _es256(jwk)
        case "RS256" as algorithm:
            verify = _rs256(jwk)
        case _:
            raise ValueError("has an algorithm that is not known")
    return kid, VerifyingKey(algorithm, verify, jwk)


def _text(jwk: Mapping[str, object], name: str) -> str:
    value = jwk[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is not a text")
    return value


def _has_type(jwk: Mapping[str, object], kty: str, crv: str | None = None) -> None:
    if jwk.get("kty") != kty or (crv is not None and jwk.get("crv") != crv):
        raise ValueError("is not of the type that its algorithm needs")


def _number(jwk: Mapping[str, object], name: str) -> int:
    return int.from_bytes(decode_base64url(_text(jwk, name)), "big")


def _ed25519(jwk: Mapping[str, object]) -> Verify:
    _has_type(jwk, "OKP", "Ed25519")
    key = ed25519.Ed25519PublicKey.from_public_bytes(decode_base64url(_text(jwk, "x")))

    def verify(signature: bytes, message: bytes) -> bool:
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    return verify


def _es256(jwk: Mapping[str, object]) -> Verify:
    _has_type(jwk, "EC", "P-256")
    point = ec.EllipticCurvePublicNumbers(_number(jwk, "x"), _number(jwk, "y"), ec.SECP256R1())
    key = point.public_key()
    algorithm = ec.ECDSA(SHA256())
    half = 32

    def verify(signature: bytes, message: bytes) -> bool:
        # JWS has the two numbers one after the other (RFC 7518, section 3.4).
        if len(signature) != 2 * half:
            return False
        numbers = (signature[:half], signature[half:])
        encoded = encode_dss_signature(*(int.from_bytes(number, "big") for number in numbers))
        try:
            key.verify(encoded, message, algorithm)
        except InvalidSignature:
            return False
        return True

    return verify


def _rs256(jwk: Mapping[str, object]) -> Verify:
    _has_type(jwk, "RSA")
    key = rsa.RSAPublicNumbers(_number(jwk, "e"), _number(jwk, "n")).public_key()
    if key.key_size not in _RSA_BITS:
        raise ValueError("is too short, or too long")
    scheme, algorithm = padding.PKCS1v15(), SHA256()

    def verify(signature: bytes, message: bytes) -> bool:
        try:
            key.verify(signature, message, scheme, algorithm)
        except InvalidSignature:
            return False
        return True

    return verify
