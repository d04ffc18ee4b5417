"""Access tokens: JWTs in the form of RFC 9068, which are parsed as strictly as RFC 8725 says.

The signature is checked by the cryptographic library. What is accepted besides is decided here, so
that all client libraries, and the service, accept the same.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from countersign._clock import LAST, saturated
from countersign._keys import KeySet, decode_base64url
from countersign.reasons import InactiveReason

MAX_BYTES: Final = 8192
"""The longest token that is parsed."""
TYPE: Final = "at+jwt"
"""The only `typ` that is accepted (RFC 9068, section 2.1)."""
REFRESH_TOKEN_PREFIX: Final = "cs_rt_"  # noqa: S105 (It is public.)
"""The beginning of every refresh token."""
AUTHENTICATION_ID: Final = "countersign_authentication_id"
"""The claim with the identifier of a later authentication of the session's user."""
AMR_VERIFIED_AT: Final = "countersign_amr_verified_at"
"""The claim with the times at which authentication methods were verified."""

REGISTERED: Final = frozenset(
    {
        *("iss", "sub", "aud", "client_id", "iat", "exp", "nbf", "jti", "sid", "tenant", "scope"),
        *("auth_time", "acr", "amr", AUTHENTICATION_ID, AMR_VERIFIED_AT),
    }
)
"""The claims that are not the session's own."""

_UUID: Final = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# A header with fewer brackets is parsed at once.
_DEEP: Final = 50
_CLOSING: Final = {"[": "]", "{": "}"}
_TOKEN: Final = re.compile(
    r"""[ \t\n\r]*(?:
    (?P<string>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")
    |(?P<scalar>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)
    |(?P<sign>[\[\]{},:])
    )""",
    re.VERBOSE,
)
# The deepest nesting of a payload.
_MAX_DEPTH: Final = 128
# A number of fewer characters is within 64 bits.
_SHORT: Final = 19


