"""Tests of the middleware for HTTP. The authority is within the process.

Each case runs through ASGI, FastAPI, WSGI, and Django with and without asyncio.
"""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from typing import Annotated, Any

import django
import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from fastapi import Depends, FastAPI, WebSocket
from fastapi.responses import PlainTextResponse

from countersign import Demands, InactiveReason, Session, asgi, wsgi
from countersign import django as countersign_django
from countersign import fastapi as countersign_fastapi
from countersign._challenge import Denial, DenialKind
from countersign._credential import Missing, bearer_token, find
from countersign._http import Guard
from countersign.testing import AUDIENCE, Authority

OURS = Demands(audience=AUDIENCE)
ORDERS = Demands(audience=AUDIENCE, scopes=["orders:write"])
PAYMENT = Demands(
    audience=AUDIENCE, acr_values=["gold"], max_authentication_age=timedelta(minutes=1)
)
ROUTES: dict[str, tuple[Demands, bool]] = {
    "/me": (OURS, False),
    "/orders": (ORDERS, False),
    "/payment": (PAYMENT, False),
    "/": (OURS, True),
}

Headers = list[tuple[str, str]]
Seen = tuple[int, dict[str, str], str]
Call = Callable[[str, Headers], Seen]


def text(session: Session | None) -> str:
    return "nobody" if session is None else session.subject


def asgi_call(app: Any) -> Call:
    def call(target: str, headers: Headers) -> Seen:
        raw_path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": raw_path,
            "raw_path": raw_path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
            "server": ("test", 80),
            "client": ("127.0.0.1", 1),
        }
        sent: list[dict[str, Any]] = []

        async def run() -> None:
            requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            requests.put_nowait({"type": "http.request", "body": b"", "more_body": False})

            async def send(message: dict[str, Any]) -> None:
                sent.append(message)

            await app(scope, requests.get, send)

        asyncio.run(run())
        answer = {
            name.decode().lower(): value.decode("latin-1") for name, value in sent[0]["headers"]
        }
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], answer, body.decode()

    return call


def wsgi_call(app: Any) -> Call:
    def call(target: str, headers: Headers) -> Seen:
        raw_path, _, query = target.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": raw_path,
            "QUERY_STRING": query,
            "SERVER_NAME": "test",
            "SERVER_PORT": "80",
            "wsgi.input": BytesIO(),
            "wsgi.url_scheme": "http",
        }
        for name, value in headers:
            # Servers join headers of the same name.
            key = "HTTP_" + name.upper()
            glue = "; " if name == "cookie" else ","
            environ[key] = environ[key] + glue + value if key in environ else value
        seen: list[Any] = []
        body = b"".join(app(environ, lambda *started: seen.extend(started)))
        answer = {name.lower(): value for name, value in seen[1]}
        return int(seen[0].split(" ")[0]), answer, body.decode()

    return call


