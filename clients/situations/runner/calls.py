"""Situations of calls: replicas that are away, slow, overloaded, or break off."""

import asyncio
import itertools
import socket

import grpc
from google.protobuf.message import Message

from countersign.proto import CreateSessionRequest, ValidateResponse
from runner.fakes import Call, Fake, RefusalError, never, usual
from runner.http2 import CANCEL, INTERNAL_ERROR, REFUSED_STREAM
from runner.situation import (
    ACTIVE,
    ANY,
    LATE_MS,
    UNKNOWN,
    Situation,
    check,
    failed,
    situation,
)

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
CREATED = {"session_id": ANY, "access_token": "access", "refresh_token": "refresh"}
REFRESHED = {"access_token": "next access", "refresh_token": "next refresh"}


async def answers(_: int, call: Call) -> Message:
    """Answers each call."""
    return usual(call)


def refuses(
    reason: str | None,
    code: grpc.StatusCode = UNAVAILABLE,
    retry: float | None = None,
    times: int | None = None,
) -> "Refuses":
    """Returns a function that refuses calls, perhaps only the first ones."""
    return Refuses(RefusalError(code, reason, retry), times)


class Refuses:
    """Refuses calls, perhaps only the first ones."""

    def __init__(self, refusal: RefusalError, times: int | None) -> None:
        self._refusal = refusal
        self._times = times

    async def __call__(self, number: int, call: Call) -> Message:
        """Answers a call."""
        if self._times is None or number < self._times:
            raise self._refusal
        return usual(call)


def check_calls(fake: Fake, count: int) -> None:
    """Checks the number of calls that have arrived."""
    check(len(fake.calls) == count, f"{len(fake.calls)} calls instead of {count}")


@situation("no server")
async def _(s: Situation) -> None:
    await s.connect(s.closed_url(), deadline_ms=500, revocation_deadline_ms=500)
    await s.expect_at_deadline(failed("UNREACHABLE"), "validate", token="t")
    await s.expect_at_deadline(failed("UNREACHABLE"), "revoke", token="t")
    await s.expect_at_deadline(failed("UNREACHABLE"), "refresh", refresh_token="t")


