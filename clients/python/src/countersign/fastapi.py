"""Dependencies for FastAPI: each route says what it demands of the session, and gets it."""

from typing import Any, Final

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response as HttpResponse
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from countersign._challenge import Denial
from countersign._http import Guard, Response
from countersign.aio import Verifier
from countersign.asgi import check
from countersign.demands import Demands
from countersign.session import Session

_POLICY_VIOLATION: Final = 1008
_RESPONSE_EXTENSION: Final = "websocket.http.response"

__all__ = ["DeniedError", "Optional", "Protect", "install"]


class DeniedError(HTTPException):
    """A request may not pass. `install` makes the answer that all client libraries give."""

    def __init__(self, response: Response) -> None:
        """Takes the answer."""
        super().__init__(response.status, response.body.decode(), dict(response.headers))
        self.response = response


def install(app: FastAPI) -> None:
    """Answers denied requests with the error as JSON, as RFC 6750 and RFC 9470 name it.

    Without it the status and the challenge are the same, and the body is that of `HTTPException`.
    """

    async def answer(request: Request, error: Exception) -> Any:  # noqa: ANN401
        if not isinstance(error, DeniedError):
            raise error
        it = error.response
        response = HttpResponse(it.body, it.status)
        for name, value in it.headers:
            response.headers[name] = value
        connection: HTTPConnection = request
        if isinstance(connection, WebSocket):
            # Starlette calls handlers for these, too, and expects them to send the answer.
            if _RESPONSE_EXTENSION in (connection.scope.get("extensions") or {}):
                await connection.send_denial_response(response)
            else:
                await connection.close(_POLICY_VIOLATION)
            return None
        return response

    app.add_exception_handler(DeniedError, answer)


class _Protection:
    """What both dependencies have in common."""

    def __init__(
        self,
        verifier: Verifier,
        demands: Demands,
        *,
        cookie: str | None = None,
        realm: str | None = None,
    ) -> None:
        """Creates a dependency. The arguments are those of `countersign.asgi.Protect`."""
        self._verifier = verifier
        self._guard = Guard(demands, cookie, realm, optional=isinstance(self, Optional))

    def _copied(self, kind: type[Any], demands: Demands) -> Any:  # noqa: ANN401
        guard = self._guard
        return kind(self._verifier, demands, cookie=guard.cookie, realm=guard.realm)

    async def _check(self, connection: HTTPConnection) -> Session | None:
        checked = await check(self._guard, self._verifier, connection.scope["headers"])
        if isinstance(checked, Denial):
            raise DeniedError(self._guard.deny(checked))
        return checked


class Protect(_Protection):
    """A dependency that lets only requests pass whose access token is active, and meets demands.

    ```python
    protect = Protect(verifier, Demands(audience="https://orders.example"))

    @app.get("/me")
    async def me(session: Annotated[Session, Depends(protect)]) -> str:
        return session.subject
    ```
    """

    async def __call__(self, connection: HTTPConnection) -> Session:
        """Checks a request."""
        session = await self._check(connection)
        if session is None:
            raise AssertionError("a request without a session has passed")
        return session

    def demands(self, demands: Demands) -> "Protect":
        """Returns a dependency with other demands, for a route that has others."""
        protect: Protect = self._copied(Protect, demands)
        return protect

    def optional(self) -> "Optional":
        """Returns a dependency that also lets requests pass that have no token."""
        optional: Optional = self._copied(Optional, self._guard.demands)
        return optional


class Optional(_Protection):
    """A dependency that lets requests without a token pass; their session is `None`.

    A request with a bad token is denied nevertheless.
    """

    async def __call__(self, connection: HTTPConnection) -> Session | None:
        """Checks a request."""
        return await self._check(connection)
