"""The copy of the keys, the rules and the revocations, by which tokens are verified locally."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from threading import Event, Lock
from typing import Final

from countersign._cache import VerifiedCache
from countersign._clock import Clock
from countersign._index import Index
from countersign._keys import KeySet
from countersign._lease import Lease, Start
from countersign._token import MAX_BYTES, InactiveError, Token, verify
from countersign.answer import Active, Inactive
from countersign.demands import Demands
from countersign.reasons import InactiveReason
from countersign.session import Session

INACTIVE: Final = {reason: Inactive(reason) for reason in InactiveReason}


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for tokens. Spans are in microseconds."""

    issuer: str
    max_lifetime: int
    leeway: int
    lease_margin: int
    tenants: frozenset[str] | None = None
    audiences: frozenset[str] | None = None


_NO_RULES: Final = Rules(issuer="", max_lifetime=0, leeway=0, lease_margin=0)
_NO_KEYS: Final = KeySet({}, ())


class LocalCopy:
    """A copy of everything that decides whether a token is active.

    Only its index grows, and its lease is extended. When anything else changes, another copy takes
    its place. Each copy has a lease of its own: a check that has loaded a copy with earlier keys
    must not get a lease that rests on the later ones.
    """

    __slots__ = ("cache", "index", "keys", "lease", "rules")

    def __init__(
        self, index: Index, lease: Lease, keys: KeySet, rules: Rules, cache: VerifiedCache
    ) -> None:
        self.index = index
        self.lease = lease
        self.keys = keys
        self.rules = rules
        self.cache = cache

    def answer(self, access_token: str, demands: Demands) -> Active | Inactive | None:
        """Answers by this copy; `None` without a lease."""
        # The lease is loaded before the look-up, and checked after it.
        held = self.lease.held
        if held is None:
            return None
        try:
            token = self._authenticate(access_token)
        except InactiveError as inactive:
            # The keys are only known under a lease as well.
            return None if self.lease.check(held) is None else INACTIVE[inactive.reason]
        is_revoked = self.index.stops(token)
        # The time is read after the look-up. If a revocation was dropped before the look-up, its
        # tokens have expired, and the check of the time refuses them.
        now = self.lease.check(held)
        if now is None:
            return None
        reason = self._check_state(token, is_revoked, now) or check_demands(token, demands, now)
        if reason is not None:
            return INACTIVE[reason]
        answer: Active | None = token.answer
        if answer is None:
            answer = token.answer = Active(Session(token))
        return answer

    def _authenticate(self, access_token: str) -> Token:
        """Checks the form and the signature of a token, unless that was done before."""
        try:
            encoded = access_token.encode()
        except UnicodeEncodeError:
            raise InactiveError(InactiveReason.MALFORMED) from None
        if len(encoded) > MAX_BYTES:
            raise InactiveError(InactiveReason.MALFORMED)
        digest = sha256(encoded).digest()
        token = self.cache.get(digest)
        if token is None:
            token = verify(access_token, self.keys, self.rules.issuer)
            self._check_lifetime(token)
            self.cache.insert(digest, token)
            return token
        keys = self.keys
        if token.kid in keys.revoked:
            raise InactiveError(InactiveReason.REVOKED)
        if token.kid not in keys.keys:
            raise InactiveError(InactiveReason.UNKNOWN_KEY)
        self._check_lifetime(token)
        return token

    def _check_lifetime(self, token: Token) -> None:
        # The rules may have changed since the token was verified.
        if token.expires_at - token.issued_at > self.rules.max_lifetime:
            raise InactiveError(InactiveReason.MALFORMED)

    def _check_state(self, token: Token, is_revoked: bool, now: int) -> InactiveReason | None:  # noqa: FBT001
        rules = self.rules
        if rules.tenants is not None and token.tenant not in rules.tenants:
            return InactiveReason.FOREIGN_TENANT
        if now >= token.expires_at or token.expires_at <= self.index.expired_up_to:
            return InactiveReason.EXPIRED
        if token.begins > now + rules.leeway:
            return InactiveReason.NOT_YET_VALID
        if is_revoked:
            return InactiveReason.REVOKED
        if rules.audiences is not None and rules.audiences.isdisjoint(token.audience):
            return InactiveReason.WRONG_AUDIENCE
        return None


