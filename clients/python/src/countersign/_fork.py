"""Tells objects of a child process that they are copies of those of its parent."""

import os
import weakref
from typing import Final, Protocol


class Forked(Protocol):
    """An object with a part that a child process cannot use."""

    def after_fork(self) -> None:
        """Is called in a child process."""


_OBJECTS: Final[weakref.WeakSet[Forked]] = weakref.WeakSet()


def register(forked: Forked) -> None:
    """Tells an object of each later fork, as long as it lives."""
    _OBJECTS.add(forked)


def _after_fork() -> None:
    for forked in list(_OBJECTS):
        forked.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
