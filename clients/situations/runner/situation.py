"""A situation of one driver, and the list of all of them."""

import asyncio
import itertools
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Final

import grpc

from countersign.proto import CreateSessionRequest, Tokens
from runner.drivers import Answer, Driver
from runner.fakes import Answering, Fake
from runner.http2 import RawServer
from runner.proxy import Proxy
from runner.services import Issuer, Service, free_port
from runner.world import World

# The longest time until something that must happen.
HANGS: Final = 30.0
# A deadline for situations that are not about deadlines.
LATE_MS: Final = 20_000

ACTIVE: Final[Answer] = {"answer": "ACTIVE", "subject": "alice"}
UNKNOWN: Final[Answer] = {"answer": "UNKNOWN"}
ANY: Final[EllipsisType] = ...

_TOKEN: Final = re.compile(r"(eyJ[\w-]{5})[\w.=-]{20,}")
_numbers = itertools.count()


def inactive(reason: str) -> Answer:
    """Returns the answer for an inactive token."""
    return {"answer": "INACTIVE", "reason": reason}


def failed(reason: str, retry_after_ms: int | None = None) -> Answer:
    """Returns the answer for a call that has failed."""
    wait = {} if retry_after_ms is None else {"retry_after_ms": retry_after_ms}
    return {"error": reason, **wait}


class DifferentError(Exception):
    """A library does not do what is expected."""


def check(holds: bool, text: str) -> None:  # noqa: FBT001 (It reads like an assertion.)
    """Fails with a description of what was seen, unless it is as expected."""
    if not holds:
        raise DifferentError(text)


def is_as_expected(answer: Answer, expected: Answer) -> bool:
    """Returns whether an answer is the expected one. `ANY` stands for any value."""
    return answer.keys() == expected.keys() and all(
        value is ANY or value == answer[name] for name, value in expected.items()
    )


class Situation:
    """What a situation needs: a driver, and servers."""

    def __init__(self, world: World, driver: Driver, resources: AsyncExitStack) -> None:
        self.world = world
        self._driver = driver
        self._resources = resources

    async def do(self, command: str, **members: Any) -> Answer:
        """Makes the driver do something."""
        return await self._driver.do(command, members)

    async def expect(self, expected: Answer, command: str, **members: Any) -> Answer:
        """Makes the driver do something, and checks its answer."""
        answer = await self.do(command, **members)
        if not is_as_expected(answer, expected):
            raise DifferentError(
                f"{command} {_text(members)}: {_text(answer)} instead of {_text(expected)}"
            )
        return answer

    async def expect_at_deadline(self, expected: Answer, command: str, **members: Any) -> None:
        """Checks the answer to a call that is repeated until its deadline.

        If an attempt is under way at this instant, the answer says so instead.
        """
        late = failed("DEADLINE_EXCEEDED")
        for _ in range(10):
            answer = await self.do(command, **members)
            if answer != late:
                break
        else:
            raise DifferentError(f"{command} {_text(members)}: always {_text(late)}")
        if not is_as_expected(answer, expected):
            raise DifferentError(
                f"{command} {_text(members)}: {_text(answer)} instead of {_text(expected)}"
            )

    async def connect(self, *urls: str, **settings: Any) -> None:
        """Creates a client of these replicas."""
        settings = {"deadline_ms": LATE_MS, "revocation_deadline_ms": LATE_MS} | settings
        await self.expect({}, "connect", endpoints=urls, **settings)

    async def verifier(self, mode: str, **settings: Any) -> None:
        """Creates a verifier, and waits until it can answer."""
        await self.expect({}, "verifier", mode=mode, **settings)
        await self.ready()

    async def ready(self) -> None:
        """Waits until the verifier can answer by its own copy."""
        await self.expect({"ready": True}, "ready", within_ms=round(HANGS * 1000))

    async def settled(self, expected: Answer, token: str, **members: Any) -> None:
        """Checks the answer for a token under a lease, which may end on a busy machine."""
        answer = await self.do("verify", token=token, **members)
        while answer == UNKNOWN:
            await self.ready()
            answer = await self.do("verify", token=token, **members)
        if not is_as_expected(answer, expected):
            raise DifferentError(f"verify {token}: {_text(answer)} instead of {_text(expected)}")

    async def until(self, expected: Answer, command: str, **members: Any) -> None:
        """Repeats a command until it has this answer."""
        answer: Answer = {}
        try:
            async with asyncio.timeout(HANGS):
                while not is_as_expected(answer, expected):
                    if answer:
                        await asyncio.sleep(0.05)
                    answer = await self.do(command, **members)
        except TimeoutError:
            raise DifferentError(f"{command}: {_text(answer)} for ever") from None

    async def fake(
        self, answer: Answering, credentials: grpc.ServerCredentials | None = None
    ) -> Fake:
        """Starts a server that answers as a function says."""
        fake = Fake(answer)
        await fake.start(credentials)
        self._resources.push_async_callback(fake.close)
        return fake

    async def raw_server(self, kind: str, code: int, answers: int = 1000) -> RawServer:
        """Starts a server that answers with a status of HTTP, or resets streams."""
        server = RawServer(answers, kind, code)
        await server.start()
        self._resources.push_async_callback(server.close)
        return server

    async def proxy(self, address: str) -> Proxy:
        """Starts a proxy in front of a server."""
        proxy = Proxy(address)
        await proxy.start()
        self._resources.push_async_callback(proxy.close)
        return proxy

    async def service(self, settings: str = "") -> Service:
        """Starts a service that this situation alone uses."""
        service = Service(self.world.program, self.world.new_folder(), settings)
        self._resources.push_async_callback(service.kill)
        await service.start()
        return service

    def issuer(self, service: Service) -> Issuer:
        """Returns the runner's own client of a service."""
        issuer = Issuer(grpc.aio.insecure_channel(service.address))
        self._resources.push_async_callback(issuer.close)
        return issuer

    @staticmethod
    def closed_url() -> str:
        """Returns a URL at which nothing listens."""
        return f"http://127.0.0.1:{free_port()}"


async def sign_in(issuer: Issuer, **fields: Any) -> Tokens:
    """Creates a session of a new user."""
    # Each subject may have a limited number of sessions.
    fields = {"subject": f"user-{next(_numbers)}", "scopes": ["orders:read"]} | fields
    return await issuer.create(CreateSessionRequest(**fields))


def anybody() -> Answer:
    """Returns the answer for an active token of any user."""
    return {"answer": "ACTIVE", "subject": ANY}


def _text(answer: Answer) -> str:
    text = json.dumps(answer, default=lambda _: "...", ensure_ascii=False)
    return _without_tokens(text)


def _without_tokens(text: str) -> str:
    return _TOKEN.sub(r"\1…", text)


Run = Callable[[Situation], Awaitable[None]]


@dataclass(frozen=True)
class Named:
    """A situation, and its name."""

    name: str
    run: Run


ALL: Final[list[Named]] = []


def situation(name: str) -> Callable[[Run], Run]:
    """Adds a situation to the list."""

    def add(run: Run) -> Run:
        ALL.append(Named(name, run))
        return run

    return add
