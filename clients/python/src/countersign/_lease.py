"""The lease: for how long a process may trust its own copy of the revocations."""

from dataclasses import dataclass
from typing import Final

from countersign._clock import Clock

FOR_EVER: Final = 2**64


@dataclass(frozen=True, slots=True)
class Start:
    """The instant from which a lease counts, by both clocks."""

    uptime: int
    wall: int


@dataclass(frozen=True, slots=True)
class Held:
    """A lease as it was when a check began.

    `offset` is the wall clock minus the uptime at its start.
    """

    deadline: int
    offset: int


class Lease:
    """The lease of a copy. One thread takes it while others check it."""

    __slots__ = ("_clock", "_margin", "held")

    def __init__(self, clock: Clock, margin: int) -> None:
        """Creates a lease that has not begun.

        `margin` is the longest suspension of the process that its uptime clock may fail to count.
        """
        self._clock = clock
        self._margin = margin
        # A check must load this *before* it looks up a token, because a later lease may rest on
        # revocations that the look-up did not see. It is replaced as a whole.
        self.held: Held | None = None

    def start(self) -> Start:
        """Reads the clocks. This must happen before the renewal is sent.

        The wall clock is read first. If the process pauses between the two readings, it then seems
        to a later check that the uptime clock has stood still, which only makes the lease void.
        """
        wall = self._clock.wall()
        return Start(self._clock.uptime(), wall)

    def take(self, start: Start, valid_for: int) -> None:
        """Takes the lease that begins at `start`. Its end may already have passed."""
        self.held = Held(start.uptime + valid_for, start.wall - start.uptime)

    def take_for_ever(self) -> None:
        """Takes a lease that never ends."""
        self.held = Held(FOR_EVER, 0)

    def end(self) -> None:
        """Ends the lease."""
        self.held = None

    def check(self, held: Held) -> int | None:
        """Returns the time of the wall clock if a lease is still valid.

        A check must call this *after* it has looked up the token. A lease is also void if the two
        clocks have moved apart since it was requested: the process may have been suspended.
        """
        if held.deadline == FOR_EVER:
            return self._clock.wall()
        uptime = self._clock.uptime()
        wall = self._clock.wall()
        if uptime < held.deadline and abs(wall - uptime - held.offset) <= self._margin:
            return wall
        return None

    def remaining(self) -> int | None:
        """Returns the remaining time of the lease, or `None` if it has ended or is void."""
        held = self.held
        if held is None or self.check(held) is None:
            return None
        if held.deadline == FOR_EVER:
            return FOR_EVER
        return max(0, held.deadline - self._clock.uptime())
