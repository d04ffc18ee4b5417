"""Finds the token of a request: in `Authorization: Bearer` (RFC 6750), or in a cookie."""

import re
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Final

_WHITESPACE: Final = b" \t\n\x0c\r"
_SCHEME: Final = b"bearer"
_TOKEN68: Final = re.compile(rb" +([A-Za-z0-9._~+/-]+=*)")


class Missing(Enum):
    """The reason why a request has no usable token."""

    NONE = "none"
    """It has no token. There may be credentials of another scheme."""
    SEVERAL = "several"
    """It has more than one token, or a second `Authorization` header.

    The application might use another token than the one that is checked."""
    CONFLICTING_COOKIES = "conflicting_cookies"
    """It has several cookies of the same name with different values."""


def bearer_token(value: bytes) -> bytes | None:
    """Reads the token in a value of `Authorization`; `None` for another scheme than `Bearer`.

    Spaces and one token must follow the scheme. If anything else follows it, the result is an empty
    token, which is never valid: a text that can be read in two ways must not be accepted in either.
    """
    value = value.strip(_WHITESPACE)
    scheme, rest = value[: len(_SCHEME)], value[len(_SCHEME) :]
    if scheme.lower() != _SCHEME or (rest and rest[:1] not in _WHITESPACE):
        return None
    match = _TOKEN68.fullmatch(rest)
    return b"" if match is None else match.group(1)


def find(
    authorization: Iterable[bytes], cookies: Iterable[bytes], cookie: bytes | None
) -> str | Missing:
    """Finds the token among the values of the headers `Authorization` and `Cookie`.

    `cookie` is the name of the cookie that holds the token. A header with another scheme than
    `Bearer` is ignored, because it is meant for the application.
    """
    headers = list(authorization)
    in_header = bearer_token(headers[0]) if headers else None
    in_cookie = None
    if cookie is not None:
        named = [it for value in cookies for it in _cookies_named(value, cookie)]
        # The application may use any of the cookies of this name, so all must be equal.
        if len(set(named)) > 1:
            return Missing.CONFLICTING_COOKIES
        in_cookie = named[0] if named else None
    is_different = None not in (in_header, in_cookie) and in_header != in_cookie
    if len(headers) > 1 or is_different:
        return Missing.SEVERAL
    found = in_header if in_header is not None else in_cookie
    if found is None:
        return Missing.NONE
    try:
        return found.decode()
    except UnicodeDecodeError:
        # An empty token is never valid.
        return ""


def _cookies_named(value: bytes, name: bytes) -> Iterator[bytes]:
    """Yields the values of the cookies of a name (RFC 6265, section 4.2.1).

    Empty values are left out, because applications clear a cookie by setting an empty value.
    """
    for pair in value.split(b";"):
        found, sign, content = pair.partition(b"=")
        content = content.strip(_WHITESPACE)
        if len(content) > 1 and content[:1] == content[-1:] == b'"':
            content = content[1:-1]
        if sign and found.strip(_WHITESPACE) == name and content:
            yield content