@situation("a server that accepts and never answers")
async def _(s: Situation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # With a deadline after the one for connecting, some libraries see that there is no
        # HTTP/2, and say that the server cannot be reached.
        await s.connect(url, deadline_ms=500, connect_timeout_ms=LATE_MS)
        await s.expect(failed("DEADLINE_EXCEEDED"), "validate", token="t")
        await s.expect(failed("DEADLINE_EXCEEDED"), "refresh", refresh_token="t")


@situation("a silent server and one that answers")
async def _(s: Situation) -> None:
    fake = await s.fake(answers)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        await s.connect(url, fake.url, deadline_ms=2000)
        # The libraries differ in when they give up the first one, but all avoid it from then on.
        first = await s.do("validate", token="t")
        check(first in (ACTIVE, failed("DEADLINE_EXCEEDED")), f"validate: {first}")
        for _ in range(3):
            await s.expect(ACTIVE, "validate", token="t")


@situation("an answer after the deadline")
async def _(s: Situation) -> None:
    async def late(_: int, __: Call) -> Message:
        return await never()

    fake = await s.fake(late)
    await s.connect(fake.url, deadline_ms=1000, revocation_deadline_ms=1500)
    await s.expect(failed("DEADLINE_EXCEEDED"), "validate", token="t")
    await s.expect(failed("DEADLINE_EXCEEDED"), "revoke", token="t")
    check(len(fake.calls) <= 2, f"{len(fake.calls)} calls instead of 2")


@situation("a slow revocation")
async def _(s: Situation) -> None:
    async def slow(_: int, call: Call) -> Message:
        await asyncio.sleep(1)
        return usual(call)

    fake = await s.fake(slow)
    await s.connect(fake.url, deadline_ms=500)
    await s.expect({}, "revoke", token="t")
    check_calls(fake, 1)


@situation("a slow replica and a fast one")
async def _(s: Situation) -> None:
    async def late(_: int, __: Call) -> Message:
        return await never()

    slow, fast = await s.fake(late), await s.fake(answers)
    await s.connect(slow.url, fast.url, deadline_ms=2000)
    await s.expect(failed("DEADLINE_EXCEEDED"), "validate", token="t")
    for _ in range(4):
        await s.expect(ACTIVE, "validate", token="t")
    check_calls(slow, 1)


@situation("a replica that cannot be reached, and another")
async def _(s: Situation) -> None:
    fake = await s.fake(answers)
    await s.connect(s.closed_url(), fake.url)
    # What must not happen twice is repeated, too, because nothing has happened.
    await s.expect(REFRESHED, "refresh", refresh_token="t")
    for _ in range(3):
        await s.expect(ACTIVE, "validate", token="t")


@situation("a replica without its database, and another")
async def _(s: Situation) -> None:
    first, second = await s.fake(refuses("STORE_UNAVAILABLE")), await s.fake(answers)
    await s.connect(first.url, second.url)
    await s.expect(ACTIVE, "validate", token="t")
    await s.expect(CREATED, "create", subject="alice")
    # It is avoided.
    await s.expect(ACTIVE, "validate", token="t")
    check_calls(first, 1)


@situation("a replica without its database, and a refresh")
async def _(s: Situation) -> None:
    first, second = await s.fake(refuses("STORE_UNAVAILABLE")), await s.fake(answers)
    await s.connect(first.url, second.url)
    # It may have happened.
    await s.expect(failed("STORE_UNAVAILABLE"), "refresh", refresh_token="t")
    check_calls(second, 0)


@situation("a replica that is not current, and another")
async def _(s: Situation) -> None:
    first, second = await s.fake(refuses("NOT_CURRENT")), await s.fake(answers)
    await s.connect(first.url, second.url)
    await s.expect(REFRESHED, "refresh", refresh_token="t")
    check_calls(first, 1)


@situation("all replicas unavailable")
async def _(s: Situation) -> None:
    replicas = [await s.fake(refuses("NOT_CURRENT")) for _ in range(3)]
    await s.connect(*(it.url for it in replicas), deadline_ms=2000)
    await s.expect_at_deadline(failed("NOT_CURRENT"), "validate", token="t")
    counts = [len(it.calls) for it in replicas]
    check(min(counts) > 0, f"some replicas were not asked: {counts}")


@situation("UNAVAILABLE without a reason")
async def _(s: Situation) -> None:
    fake = await s.fake(refuses(None))
    await s.connect(fake.url, deadline_ms=1500)
    await s.expect(failed("UNREACHABLE"), "refresh", refresh_token="t")
    # A gateway in front of the service may answer so after the call has taken effect.
    check_calls(fake, 1)
    await s.expect_at_deadline(failed("UNREACHABLE"), "validate", token="t")
    check(len(fake.calls) > 2, "the call was not repeated")


@situation("errors that are not repeated")
async def _(s: Situation) -> None:
    for code, reason, expected in (
        (grpc.StatusCode.INTERNAL, None, "INTERNAL"),
        (grpc.StatusCode.INTERNAL, "INTERNAL", "INTERNAL"),
        (grpc.StatusCode.FAILED_PRECONDITION, "REASON_OF_THE_FUTURE", "REASON_OF_THE_FUTURE"),
        (grpc.StatusCode.FAILED_PRECONDITION, None, "FAILED_PRECONDITION"),
        (grpc.StatusCode.UNAUTHENTICATED, None, "UNAUTHENTICATED"),
        (grpc.StatusCode.CANCELLED, None, "CANCELLED"),
        (grpc.StatusCode.UNKNOWN, None, "UNKNOWN"),
        (grpc.StatusCode.ABORTED, "ETAG_MISMATCH", "ETAG_MISMATCH"),
        (RESOURCE_EXHAUSTED, None, "RESOURCE_EXHAUSTED"),
        (RESOURCE_EXHAUSTED, "BLACKLIST_FULL", "BLACKLIST_FULL"),
    ):
        fake = await s.fake(refuses(reason, code))
        await s.connect(fake.url)
        await s.expect(failed(expected), "validate", token="t")
        check_calls(fake, 1)


@situation("an overloaded service that asks for a pause")
async def _(s: Situation) -> None:
    pause = 0.4
    refusing = refuses("OVERLOADED", RESOURCE_EXHAUSTED, pause, times=1)
    first, second = await s.fake(refusing), await s.fake(refusing)
    await s.connect(first.url, second.url)
    await s.expect(REFRESHED, "refresh", refresh_token="t")
    times = sorted(call.at for fake in (first, second) for call in fake.calls)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    check(min(pauses) >= pause, f"the pauses were {pauses}")


@situation("an overloaded service that asks for too long a pause")
async def _(s: Situation) -> None:
    fake = await s.fake(refuses("OVERLOADED", RESOURCE_EXHAUSTED, 30))
    await s.connect(fake.url, deadline_ms=5000)
    await s.expect(failed("OVERLOADED", 30_000), "validate", token="t")
    check_calls(fake, 1)


@situation("a caller over its limit")
async def _(s: Situation) -> None:
    pause = 0.4
    refusing = refuses("CALLER_OVER_LIMIT", RESOURCE_EXHAUSTED, pause, times=1)
    fake = await s.fake(refusing)
    await s.connect(fake.url)
    await s.expect(REFRESHED, "refresh", refresh_token="t")
    waited = fake.calls[1].at - fake.calls[0].at
    check(waited >= pause, f"the pause was {waited}")
    # Another replica may have room, so the pause is not kept.
    first = await s.fake(refuses("CALLER_OVER_LIMIT", RESOURCE_EXHAUSTED, 10))
    await s.connect(first.url, fake.url, deadline_ms=5000)
    await s.expect(ACTIVE, "validate", token="t")


@situation("the credentials of a call")
async def _(s: Situation) -> None:
    fake = await s.fake(answers)
    await s.connect(fake.url, api_key="secret-key")
    await s.expect(ACTIVE, "validate", token="t")
    sent = fake.calls[0].metadata.get("authorization")
    check(sent == "Bearer secret-key", f"authorization: {sent}")
    await s.connect(fake.url)
    await s.expect(ACTIVE, "validate", token="t")
    check("authorization" not in fake.calls[1].metadata, "a key was sent")


@situation("a connection that is reset in a read")
async def _(s: Situation) -> None:
    fake = await _broken(s)
    await s.expect(ACTIVE, "validate", token="t")
    check_calls(fake, 2)


@situation("a connection that is reset in a revocation")
async def _(s: Situation) -> None:
    fake = await _broken(s)
    await s.expect({}, "revoke", token="t")
    check_calls(fake, 2)


@situation("a connection that is reset in a creation")
async def _(s: Situation) -> None:
    fake = await _broken(s)
    await s.expect(CREATED, "create", subject="alice", scopes=["orders:read"])
    check_calls(fake, 2)
    first, second = (CreateSessionRequest.FromString(call.request) for call in fake.calls)
    check(first == second, f"{first} was repeated as {second}")
    check(len(first.request_id) > 0, "there is no request id")
    await s.expect(CREATED, "create", subject="alice", scopes=["orders:read"])
    third = CreateSessionRequest.FromString(fake.calls[2].request)
    check(third.request_id != first.request_id, "two calls have the same request id")


@situation("a connection that is reset in a refresh")
async def _(s: Situation) -> None:
    fake = await _broken(s)
    await s.expect(failed("UNREACHABLE"), "refresh", refresh_token="t")
    check_calls(fake, 1)
    # The same client goes on. A library may not have noticed yet that the connection is gone.
    await s.expect(ACTIVE, "validate", token="t")


async def _broken(s: Situation) -> Fake:
    """Connects to a server whose connection is reset during the first call."""

    async def answer(number: int, call: Call) -> Message:
        if number == 0:
            proxy.reset()
            return await never()
        return usual(call)

    fake = await s.fake(answer)
    proxy = await s.proxy(fake.address)
    await s.connect(proxy.url)
    return fake


@situation("connections that are reset between calls")
async def _(s: Situation) -> None:
    fake = await s.fake(answers)
    proxy = await s.proxy(fake.address)
    await s.connect(proxy.url)
    for _ in range(3):
        await s.expect(ACTIVE, "validate", token="t")
        proxy.reset()


@situation("GOAWAY during a call, which is answered")
async def _(s: Situation) -> None:
    async def answer(number: int, call: Call) -> Message:
        if number == 0:
            proxy.send_goaway(last_stream=(1 << 31) - 1)
            await asyncio.sleep(0.1)
        return usual(call)

    fake = await s.fake(answer)
    proxy = await s.proxy(fake.address)
    await s.connect(proxy.url)
    await s.expect(REFRESHED, "refresh", refresh_token="t")
    for _ in range(3):
        await s.expect(REFRESHED, "refresh", refresh_token="t")
    check_calls(fake, 4)
    check(proxy.connections > 1, "no other connection was opened")


@situation("GOAWAY that leaves out a call")
async def _(s: Situation) -> None:
    async def answer(number: int, call: Call) -> Message:
        if number == 0:
            proxy.send_goaway(last_stream=0)
            return await never()
        return usual(call)

    fake = await s.fake(answer)
    proxy = await s.proxy(fake.address)
    await s.connect(proxy.url)
    await s.expect(ACTIVE, "validate", token="t")
    check_calls(fake, 2)


@situation("a gateway without a server behind it")
async def _(s: Situation) -> None:
    for code in (502, 503, 504):
        gateway = await s.raw_server("status", code)
        await s.connect(gateway.url)
        await s.expect(failed("UNREACHABLE"), "refresh", refresh_token="t")
        check(gateway.requests == 1, f"{code}: {gateway.requests} calls of Refresh instead of 1")
        fake = await s.fake(answers)
        await s.connect(gateway.url, fake.url)
        await s.expect(ACTIVE, "validate", token="t")


@situation("a gateway that refuses")
async def _(s: Situation) -> None:
    for code, reason in (
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "UNIMPLEMENTED"),
    ):
        gateway = await s.raw_server("status", code)
        await s.connect(gateway.url)
        await s.expect(failed(reason), "validate", token="t")
        check(gateway.requests == 1, f"{code}: {gateway.requests} calls instead of 1")


