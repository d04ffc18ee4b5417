"""Runs the situations, and prints the matrix."""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from runner import calls, tls, tokens, watching
from runner.drivers import Driver, DriverError, commands
from runner.situation import ALL, DifferentError, Named, Situation
from runner.world import World, build

# Most of the time of most situations is spent waiting.
DRIVERS_PER_LANGUAGE = 4
# The longest time of a situation, in seconds.
HANGS = 90.0
MODULES = (calls, tls, tokens, watching)
OK = "ok"
DIFFERENT = "DIFFERENT"


@dataclass
class Column:
    """A language: its situations that are still to be run, and what it answered."""

    language: str
    command: list[str]
    waiting: deque[Named]
    answers: dict[str, str] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    async def work(self, world: World) -> None:
        """Runs one situation after the other, with the same driver where possible."""
        driver: Driver | None = None
        try:
            while self.waiting:
                situation = self.waiting.popleft()
                if driver is None:
                    driver = await Driver.start(self.command)
                began = time.monotonic()
                answer = await attempt(situation, world, driver)
                self.times[situation.name] = time.monotonic() - began
                self.answers[situation.name] = answer
                if answer != OK or driver.has_moved_clocks:
                    await driver.close()
                    driver = None
        finally:
            if driver is not None:
                await driver.close()


async def attempt(situation: Named, world: World, driver: Driver) -> str:
    """Runs a situation. Returns what was different."""
    try:
        async with asyncio.timeout(HANGS), AsyncExitStack() as resources:
            await situation.run(Situation(world, driver, resources))
    except (DifferentError, DriverError) as error:
        return str(error)
    except TimeoutError:
        return "it does not end"
    except Exception as error:  # noqa: BLE001 (The others must go on.)
        return f"{type(error).__name__}: {error}"
    return OK


def arguments() -> argparse.Namespace:
    """Returns the arguments."""
    parser = argparse.ArgumentParser(prog="run")
    parser.add_argument("--only", metavar="SITUATION", help="run only the situation of this name")
    parser.add_argument("--times", action="store_true", help="print the seconds of each situation")
    parser.add_argument("languages", metavar="LANGUAGE", nargs="*", help="all by default")
    return parser.parse_args()


async def run(columns: list[Column], program: Path) -> None:
    """Runs the situations of all languages at once."""
    with tempfile.TemporaryDirectory() as folder:
        world = await build(program, Path(folder))
        try:
            async with asyncio.TaskGroup() as group:
                for column in columns:
                    for _ in range(DRIVERS_PER_LANGUAGE):
                        group.create_task(column.work(world))
        finally:
            await world.close()


def matrix(columns: list[Column], situations: list[Named], *, has_times: bool) -> str:
    """Returns the matrix, and below it what was different."""
    width = max(len(situation.name) for situation in situations)
    lines = [" " * width + "".join(f"  {it.language:<12}" for it in columns)]
    details = []
    for situation in situations:
        cells = []
        for column in columns:
            answer = column.answers[situation.name]
            cell = OK if answer == OK else DIFFERENT
            if has_times:
                cell += f" {column.times[situation.name]:.1f}"
            cells.append(f"  {cell:<12}")
            if answer != OK:
                details.append(f"{situation.name}, {column.language}: {answer}")
        lines.append(f"{situation.name:<{width}}{''.join(cells)}".rstrip())
    return "\n".join([*lines, *details])


def main() -> int:
    """Returns the exit code."""
    asked = arguments()
    program = Path(os.environ["COUNTERSIGN"])
    names = [situation.name for situation in ALL]
    assert len(names) == len(set(names)), "two situations have the same name"
    situations = [it for it in ALL if asked.only in (None, it.name)]
    known = commands(program, asked.languages)
    if not situations:
        raise DriverError(f"no situation is called {asked.only!r}")
    columns = [Column(name, command, deque(situations)) for name, command in known.items()]
    asyncio.run(run(columns, program))
    sys.stdout.write(matrix(columns, situations, has_times=asked.times) + "\n")
    failed = [answer for it in columns for answer in it.answers.values() if answer != OK]
    passed = len(situations) * len(columns) - len(failed)
    sys.stdout.write(f"{passed} passed, {len(failed)} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    # Processes are started by exec alone.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    try:
        sys.exit(main())
    except DriverError as error:
        sys.exit(f"run: {error}")
