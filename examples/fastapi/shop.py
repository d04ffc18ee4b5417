"""A shop that is protected by Countersign.

Its routes show what a route can demand: nothing, any session, a scope, or a recent authentication
with a second factor.

Usage: python shop.py, or uvicorn shop:create_app --factory, with these variables in the
environment:
- COUNTERSIGN_ENDPOINTS: the URLs of the replicas, separated by commas
- COUNTERSIGN_API_KEY: the key of a caller with the role `validator`, if the service has callers
- LISTEN: the address to listen on, 127.0.0.1:3000 by default
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse

from countersign import Demands, OnLapse, Session
from countersign.aio import Client, Verifier
from countersign.fastapi import Protect, install

AUDIENCE = "https://shop.example"
"""The audience that tokens for this service have."""


def create_app() -> FastAPI:
    """Creates the application."""
    client = Client(
        os.environ["COUNTERSIGN_ENDPOINTS"].split(","),
        api_key=os.environ.get("COUNTERSIGN_API_KEY"),
    )
    verifier = Verifier.local(client, on_lapse=OnLapse.REFUSE)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The shop also starts without the authority, and then answers 503 until it is there.
        await verifier.ready(5)
        yield
        await verifier.close()
        await client.close()

    app = FastAPI(lifespan=lifespan)
    install(app)
    protect = Protect(verifier, Demands(audience=AUDIENCE), cookie="access_token", realm=AUDIENCE)
    ordering = protect.demands(Demands(audience=AUDIENCE, scopes=["orders:write"]))
    paying = protect.demands(
        Demands(audience=AUDIENCE, acr_values=["gold"], max_authentication_age=timedelta(minutes=5))
    )

    @app.get("/")
    async def greet(
        session: Annotated[Session | None, Depends(protect.optional())],
    ) -> PlainTextResponse:
        """Public: anybody may call it, and a session makes a difference."""
        return PlainTextResponse(
            "welcome" if session is None else f"welcome back, {session.subject}"
        )

    @app.get("/me")
    async def show_session(session: Annotated[Session, Depends(protect)]) -> dict[str, object]:
        """Needs any session."""
        return {
            "session": session.id,
            "subject": session.subject,
            "scopes": list(session.scopes),
            "plan": session.claim("plan"),
        }

    @app.post("/orders")
    async def order(session: Annotated[Session, Depends(ordering)]) -> PlainTextResponse:
        """Needs the scope orders:write."""
        return PlainTextResponse(f"ordered by {session.subject}")

    @app.post("/payments")
    async def pay(session: Annotated[Session, Depends(paying)]) -> PlainTextResponse:
        """Needs an authentication of class gold within the last five minutes.

        A client that gets the challenge `insufficient_user_authentication` sends its user to sign
        in again (RFC 9470).
        """
        return PlainTextResponse(f"paid by {session.subject}")

    return app


def main() -> None:
    """Serves the shop."""
    if "COUNTERSIGN_ENDPOINTS" not in os.environ:
        sys.exit("COUNTERSIGN_ENDPOINTS must have the URLs of the replicas")
    host, _, port = os.environ.get("LISTEN", "127.0.0.1:3000").rpartition(":")
    uvicorn.run(create_app, factory=True, host=host, port=int(port))


if __name__ == "__main__":
    main()
