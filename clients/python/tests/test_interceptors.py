"""Tests of the interceptors for servers of gRPC. The authority is within the process."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from countersign import Demands, Factor, Verifier, aio
from countersign.interceptors import AioServerInterceptor, ServerInterceptor, current_session
from countersign.testing import AUDIENCE, Authority

LIST, CREATE, PAY = "/shop.Orders/List", "/shop.Orders/Create", "/shop.Orders/Pay"
HEALTH = "/grpc.health.v1.Health/Check"
DEMANDS = Demands(audience=AUDIENCE)
METHODS: dict[str, Demands | None] = {
    CREATE: Demands(scopes=["orders:write"]),
    PAY: Demands(factors=[Factor("hwk", timedelta(minutes=1))], acr_values=["gold", "silver"]),
    HEALTH: None,
}
KINDS = {
    "/shop.Orders/UnaryStream": grpc.unary_stream_rpc_method_handler,
    "/shop.Orders/StreamUnary": grpc.stream_unary_rpc_method_handler,
    "/shop.Orders/StreamStream": grpc.stream_stream_rpc_method_handler,
}


def subject() -> bytes:
    session = current_session()
    return b"nobody" if session is None else session.subject.encode()


class Handlers(grpc.GenericRpcHandler):
    """Answers each call with the user of its session."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        def unary(_: Any, __: Any) -> bytes:
            return subject()

        def stream(_: Any, __: Any) -> Iterator[bytes]:
            for _ in range(3):
                yield subject()

        make: Any = KINDS.get(handler_call_details.method, grpc.unary_unary_rpc_method_handler)
        return make(stream if handler_call_details.method.endswith("Stream") else unary)


