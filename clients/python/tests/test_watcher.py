"""Runs the watcher of the torture test, which speaks the lines of its watcher.py."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import HANGS, Site, of_token, sign_in

PROGRAM = Path(__file__).parents[3] / "tests" / "torture" / "watcher" / "python" / "watcher.py"


@pytest.mark.usefixtures("server")
def test_the_watcher_answers_each_line_by_its_own_copy(site: Site) -> None:
    with (
        site.client(deadline=10) as client,
        subprocess.Popen(
            [sys.executable, str(PROGRAM), "127.0.0.1:1", site.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(*tokens: str) -> list[str]:
            """Asks about a batch of tokens."""
            assert process.stdin is not None
            assert process.stdout is not None
            began = time.monotonic_ns()
            process.stdin.write("".join(f"0 {token}\n" for token in tokens))
            process.stdin.flush()
            words = []
            for _ in tokens:
                number, count, begin, end, *rest = process.stdout.readline().split()
                assert (number, count) == ("0", "1")
                # There was one check, so it is the first one and the last one.
                last_begin, last_end, *answer = rest
                assert (last_begin, last_end) == (begin, end)
                assert began <= int(begin) <= int(end) <= time.monotonic_ns()
                words.append(" ".join(answer))
            return words

        def settled(*tokens: str) -> list[str]:
            ends = time.monotonic() + HANGS
            while "unknown NO_LEASE" in (words := ask(*tokens)):
                assert time.monotonic() < ends
                time.sleep(0.01)
            return words

        good, revoked = sign_in(client, "alice"), sign_in(client, "bob")
        assert settled(good, revoked, "x") == ["active", "active", "inactive MALFORMED"]
        client.revoke(of_token(revoked))
        assert "active" not in ask(revoked)
        assert settled(good, revoked) == ["active", "inactive REVOKED"]
        process.stdin.write("clock 10000000000 0\n")
        assert ask(good) == ["unknown NO_LEASE"], "its wall clock has moved"
        process.stdin.write("clock 0 900000000\n")
        assert settled(good, revoked) == ["active", "inactive REVOKED"]
        process.stdin.close()
        assert process.wait(20) == 0