def make_asgi(authority: Authority) -> Call:
    async def app(scope: Any, _: Any, send: Any) -> None:
        body = text(asgi.get_session(scope)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    verifier = authority.aio_verifier()
    protected = {
        route: asgi.Protect(
            app, verifier, demands, cookie="session", realm="shop", optional=optional
        )
        for route, (demands, optional) in ROUTES.items()
    }

    async def dispatch(scope: Any, receive: Any, send: Any) -> None:
        await protected[scope["path"]](scope, receive, send)

    return asgi_call(dispatch)


def make_fastapi(authority: Authority) -> Call:
    app = FastAPI(default_response_class=PlainTextResponse)
    countersign_fastapi.install(app)
    protect = countersign_fastapi.Protect(
        authority.aio_verifier(), OURS, cookie="session", realm="shop"
    )

    @app.get("/me")
    async def me(session: Annotated[Session, Depends(protect)]) -> str:
        return session.subject

    @app.get("/orders")
    async def orders(session: Annotated[Session, Depends(protect.demands(ORDERS))]) -> str:
        return session.subject

    @app.get("/payment")
    async def payment(session: Annotated[Session, Depends(protect.demands(PAYMENT))]) -> str:
        return session.subject

    @app.get("/")
    async def greet(session: Annotated[Session | None, Depends(protect.optional())]) -> str:
        return text(session)

    return asgi_call(app)


def make_wsgi(authority: Authority) -> Call:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [text(wsgi.get_session(environ)).encode()]

    verifier = authority.verifier()
    protected = {
        route: wsgi.Protect(
            app, verifier, demands, cookie="session", realm="shop", optional=optional
        )
        for route, (demands, optional) in ROUTES.items()
    }
    return wsgi_call(lambda environ, start: protected[environ["PATH_INFO"]](environ, start))


def me(request: HttpRequest) -> HttpResponse:
    return HttpResponse(text(countersign_django.get_session(request)))


async def async_me(request: HttpRequest) -> HttpResponse:
    return HttpResponse(text(countersign_django.get_session(request)))


@method_decorator(countersign_django.protect(ORDERS), name="dispatch")
class Orders(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return me(request)


@countersign_django.public
def health(request: HttpRequest) -> HttpResponse:
    return me(request)


@countersign_django.optional
def greet(request: HttpRequest) -> HttpResponse:
    return me(request)


@countersign_django.protect(PAYMENT)
async def payment(request: HttpRequest) -> HttpResponse:
    return await async_me(request)


urlpatterns = [
    path("", greet),
    path("me", me),
    path("orders", Orders.as_view()),
    path("payment", payment),
    path("health", health),
]

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of tests",
    MIDDLEWARE=["countersign.django.CountersignMiddleware"],
    COUNTERSIGN={},
)
django.setup(set_prefix=False)


def django_settings(authority: Authority) -> dict[str, Any]:
    verifier = authority.verifier()
    return {"VERIFIER": verifier, "DEMANDS": OURS, "COOKIE": "session", "REALM": "shop"}


def make_django(authority: Authority) -> Call:
    values = django_settings(authority)

    def call(target: str, headers: Headers) -> Seen:
        with override_settings(COUNTERSIGN=values):
            return wsgi_call(WSGIHandler())(target, headers)

    return call


def make_async_django(authority: Authority) -> Call:
    values = django_settings(authority)

    def call(target: str, headers: Headers) -> Seen:
        with override_settings(COUNTERSIGN=values):
            return asgi_call(ASGIHandler())(target, headers)

    return call


MAKERS = [make_asgi, make_fastapi, make_wsgi, make_django, make_async_django]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def site(request: pytest.FixtureRequest) -> tuple[Authority, Call]:
    authority = Authority()
    return authority, request.param(authority)


def bearer(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


def cookie(token: str) -> tuple[str, str]:
    return ("cookie", f"theme=dark; session={token}")


def test_a_token_passes_in_the_header_and_in_the_cookie_and_nowhere_else(
    site: tuple[Authority, Call],
) -> None:
    authority, call = site
    token, other = authority.token("alice"), authority.token("bob")
    for headers in (
        [bearer(token)],
        [cookie(token)],
        [bearer(token), cookie(token)],
        [("authorization", "Basic dDp0"), cookie(token)],
    ):
        for target in ("/me", "/"):
            status, _, body = call(target, headers)
            assert (status, body) == (200, "alice"), headers
    for headers in (
        [bearer(token), cookie(other)],
        # Servers of WSGI join these.
        [bearer(token), bearer(token)],
        [bearer(token), ("authorization", "bearer")],
        [cookie(token), cookie(other)],
        [("cookie", f"session={token}; session={other}")],
    ):
        for target in ("/me", "/"):
            status, answer, body = call(target, headers)
            assert status == 400, "RFC 6750, section 3.1"
            challenge = answer["www-authenticate"]
            assert challenge.startswith('Bearer realm="shop", error="invalid_request"')
            assert body.startswith('{"error":"invalid_request"'), body
    status, answer, _ = call(f"/me?access_token={token}", [])
    assert (status, answer["www-authenticate"]) == (401, 'Bearer realm="shop"')


def test_other_requests_are_challenged_as_rfc_6750_and_rfc_9470_say(
    site: tuple[Authority, Call],
) -> None:
    authority, call = site
    token = authority.token("alice")
    elsewhere = authority.token("alice", audience=["https://other.test"])
    revoked = authority.token("alice")
    authority.revoke(revoked)
    old = authority.token("alice", acr="gold", authenticated_ago=timedelta(seconds=61))

    def invalid(description: str) -> str:
        return f'Bearer realm="shop", error="invalid_token", error_description="{description}"'

    step_up = (
        'Bearer realm="shop", error="insufficient_user_authentication", error_description="a '
        'stronger or more recent authentication is needed", acr_values="gold", max_age="60"'
    )
    scope = (
        'Bearer realm="shop", error="insufficient_scope", error_description="the access token '
        'lacks a scope", scope="orders:write"'
    )
    for target, sent, status, challenge in (
        ("/me", "x", 401, invalid("the access token is not valid")),
        ("/me", "", 401, invalid("the access token is not valid")),
        ("/me", revoked, 401, invalid("the access token has been revoked")),
        ("/me", elsewhere, 401, invalid("the access token is not meant for this resource")),
        ("/", revoked, 401, invalid("the access token has been revoked")),
        ("/orders", token, 403, scope),
        ("/payment", token, 401, step_up),
        ("/payment", old, 401, step_up),
    ):
        seen, answer, body = call(target, [bearer(sent)])
        assert (seen, answer["www-authenticate"]) == (status, challenge), target
        assert answer["content-type"] == "application/json"
        assert answer["cache-control"] == "no-store"
        assert f'error="{json.loads(body)["error"]}"' in challenge
        assert f'error_description="{json.loads(body)["error_description"]}"' in challenge
    good = authority.token("alice", acr="gold", scopes=["orders:write"])
    for target in ("/me", "/orders", "/payment"):
        assert call(target, [bearer(good)])[0::2] == (200, "alice")
    assert call("/", [])[2] == "nobody"
    authority.advance(timedelta(minutes=15))
    status, answer, _ = call("/me", [bearer(good)])
    assert (status, answer["www-authenticate"]) == (401, invalid("the access token has expired"))


def test_nothing_passes_while_the_authority_is_unavailable(site: tuple[Authority, Call]) -> None:
    authority, call = site
    token = authority.token("alice")
    authority.set_unavailable(True)
    for target in ("/me", "/"):
        status, answer, body = call(target, [bearer(token)])
        assert (status, answer["retry-after"]) == (503, "1")
        assert "www-authenticate" not in answer
        assert json.loads(body)["error"] == "temporarily_unavailable"
    authority.set_unavailable(False)
    assert call("/me", [bearer(token)])[0] == 200


def test_a_route_without_a_token_names_its_scopes() -> None:
    authority = Authority()
    status, answer, body = make_asgi(authority)("/orders", [])
    assert status == 401
    assert answer["www-authenticate"] == 'Bearer realm="shop", scope="orders:write"'
    assert json.loads(body)["error"] == "unauthorized"


def test_the_session_of_an_outer_protection_does_not_pass_an_inner_optional_one() -> None:
    authority = Authority()
    seen: list[Session | None] = []

    async def app(scope: Any, _: Any, __: Any) -> None:
        seen.append(asgi.get_session(scope))

    verifier = authority.aio_verifier()
    protect = asgi.Protect(app, verifier, OURS, optional=True)
    outer = authority.verifier().verify(authority.token("alice")).session
    scope: dict[str, Any] = {"type": "http", "headers": [], asgi.SESSION: outer}
    asyncio.run(protect(scope, None, None))  # type: ignore[arg-type]
    assert seen == [None]


@pytest.mark.parametrize("has_extension", [True, False])
def test_websockets_are_checked_before_they_are_accepted(has_extension: bool) -> None:  # noqa: FBT001
    authority = Authority()
    sent: list[Any] = []
    accepted: list[Session | None] = []

    async def app(scope: Any, _: Any, __: Any) -> None:
        accepted.append(asgi.get_session(scope))

    async def send(message: Any) -> None:
        sent.append(message)

    protect = asgi.Protect(app, authority.aio_verifier(), OURS)
    scope: dict[str, Any] = {"type": "websocket", "headers": []}
    if has_extension:
        scope["extensions"] = {"websocket.http.response": {}}
    asyncio.run(protect(dict(scope), None, send))  # type: ignore[arg-type]
    assert accepted == []
    if has_extension:
        assert [it["type"] for it in sent] == [
            "websocket.http.response.start",
            "websocket.http.response.body",
        ]
        assert sent[0]["status"] == 401
    else:
        assert sent == [{"type": "websocket.close", "code": 1008}]
    scope["headers"] = [(b"Authorization", b"Bearer " + authority.token("alice").encode())]
    asyncio.run(protect(scope, None, send))  # type: ignore[arg-type]
    assert text(accepted[0]) == "alice"
    lifespan = {"type": "lifespan"}
    asyncio.run(protect(lifespan, None, send))  # type: ignore[arg-type]
    assert accepted[1] is None


@pytest.mark.parametrize("has_extension", [True, False])
def test_websockets_of_fastapi_are_checked_before_they_are_accepted(
    has_extension: bool,  # noqa: FBT001
) -> None:
    authority = Authority()
    app = FastAPI()
    countersign_fastapi.install(app)
    protect = countersign_fastapi.Protect(authority.aio_verifier(), OURS)

    @app.websocket("/feed")
    async def feed(socket: WebSocket, session: Annotated[Session, Depends(protect)]) -> None:
        await socket.accept()
        await socket.send_text(session.subject)
        await socket.close()

    def call(token: str) -> list[Any]:
        sent: list[Any] = []
        scope: dict[str, Any] = {
            "type": "websocket",
            "path": "/feed",
            "raw_path": b"/feed",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"authorization", b"Bearer " + token.encode())],
            "extensions": {"websocket.http.response": {}} if has_extension else None,
        }

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(app(scope, receive, send))
        return sent

    accepted = call(authority.token("alice"))
    assert accepted[0]["type"] == "websocket.accept"
    assert accepted[1]["text"] == "alice"
    denied = call("x")
    if has_extension:
        assert denied[0]["type"] == "websocket.http.response.start"
        assert denied[0]["status"] == 401
        assert b"www-authenticate" in dict(denied[0]["headers"])
    else:
        assert denied == [{"type": "websocket.close", "code": 1008, "reason": ""}]


