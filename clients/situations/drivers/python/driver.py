"""Does with the Python client library what it is told.

All libraries are put into the same situations in this way: ../../README.md describes the commands.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

from countersign import (
    Active,
    Answer,
    Client,
    CountersignError,
    Demands,
    Inactive,
    OnLapse,
    Verifier,
    wsgi,
)
from countersign.demands import Factor
from countersign.errors import BuildError
from countersign.proto import (
    CreateSessionRequest,
    InactiveReason,
    RefreshRequest,
    RevokeRequest,
    ValidateRequest,
)
from countersign.testing import SystemClock

# The number of errors that are described.
MAX_ERRORS = 10
PREFIX = "INACTIVE_REASON_"

Command = dict[str, Any]


class MovedClock(SystemClock):
    """The clocks of this machine, moved by commands, in microseconds."""

    ahead = 0
    passed = 0

    def wall(self) -> int:
        """Returns the time of the wall clock."""
        return super().wall() + self.ahead

    def uptime(self) -> int:
        """Returns the time since the machine was started."""
        return super().uptime() + self.passed


def read_demands(demands: Command) -> Demands:
    """Reads demands as the vectors have them."""

    def age(seconds: int | None) -> timedelta | None:
        return None if seconds is None else timedelta(seconds=seconds)

    return Demands(
        audience=demands.get("audience", ""),
        scopes=demands.get("scopes", ()),
        acr_values=demands.get("acr_values", ()),
        max_authentication_age=age(demands.get("max_authentication_age")),
        factors=[Factor(it["method"], age(it.get("max_age"))) for it in demands.get("factors", ())],
    )


def word(answer: Answer) -> Command:
    """Returns an answer of a verifier as the protocol has it."""
    if isinstance(answer, Active):
        return {"answer": "ACTIVE", "subject": answer.session.subject}
    if isinstance(answer, Inactive):
        return {"answer": "INACTIVE", "reason": answer.reason.name}
    return {"answer": "UNKNOWN"}


def failure(error: CountersignError) -> Command:
    """Returns the error of a call as the protocol has it."""
    answer: Command = {"error": error.name or error.code.name}
    if error.retry_after is not None:
        answer["retry_after_ms"] = round(error.retry_after * 1000)
    return answer


@dataclass
class Load:
    """An application that works in the background."""

    client: Client
    verifier: Verifier
    subject: str
    rounds: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Starts."""
        self._stop = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> Command:
        """Waits for the round that is under way, and returns the result."""
        self._stop.set()
        self._thread.join()
        return {"rounds": self.rounds, "failed": self.failed, "errors": self.errors}

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._round()
            except CountersignError as error:
                # What cannot be done after a call that has failed is left out.
                self._fail(f"a call: {error}")
            self.rounds += 1

    def _round(self) -> None:
        created = self.client.create_session(CreateSessionRequest(subject=self.subject))
        self._expect(created.tokens.access_token, "ACTIVE")
        request = RefreshRequest(refresh_token=created.tokens.refresh_token)
        token = self.client.refresh(request).tokens.access_token
        self._expect(token, "ACTIVE")
        self.client.revoke(RevokeRequest(token=token))
        self._expect(token, "REVOKED")

    def _expect(self, token: str, expected: str) -> None:
        answer = word(self.verifier.verify(token))
        if expected not in answer.values():
            self._fail(f"a token is {answer} instead of {expected}")

    def _fail(self, error: str) -> None:
        self.failed += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(error)