@situation("a stream that is refused")
async def _(s: Situation) -> None:
    fake = await s.fake(answers)
    server = await s.raw_server("reset", REFUSED_STREAM)
    await s.connect(server.url, fake.url)
    await s.expect(ACTIVE, "validate", token="t")


@situation("a stream that is reset")
async def _(s: Situation) -> None:
    server = await s.raw_server("reset", INTERNAL_ERROR)
    await s.connect(server.url)
    await s.expect(failed("INTERNAL"), "validate", token="t")
    server = await s.raw_server("reset", CANCEL)
    await s.connect(server.url)
    await s.expect(failed("CANCELLED"), "validate", token="t")


@situation("an answer that cannot be read")
async def _(s: Situation) -> None:
    async def garbage(_: int, __: Call) -> bytes:
        return b"\xff\xff\xff"

    fake = await s.fake(garbage)
    await s.connect(fake.url)
    await s.expect(failed("INTERNAL"), "validate", token="t")
    check_calls(fake, 1)


@situation("an answer of the future")
async def _(s: Situation) -> None:
    answers_of_future = [
        ValidateResponse(active=True),
        ValidateResponse(inactive_reason=99),  # type: ignore[arg-type]
        ValidateResponse(),
    ]

    async def answer(number: int, _: Call) -> Message:
        return answers_of_future[number]

    fake = await s.fake(answer)
    await s.connect(fake.url)
    await s.verifier("remote")
    for _ in answers_of_future:
        await s.expect(UNKNOWN, "verify", token="t")


