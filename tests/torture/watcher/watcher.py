"""A watcher: verifies access tokens itself, under leases of RevocationService.Watch.

It follows the comments in proto/countersign/v1/revocation_service.proto, and has no other source.

Usage: watcher.py ADDRESS...

It watches the replica at one of these addresses. Each line of its standard input is a number and a
token. For each it writes a line: the number, and the outcome of one or more checks. Equal answers
in a row are written once: how many they are, the instants at which the first check began and ended,
the same of the last check, by CLOCK_MONOTONIC in nanoseconds, and the answer, which is `active`,
`inactive REASON` or `unknown REASON`. A semicolon and a space stand between different answers. It
ends when its input does.
"""

import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TextIO

import grpc
from countersign.v1 import revocation_service_pb2 as pb
from countersign.v1.revocation_service_pb2_grpc import RevocationServiceStub
from tokens import MILLISECOND, SECOND, Copy, Inactive, Keys, UnknownMessage, nanoseconds

# The number of renewals in the time of a lease.
RENEWALS = 3
# The time between renewals until the first lease.
FIRST_INTERVAL = 200 * MILLISECOND
# A stream that has brought no lease for so long is given up.
PATIENCE = 1500 * MILLISECOND
# The longest pause before Watch is called again, in seconds.
MAX_PAUSE = 0.2
# The largest difference between this clock and that of the service.
MAX_DIFFERENCE = 5 * SECOND


@dataclass(frozen=True)
class Instant:
    """An instant by both clocks, in nanoseconds."""

    uptime: int
    wall: int


class Clock:
    """The clocks of this machine."""

    def now(self) -> Instant:
        return Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())


@dataclass(frozen=True)
class Lease:
    """The right to answer from a copy."""

    copy: Copy
    since: Instant
    valid_for: int
    margin: int

    def holds(self, now: Instant) -> bool:
        elapsed = now.uptime - self.since.uptime
        moved = now.wall - self.since.wall - elapsed
        return 0 <= elapsed < self.valid_for and abs(moved) <= self.margin


def log(problem: object) -> None:
    print(problem, file=sys.stderr, flush=True)


