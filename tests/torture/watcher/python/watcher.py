"""A watcher by the Python client library, for the torture test.

It speaks the lines that ../watcher.py describes: a local verifier, which never calls Validate.

Usage: watcher.py ADDRESS...
"""

import sys
import time

from countersign import Active, Answer, Client, Inactive, OnLapse, Verifier


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
    client = Client([f"http://{address}" for address in sys.argv[1:]])
    with client, Verifier.local(client, on_lapse=OnLapse.REFUSE) as verifier:
        for line in sys.stdin:
            number, token = line.split()
            begin = time.monotonic_ns()
            answer = verifier.verify(token)
            sys.stdout.write(f"{number} {begin} {time.monotonic_ns()} {word(answer)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