@situation("settings that are refused")
async def _(s: Situation) -> None:
    refused = {"refused": True}
    folder = s.world.folder
    garbage = folder / "garbage.pem"
    garbage.write_text("this is no PEM", encoding="utf-8")
    certificate, key = (str(it) for it in s.world.identity)
    tls = ["https://127.0.0.1:1"]
    for url in ("127.0.0.1:50051", "", "ftp://127.0.0.1:50051", "http://", "http://a b"):
        await s.expect(refused, "connect", endpoints=[url])
    await s.expect({}, "connect", endpoints=["http://[::1]:1", "http://localhost"])
    await s.expect(refused, "connect", endpoints=[])
    await s.expect(refused, "connect", endpoints=["http://127.0.0.1:1", "127.0.0.1:1"])
    await s.expect(refused, "connect", endpoints=["http://127.0.0.1:1"], api_key="a\nb")
    await s.expect(refused, "connect", endpoints=["http://127.0.0.1:1"], ca=str(s.world.ca))
    await s.expect(refused, "connect", endpoints=tls, ca=str(garbage))
    await s.expect(refused, "connect", endpoints=tls, certificate=certificate, key=str(garbage))
    await s.expect(refused, "connect", endpoints=tls, certificate=str(garbage), key=key)
    await s.expect({}, "connect", endpoints=tls, certificate=certificate, key=key)
