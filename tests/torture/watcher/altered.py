"""The watcher of watcher.py, whose clocks can be set, and which may break a rule on purpose.

Usage: altered.py RULE ADDRESS..., where RULE is `none` or a name in RULES.

A line `clock AHEAD LOST` of the standard input sets the clocks: from now on the wall clock is ahead
by the first number of nanoseconds, and both clocks are behind by the second.
"""

import random
import sys
import threading
import time
from collections.abc import Iterator

import grpc
from countersign.v1 import revocation_service_pb2 as pb
from watcher import Clock, Instant, Stream, Watcher, main

# The time by which a mutant applies messages too late.
LATE = 0.8  # seconds
# The time that a mutant needs for a snapshot, as if it were a large one.
LONG = 0.3


class SettableClock(Clock):
    """The clocks of this machine, with errors."""

    ahead = 0
    lost = 0

    def now(self) -> Instant:
        real = super().now()
        return Instant(real.uptime - self.lost, real.wall + self.ahead - self.lost)

    def without_settings(self, lines: Iterator[str]) -> Iterator[str]:
        """Yields the lines that do not set this clock."""
        for line in lines:
            if line.startswith("clock "):
                _, ahead, lost = line.split()
                self.ahead, self.lost = int(ahead), int(lost)
            else:
                yield line


class LeaseFromArrival(Watcher):
    """Counts a lease from its arrival, and not from before the renewal was sent."""

    def take_lease(self, lease: pb.WatchLease, stream: Stream) -> None:
        stream.renewals[lease.number] = self.clock.now()
        super().take_lease(lease, stream)


class LeaseBeforeEntries(Watcher):
    """Takes leases while the revocations before them still wait to be applied."""

    def apply(self, response: pb.WatchResponse, stream: Stream) -> None:
        if response.WhichOneof("event") != "revocations" or not stream.applied:
            super().apply(response, stream)
            return
        copy = self.copy
        really_apply = super().apply

        def apply() -> None:
            if self.copy is copy and not stream.has_ended:
                really_apply(response, stream)

        timer = threading.Timer(LATE, apply)
        timer.daemon = True
        timer.start()


class LeaseKeptOnReset(Watcher):
    """Drops the revocations on a reset, and goes on under its lease."""

    def reset(self) -> None:
        self.copy.sessions = ()
        self.copy.ids = {}
        self.cursor = b""
        time.sleep(LONG)


class CursorKeptOnReset(Watcher):
    """Drops the revocations on a reset, but not the cursor that belongs to them.

    Half of the streams end with the reset, as if they had been cut off within a snapshot.
    """

    def reset(self) -> None:
        cursor = self.cursor
        super().reset()
        self.cursor = cursor
        if cursor and random.random() < 0.5:
            raise grpc.RpcError


RULES: dict[str, type[Watcher]] = {
    "none": Watcher,
    "lease-from-arrival": LeaseFromArrival,
    "lease-before-entries": LeaseBeforeEntries,
    "lease-kept-on-reset": LeaseKeptOnReset,
    "cursor-kept-on-reset": CursorKeptOnReset,
}

if __name__ == "__main__":
    clock = SettableClock()
    main(RULES[sys.argv[1]](clock), sys.argv[2:], clock.without_settings(sys.stdin))
