"""The background threads of local verifiers."""

import logging
import random
import time
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Condition, Event, Thread, current_thread
from typing import Final

from countersign._clock import SECOND
from countersign._index import NotUnderstoodError, duration
from countersign._keys import KeySet
from countersign._local import Local, Rules
from countersign._watching import MAX_ASKED, OtherTenantsError, UnexpectedLeaseError, Watching
from countersign.client import Client, WatchStream
from countersign.errors import CountersignError, Reason
from countersign.proto import GetJwksRequest, WatchRequest, WatchResponse

_log = logging.getLogger("countersign")

# The names of threads begin with this.
_PREFIX: Final = "countersign-"
_LEAST_DELAY: Final = 0.025
_LONGEST_DELAY: Final = 1.0
# The time that threads get to end.
_JOIN: Final = 5.0
# The least time between two fetches of keys.
_LEAST_FETCH_DELAY: Final = 1.0
# The longest pause between two streams that the service can ask for.
_LONGEST_PAUSE: Final = 30.0
# The time after which keys are fetched again that the service would allow to cache for longer.
_LONGEST_FETCH_DELAY: Final = 600.0
_CURSOR_PROBLEMS: Final = (Reason.INVALID_FIELD, Reason.NOT_SENT)


class _NoLeaseError(Exception):
    """The stream has brought no lease for too long."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class _FinishedError(Exception):
    """The service has ended the stream."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


_Ended = (
    CountersignError,
    NotUnderstoodError,
    OtherTenantsError,
    UnexpectedLeaseError,
    _NoLeaseError,
    _FinishedError,
)


