"""The demands that a route makes on a session."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from countersign._clock import SECOND
from countersign.proto import FactorDemand, ValidateRequest, ValidateView

_MICROSECOND: Final = timedelta(microseconds=1)


def _texts(name: str, values: Iterable[str]) -> tuple[str, ...]:
    # A text is a collection of texts, too, so this mistake would demand each of its letters.
    if isinstance(values, str):
        raise TypeError(f"{name} must be a list of texts, not a text")
    return tuple(values)


def _span(name: str, span: timedelta | None) -> int | None:
    if span is None:
        return None
    if span < timedelta():
        raise ValueError(f"{name} must not be negative")
    return span // _MICROSECOND


@dataclass(frozen=True, slots=True)
class Factor:
    """A demand for an authentication method."""

    method: str
    """The method that the `amr` of the token must name (RFC 8176)."""
    max_age: timedelta | None = None
    """The method must have been verified within this time; `None` demands nothing."""

    def __post_init__(self) -> None:
        _span("max_age", self.max_age)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """The demands that a route makes on a session. Without any, every live session passes.

    ```python
    demands = Demands(
        audience="https://orders.example",
        scopes=["orders:write"],
        max_authentication_age=timedelta(minutes=5),
        factors=["hwk"],
    )
    ```
    """

    audience: str = ""
    """The token must be meant for this audience (`aud`). A service should always demand its own."""
    scopes: Iterable[str] = ()
    """The token must carry all of these scopes."""
    acr_values: Iterable[str] = ()
    """The authentication context class (`acr`) must be one of these.

    A session that lacks it is asked to step up (RFC 9470)."""
    max_authentication_age: timedelta | None = None
    """The user must have authenticated within this time.

    Otherwise the session is asked to step up (RFC 9470)."""
    factors: Iterable[str | Factor] = ()
    """The user must have used all of these authentication methods."""
    scope_set: frozenset[str] = field(init=False, repr=False, compare=False)
    age: int | None = field(init=False, repr=False, compare=False)
    factor_ages: tuple[tuple[str, int | None], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("scopes", _texts("scopes", self.scopes))
        put("acr_values", _texts("acr_values", self.acr_values))
        if isinstance(self.factors, str):
            raise TypeError("factors must be a list, not a text")
        factors = tuple(
            factor if isinstance(factor, Factor) else Factor(factor) for factor in self.factors
        )
        put("factors", factors)
        put("scope_set", frozenset(self.scopes))
        put("age", _span("max_authentication_age", self.max_authentication_age))
        put("factor_ages", tuple((it.method, _span("max_age", it.max_age)) for it in factors))

    def shortest_age(self) -> int | None:
        """Returns the shortest of the demanded times since an authentication, in whole seconds."""
        ages = [age for _, age in self.factor_ages if age is not None]
        if self.age is not None:
            ages.append(self.age)
        return min(ages) // SECOND if ages else None

    def request(self, access_token: str) -> ValidateRequest:
        """Asks the service the same of a token."""
        request = ValidateRequest(
            access_token=access_token,
            audience=self.audience,
            scopes=self.scopes,
            acr_values=self.acr_values,
            view=ValidateView.VALIDATE_VIEW_FULL,
        )
        if self.age is not None:
            request.max_authentication_age.FromMicroseconds(self.age)
        for method, age in self.factor_ages:
            factor = FactorDemand(method=method)
            if age is not None:
                factor.max_age.FromMicroseconds(age)
            request.factors.append(factor)
        return request