class InactiveError(Exception):
    """The token is inactive for this reason."""

    def __init__(self, reason: InactiveReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Token:
    """A token whose signature was verified. Instants are in microseconds since 1970."""

    __slots__ = (
        *("kid", "session_id", "session", "token", "authentication", "created_ms"),
        *("subject", "tenant", "client_id", "audience", "scopes", "scope_set"),
        *("issued_at", "expires_at", "begins", "authenticated_at", "acr", "amr"),
        *("amr_verified_at", "payload", "answer"),
    )

    def __init__(self, kid: str, claims: Mapping[str, Any], payload: str) -> None:
        """Reads claims. Raises `ValueError`, `TypeError` or `KeyError` if one is wrong."""
        self.kid = kid
        self.payload = payload
        # The answer for the token, which is made when it is first needed.
        self.answer: Any = None
        self.session_id = _text(claims["sid"])
        self.session = parse_uuid(self.session_id)
        self.token = parse_uuid(_text(claims["jti"]))
        if AUTHENTICATION_ID in claims:
            self.authentication = parse_uuid(_text(claims[AUTHENTICATION_ID]))
        else:
            self.authentication = first_authentication(self.session)
        self.created_ms = int.from_bytes(self.session[:6], "big")
        self.subject = _text(claims["sub"])
        self.client_id = _text(claims["client_id"])
        self.tenant = _text(claims.get("tenant", ""))
        audience = claims["aud"]
        self.audience = (audience,) if isinstance(audience, str) else _texts(audience)
        if not self.audience:
            raise ValueError("aud is empty")
        scopes = _text(claims.get("scope", "")).split(" ")
        self.scopes = tuple(scope for scope in scopes if scope)
        self.scope_set = frozenset(self.scopes)
        self.issued_at = _instant(claims["iat"])
        self.expires_at = _instant(claims["exp"])
        not_before = _instant(claims["nbf"]) if "nbf" in claims else self.issued_at
        self.begins = max(self.issued_at, not_before)
        self.authenticated_at = _instant(claims["auth_time"])
        self.acr = _text(claims.get("acr", ""))
        self.amr = _texts(claims.get("amr", []))
        times = claims.get(AMR_VERIFIED_AT, {})
        self.amr_verified_at = {name: _instant(at) for name, at in _object(times).items()}

    @property
    def claims(self) -> dict[str, Any]:
        """Returns the session's own claims. Each call decodes them anew."""
        claims = json.loads(self.payload, parse_int=_integer)
        return {name: value for name, value in claims.items() if name not in REGISTERED}


def first_authentication(session: bytes) -> bytes:
    """Returns the identifier of the authentication with which a session was created.

    It is the session's identifier as a UUID of version 8.
    """
    first = bytearray(session)
    first[6] = 0x80 | (first[6] & 0x0F)
    first[8] = 0x80 | (first[8] & 0x3F)
    return bytes(first)


def parse_uuid(text: str) -> bytes:
    """Parses a UUID. Only the canonical form is accepted, so that each has only one spelling."""
    if _UUID.fullmatch(text) is None:
        raise ValueError("is not a UUID in its canonical form")
    return bytes.fromhex(text.replace("-", ""))


def parse(token: str) -> tuple[str, str, str, str, str]:
    """Parses the header of a token.

    Returns the `kid`, the `alg`, what was signed, the payload and the signature.
    """
    if token.startswith(REFRESH_TOKEN_PREFIX):
        raise InactiveError(InactiveReason.WRONG_TYPE)
    parts = token.split(".")
    try:
        encoded, payload, signature = parts
        text = _without_depth(decode_base64url(encoded).decode())
        header: object = json.loads(
            text, parse_int=float, parse_constant=_refuse, object_pairs_hook=_header_object
        )
    except (ValueError, RecursionError):
        raise InactiveError(InactiveReason.MALFORMED) from None
    # Extensions that change the meaning of a token are refused, even with the value null (RFC 7515,
    # section 4.1.11; RFC 7797, section 3).
    if not isinstance(header, dict) or "crit" in header or "b64" in header:
        raise InactiveError(InactiveReason.MALFORMED)
    alg, kid, typ = header.get("alg"), header.get("kid"), header.get("typ", "")
    if not (isinstance(alg, str) and isinstance(kid, str) and isinstance(typ, str | None)):
        raise InactiveError(InactiveReason.MALFORMED)
    # Texts that are ignored may have half of a surrogate pair.
    if "\\" in text and _has_surrogate(alg, kid, typ or "", *header):
        raise InactiveError(InactiveReason.MALFORMED)
    if typ != TYPE:
        raise InactiveError(InactiveReason.WRONG_TYPE)
    return kid, alg, token[: len(token) - len(signature) - 1], payload, signature


def verify(token: str, keys: KeySet, issuer: str) -> Token:
    """Checks the form of a token, and its signature by the key that it names.

    Raises `InactiveError` if it is inactive. The lifetime is checked by `check_lifetime`.
    """
    kid, alg, signed, encoded, encoded_signature = parse(token)
    if kid in keys.revoked:
        raise InactiveError(InactiveReason.REVOKED)
    key = keys.keys.get(kid)
    if key is None:
        raise InactiveError(InactiveReason.UNKNOWN_KEY)
    if alg != key.algorithm:
        raise InactiveError(InactiveReason.BAD_SIGNATURE)
    try:
        signature = decode_base64url(encoded_signature)
    except ValueError:
        raise InactiveError(InactiveReason.MALFORMED) from None
    if not key.verify(signature, signed.encode()):
        raise InactiveError(InactiveReason.BAD_SIGNATURE)
    try:
        payload = decode_base64url(encoded).decode()
        claims = _load(payload)
        from_issuer = _text(claims["iss"])
        verified = Token(kid, claims, payload)
    except (KeyError, TypeError, ValueError, RecursionError):
        raise InactiveError(InactiveReason.MALFORMED) from None
    if from_issuer != issuer:
        raise InactiveError(InactiveReason.WRONG_ISSUER)
    # `iat` and `exp` are equal if the token was issued in the last second of its session.
    if not 0 <= verified.issued_at <= verified.expires_at:
        raise InactiveError(InactiveReason.MALFORMED)
    return verified


def _load(payload: str) -> dict[str, Any]:
    """Parses a payload, which must be an object."""
    claims: object = json.loads(
        payload,
        parse_int=_integer,
        parse_float=_float,
        parse_constant=_refuse,
        object_pairs_hook=_unique,
    )
    if not isinstance(claims, dict):
        raise TypeError("is not an object")
    if payload.count("[") + payload.count("{") > _MAX_DEPTH and _depth(claims) > _MAX_DEPTH:
        raise ValueError("is nested too deeply")
    # Escapes may make half of a surrogate pair, which is no text. To encode finds it at any depth.
    if "\\" in payload:
        json.dumps(claims, ensure_ascii=False).encode()
    return claims


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object, in which no name may occur twice (RFC 8259, section 4)."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object has two members with the same name")
    return made