class Watcher:
    """What one thread learns from the service, and another one checks tokens by."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.copy = Copy()
        self.cursor = b""
        # A check reads the lease with its copy at once.
        self.lease: Lease | None = None

    def check(self, token: str) -> str:
        lease = self.lease
        if lease is None:
            return "unknown NO_LEASE"
        try:
            claims, is_revoked = lease.copy.look_up(token)
            now = self.clock.now()
            if not lease.holds(now):
                return "unknown LEASE_ENDED"
            lease.copy.judge(claims, is_revoked, now.wall)
        except Inactive as inactive:
            # The keys, by which a token may be inactive, are only known under a lease as well.
            if not lease.holds(self.clock.now()):
                return "unknown LEASE_ENDED"
            return f"inactive {inactive}"
        return "active"

    def apply(self, response: pb.WatchResponse, stream: "Stream") -> None:
        """Applies a response."""
        event = response.WhichOneof("event")
        match event:
            case "reset":
                self.reset()
            case "rules":
                self.copy.rules = response.rules
            case "keys":
                self.copy.keys = Keys(response.keys)
            case "revocations":
                self.copy.add(response.revocations)
            case "lease":
                self.take_lease(response.lease, stream)
            case _:
                raise UnknownMessage(f"a message that is not known: {response}")
        if response.cursor:
            self.cursor = response.cursor
            stream.confirm(response.cursor)

    def reset(self) -> None:
        # A check that has begun finishes with the copy of its lease.
        self.lease = None
        self.copy = Copy()
        # The cursor belongs to what was dropped.
        self.cursor = b""

    def take_lease(self, lease: pb.WatchLease, stream: "Stream") -> None:
        sent = stream.sent(lease.number)
        if sent is None or self.copy.rules is None:
            raise UnknownMessage("a lease that nothing has asked for, or without rules")
        # The tokens that have expired no longer need their revocations, with or without a lease.
        self.copy.expire(nanoseconds(lease.expired_up_to))
        if abs(self.clock.now().wall - nanoseconds(lease.now)) > MAX_DIFFERENCE:
            log("the clock of this machine, or that of the service, is wrong")
            return
        valid_for = nanoseconds(lease.valid_for)
        self.lease = Lease(self.copy, sent, valid_for, nanoseconds(self.copy.rules.lease_margin))
        stream.renew_every(valid_for // RENEWALS)


class Stream:
    """A call of Watch."""

    def __init__(self, watcher: Watcher, address: str) -> None:
        self.watcher = watcher
        self.address = address
        self.interval = FIRST_INTERVAL
        self.applied = b""
        self.renewals: dict[int, Instant] = {}
        self.is_waking = threading.Event()
        self.has_ended = False
        self.last_lease = watcher.clock.now()
        self.cancel: Callable[[], object] = lambda: None

    def confirm(self, cursor: bytes) -> None:
        if self.applied != cursor:
            self.applied = cursor
            self.is_waking.set()

    def renew_every(self, interval: int) -> None:
        self.interval = interval

    def sent(self, number: int) -> Instant | None:
        """Returns the instant before a renewal was sent, which has been answered now."""
        self.last_lease = self.watcher.clock.now()
        sent = self.renewals.get(number)
        # The other thread adds renewals meanwhile.
        for answered in [earlier for earlier in list(self.renewals) if earlier <= number]:
            del self.renewals[answered]
        return sent

    def requests(self) -> Iterator[pb.WatchRequest]:
        """Yields what this side sends. gRPC sends each message after it has asked for it here."""
        yield pb.WatchRequest(start=pb.WatchStart(cursor=self.watcher.cursor))
        number = 0
        while not self.has_ended:
            self.is_waking.wait(self.interval / SECOND)
            self.is_waking.clear()
            now = self.watcher.clock.now()
            if now.uptime - self.last_lease.uptime > PATIENCE:
                self.cancel()
                return
            number += 1
            self.renewals[number] = now
            yield pb.WatchRequest(renewal=pb.WatchRenewal(number=number, applied=self.applied))

    def follow(self) -> None:
        """Applies all responses until the stream ends."""
        with grpc.insecure_channel(self.address) as channel:
            responses = RevocationServiceStub(channel).Watch(self.requests())
            self.cancel = responses.cancel
            try:
                for response in responses:
                    self.watcher.apply(response, self)
            finally:
                self.has_ended = True
                self.is_waking.set()
                responses.cancel()


def watch(watcher: Watcher, addresses: list[str]) -> None:
    """Watches one replica after the other, for ever."""
    while True:
        address = random.choice(addresses)
        try:
            Stream(watcher, address).follow()
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            log(f"{address}: {code}")
            if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
                watcher.cursor = b""
        except UnknownMessage as error:
            log(f"{address}: {error}")
            watcher.reset()
        time.sleep(random.uniform(0, MAX_PAUSE))


def serve(watcher: Watcher, questions: Iterable[str], answers: TextIO) -> None:
    """Answers until the input ends."""
    for line in questions:
        number, token = line.split()
        begin = time.monotonic_ns()
        answer = watcher.check(token)
        end = time.monotonic_ns()
        print(number, 1, begin, end, begin, end, answer, file=answers, flush=True)


def main(watcher: Watcher, addresses: list[str], questions: Iterable[str]) -> None:
    # Many checks must not hold up the renewals.
    sys.setswitchinterval(0.001)
    threading.Thread(target=watch, args=(watcher, addresses), daemon=True).start()
    serve(watcher, questions, sys.stdout)


if __name__ == "__main__":
    main(Watcher(Clock()), sys.argv[1:], sys.stdin)
