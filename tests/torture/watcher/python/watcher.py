"""A watcher by the Python client library, for the torture test.

It speaks the lines that ../watcher.py and ../altered.py describe: a local verifier, which never
calls Validate. A line `clock AHEAD LOST` sets its clocks.

Usage: watcher.py ADDRESS...
"""

import sys
import time

from countersign import Active, Answer, Client, Inactive, OnLapse, Verifier
from countersign.testing import SystemClock


class WrongClock(SystemClock):
    """The clocks of this machine, with errors in microseconds."""

    ahead = 0
    lost = 0

    def wall(self) -> int:
        """Returns the time of a wall clock that is ahead, and has lost some time."""
        return super().wall() + self.ahead - self.lost

    def uptime(self) -> int:
        """Returns the time of a clock that has lost the same time."""
        return super().uptime() - self.lost


def word(answer: Answer) -> str:
    """Returns an answer as the test reads it."""
    if isinstance(answer, Active):
        return "active"
    if isinstance(answer, Inactive):
        return f"inactive {answer.reason.name}"
    return f"unknown {answer.reason.name}"


def main() -> None:
    """Answers until the input ends."""
    # Many checks must not hold up the renewals.
    sys.setswitchinterval(0.001)
    clock = WrongClock()
    client = Client([f"http://{address}" for address in sys.argv[1:]])
    with client, Verifier.local(client, on_lapse=OnLapse.REFUSE, clock=clock) as verifier:
        for line in sys.stdin:
            first, *others = line.split()
            if first == "clock":
                clock.ahead, clock.lost = (int(nanoseconds) // 1000 for nanoseconds in others)
                continue
            begin = time.monotonic_ns()
            answer = verifier.verify(others[0])
            times = f"{begin} {time.monotonic_ns()}"
            sys.stdout.write(f"{first} 1 {times} {times} {word(answer)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
