"""Middleware for WSGI applications, such as those of Flask."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from countersign._challenge import Denial
from countersign._http import Guard, judge
from countersign.demands import Demands
from countersign.session import Session
from countersign.verifier import Verifier

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

__all__ = ["SESSION", "Protect", "get_session"]

# The beginning of another header within joined ones.
_NEXT_BEARER: Final = re.compile(rb",[ \t]*(?=bearer(?:[ \t]|$))", re.IGNORECASE)
SESSION: Final = "countersign.session"
"""The key of the session in the environment of a request."""


def get_session(environ: dict[str, Any]) -> Session | None:
    """Returns the session of a request, if it has one."""
    session = environ.get(SESSION)
    return session if isinstance(session, Session) else None


class Protect:
    """Lets only requests pass whose access token is active and meets the demands.

    The token is in `Authorization: Bearer` or, if `cookie` is set, in a cookie. The session is put
    into the environment of the request, where `get_session` finds it. With Flask,
    `get_session(request.environ)` returns it. The answers to other requests are those of
    `countersign.asgi.Protect`.
    """

    def __init__(  # noqa: PLR0913 (They are named.)
        self,
        app: "WSGIApplication",
        verifier: Verifier,
        demands: Demands,
        *,
        cookie: str | None = None,
        realm: str | None = None,
        optional: bool = False,
    ) -> None:
        """Protects an application. The arguments are those of `countersign.asgi.Protect`."""
        self._app = app
        self._verifier = verifier
        self._guard = Guard(demands, cookie, realm, optional)

    def __call__(self, environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
        """Handles a request."""
        # The session of a middleware around this one may not meet the demands of this one.
        environ.pop(SESSION, None)
        checked = check(self._guard, self._verifier, environ)
        if isinstance(checked, Denial):
            response = self._guard.deny(checked)
            status = HTTPStatus(response.status)
            headers = [*response.headers, ("content-length", str(len(response.body)))]
            start_response(f"{status.value} {status.phrase}", headers)
            return [response.body]
        if checked is not None:
            environ[SESSION] = checked
        return self._app(environ, start_response)


def find(guard: Guard, environ: dict[str, Any]) -> str | Denial | None:
    """Finds the token of a request; `None` if the request may pass without one.

    Servers join several headers of a name by commas. No token has a comma.
    """
    authorization = [
        value
        for joined in _values(environ, "HTTP_AUTHORIZATION")
        for value in _NEXT_BEARER.split(joined)
    ]
    return guard.find(authorization, _values(environ, "HTTP_COOKIE"))


def check(guard: Guard, verifier: Verifier, environ: dict[str, Any]) -> Session | Denial | None:
    """Checks the token of a request; `None` if the request may pass without one."""
    found = find(guard, environ)
    if not isinstance(found, str):
        return found
    return judge(verifier.verify(found, guard.demands))


def _values(environ: dict[str, Any], name: str) -> list[bytes]:
    value = environ.get(name)
    # WSGI has each byte as a character of ISO 8859-1.
    return [] if value is None else [str(value).encode("latin-1", "replace")]
