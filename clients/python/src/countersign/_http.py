"""What all middleware for HTTP has in common."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from countersign._challenge import Denial, DenialKind
from countersign._credential import Missing, find
from countersign.answer import Active, Answer, Inactive
from countersign.demands import Demands
from countersign.reasons import InactiveReason
from countersign.session import Session

_KINDS = {
    Missing.NONE: DenialKind.NO_TOKEN,
    Missing.SEVERAL: DenialKind.SEVERAL_TOKENS,
    Missing.CONFLICTING_COOKIES: DenialKind.CONFLICTING_COOKIES,
}


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a request that may not pass."""

    status: int
    headers: tuple[tuple[str, str], ...]
    """The headers. Their values are bytes in UTF-8, each as a character of ISO 8859-1."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Guard:
    """The settings of a protected route."""

    demands: Demands
    cookie: str | None = None
    realm: str | None = None
    optional: bool = False

    def find(self, authorization: Iterable[bytes], cookies: Iterable[bytes]) -> str | Denial | None:
        """Finds the token of a request; `None` if the request may pass without one."""
        name = None if self.cookie is None else self.cookie.encode()
        found = find(authorization, cookies, name)
        if isinstance(found, str):
            return found
        if found is Missing.NONE and self.optional:
            return None
        return Denial(_KINDS[found])

    def deny(self, denial: Denial) -> Response:
        """Makes the answer to a request that may not pass."""
        body = {"error": denial.code(), "error_description": denial.description(self.demands)}
        headers = [("content-type", "application/json"), ("cache-control", "no-store")]
        status = 401
        if denial.kind is DenialKind.UNKNOWN:
            status = 503
            headers.append(("retry-after", "1"))
        else:
            if denial.kind in (DenialKind.SEVERAL_TOKENS, DenialKind.CONFLICTING_COOKIES):
                status = 400
            elif denial.reason is InactiveReason.INSUFFICIENT_SCOPE:
                status = 403
            challenge = denial.challenge(self.realm, self.demands)
            # A control character cannot be sent, and would let an attacker add headers.
            if any(letter != "\t" and (letter < " " or letter == "\x7f") for letter in challenge):
                challenge = "Bearer"
            value = challenge.encode("utf-8", "replace").decode("latin-1")
            headers.append(("www-authenticate", value))
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        return Response(status, tuple(headers), text.encode("utf-8", "replace"))


def judge(answer: Answer) -> Session | Denial:
    """Returns the session of an answer, or why the request may not pass."""
    if isinstance(answer, Active):
        return answer.session
    if isinstance(answer, Inactive):
        return Denial(DenialKind.INACTIVE, answer.reason)
    return Denial(DenialKind.UNKNOWN)
