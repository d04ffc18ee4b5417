"""The page "my devices" of an account: lists a user's sessions, names and ends them.

The page belongs to your own web application, which calls Countersign over gRPC. This example has
the page alone. It identifies the user by the access token in the cookie `access_token`, which your
sign-in sets.

Usage: app.py PORT, with COUNTERSIGN_SERVER (such as 127.0.0.1:8080) and, if the service has
callers, COUNTERSIGN_API_KEY in the environment.
"""

import hashlib
import hmac
import html
import os
import secrets
import sys
from dataclasses import dataclass
from http.cookies import SimpleCookie
from urllib.parse import parse_qs
from wsgiref.simple_server import make_server

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from countersign.v1 import session_pb2, session_service_pb2
from countersign.v1.session_service_pb2_grpc import SessionServiceStub

TIMEOUT = 10  # seconds
CSRF_KEY = secrets.token_bytes(32)


class Denied(Exception):
    """The request is refused with this status."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


@dataclass
class User:
    tenant: str
    subject: str
    session_id: str

    @property
    def csrf_token(self):
        """A value that only pages of this session contain, so that no other site can post."""
        return hmac.new(CSRF_KEY, self.session_id.encode(), hashlib.sha256).hexdigest()


class Devices:
    def __init__(self, channel, api_key):
        self.sessions = SessionServiceStub(channel)
        self.metadata = [("authorization", f"Bearer {api_key}")] if api_key else []

    def call(self, method, request):
        return method(request, timeout=TIMEOUT, metadata=self.metadata)

    def user(self, access_token):
        """Returns the user, if the token is valid and its session is live."""
        request = session_service_pb2.ValidateRequest(access_token=access_token)
        answer = self.call(self.sessions.Validate, request)
        if not answer.active:
            raise Denied("401 Unauthorized")
        return User(answer.tenant, answer.subject, answer.session_id)

    def list(self, user):
        """Yields the user's live sessions, page by page."""
        request = session_service_pb2.ListSessionsRequest(
            tenant=user.tenant,
            subject=user.subject,
            state=session_pb2.SESSION_STATE_LIVE,
        )
        while True:
            page = self.call(self.sessions.ListSessions, request)
            yield from page.sessions
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def own(self, user, session_id):
        """Returns a session of the user. Identifiers in a form come from the browser, so a session
        of somebody else must look like one that does not exist."""
        try:
            request = session_service_pb2.GetSessionRequest(session_id=session_id)
            session = self.call(self.sessions.GetSession, request).session
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise Denied("404 Not Found") from None
            raise
        if (session.tenant, session.subject) != (user.tenant, user.subject):
            raise Denied("404 Not Found")
        return session

    def rename(self, user, session_id, label):
        session = self.own(user, session_id)
        request = session_service_pb2.UpdateSessionRequest(
            session_id=session.session_id,
            update_mask=FieldMask(paths=["device.label"]),
            session=session_pb2.Session(device=session_pb2.Device(label=label)),
        )
        self.call(self.sessions.UpdateSession, request)

    def end(self, user, session_id):
        session = self.own(user, session_id)
        request = session_service_pb2.RevokeRequest(
            session_id=session.session_id,
            reason=session_pb2.END_REASON_SIGNED_OUT,
            note="ended by its user on the page of devices",
        )
        self.call(self.sessions.Revoke, request)

    def end_others(self, user):
        request = session_service_pb2.RevokeRequest(
            subject=session_service_pb2.SubjectTarget(
                tenant=user.tenant,
                subject=user.subject,
                except_session_id=user.session_id,
            ),
            reason=session_pb2.END_REASON_SIGNED_OUT,
            note="other devices, ended by their user on the page of devices",
        )
        self.call(self.sessions.Revoke, request)


def name(device):
    """Returns what the user recognizes the device by."""
    return device.label or device.user_agent_name or device.user_agent or "Unknown device"


def row(user, session):
    device = session.device
    is_this = session.session_id == user.session_id
    seen = device.last_seen_at.ToDatetime().strftime("%Y-%m-%d %H:%M UTC")
    hidden = (
        f'<input type="hidden" name="csrf" value="{user.csrf_token}">'
        f'<input type="hidden" name="session" value="{session.session_id}">'
    )
    return f"""<li>
<strong>{html.escape(name(device))}</strong>{" (this device)" if is_this else ""}
<small>last seen {seen} from {html.escape(device.ip_address or "an unknown address")}</small>
<form method="post" action="/devices/rename">{hidden}
<input name="label" value="{html.escape(device.label)}" maxlength="128"><button>Rename</button></form>
<form method="post" action="/devices/end">{hidden}<button>Sign out</button></form>
</li>"""


def page(user, sessions):
    rows = "".join(row(user, session) for session in sessions)
    return f"""<!doctype html><title>My devices</title><h1>My devices</h1><ul>{rows}</ul>
<form method="post" action="/devices/end-others">
<input type="hidden" name="csrf" value="{user.csrf_token}">
<button>Sign out all other devices</button></form>"""


def form(environ):
    length = min(int(environ.get("CONTENT_LENGTH") or 0), 4096)
    fields = parse_qs(environ["wsgi.input"].read(length).decode())
    return {field: values[0] for field, values in fields.items()}


def answer(devices, environ):
    """Returns the page, or None to show the page anew after a change."""
    cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get("access_token")
    if cookie is None:
        raise Denied("401 Unauthorized")
    user = devices.user(cookie.value)
    match environ["REQUEST_METHOD"], environ["PATH_INFO"]:
        case "GET", "/devices":
            return page(user, devices.list(user))
        case "POST", path:
            fields = form(environ)
            if not hmac.compare_digest(fields.get("csrf", ""), user.csrf_token):
                raise Denied("403 Forbidden")
            match path:
                case "/devices/rename":
                    devices.rename(user, fields.get("session", ""), fields.get("label", ""))
                    return None
                case "/devices/end":
                    devices.end(user, fields.get("session", ""))
                    return None
                case "/devices/end-others":
                    devices.end_others(user)
                    return None
    raise Denied("404 Not Found")


def application(devices):
    def respond(environ, start_response):
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")]
        try:
            body = answer(devices, environ)
        except Denied as denied:
            start_response(denied.status, headers)
            return [denied.status.encode()]
        except grpc.RpcError:
            # Nobody is signed in as long as nobody can tell whether the session lives.
            start_response("503 Service Unavailable", headers)
            return [b"Please try again in a moment."]
        if body is None:
            start_response("303 See Other", [("Location", "/devices")])
            return []
        start_response("200 OK", headers)
        return [body.encode()]

    return respond


def main():
    channel = grpc.insecure_channel(os.environ["COUNTERSIGN_SERVER"])
    devices = Devices(channel, os.environ.get("COUNTERSIGN_API_KEY"))
    with make_server("127.0.0.1", int(sys.argv[1]), application(devices)) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
