"""A service as a process, with a folder of its own; fakes of replicas; and waiting."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, Queue
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.any_pb2 import Any as Detail
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from countersign import Client
from countersign.proto import CreateSessionRequest, RevokeRequest
from countersign.structs import to_struct

ISSUER = "https://auth.test"
AUDIENCE = "https://orders.test"
# A test that would otherwise hang fails after this time.
HANGS = 60.0


def eventually(what: str, holds: Callable[[], bool]) -> None:
    """Waits until a condition holds."""
    ends = time.monotonic() + HANGS
    while not holds():
        assert time.monotonic() < ends, f"not within a minute: {what}"
        time.sleep(0.002)


class Server:
    """A running service. It is killed when the test ends."""

    def __init__(self, command: list[str], variables: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: Queue[str] = Queue()
        self.log: list[str] = []
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = self._await("starting")["listen"]
        self._await("serving")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)

    def _await(self, message: str) -> dict[str, str]:
        """Waits for the log line with a message."""
        ends = time.monotonic() + HANGS
        while time.monotonic() < ends:
            try:
                line = self._lines.get(timeout=0.05)
            except Empty:
                assert self.process.poll() is None, "the service has ended: " + "".join(self.log)
                continue
            self.log.append(line)
            try:
                entry: dict[str, str] = json.loads(line)
            except ValueError:
                continue
            if entry.get("message") == message:
                return entry
        raise AssertionError(f"no line says {message!r}: " + "".join(self.log))

    def suspend(self) -> None:
        """Stops the process, and waits until none of its threads runs."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")

        def is_stopped() -> bool:
            states = [it.joinpath("stat").read_text() for it in tasks.iterdir()]
            return all(it.rsplit(") ", 1)[1].startswith("T") for it in states)

        eventually("the service is suspended", is_stopped)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()


def executable() -> str:
    """Returns the path of the service."""
    path = os.environ.get("COUNTERSIGN")
    assert path, "COUNTERSIGN must have the path of the service: cargo build makes it"
    return path


def variables() -> dict[str, str]:
    """Returns the environment for the service, without settings of this one."""
    kept = {it: value for it, value in os.environ.items() if not it.startswith("COUNTERSIGN")}
    return kept | {"COUNTERSIGN_HTTP_LISTEN": "127.0.0.1:0", "COUNTERSIGN_SHUTDOWN__GRACE": "0s"}


class Site:
    """The folder of a service, which has the same address each time that it is started."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.file = folder / "countersign.toml"
        self.file.write_text(
            f"issuer = '{ISSUER}'\ndata_dir = '{folder / 'data'}'\n"
            f"[tokens]\ndefault_audience = '{AUDIENCE}'\n{settings}",
            encoding="utf-8",
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"

    def start(self) -> Server:
        command = [executable(), "serve", "--listen", self.address, "--config", str(self.file)]
        return Server(command, variables())

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def client(self, **settings: Any) -> Client:
        return Client(self.url, **settings)


def request(subject: str) -> CreateSessionRequest:
    """Returns a request for a session with a scope and claims."""
    claims = to_struct({"plan": "gold", "seats": 3})
    return CreateSessionRequest(subject=subject, scopes=["orders:read"], claims=claims)


def sign_in(client: Client, subject: str) -> str:
    """Creates a session, and returns its access token."""
    return client.create_session(request(subject), deadline=10).tokens.access_token


def of_token(token: str) -> RevokeRequest:
    """Returns a request to revoke the session of a token."""
    return RevokeRequest(token=token)


def refusal(
    code: grpc.StatusCode, reason: str, retry: float | None = None
) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Returns an error as the service makes it."""
    status = Status(code=code.value[0], message="refused by a test")
    details: list[Any] = [ErrorInfo(reason=reason, domain="countersign")]
    if retry is not None:
        info = RetryInfo()
        info.retry_delay.FromMicroseconds(round(retry * 1e6))
        details.append(info)
    for detail in details:
        packed = Detail()
        packed.Pack(detail)
        status.details.append(packed)
    message = "refused by a test"
    return code, message, (("grpc-status-details-bin", status.SerializeToString()),)


Answering = Callable[[int, bytes, Callable[[], bytes], grpc.ServicerContext], bytes]


class Front(grpc.GenericRpcHandler):
    """A server in front of a service, which may answer otherwise.

    `answer` gets the number of each call, the request, a function that asks the service, and the
    context.
    """

    def __init__(self, behind: str | None, answer: Answering) -> None:
        self._channel = None if behind is None else grpc.insecure_channel(behind)
        self._answer = answer
        self._lock = Lock()
        self.calls: list[tuple[str, bytes]] = []
        self.metadata: list[dict[str, Any]] = []
        self.server = grpc.server(ThreadPoolExecutor(8), handlers=[self])
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self.server.start()

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method

        def handle(message: bytes, context: grpc.ServicerContext) -> bytes:
            with self._lock:
                number = len(self.calls)
                self.calls.append((path, message))
                self.metadata.append(dict(context.invocation_metadata()))

            def forward() -> bytes:
                assert self._channel is not None
                call: Any = self._channel.unary_unary(path)
                try:
                    return bytes(call(message, timeout=20))
                except grpc.RpcError as error:
                    failed: Any = error
                    context.set_trailing_metadata(failed.trailing_metadata())
                    context.abort(failed.code(), failed.details())
                    raise

            return self._answer(number, message, forward, context)

        return grpc.unary_unary_rpc_method_handler(handle)

    def stop(self) -> None:
        self.server.stop(None).wait()
        if self._channel is not None:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def refuse(context: grpc.ServicerContext, *arguments: Any) -> bytes:
    """Answers a call with an error."""
    code, message, metadata = refusal(*arguments)
    context.set_trailing_metadata(metadata)
    context.abort(code, message)
    raise AssertionError


def lines(path: Path) -> Iterator[str]:
    """Yields the lines of a file."""
    yield from path.read_text(encoding="utf-8").splitlines()
