"""The real service, as a process."""

import asyncio
import itertools
import json
import os
import re
import signal
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import Final

import grpc
from google.protobuf.message import Message

from countersign.proto import (
    CreateSessionRequest,
    CreateSessionResponse,
    RevokeRequest,
    RevokeResponse,
    Tokens,
)

ISSUER: Final = "https://auth.test"
AUDIENCE: Final = "https://orders.test"
_HANGS: Final = 60.0
_SESSIONS: Final = "/countersign.v1.SessionService/"


_PORTS: Final = range(10_000, 20_000)
_next_port = itertools.count(os.getpid() * 1009)


def free_port() -> int:
    """Returns a port on which nothing listens, and which no other caller gets.

    A port that the kernel chooses would not do: while no program listens on it, the kernel may give
    it to any outgoing connection.
    """
    while True:
        port = _PORTS[next(_next_port) % len(_PORTS)]
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


def variables() -> dict[str, str]:
    """Returns the environment for the service, without settings of this one."""
    kept = {it: value for it, value in os.environ.items() if not it.startswith("COUNTERSIGN")}
    return kept | {"COUNTERSIGN_HTTP_LISTEN": "127.0.0.1:0", "COUNTERSIGN_SHUTDOWN__GRACE": "0s"}


class Service:
    """A service, which has the same address each time that it is started."""

    def __init__(self, program: Path, folder: Path, settings: str = "") -> None:
        self._program = program
        self._process: Process | None = None
        self._log: asyncio.Task[None] | None = None
        folder.mkdir()
        self._file = folder / "countersign.toml"
        self._file.write_text(
            f"issuer = '{ISSUER}'\ndata_dir = '{folder / 'data'}'\n"
            f"[tokens]\ndefault_audience = '{AUDIENCE}'\n{settings}",
            encoding="utf-8",
        )
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"

    async def start(self) -> None:
        """Starts the service, and waits until it serves."""
        arguments = ["serve", "--listen", self.address, "--config", str(self._file)]
        self._process = await asyncio.create_subprocess_exec(
            str(self._program),
            *arguments,
            env=variables(),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
        )
        lines = self._process.stderr
        assert lines is not None
        seen = []
        async with asyncio.timeout(_HANGS):
            while line := await lines.readline():
                seen.append(line.decode())
                if line.startswith(b"{") and json.loads(line).get("message") == "serving":
                    break
            else:
                raise RuntimeError("the service has ended: " + "".join(seen))
        self._log = asyncio.create_task(_discard(lines))

    async def kill(self) -> None:
        """Ends the process at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._log is not None:
            await self._log
        self._process = self._log = None

    async def stop(self) -> None:
        """Ends the process in good order."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        await self._process.wait()


async def _discard(lines: asyncio.StreamReader) -> None:
    while await lines.read(1 << 16):
        pass


class Issuer:
    """Creates and revokes sessions for the runner itself."""

    def __init__(self, channel: grpc.aio.Channel, api_key: str | None = None) -> None:
        self._channel = channel
        self._metadata = () if api_key is None else (("authorization", f"Bearer {api_key}"),)

    async def _call(self, method: str, request: Message, response: type[Message]) -> Message:
        call = self._channel.unary_unary(
            _SESSIONS + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        answer: Message = await call(request, timeout=_HANGS, metadata=self._metadata)
        return answer

    async def create(self, request: CreateSessionRequest) -> Tokens:
        """Creates a session, and returns its tokens."""
        created = await self._call("CreateSession", request, CreateSessionResponse)
        assert isinstance(created, CreateSessionResponse)
        return created.tokens

    async def revoke(self, token: str) -> None:
        """Revokes the session of a token."""
        await self._call("Revoke", RevokeRequest(token=token), RevokeResponse)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()


async def new_api_key(program: Path) -> tuple[str, str]:
    """Returns an API key and its hash."""
    arguments = ["caller", "new", "--role", "issuer", "somebody"]
    process = await asyncio.create_subprocess_exec(
        str(program), *arguments, env=variables(), stdin=DEVNULL, stdout=PIPE
    )
    output = (await process.communicate())[0].decode()
    key, hashed = re.search(r"cs_ck_\S+", output), re.search(r"sha256:[\w-]+", output)
    assert key is not None
    assert hashed is not None
    return key.group(), hashed.group()
