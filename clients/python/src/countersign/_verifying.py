"""What the verifiers with and without asyncio have in common."""

import logging
import weakref
from dataclasses import dataclass
from enum import Enum
from threading import Lock
from typing import Final

from countersign import _fork
from countersign._clock import SECOND, Clock, SystemClock
from countersign._local import INACTIVE, Local, Rules
from countersign._token import MAX_BYTES
from countersign._watcher import Background, Fetcher, Watcher
from countersign.answer import Active, Answer, Inactive, Unknown
from countersign.client import Client
from countersign.demands import Demands
from countersign.errors import CountersignError, Reason
from countersign.proto import InactiveReason as ProtoReason
from countersign.proto import ValidateResponse
from countersign.reasons import InactiveReason, UnknownReason
from countersign.session import Session
from countersign.telemetry import seconds

_log = logging.getLogger("countersign")

CACHE_BYTES: Final = 32 << 20
"""The memory for tokens whose signature was verified."""
NO_LEASE: Final = Unknown(UnknownReason.NO_LEASE)
_NOT_UNDERSTOOD: Final = Unknown(UnknownReason.NOT_UNDERSTOOD)
# The margin of a lease that no clock can break.
ANY_MARGIN: Final = 2**70
_SETTINGS_PROBLEMS: Final = (
    Reason.INVALID_FIELD,
    Reason.CALLER_UNKNOWN,
    Reason.CALLER_NOT_ALLOWED,
)
_PREFIX: Final = "INACTIVE_REASON_"


class Mode(Enum):
    """The way in which a verifier gets its answers. The values are the names in metrics."""

    REMOTE = "remote"
    """It calls Validate for each token."""
    LOCAL = "local"
    """It verifies tokens by its own copy of the keys and the revocations."""
    LOCAL_UNWATCHED = "local_unwatched"
    """It verifies tokens by the public keys, so it accepts revoked tokens until they expire."""
    TESTING = "testing"
    """It verifies the tokens of a `countersign.testing.Authority`."""


