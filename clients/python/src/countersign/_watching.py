"""What a watcher makes of the messages of Watch. It does no input or output, and knows no time but
that of its clock.
"""

import logging
from collections import deque
from typing import Final

from countersign._clock import SECOND
from countersign._index import NotUnderstoodError, duration, limits, timestamp
from countersign._keys import KeySet
from countersign._lease import Start
from countersign._local import Local, Rules
from countersign.proto import (
    WatchKeys,
    WatchLease,
    WatchRenewal,
    WatchRequest,
    WatchResponse,
    WatchRules,
    WatchStart,
)

_log = logging.getLogger("countersign")

# The length of a lease before the first one has told it.
_USUAL_LEASE: Final = 2 * SECOND
_SHORTEST_LEASE: Final = SECOND // 5
_RENEWALS: Final = 4
# The most renewals that wait for an answer.
MAX_ASKED: Final = 64
# The largest difference between the clocks of the service and of this machine under which a lease
# is taken.
_LARGEST_DIFFERENCE: Final = 5 * SECOND
# The longest names of tenants and audiences.
_MAX_TENANT: Final = 128
_MAX_AUDIENCE: Final = 256


class UnexpectedLeaseError(Exception):
    """The service has sent a lease that was not asked for, or too early."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class OtherTenantsError(Exception):
    """The tenants of this caller have changed, so the revocations must be received anew."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class Watching:
    """A watcher. The caller sees to it that only one thread uses it at a time."""

    def __init__(self, local: Local) -> None:
        """Creates a watcher that changes a copy."""
        self._local = local
        self._copy = local.copy
        # The cursor that was last applied; empty within a snapshot.
        self.cursor = b""
        # The start and the length of the last lease of the copy in force.
        self._lease: tuple[Start, int] | None = None
        # True if rules have arrived on this stream since the last reset, and likewise keys.
        self._has_rules = False
        self._has_keys = False
        self._usual_lease = _USUAL_LEASE
        self._is_clock_wrong = False
        self._number = 0
        self._waiting: deque[tuple[int, Start]] = deque(maxlen=MAX_ASKED)
        # True if there was a lease on this stream.
        self.had_lease = False

    @property
    def interval(self) -> float:
        """The seconds between renewals."""
        return self._usual_lease / _RENEWALS / SECOND

    @property
    def patience(self) -> float:
        """The seconds after which a stream that brings no lease is given up."""
        return max(self._usual_lease, SECOND) / SECOND

    def open(self) -> WatchRequest:
        """Begins a stream. Returns its first message."""
        self._number = 0
        self._waiting.clear()
        self._has_rules = self._has_keys = False
        self.had_lease = False
        return WatchRequest(start=WatchStart(cursor=self.cursor))

    def apply(self, response: WatchResponse) -> bool:
        """Applies a message completely.

        Returns whether to renew the lease at once, because there is something new to confirm. If
        the message cannot be understood, ends the lease, and raises an error.
        """
        try:
            self._apply_event(response)
        except (NotUnderstoodError, OtherTenantsError, UnexpectedLeaseError):
            self._copy.lease.end()
            self._lease = None
            # The next stream begins with a snapshot.
            self.cursor = b""
            raise
        if not response.cursor:
            return False
        self.cursor = response.cursor
        return True

    def _apply_event(self, response: WatchResponse) -> None:
        match response.WhichOneof("event"):
            case "reset":
                self._reset()
            case "rules":
                self._take_rules(response.rules)
            case "keys":
                self._take_keys(response.keys)
            case "revocations":
                self._copy.index.apply(response.revocations)
            case "lease":
                self._take_lease(response.lease)
            case _:
                raise NotUnderstoodError

    def _reset(self) -> None:
        self._copy = self._local.reset()
        self._local.resets += 1
        self.cursor = b""
        self._lease = None
        self._has_rules = self._has_keys = False

    def _take_rules(self, message: WatchRules) -> None:
        rules = Rules(
            issuer=message.issuer,
            max_lifetime=duration(message, "max_lifetime", message.max_lifetime),
            leeway=duration(message, "leeway", message.leeway),
            tenants=limits(message.tenants, _MAX_TENANT),
            audiences=limits(message.audiences, _MAX_AUDIENCE),
            lease_margin=duration(message, "lease_margin", message.lease_margin),
        )
        # This process has only the revocations of the tenants that it could accept before.
        if self.cursor and rules.tenants != self._copy.rules.tenants:
            raise OtherTenantsError
        self._replace(self._copy.keys, rules)
        self._has_rules = True

    def _take_keys(self, message: WatchKeys) -> None:
        keys = KeySet.read(message.jwks, message.revoked)
        if keys is None:
            raise NotUnderstoodError
        self._replace(keys, self._copy.rules)
        self._has_keys = True

    def _replace(self, keys: KeySet, rules: Rules) -> None:
        """Replaces the copy.

        The lease that this process has is good for the new copy too, which knows more. No later
        lease is good for the earlier copy.
        """
        self._copy = self._local.replace(keys, rules, self._lease)

    def _take_lease(self, lease: WatchLease) -> None:
        is_complete = self._has_rules and self._has_keys and self.cursor != b""
        start = self._answered(lease.number) if is_complete else None
        if start is None:
            raise UnexpectedLeaseError
        valid_for = duration(lease, "valid_for", lease.valid_for)
        self._copy.index.forget_expired(timestamp(lease, "expired_up_to", lease.expired_up_to))
        difference = self._local.clock.wall() - timestamp(lease, "now", lease.now)
        was_clock_wrong = self._is_clock_wrong
        self._is_clock_wrong = abs(difference) > _LARGEST_DIFFERENCE
        if self._is_clock_wrong:
            if not was_clock_wrong:
                _log.error(
                    "the clock of this machine, or that of the service, is wrong by %d ms: "
                    "no lease is taken",
                    difference // 1000,
                )
            return
        self._local.take(self._copy, start, valid_for)
        self._local.lag = max(0, self._local.clock.uptime() - start.uptime)
        self._lease = (start, valid_for)
        self._usual_lease = min(max(valid_for, _SHORTEST_LEASE), 10 * _USUAL_LEASE)
        self.had_lease = True

    def renew(self) -> WatchRequest:
        """Makes a renewal, which confirms the cursor. The clocks are read first."""
        start = self._copy.lease.start()
        self._number += 1
        self._waiting.append((self._number, start))
        return WatchRequest(renewal=WatchRenewal(number=self._number, applied=self.cursor))

    def _answered(self, number: int) -> Start | None:
        """Returns the clocks before a renewal was sent, and forgets it and those before."""
        if not any(asked == number for asked, _ in self._waiting):
            return None
        while True:
            asked, start = self._waiting.popleft()
            if asked == number:
                return start
