"""The drivers: programs that do with a library what they are told."""

import asyncio
import json
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[3]
TABLE: Final = Path(__file__).parents[1] / "drivers.json"
# The longest time that a command may take.
_HANGS: Final = 60.0
_LONGEST_LINE: Final = 1 << 20

Answer = dict[str, Any]


class DriverError(Exception):
    """A driver does not do what it is told."""


def commands(service: Path, languages: list[str]) -> dict[str, list[str]]:
    """Returns the commands of the drivers of these languages, or of all.

    Raises `DriverError` if one is not known or not built.
    """
    table: dict[str, list[str]] = json.loads(TABLE.read_text(encoding="utf-8"))
    found = {}
    for language in languages or table:
        if language not in table:
            raise DriverError(f"{TABLE.name} has no language {language!r}")
        command = table[language]
        words = [it.replace("{target}", str(service.parent)) for it in command]
        paths = [ROOT / it if "/" in it else None for it in words]
        for path in paths:
            if path is not None and not path.exists():
                raise DriverError(f"the driver of {language} is not built: there is no {path}")
        found[language] = [str(path or word) for path, word in zip(paths, words, strict=True)]
    return found


class Driver:
    """A running driver."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.has_moved_clocks = False

    @classmethod
    async def start(cls, command: list[str]) -> "Driver":
        """Starts a driver."""
        variables = {
            it: value for it, value in os.environ.items() if not it.startswith("COUNTERSIGN")
        }
        # Logs would hide the differences.
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env=variables,
            stdin=PIPE,
            stdout=PIPE,
            stderr=None if "SITUATIONS_LOG" in os.environ else DEVNULL,
            limit=_LONGEST_LINE,
        )
        return cls(process)

    async def do(self, command: str, members: Answer) -> Answer:
        """Makes the driver do something, and returns its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.has_moved_clocks |= command == "clock"
        line = json.dumps({"do": command, **members}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            await self._process.stdin.drain()
            async with asyncio.timeout(_HANGS):
                answer = await self._process.stdout.readline()
        except ConnectionError:
            answer = b""
        except TimeoutError:
            raise DriverError(f"no answer to {command} within a minute") from None
        if not answer:
            raise DriverError(f"the driver has ended instead of doing {command}")
        parsed: Answer = json.loads(answer)
        return parsed

    def kill(self) -> None:
        """Ends the driver."""
        if self._process.returncode is None:
            self._process.kill()

    async def close(self) -> None:
        """Ends the driver, and waits for its end."""
        self.kill()
        await self._process.wait()
