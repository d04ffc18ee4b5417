"""A shop that is protected by Countersign, in one file.

Its views show what a view can demand: nothing, any session, a scope, or a recent authentication
with a second factor. The middleware protects every view that does not say otherwise.

Usage: python shop.py, or any server of WSGI with shop:application, with these variables in the
environment:
- COUNTERSIGN_ENDPOINTS: the URLs of the replicas, separated by commas
- COUNTERSIGN_API_KEY: the key of a caller with the role `validator`, if the service has callers
- LISTEN: the address to listen on, 127.0.0.1:3000 by default
"""

import os
import secrets
import sys
from datetime import timedelta
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from countersign import Client, Demands, OnLapse, Session, Verifier
from countersign.django import get_session, optional, protect

AUDIENCE = "https://shop.example"
"""The audience that tokens for this service have."""
ORDERING = Demands(audience=AUDIENCE, scopes=["orders:write"])
PAYING = Demands(
    audience=AUDIENCE, acr_values=["gold"], max_authentication_age=timedelta(minutes=5)
)


def make_verifier() -> Verifier:
    """Creates the verifier, in the process that uses it."""
    client = Client(
        os.environ["COUNTERSIGN_ENDPOINTS"].split(","),
        api_key=os.environ.get("COUNTERSIGN_API_KEY"),
    )
    verifier = Verifier.local(client, on_lapse=OnLapse.REFUSE)
    # The shop also starts without the authority, and then answers 503 until it is there.
    verifier.ready(5)
    return verifier


def session_of(request: HttpRequest) -> Session:
    """Returns the session of a protected view, which always has one."""
    session = get_session(request)
    if session is None:
        raise RuntimeError("the view is not protected")
    return session


@optional
def greet(request: HttpRequest) -> HttpResponse:
    """Public: anybody may call it, and a session makes a difference."""
    session = get_session(request)
    return HttpResponse("welcome" if session is None else f"welcome back, {session.subject}")


def show_session(request: HttpRequest) -> HttpResponse:
    """Needs any session."""
    session = session_of(request)
    return JsonResponse(
        {
            "session": session.id,
            "subject": session.subject,
            "scopes": list(session.scopes),
            "plan": session.claim("plan"),
        },
        json_dumps_params={"separators": (",", ":")},
    )


# Clients that send the token in a header need no protection against forged requests. A shop whose
# browsers send it in a cookie must use the tokens of Django.
@csrf_exempt
@require_POST
@protect(ORDERING)
def order(request: HttpRequest) -> HttpResponse:
    """Needs the scope orders:write."""
    return HttpResponse(f"ordered by {session_of(request).subject}")


@csrf_exempt
@require_POST
@protect(PAYING)
def pay(request: HttpRequest) -> HttpResponse:
    """Needs an authentication of class gold within the last five minutes.

    A client that gets the challenge `insufficient_user_authentication` sends its user to sign in
    again (RFC 9470).
    """
    return HttpResponse(f"paid by {session_of(request).subject}")


urlpatterns = [
    path("", greet),
    path("me", show_session),
    path("orders", order),
    path("payments", pay),
]

settings.configure(
    ALLOWED_HOSTS=["*"],
    SECRET_KEY=secrets.token_urlsafe(),
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "django.middleware.csrf.CsrfViewMiddleware",
        "countersign.django.CountersignMiddleware",
    ],
    COUNTERSIGN={
        "VERIFIER": make_verifier,
        "DEMANDS": Demands(audience=AUDIENCE),
        "COOKIE": "access_token",
        "REALM": AUDIENCE,
    },
)
django.setup(set_prefix=False)
application = get_wsgi_application()


class Server(ThreadingMixIn, WSGIServer):
    """A server for this example. Use another one in production."""

    daemon_threads = True


def main() -> None:
    """Serves the shop."""
    if "COUNTERSIGN_ENDPOINTS" not in os.environ:
        sys.exit("COUNTERSIGN_ENDPOINTS must have the URLs of the replicas")
    host, _, port = os.environ.get("LISTEN", "127.0.0.1:3000").rpartition(":")
    with make_server(host, int(port), application, Server) as server:
        sys.stderr.write(f"listening on http://{host}:{server.server_port}\n")
        server.serve_forever()


if __name__ == "__main__":
    main()