class AioHandlers(grpc.GenericRpcHandler):
    """Does the same for asyncio."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def unary(_: Any, __: Any) -> bytes:
            await asyncio.sleep(0)
            return subject()

        async def stream(_: Any, __: Any) -> AsyncIterator[bytes]:
            for _ in range(3):
                await asyncio.sleep(0)
                yield subject()

        async def write(_: Any, context: Any) -> None:
            for _ in range(3):
                await context.write(subject())

        path = handler_call_details.method
        make: Any = KINDS.get(path, grpc.unary_unary_rpc_method_handler)
        if path.endswith("StreamStream"):
            return make(write)
        return make(stream if path.endswith("Stream") else unary)


@contextmanager
def serving(verifier: Verifier) -> Iterator[grpc.Channel]:
    interceptor = ServerInterceptor(verifier, DEMANDS, METHODS)
    server = grpc.server(ThreadPoolExecutor(4), [Handlers()], [interceptor])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    server.stop(None).wait()


@asynccontextmanager
async def aio_serving(verifier: aio.Verifier) -> AsyncIterator[grpc.aio.Channel]:
    interceptor = AioServerInterceptor(verifier, DEMANDS, METHODS)
    server = grpc.aio.server(handlers=[AioHandlers()], interceptors=[interceptor])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


Seen = tuple[str, str, dict[str, str]]
"""The code of an answer, and its reason with its metadata, or the user of the session."""


def metadata(tokens: list[str]) -> tuple[tuple[str, str], ...]:
    return tuple(("authorization", f"Bearer {token}") for token in tokens)


def denial(error: Any) -> Seen:
    details = [
        value for name, value in error.trailing_metadata() if name == "grpc-status-details-bin"
    ]
    status = Status.FromString(details[0])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    info, retry = ErrorInfo(), RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "countersign"
    is_temporary = len(status.details) > 1 and status.details[1].Unpack(retry)
    assert is_temporary == (error.code() is grpc.StatusCode.UNAVAILABLE)
    assert not is_temporary or retry.retry_delay.ToMilliseconds() == 500
    return error.code().name, info.reason, dict(info.metadata)


def cases(authority: Authority) -> list[tuple[str, list[str], Seen]]:
    token = authority.token("alice", scopes=["orders:write"])
    plain = authority.token("alice")
    strong = authority.token("alice", acr="gold", factors=["hwk"])
    elsewhere = authority.token("alice", audience=["x"])
    revoked = authority.token("alice")
    authority.revoke(revoked)
    step_up = {"acr_values": "gold silver", "max_age": "60"}
    return [
        (LIST, [token], ("OK", "alice", {})),
        (CREATE, [token], ("OK", "alice", {})),
        (PAY, [strong], ("OK", "alice", {})),
        (HEALTH, [], ("OK", "nobody", {})),
        (LIST, [], ("UNAUTHENTICATED", "NO_TOKEN", {})),
        (LIST, [token, token], ("UNAUTHENTICATED", "SEVERAL_TOKENS", {})),
        (LIST, ["x"], ("UNAUTHENTICATED", "MALFORMED", {})),
        (LIST, [revoked], ("UNAUTHENTICATED", "REVOKED", {})),
        (LIST, [elsewhere], ("UNAUTHENTICATED", "WRONG_AUDIENCE", {})),
        (CREATE, [plain], ("PERMISSION_DENIED", "INSUFFICIENT_SCOPE", {"scope": "orders:write"})),
        (PAY, [token], ("UNAUTHENTICATED", "STEP_UP_REQUIRED", step_up)),
    ]


def test_calls_are_checked_by_the_demands_of_their_method() -> None:
    authority = Authority()
    with serving(authority.verifier()) as channel:

        def call(path: str, tokens: list[str]) -> Seen:
            send: Any = channel.unary_unary(path)
            try:
                return "OK", send(b"", metadata=metadata(tokens), timeout=20).decode(), {}
            except grpc.RpcError as error:
                return denial(error)

        for path, tokens, expected in cases(authority):
            assert call(path, tokens) == expected, path
        token = authority.token("alice")
        authority.set_unavailable(True)
        assert call(LIST, [token]) == ("UNAVAILABLE", "TOKEN_NOT_CHECKED", {})
        assert call(HEALTH, []) == ("OK", "nobody", {})


def test_calls_of_asyncio_are_checked_by_the_demands_of_their_method() -> None:
    authority = Authority()

    async def run() -> None:
        async with aio_serving(authority.aio_verifier()) as channel:

            async def call(path: str, tokens: list[str]) -> Seen:
                send: Any = channel.unary_unary(path)
                try:
                    answer = await send(b"", metadata=metadata(tokens), timeout=20)
                except grpc.aio.AioRpcError as error:
                    return denial(error)
                return "OK", answer.decode(), {}

            for path, tokens, expected in cases(authority):
                assert await call(path, tokens) == expected, path
            token = authority.token("alice")
            authority.set_unavailable(True)
            assert await call(LIST, [token]) == ("UNAVAILABLE", "TOKEN_NOT_CHECKED", {})
            assert await call(HEALTH, []) == ("OK", "nobody", {})

    asyncio.run(run())


def open_stream(channel: Any, path: str, sent: Any, tokens: list[str]) -> Any:
    kind = path.rsplit("/", 1)[1]
    name = {
        "UnaryStream": "unary_stream",
        "StreamUnary": "stream_unary",
        "StreamStream": "stream_stream",
    }[kind]
    request = b"" if kind.startswith("Unary") else sent
    return getattr(channel, name)(path)(request, metadata=metadata(tokens), timeout=20)


@pytest.mark.parametrize("path", KINDS)
def test_streams_have_their_session_until_they_end(path: str) -> None:
    authority = Authority()
    tokens = [authority.token("alice")]

    def read(answer: Any) -> list[bytes]:
        return [answer] if isinstance(answer, bytes) else list(answer)

    with serving(authority.verifier()) as channel:
        answers = read(open_stream(channel, path, iter([b""]), tokens))
        assert answers == [b"alice"] * (1 if path.endswith("Unary") else 3)
        with pytest.raises(grpc.RpcError) as denied:
            read(open_stream(channel, path, iter([b""]), []))
        assert denial(denied.value)[:2] == ("UNAUTHENTICATED", "NO_TOKEN")
    assert current_session() is None

    async def run() -> None:
        async def read_all(tokens: list[str]) -> list[bytes]:
            answers = open_stream(channel, path, [b""], tokens)
            if path.endswith("Unary"):
                return [await answers]
            return [answer async for answer in answers]

        async with aio_serving(authority.aio_verifier()) as channel:
            assert await read_all(tokens) == answers
            with pytest.raises(grpc.aio.AioRpcError) as denied:
                await read_all([])
            assert denial(denied.value)[:2] == ("UNAUTHENTICATED", "NO_TOKEN")

    asyncio.run(run())