class Background:
    """A task in a thread of its own, which ends with the process."""

    def __init__(self, name: str) -> None:
        self.is_of_parent = False
        self._closed = Event()
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread. It may be called again."""
        if self.is_of_parent:
            return
        self._closed.set()
        self._interrupt()
        # The garbage collector may call this in one of the threads that are to end.
        if not current_thread().name.startswith(_PREFIX):
            self._thread.join(_JOIN)

    def after_fork(self) -> None:
        """Leaves the thread, and its locks, to the parent process."""
        self.is_of_parent = True

    def _interrupt(self) -> None:
        """Wakes the thread."""

    def _run(self) -> None:
        raise NotImplementedError


class Watcher(Background):
    """Watches for ever. After the end of a stream another one is opened, if possible at another
    replica. Until then the lease goes on.
    """

    def __init__(self, client: Client, local: Local) -> None:
        super().__init__(f"{_PREFIX}watch")
        self._client = client
        self._local = local
        self._watching = Watching(local)
        # Protects everything that follows, and `_watching`.
        self._changed = Condition()
        self._stream: WatchStream | None = None
        self._requests: SimpleQueue[WatchRequest | None] = SimpleQueue()
        self._renew_at = 0.0
        self._give_up_at = 0.0
        self._has_given_up = False

    def _interrupt(self) -> None:
        with self._changed:
            if self._stream is not None:
                self._stream.cancel()
            self._changed.notify_all()

    def _run(self) -> None:
        failures = refusals = 0
        while not self._closed.is_set():
            self._local.connections += 1
            ended = self._watch()
            failures = 0 if self._watching.had_lease else failures + 1
            refusals = 1 if self._watching.had_lease else refusals + 1
            # Many watchers lose their streams at the same time. The numbers need not be secret.
            delay = min(_LONGEST_DELAY, _LEAST_DELAY * 2 ** min(failures, 10))
            delay += random.uniform(0, delay)  # noqa: S311
            if isinstance(ended, CountersignError):
                if ended.reason in _CURSOR_PROBLEMS:
                    # The service does not understand the cursor.
                    self._watching.cursor = b""
                # The wait that a replica asks for is for itself, and others may have room.
                if refusals >= self._client.replicas:
                    delay = max(delay, min(ended.retry_after or 0.0, _LONGEST_PAUSE))
            if not self._closed.is_set():
                _log.warning(
                    "the watch stream has ended: will call again in %.3f s: %s", delay, ended
                )
            self._closed.wait(delay)

    def _watch(self) -> Exception:
        """Watches until the stream ends. Returns the reason."""
        with self._changed:
            # An earlier stream may still wait for a message of its queue.
            requests: SimpleQueue[WatchRequest | None] = SimpleQueue()
            self._requests = requests
            requests.put(self._watching.open())
            now = time.monotonic()
            self._renew_at = now + self._watching.interval
            self._give_up_at = now + self._watching.patience
            self._has_given_up = False
            stream = self._stream = self._client.open_watch(_messages(requests))
            if self._closed.is_set():
                stream.cancel()
        # Renewals do not wait for responses, so they have a thread of their own.
        renewer = Thread(
            target=self._renew_in_time, args=(stream,), name=f"{_PREFIX}renew", daemon=True
        )
        renewer.start()
        try:
            for response in stream:
                self._receive(response.WhichOneof("event") == "lease", response)
        except _Ended as error:
            return _NoLeaseError() if self._has_given_up else error
        except Exception as error:  # noqa: BLE001 (This thread must not end.)
            _log.exception("a mistake of this library: the watch begins anew")
            self._watching.cursor = b""
            return error
        else:
            return _FinishedError()
        finally:
            with self._changed:
                self._stream = None
                self._changed.notify_all()
            requests.put(None)
            renewer.join(_JOIN)
            stream.close()

    def _receive(self, is_lease: bool, response: WatchResponse) -> None:  # noqa: FBT001
        with self._changed:
            is_news = self._watching.apply(response)
            # A large snapshot takes a while.
            if is_lease or not self._watching.cursor:
                self._give_up_at = time.monotonic() + self._watching.patience
            if is_news:
                self._renew()
            self._changed.notify_all()

    def _renew(self) -> None:
        """Asks for a lease, and confirms the cursor."""
        self._renew_at = time.monotonic() + self._watching.interval
        # If the connection takes no more, the next renewal will confirm the same.
        if self._requests.qsize() < MAX_ASKED:
            self._requests.put(self._watching.renew())

    def _renew_in_time(self, stream: WatchStream) -> None:
        with self._changed:
            while self._stream is stream:
                now = time.monotonic()
                if now >= self._give_up_at:
                    self._has_given_up = True
                    stream.cancel()
                    return
                if now >= self._renew_at:
                    self._renew()
                self._changed.wait(min(self._renew_at, self._give_up_at) - now)


def _messages(requests: "SimpleQueue[WatchRequest | None]") -> Iterator[WatchRequest]:
    """Yields what is sent, until `None` comes."""
    while (request := requests.get()) is not None:
        yield request


class Fetcher(Background):
    """Fetches the public keys again and again, for a verifier that knows nothing else."""

    def __init__(self, client: Client, local: Local, rules: Rules, keys_valid_for: int) -> None:
        super().__init__(f"{_PREFIX}keys")
        self._client = client
        self._local = local
        self._rules = rules
        self._keys_valid_for = keys_valid_for

    def _interrupt(self) -> None:
        self._local.unknown_key.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._local.connections += 1
            delay = self._fetch()
            self._closed.wait(_LEAST_FETCH_DELAY)
            # A token with a new key may have arrived.
            # Keys are fetched again well before they may no longer be used.
            longest = min(_LONGEST_FETCH_DELAY, self._keys_valid_for / SECOND / 2)
            self._local.unknown_key.wait(min(delay, longest))
            self._local.unknown_key.clear()

    def _fetch(self) -> float:
        """Fetches the keys. Returns the seconds for which they may be cached."""
        start = self._local.copy.lease.start()
        try:
            answer = self._client.get_jwks(GetJwksRequest())
        except CountersignError as error:
            if not self._closed.is_set():
                _log.warning("the public keys could not be fetched: %s", error)
            return 0.0
        keys = KeySet.read(answer.jwks, ())
        if keys is None:
            _log.error("the public keys that the service has sent cannot be read")
        else:
            copy = self._local.replace(keys, self._rules)
            self._local.take(copy, start, self._keys_valid_for)
        try:
            return duration(answer, "max_age", answer.max_age) / 1e6
        except NotUnderstoodError:
            return 0.0