class Driver:
    """The client and the verifier in force."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._verifier: Verifier | None = None
        self._load: Load | None = None
        self._clock = MovedClock()

    @property
    def client(self) -> Client:
        """The client."""
        assert self._client is not None
        return self._client

    @property
    def verifier(self) -> Verifier:
        """The verifier."""
        assert self._verifier is not None
        return self._verifier

    def close(self) -> None:
        """Closes the client together with its verifier."""
        if self._verifier is not None:
            self._verifier.close()
        if self._client is not None:
            self._client.close()
        self._client = self._verifier = None

    def connect(self, command: Command) -> Command:
        """Replaces the client."""
        self.close()
        settings: Command = {}
        for name in ("api_key", "server_name"):
            if name in command:
                settings[name] = command[name]
        for name in ("deadline", "revocation_deadline", "connect_timeout"):
            if f"{name}_ms" in command:
                settings[name] = command[f"{name}_ms"] / 1000
        if "ca" in command:
            settings["ca_certificate"] = Path(command["ca"]).read_bytes()
        if "certificate" in command:
            certificate, key = (Path(command[name]) for name in ("certificate", "key"))
            settings["client_certificate"] = (certificate.read_bytes(), key.read_bytes())
        try:
            self._client = Client(command["endpoints"], **settings)
        except BuildError:
            return {"refused": True}
        return {}

    def replace_verifier(self, command: Command) -> Command:
        """Replaces the verifier."""
        if self._verifier is not None:
            self._verifier.close()
        client, clock = self.client, self._clock
        match command["mode"]:
            case "remote":
                self._verifier = Verifier.remote(client)
            case "local":
                on_lapse = OnLapse.REFUSE if command.get("refuse") else OnLapse.VALIDATE
                self._verifier = Verifier.local(client, on_lapse=on_lapse, clock=clock)
            case "local_unwatched":
                self._verifier = Verifier.local_unwatched(client, command["issuer"], clock=clock)
            case mode:
                raise ValueError(mode)
        return {}

    def ready(self, command: Command) -> Command:
        """Waits for the verifier."""
        return {"ready": self.verifier.ready(command["within_ms"] / 1000)}

    def verify(self, command: Command) -> Command:
        """Checks a token."""
        demands = read_demands(command.get("demands", {}))
        return word(self.verifier.verify(command["token"], demands))

    def guard(self, command: Command) -> Command:
        """Sends a request to an application that the middleware protects."""
        result: Command = {}

        def app(environ: Command, start_response: Callable[..., object]) -> Iterator[bytes]:
            session = wsgi.get_session(environ)
            assert session is not None
            result["subject"] = session.subject
            start_response("200 OK", [])
            yield b""

        def start_response(status: str, headers: list[tuple[str, str]]) -> None:
            result["status"] = int(status.split(" ", maxsplit=1)[0])
            for name, value in headers:
                if name == "www-authenticate":
                    result["challenge"] = value

        application: Any = app
        protected = wsgi.Protect(
            application,
            self.verifier,
            read_demands(command.get("demands", {})),
            cookie=command.get("cookie"),
            realm=command.get("realm"),
        )
        environ: Command = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
        for name, value in command["headers"]:
            # Servers join headers of the same name.
            key = "HTTP_" + name.upper().replace("-", "_")
            glue = "; " if key == "HTTP_COOKIE" else ","
            environ[key] = environ[key] + glue + value if key in environ else value
        started: Any = start_response
        for _ in protected(environ, started):
            pass
        return result

    def create(self, command: Command) -> Command:
        """Creates a session."""
        members = ("subject", "scopes", "tenant", "audience")
        given = {name: command[name] for name in members if name in command}
        created = self.client.create_session(CreateSessionRequest(**given))
        return {
            "session_id": created.session.session_id,
            "access_token": created.tokens.access_token,
            "refresh_token": created.tokens.refresh_token,
        }

    def refresh(self, command: Command) -> Command:
        """Exchanges a refresh token."""
        request = RefreshRequest(refresh_token=command["refresh_token"])
        tokens = self.client.refresh(request).tokens
        return {"access_token": tokens.access_token, "refresh_token": tokens.refresh_token}

    def revoke(self, command: Command) -> Command:
        """Revokes the session of a token."""
        self.client.revoke(RevokeRequest(token=command["token"]))
        return {}

    def validate(self, command: Command) -> Command:
        """Asks the service about a token."""
        answer = self.client.validate(ValidateRequest(access_token=command["token"]))
        if answer.active:
            return {"answer": "ACTIVE", "subject": answer.subject}
        reason = InactiveReason.Name(answer.inactive_reason)
        return {"answer": "INACTIVE", "reason": reason.removeprefix(PREFIX)}

    def move_clock(self, command: Command) -> Command:
        """Moves the clocks of the verifiers."""
        self._clock.ahead += command.get("wall_ms", 0) * 1000
        self._clock.passed += command.get("uptime_ms", 0) * 1000
        return {}

    def load(self, command: Command) -> Command:
        """Starts an application in the background."""
        self._load = Load(self.client, self.verifier, command["subject"])
        return {}

    def load_end(self, _: Command) -> Command:
        """Ends it."""
        assert self._load is not None
        return self._load.end()


def main() -> None:
    """Answers until the input ends."""
    driver = Driver()
    commands: dict[str, Callable[[Command], Command]] = {
        "connect": driver.connect,
        "verifier": driver.replace_verifier,
        "ready": driver.ready,
        "verify": driver.verify,
        "guard": driver.guard,
        "create": driver.create,
        "refresh": driver.refresh,
        "revoke": driver.revoke,
        "validate": driver.validate,
        "clock": driver.move_clock,
        "load": driver.load,
        "load_end": driver.load_end,
    }
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = commands[command["do"]](command)
        except CountersignError as error:
            answer = failure(error)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    driver.close()


if __name__ == "__main__":
    main()