def check_demands(  # noqa: PLR0911
    token: Token, demands: Demands, now: int
) -> InactiveReason | None:
    """Returns the reason if a token does not meet demands."""
    if demands.audience and demands.audience not in token.audience:
        return InactiveReason.WRONG_AUDIENCE
    if not demands.scope_set <= token.scope_set:
        return InactiveReason.INSUFFICIENT_SCOPE
    if demands.acr_values and token.acr not in demands.acr_values:
        return InactiveReason.STEP_UP_REQUIRED
    age = demands.age
    if age is not None and now - token.authenticated_at > age:
        return InactiveReason.STEP_UP_REQUIRED
    for method, max_age in demands.factor_ages:
        if method not in token.amr:
            return InactiveReason.STEP_UP_REQUIRED
        if max_age is None:
            continue
        # A method without a time is never recent.
        at = token.amr_verified_at.get(method)
        if at is None or now - at > max_age:
            return InactiveReason.STEP_UP_REQUIRED
    return None


class Local:
    """The copy in force, which a background thread replaces."""

    def __init__(self, clock: Clock, cache_bytes: int) -> None:
        """Creates a copy that has nothing. Verified tokens are kept in about `cache_bytes`."""
        self.clock = clock
        self._cache_bytes = cache_bytes
        lease = Lease(clock, 0)
        self.copy = LocalCopy(Index(), lease, _NO_KEYS, _NO_RULES, VerifiedCache(cache_bytes))
        # Set if a token names a key that is not known.
        self.unknown_key = Event()
        self.connections = 0
        self.resets = 0
        self.lag = 0
        self._waiting: set[Callable[[], None]] = set()
        self._lock = Lock()
        self._is_of_parent = False

    def answer(self, access_token: str, demands: Demands) -> Active | Inactive | None:
        """Answers by the copy in force; `None` without a lease."""
        answer = self.copy.answer(access_token, demands)
        if answer is _UNKNOWN_KEY:
            self.unknown_key.set()
        return answer

    def reset(self) -> LocalCopy:
        """Puts a copy without revocations and without a lease in force.

        The lease of the copy before remains to the checks that have loaded it.
        """
        former = self.copy
        lease = Lease(self.clock, former.rules.lease_margin)
        index = Index()
        # A token that has expired stays expired.
        index.expired_up_to = former.index.expired_up_to
        self.copy = LocalCopy(index, lease, former.keys, former.rules, former.cache)
        return self.copy

    def replace(
        self, keys: KeySet, rules: Rules, held: tuple[Start, int] | None = None
    ) -> LocalCopy:
        """Puts a copy with other keys or rules in force.

        `held` is the lease that is good for it too, if there is one. The copy has it from the
        beginning, so that no check finds none.
        """
        former = self.copy
        # The cache has tokens of the earlier issuer, and with signatures of the earlier keys.
        is_cache_good = rules.issuer == former.rules.issuer and keys.includes(former.keys)
        cache = former.cache if is_cache_good else VerifiedCache(self._cache_bytes)
        lease = Lease(self.clock, rules.lease_margin)
        if held is not None and not self._is_of_parent:
            lease.take(*held)
        self.copy = LocalCopy(former.index, lease, keys, rules, cache)
        return self.copy

    def take(self, copy: LocalCopy, start: Start, valid_for: int) -> None:
        """Takes a lease of a copy, and wakes who waits for one."""
        if self._is_of_parent:
            return
        copy.lease.take(start, valid_for)
        with self._lock:
            waiting = list(self._waiting)
        for wake in waiting:
            wake()

    def is_ready(self) -> bool:
        """Returns whether the copy in force has a lease."""
        return self.copy.lease.remaining() is not None

    def on_lease(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Calls a function with each lease, until the function that this one returns is called."""
        with self._lock:
            self._waiting.add(wake)

        def stop() -> None:
            with self._lock:
                self._waiting.discard(wake)

        return stop

    def after_fork(self) -> None:
        """Ends the lease in a child process, to which nobody tells what is revoked."""
        self._is_of_parent = True
        self._lock = Lock()
        self.copy.lease.end()


_UNKNOWN_KEY: Final = INACTIVE[InactiveReason.UNKNOWN_KEY]
