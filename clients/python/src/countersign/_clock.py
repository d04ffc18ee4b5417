"""The clocks. All other modules take the time from a `Clock`, so that tests can set it."""

import time
from typing import Final, Protocol

SECOND: Final = 1_000_000
"""Spans and instants are in whole microseconds everywhere in this package."""

LAST: Final = 2**63 - 1
"""The latest instant. Later ones are replaced by it, as the service does."""

# Unlike CLOCK_MONOTONIC, this clock advances while a Linux machine sleeps.
_UPTIME: Final[int] = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", 0))


class Clock(Protocol):
    """A source of time."""

    def wall(self) -> int:
        """Returns the microseconds since 1970 by the wall clock, which may jump."""

    def uptime(self) -> int:
        """Returns the microseconds since some instant. They never go back."""


class SystemClock:
    """The clocks of the operating system."""

    def wall(self) -> int:
        """Returns the microseconds since 1970."""
        return time.time_ns() // 1000

    if hasattr(time, "clock_gettime_ns"):

        def uptime(self) -> int:
            """Returns the microseconds since the machine was started."""
            return time.clock_gettime_ns(_UPTIME) // 1000

    else:

        def uptime(self) -> int:
            """Returns the microseconds since some instant."""
            return time.monotonic_ns() // 1000


class SettableClock:
    """A clock for tests, which stands still until it is moved."""

    def __init__(self, wall: int) -> None:
        """Creates a clock that stands at this number of microseconds since 1970."""
        self._wall = wall
        self._uptime = 0

    def wall(self) -> int:
        """Returns the time that was set."""
        return self._wall

    def uptime(self) -> int:
        """Returns the time by which the clock was advanced."""
        return self._uptime

    def advance(self, span: int) -> None:
        """Moves the wall clock and the uptime forward by this number of microseconds."""
        self._wall += span
        self._uptime += span

    def jump_to(self, wall: int) -> None:
        """Sets the wall clock, as an administrator or NTP would. The uptime does not change."""
        self._wall = wall


def saturated(seconds: int) -> int:
    """Returns seconds in microseconds, within the instants that the service can represent."""
    return max(-LAST - 1, min(LAST, seconds * SECOND))