def test_views_of_django_are_protected_unless_they_say_otherwise() -> None:
    authority = Authority()
    for make in (make_django, make_async_django):
        call = make(authority)
        assert call("/health", [])[0::2] == (200, "nobody")
        assert call("/me", [])[0] == 401
    for wrong in ({}, {"DEMANDS": OURS}, {"DEMANDS": "x", "VERIFIER": authority.verifier()}):
        with override_settings(COUNTERSIGN=wrong), pytest.raises(ImproperlyConfigured):
            WSGIHandler()
    values = {"DEMANDS": OURS, "VERIFIER": "tests.test_http.named_verifier"}
    with override_settings(COUNTERSIGN=values):
        token = NAMED.token("alice")
        assert wsgi_call(WSGIHandler())("/me", [bearer(token)])[2] == "alice"


NAMED = Authority()
named_verifier = NAMED.verifier


def test_fastapi_without_install_has_the_same_status_and_challenge() -> None:
    app = FastAPI()
    protect = countersign_fastapi.Protect(Authority().aio_verifier(), OURS)

    @app.get("/me")
    async def me(session: Annotated[Session, Depends(protect)]) -> str:
        return session.subject

    status, answer, _ = asgi_call(app)("/me", [bearer("x")])
    assert status == 401
    assert answer["www-authenticate"].startswith('Bearer error="invalid_token"')