def _header_object(pairs: list[tuple[str, Any]]) -> object:
    """Makes an object, or something else if a name occurs twice. Only the header itself matters."""
    made = dict(pairs)
    return made if len(made) == len(pairs) else None


def _without_depth(text: str) -> str:  # noqa: C901, PLR0912 (It is one state machine.)
    """Replaces lists and objects within a deeply nested header, so that it can be parsed.

    The members of a header that are not known are ignored however deeply they are nested. Raises
    `ValueError` if the text is not JSON.
    """
    if text.count("[") + text.count("{") <= _DEEP:
        return text
    kept = []
    # The brackets that are open, and what may come next.
    opened: list[str] = []
    wanted = "value"
    position = 0
    while wanted != "end":
        match = _TOKEN.match(text, position)
        kind, position = (match.lastgroup, match.end()) if match is not None else (None, position)
        found = text[match.start(kind) : match.end(kind)] if match is not None and kind else ""
        depth = len(opened)
        if found and found in "]}" and _CLOSING.get(opened[-1] if opened else "") == found:
            if wanted not in ("next", "first"):
                raise ValueError("a value is missing")
            opened.pop()
            wanted = "next" if opened else "end"
        elif found == ":" and wanted == "colon":
            wanted = "value"
        elif found == "," and wanted == "next":
            wanted = "name" if opened[-1] == "{" else "value"
        elif kind == "string" and opened[-1:] == ["{"] and wanted in ("name", "first"):
            wanted = "colon"
        elif wanted == "value" or (wanted == "first" and opened[-1] == "["):
            if found in _CLOSING:
                opened.append(found)
                wanted = "first"
            elif kind in ("string", "scalar"):
                wanted = "next" if opened else "end"
            else:
                raise ValueError("a value is missing")
        else:
            raise ValueError("is not JSON")
        if min(depth, len(opened)) <= 1:
            nested = max(depth, len(opened)) > 1
            kept.append(("" if found in "]}" else "null") if nested else found)
    if text[position:].strip(" \t\n\r"):
        raise ValueError("has more than a value")
    return "".join(kept)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _integer(text: str) -> int | float:
    """Reads an integer. Like in the service, one beyond 64 bits is a double, and so is -0."""
    if len(text) < _SHORT and text != "-0":
        return int(text)
    number = _float(text)
    if text == "-0" or not -(2**64) < number < 2**65:
        return number
    exact = int(text)
    return exact if -LAST - 1 <= exact < 2**64 else number


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is out of range")
    return number


def _depth(value: object) -> int:
    """Returns how deeply lists and objects are nested."""
    depth, level = 0, [value]
    while level := [it for it in level if isinstance(it, dict | list)]:
        depth += 1
        level = [item for it in level for item in (it.values() if isinstance(it, dict) else it)]
    return depth


def _has_surrogate(*texts: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for text in texts for letter in text)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("is not a text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("is not a list")
    return tuple(map(_text, value))


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("is not an object")
    return value


def _instant(value: object) -> int:
    """Reads an instant in whole seconds. A boolean is an integer in Python, but not in JSON."""
    if type(value) is not int or not -LAST - 1 <= value <= LAST:
        raise TypeError("is not an instant in whole seconds")
    return saturated(value)
