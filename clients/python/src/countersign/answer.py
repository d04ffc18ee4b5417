"""The answer to the question whether a token is active."""

from dataclasses import dataclass
from typing import TypeAlias

from countersign.errors import CountersignError
from countersign.reasons import InactiveReason, UnknownReason
from countersign.session import Session


@dataclass(frozen=True, slots=True)
class Active:
    """The token is authentic, its session is live, and all demands are met. It is true."""

    session: Session
    """The session."""

    @property
    def reason(self) -> None:
        """There is no reason."""
        return

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Inactive:
    """The token is not accepted. It is false."""

    reason: InactiveReason
    """The reason."""

    @property
    def session(self) -> None:
        """There is no session."""
        return

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Unknown:
    """It is not known whether the token is active, so the request must not pass. It is false.

    The client may try again.
    """

    reason: UnknownReason
    """The reason."""
    error: CountersignError | None = None
    """The error of the call, if the service did not answer."""

    @property
    def session(self) -> None:
        """There is no session."""
        return

    def __bool__(self) -> bool:
        return False


Answer: TypeAlias = Active | Inactive | Unknown
"""The answer of a verifier. Only `Active` lets a request pass, and only it is true."""