def test_the_scheme_bearer_is_read_strictly() -> None:
    for value in ("Bearer t", "bearer t", "bearer  t", "BEARER  t ", " Bearer t"):
        assert bearer_token(value.encode()) == b"t", value
    for token in ("cs_ck_1", "a.b-c_d~e+f/0", "t=", "t=="):
        assert bearer_token(f"Bearer {token}".encode()) == token.encode()
    others = ("", "t", "Basic", "Basic dDp0", "Digest x", "DPoP t", "Bearert", "Beare", "Token t")
    for value in others:
        assert bearer_token(value.encode()) is None, value
    malformed = (
        *("Bearer", "Bearer ", "Bearer\tt", "Bearer \tt", "Bearer t u", "Bearer t,u"),
        *("Bearer t, Basic dDp0", "Bearer t;", 'Bearer "t"', "Bearer =", "Bearer t=t"),
        *("Bearer token=t", "Bearer \u00e4"),
    )
    for value in malformed:
        assert bearer_token(value.encode()) == b"", value
    assert bearer_token(b"Bearer a\xff") == b""


def test_the_token_of_a_request_is_the_only_one() -> None:
    def found(authorization: list[str], cookies: list[str]) -> str | Missing:
        headers = [it.encode() for it in authorization]
        return find(headers, [it.encode() for it in cookies], b"session")

    for value in (
        "session=t",
        " session = t ",
        "a=b; session=t; c=d",
        'session="t"',
        "s=x;session=t;=;;",
    ):
        assert found([], [value]) == "t", value
    assert found(["Basic dDp0"], ["a=b", "session=t"]) == "t"
    for value in ("", "Session=t", "xsession=t", "session", "sessionx=t", "a=session=t"):
        assert found([], [value]) is Missing.NONE, value
    assert found(["Bearer t"], ["session=t"]) == "t"
    for malformed in ("Bearer", "Bearer t u"):
        assert found([malformed], []) == ""
        assert found([malformed], ["session=t"]) is Missing.SEVERAL
    for pair in (["Bearer t", "Bearer t"], ["Basic dDp0", "Bearer t"], ["Bearer t", "Basic x"]):
        assert found(pair, []) is Missing.SEVERAL
    assert found(["Bearer t"], ["session=u"]) is Missing.SEVERAL
    for same in (["session=t; session=t"], ["session=t", 'session="t"'], ["session=; session=t"]):
        assert found([], same) == "t"
    for empty in (["session="], ['session=""; session= ']):
        assert found([], empty) is Missing.NONE
    for conflict in (["session=t; session=u"], ["session=t", "session=u"]):
        assert found([], conflict) is Missing.CONFLICTING_COOKIES
        assert found(["Bearer t"], conflict) is Missing.CONFLICTING_COOKIES
    assert find([b"Bearer a\xff"], [], None) == ""
    assert find([], [b"session=a\xff"], b"session") == ""
    assert find([], [b"session=t"], None) is Missing.NONE


def test_a_challenge_is_quoted_and_has_no_control_characters() -> None:
    denial = Denial(DenialKind.NO_TOKEN)
    assert denial.challenge('a"b\\', ORDERS) == 'Bearer realm="a\\"b\\\\", scope="orders:write"'
    assert denial.challenge(None, Demands()) == "Bearer"
    for reason in InactiveReason:
        assert 'error="' in Denial(DenialKind.INACTIVE, reason).challenge(None, ORDERS)
    factors = Demands(factors=["pwd"], max_authentication_age=timedelta(minutes=5))
    step_up = Denial(DenialKind.INACTIVE, InactiveReason.STEP_UP_REQUIRED)
    assert "the route demands pwd" in step_up.challenge(None, factors)
    for realm, challenge in (("a\r\nx: y", "Bearer"), ("\u00e9", 'Bearer realm="\u00c3\u00a9"')):
        headers = dict(Guard(OURS, realm=realm).deny(denial).headers)
        assert headers["www-authenticate"] == challenge
