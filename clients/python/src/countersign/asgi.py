"""Middleware for ASGI applications, such as those of Starlette, FastAPI, Quart and Litestar."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from countersign._challenge import Denial
from countersign._http import Guard, Response, judge
from countersign.aio import Verifier
from countersign.demands import Demands
from countersign.session import Session

__all__ = ["SESSION", "Protect", "get_session"]

SESSION: Final = "countersign.session"
"""The key of the session in the scope of a request."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY_VIOLATION: Final = 1008
_RESPONSE_EXTENSION: Final = "websocket.http.response"


def get_session(scope: Scope) -> Session | None:
    """Returns the session of a request, if it has one."""
    session = scope.get(SESSION)
    return session if isinstance(session, Session) else None


class Protect:
    """Lets only requests pass whose access token is active and meets the demands.

    The token is in `Authorization: Bearer` or, if `cookie` is set, in a cookie. The session is put
    into the scope of the request, where `get_session` finds it. With Starlette,
    `get_session(request.scope)` returns it. Other requests are answered:

    | the request | the answer |
    |---|---|
    | has no token | 401, with a challenge that names the demanded scopes |
    | has several tokens | 400, `invalid_request` (RFC 6750) |
    | has an inactive token | 401, `invalid_token` |
    | lacks a scope | 403, `insufficient_scope` |
    | needs a stronger or more recent authentication | 401, `insufficient_user_authentication` |
    | cannot be checked now | 503, with `Retry-After` |

    WebSockets are checked when they are opened.
    """

    def __init__(  # noqa: PLR0913 (They are named.)
        self,
        app: Application,
        verifier: Verifier,
        demands: Demands,
        *,
        cookie: str | None = None,
        realm: str | None = None,
        optional: bool = False,
    ) -> None:
        """Protects an application.

        Args:
            app: The application, or a part of it.
            verifier: The verifier.
            demands: The demands on all requests.
            cookie: The name of a cookie from which the token is also taken. The cookie should be
                `HttpOnly` and `SameSite`, because browsers send it with requests that other sites
                have caused.
            realm: The realm of challenges (RFC 9110, section 11.5), such as the URL of the service.
            optional: Also lets requests pass that have no token; they have no session. A request
                with a bad token is denied nevertheless.
        """
        self._app = app
        self._verifier = verifier
        self._guard = Guard(demands, cookie, realm, optional)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        # The session of a middleware around this one may not meet the demands of this one.
        scope.pop(SESSION, None)
        checked = await check(self._guard, self._verifier, scope["headers"])
        if isinstance(checked, Denial):
            response = self._guard.deny(checked)
            if scope["type"] == "http":
                await _respond("http.response", response, send)
            elif _RESPONSE_EXTENSION in (scope.get("extensions") or {}):
                await _respond(_RESPONSE_EXTENSION, response, send)
            else:
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        if checked is not None:
            scope[SESSION] = checked
        await self._app(scope, receive, send)


async def check(
    guard: Guard, verifier: Verifier, headers: list[tuple[bytes, bytes]]
) -> Session | Denial | None:
    """Checks the token of a request; `None` if the request may pass without one."""
    found = guard.find(
        (value for name, value in headers if name.lower() == b"authorization"),
        (value for name, value in headers if name.lower() == b"cookie"),
    )
    if not isinstance(found, str):
        return found
    return judge(await verifier.verify(found, guard.demands))


async def _respond(prefix: str, response: Response, send: Send) -> None:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in response.headers]
    headers.append((b"content-length", str(len(response.body)).encode()))
    await send({"type": f"{prefix}.start", "status": response.status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": response.body, "more_body": False})
