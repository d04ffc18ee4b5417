"""Verifies access tokens, in one of three modes. `countersign.aio` has the same for asyncio."""

from threading import Event
from time import monotonic
from types import TracebackType
from typing import Self

from countersign._clock import Clock
from countersign._verifying import (
    CACHE_BYTES,
    NO_LEASE,
    BaseVerifier,
    Mode,
    OnLapse,
    Source,
    Status,
    fetching,
    not_answered,
    read_answer,
    refuse_unasked,
    watching,
)
from countersign.answer import Answer
from countersign.client import Client
from countersign.demands import Demands
from countersign.errors import CountersignError

__all__ = ["Mode", "OnLapse", "Status", "Verifier"]


class Verifier(BaseVerifier):
    """Verifies access tokens. Create it by one of the three class methods.

    | mode | a check takes | it knows of revocations |
    |---|---|---|
    | `Verifier.remote` | a round trip | everything |
    | `Verifier.local` | some microseconds | everything |
    | `Verifier.local_unwatched` | some microseconds | nothing |

    Create it in the process that uses it: a child process that was forked afterwards has no lease.
    """

    def __init__(self, source: Source, fallback: Client | None = None) -> None:
        """Is called by the class methods."""
        super().__init__(source)
        # The client that answers where there is no lease.
        self._fallback = fallback

    @classmethod
    def remote(cls, client: Client) -> Self:
        """Creates a verifier that calls Validate for each token.

        The caller needs the role `validator`.
        """
        return cls(Source(Mode.REMOTE), client)

    @classmethod
    def local(
        cls,
        client: Client,
        *,
        on_lapse: OnLapse = OnLapse.VALIDATE,
        cache_bytes: int = CACHE_BYTES,
        clock: Clock | None = None,
    ) -> Self:
        """Starts a verifier that watches the service, and then checks tokens by itself.

        It never accepts a token that was revoked before it was asked. The caller needs the role
        `validator`. It connects in the background: wait for `ready` before the first request if
        that must not cost a call.

        Args:
            client: The client that watches, and calls Validate.
            on_lapse: The behaviour without a lease.
            cache_bytes: The memory for tokens whose signature was verified: 32 MiB by default,
                which is room for some 16,000 tokens.
            clock: The source of time, for tests.
        """
        source = watching(client, cache_bytes, clock, owns=False)
        return cls(source, client if on_lapse is OnLapse.VALIDATE else None)

    @classmethod
    def local_unwatched(  # noqa: PLR0913 (They are named.)
        cls,
        client: Client,
        issuer: str,
        *,
        max_lifetime: float = 3600.0,
        leeway: float = 5.0,
        keys_valid_for: float = 3600.0,
        cache_bytes: int = CACHE_BYTES,
        clock: Clock | None = None,
    ) -> Self:
        """Starts a verifier that knows only the public keys.

        **It accepts a revoked token, and a token of a session that has ended, until the token
        expires.** Use it only where that is acceptable, with access tokens that live for a short
        time.

        Args:
            client: The client that fetches the keys.
            issuer: The `iss` of all tokens (the setting `issuer` of the service).
            max_lifetime: The longest time between `iat` and `exp` of a token, in seconds. It should
                be the setting `tokens.max_access_token_ttl` of the service.
            leeway: The seconds by which `iat` and `nbf` may be later than the clock.
            keys_valid_for: The seconds for which keys are used that cannot be fetched again. After
                that every answer is unknown.
            cache_bytes: The memory for tokens whose signature was verified.
            clock: The source of time, for tests.
        """
        source = fetching(
            client,
            issuer,
            max_lifetime=max_lifetime,
            leeway=leeway,
            keys_valid_for=keys_valid_for,
            cache_bytes=cache_bytes,
            clock=clock,
            owns=False,
        )
        return cls(source)

    def verify(self, token: str, demands: Demands | None = None) -> Answer:
        """Checks a token, and whether it meets the demands.

        In the modes that verify locally this calls the service only if there is no lease.
        """
        asked = demands if demands is not None else Demands()
        answer: Answer | None = self._answer_locally(token, asked)
        if answer is None:
            answer = self._fall_back(token, asked)
        self._count(answer)
        return answer

    def _fall_back(self, token: str, demands: Demands) -> Answer:
        if self._fallback is None:
            return NO_LEASE
        refused = refuse_unasked(token)
        if refused is not None:
            return refused
        try:
            return read_answer(self._fallback.validate(demands.request(token)))
        except CountersignError as error:
            return not_answered(error)

    def ready(self, timeout: float | None = None) -> bool:
        """Waits until the verifier can answer by its own copy, at most for so many seconds.

        Returns whether it can. Returns at once in the mode `Mode.REMOTE`.
        """
        local = self._source.local
        if local is None:
            return True
        ends = None if timeout is None else monotonic() + timeout
        leased = Event()
        stop = local.on_lease(leased.set)
        try:
            while not local.is_ready():
                leased.clear()
                if local.is_ready():
                    break
                if not leased.wait(None if ends is None else ends - monotonic()):
                    return local.is_ready()
        finally:
            stop()
        return True

    def close(self) -> None:
        """Ends the background threads. Without a lease, the verifier knows nothing any more."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
