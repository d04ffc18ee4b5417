"""Servers that answer as a situation wants, and an issuer of any tokens."""

import asyncio
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Never

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.any_pb2 import Any as Detail
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from countersign.proto import (
    CreateSessionResponse,
    GetJwksResponse,
    RefreshResponse,
    RevokeResponse,
    ValidateResponse,
)
from runner.services import AUDIENCE, ISSUER

_ID: Final = "0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22"


@dataclass(frozen=True)
class Call:
    """A call that has arrived."""

    method: str
    request: bytes
    metadata: dict[str, str]
    at: float
    """The time of its arrival, in seconds."""


Answering = Callable[[int, Call], Awaitable[Message | bytes]]


class RefusalError(Exception):
    """The server answers a call with an error."""

    def __init__(
        self, code: grpc.StatusCode, reason: str | None = None, retry: float | None = None
    ) -> None:
        super().__init__(reason)
        self.code = code
        details: list[Any] = []
        if reason is not None:
            details.append(ErrorInfo(reason=reason, domain="countersign"))
        if retry is not None:
            info = RetryInfo()
            info.retry_delay.FromMilliseconds(round(retry * 1000))
            details.append(info)
        status = Status(code=code.value[0], message="refused")
        for detail in details:
            packed = Detail()
            packed.Pack(detail)
            status.details.append(packed)
        self.trailer = (("grpc-status-details-bin", status.SerializeToString()),)


class Fake(grpc.GenericRpcHandler):
    """A server that asks a function for the answer to each call.

    The function gets the number of the call, from 0.
    """

    def __init__(self, answer: Answering) -> None:
        self._answer = answer
        self._server = grpc.aio.server(handlers=[self])
        self._arrived = asyncio.Condition()
        self.calls: list[Call] = []
        self.address = ""
        self.scheme = "http"

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"{self.scheme}://{self.address}"

    async def start(self, credentials: grpc.ServerCredentials | None = None) -> None:
        """Listens on a free port."""
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
            self.scheme = "https"
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def close(self) -> None:
        """Ends the server at once."""
        await self._server.stop(None)

    async def arrivals(self, count: int) -> None:
        """Waits until this number of calls has arrived."""
        async with asyncio.timeout(30), self._arrived:
            await self._arrived.wait_for(lambda: len(self.calls) >= count)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Returns the handler of a call."""
        method = handler_call_details.method.rsplit("/", maxsplit=1)[1]

        async def handle(request: bytes, context: Any) -> bytes:
            metadata = dict(context.invocation_metadata())
            number = len(self.calls)
            call = Call(method, request, metadata, time.monotonic())
            async with self._arrived:
                self.calls.append(call)
                self._arrived.notify_all()
            try:
                answer = await self._answer(number, call)
            except RefusalError as refusal:
                await context.abort(refusal.code, "refused", refusal.trailer)
                raise
            return answer if isinstance(answer, bytes) else answer.SerializeToString()

        async def handle_stream(_: object, context: Any) -> bytes:
            return await handle(b"", context)

        if method == "Watch":
            return grpc.stream_unary_rpc_method_handler(handle_stream)
        return grpc.unary_unary_rpc_method_handler(handle)


def usual(call: Call) -> Message:
    """Returns an answer without an error."""
    match call.method:
        case "Validate":
            return active("alice")
        case "Revoke":
            return RevokeResponse()
        case "CreateSession":
            created = CreateSessionResponse()
            created.session.session_id = _ID
            created.tokens.access_token, created.tokens.refresh_token = "access", "refresh"
            return created
        case "Refresh":
            refreshed = RefreshResponse()
            refreshed.tokens.access_token = "next access"
            refreshed.tokens.refresh_token = "next refresh"
            return refreshed
        case _:
            raise RefusalError(grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED")


def active(subject: str) -> ValidateResponse:
    """Returns the answer of Validate for an active token."""
    answer = ValidateResponse(active=True, subject=subject, session_id=_ID, audience=[AUDIENCE])
    for instant in (answer.issued_at, answer.authenticated_at):
        instant.GetCurrentTime()
    answer.expires_at.FromSeconds(answer.issued_at.seconds + 600)
    return answer


async def never() -> Never:
    """Waits for ever."""
    await asyncio.Event().wait()
    raise AssertionError


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenKey:
    """A key that signs any tokens."""

    def __init__(self, kid: str = "situations") -> None:
        self.kid = kid
        self._key = Ed25519PrivateKey.generate()

    def jwks(self) -> GetJwksResponse:
        """Returns the answer of GetJwks."""
        x = _encode(self._key.public_key().public_bytes_raw())
        key = {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid}
        answer = GetJwksResponse(jwks=json.dumps({"keys": [key | {"x": x}]}))
        answer.max_age.FromSeconds(300)
        return answer

    def sign(self, payload: str, header: str | None = None) -> str:
        """Signs texts as a token."""
        usual_header = {"typ": "at+jwt", "alg": "EdDSA", "kid": self.kid}
        head = json.dumps(usual_header) if header is None else header
        signed = f"{_encode(head.encode())}.{_encode(payload.encode())}"
        return f"{signed}.{_encode(self._key.sign(signed.encode()))}"

    def token(self, **claims: Any) -> str:
        """Signs a token with these claims in addition to the usual ones."""
        return self.sign(json.dumps(payload(**claims)))


def payload(**claims: Any) -> dict[str, Any]:
    """Returns the claims of a token that is active for ten minutes."""
    now = int(time.time())
    usual_claims = {
        "iss": ISSUER,
        "sub": "alice",
        "aud": [AUDIENCE],
        "client_id": "web",
        "iat": now,
        "exp": now + 600,
        "jti": "3b6bcefb-272c-4b4a-a9fa-38fe5b0331cb",
        "sid": _ID,
        "auth_time": now,
        "scope": "orders:read",
    }
    return usual_claims | claims