class OnLapse(Enum):
    """The behaviour of a local verifier that has no lease.

    It is starting, or is cut off from the service, or was suspended.
    """

    VALIDATE = "validate"
    """It calls Validate for each token, until it has a lease again."""
    REFUSE = "refuse"
    """It answers `Unknown`, without a call."""


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a verifier, for health checks and metrics."""

    lease: float | None
    """The seconds for which the verifier can answer by its own copy.

    `None` if it cannot, or if it has none."""
    revocations: int
    """The number of revocations in the copy."""
    connections: int
    """The number of streams or fetches of keys that were begun."""
    resets: int
    """The number of times that everything was received anew."""
    lag: float
    """The seconds that the last renewal of the lease took; zero before the first one."""


@dataclass(frozen=True, slots=True)
class Source:
    """The copy of a verifier, and the thread that keeps it up to date."""

    mode: Mode
    local: Local | None = None
    background: Background | None = None
    client: Client | None = None
    """The client of the thread, if it belongs to the verifier."""

    def close(self) -> None:
        """Ends the thread, and with it the lease."""
        if self.background is not None:
            if self.background.is_of_parent:
                return
            self.background.close()
            if self.local is not None:
                self.local.copy.lease.end()
        if self.client is not None:
            self.client.close()


def watching(client: Client, cache_bytes: int, clock: Clock | None, *, owns: bool) -> Source:
    """Starts to watch the service."""
    local = Local(clock or SystemClock(), cache_bytes)
    _fork.register(local)
    watcher = Watcher(client, local)
    _fork.register(watcher)
    watcher.start()
    return Source(Mode.LOCAL, local, watcher, client if owns else None)


def fetching(  # noqa: PLR0913
    client: Client,
    issuer: str,
    *,
    max_lifetime: float,
    leeway: float,
    keys_valid_for: float,
    cache_bytes: int,
    clock: Clock | None,
    owns: bool,
) -> Source:
    """Starts to fetch the public keys."""
    local = Local(clock or SystemClock(), cache_bytes)
    _fork.register(local)
    rules = Rules(
        issuer=issuer,
        max_lifetime=round(max_lifetime * SECOND),
        leeway=round(leeway * SECOND),
        lease_margin=ANY_MARGIN,
    )
    fetcher = Fetcher(client, local, rules, round(keys_valid_for * SECOND))
    _fork.register(fetcher)
    fetcher.start()
    return Source(Mode.LOCAL_UNWATCHED, local, fetcher, client if owns else None)


class BaseVerifier:
    """What both verifiers have in common. Threads may share a verifier.

    Its background threads end when it is closed, or is no longer used.
    """

    def __init__(self, source: Source) -> None:
        """Is called by the verifiers."""
        self._source = source
        self._local = source.local
        self._counts = dict.fromkeys(["active", *InactiveReason, "unknown"], 0)
        self._lock = Lock()
        _fork.register(self)
        # This must not refer to the verifier itself.
        self._finalizer = weakref.finalize(self, source.close)

    def verify_locally(self, token: str, demands: Demands | None = None) -> Answer:
        """Checks a token without ever calling the service.

        Without a lease the answer is `Unknown`, and so it always is in the mode `Mode.REMOTE`.
        """
        asked = demands if demands is not None else _NO_DEMANDS
        # Answers that are not active are false.
        known = self._answer_locally(token, asked)
        answer: Answer = NO_LEASE if known is None else known
        self._count(answer)
        return answer

    def try_locally(self, token: str, demands: Demands) -> Answer | None:
        """Checks a token without ever calling the service; `None` without a lease.

        Middleware uses this. An answer of `None` is not counted.
        """
        answer = self._answer_locally(token, demands)
        if answer is not None:
            self._count(answer)
        return answer

    def _answer_locally(self, token: str, demands: Demands) -> Active | Inactive | None:
        return None if self._local is None else self._local.answer(token, demands)

    def _count(self, answer: Answer) -> None:
        if isinstance(answer, Active):
            name: str = "active"
        else:
            name = answer.reason if isinstance(answer, Inactive) else "unknown"
        with self._lock:
            self._counts[name] += 1

    @property
    def mode(self) -> Mode:
        """The mode."""
        return self._source.mode

    def status(self) -> Status:
        """Returns the state."""
        local = self._local
        if local is None:
            return Status(None, 0, 0, 0, 0.0)
        copy = local.copy
        remaining = copy.lease.remaining()
        return Status(
            lease=None if remaining is None else seconds(remaining),
            revocations=len(copy.index),
            connections=local.connections,
            resets=local.resets,
            lag=seconds(local.lag),
        )

    def counts(self) -> dict[str, int]:
        """Returns the number of checks so far with each result.

        The results are `active`, the value of an `InactiveReason`, or `unknown`.
        """
        with self._lock:
            return {str(name): count for name, count in self._counts.items()}

    def after_fork(self) -> None:
        """Is called in a child process, in which no thread holds the lock."""
        self._lock = Lock()
        # The threads belong to the parent.
        self._finalizer.detach()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mode={self.mode.value!r}, status={self.status()!r})"


_NO_DEMANDS: Final = Demands()


def refuse_unasked(token: str) -> Inactive | None:
    """Returns the answer for a token about which the service need not be asked."""
    # The service would refuse such a request as malformed, which says nothing of the token.
    try:
        length = len(token.encode())
    except UnicodeEncodeError:
        length = 0
    return None if 0 < length <= MAX_BYTES else INACTIVE[InactiveReason.MALFORMED]


def not_answered(error: CountersignError) -> Unknown:
    """Makes the answer for a call that has failed."""
    if error.reason in _SETTINGS_PROBLEMS:
        _log.error("the service refuses to validate tokens: %s", error)
    else:
        _log.debug("a token could not be validated: %s", error)
    return Unknown(UnknownReason.NOT_ANSWERED, error)


def read_answer(answer: ValidateResponse) -> Answer:
    """Reads the answer of Validate."""
    if answer.active:
        try:
            return Active(Session(answer))
        except ValueError:
            return _NOT_UNDERSTOOD
    # A later version of the service may have further reasons.
    names = {number: name for name, number in ProtoReason.items()}
    name = names.get(answer.inactive_reason, "").removeprefix(_PREFIX)
    return INACTIVE[InactiveReason[name]] if name in InactiveReason.__members__ else _NOT_UNDERSTOOD
