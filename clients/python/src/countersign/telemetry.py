"""Metrics and spans by the API of OpenTelemetry, if `opentelemetry-api` is installed.

Call `observe` once for each verifier. Calls to the service have spans, and carry the current
context by the propagator that the application has set.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from countersign._clock import SECOND
from countersign._lease import FOR_EVER

try:
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
except ImportError:  # The dependency is optional.
    _HAS_OPENTELEMETRY = False
else:
    _HAS_OPENTELEMETRY = True

if TYPE_CHECKING:
    from countersign._verifying import BaseVerifier

# The value of the gauge for a lease that does not end.
_LONGEST: Final = 86_400.0


def observe(verifier: "BaseVerifier", meter: "Meter | None" = None) -> None:
    """Registers the metrics of a verifier. They end with the verifier.

    Without a meter, that of the global provider with the name `countersign` is used.

    | metric | kind | unit | meaning |
    |---|---|---|---|
    | `countersign.client.checks` | counter | `{check}` | checks, by `mode` and `result` |
    | `countersign.client.lease` | gauge | `s` | the time for which a verifier can still answer |
    | `countersign.client.watch.lag` | gauge | `s` | the time that the last renewal took |
    | `countersign.client.watch.revocations` | gauge | `{revocation}` | revocations in the copy |
    | `countersign.client.watch.connections` | counter | `{connection}` | streams that were begun |
    | `countersign.client.watch.resets` | counter | `{reset}` | streams with everything anew |

    Raises `RuntimeError` if `opentelemetry-api` is not installed.
    """
    if not _HAS_OPENTELEMETRY:
        raise RuntimeError("metrics need the package opentelemetry-api")
    it = meter if meter is not None else metrics.get_meter("countersign")
    reference = weakref.ref(verifier)

    def observed(
        read: "Callable[[BaseVerifier], Iterable[tuple[float, dict[str, str]]]]",
    ) -> "Callable[[CallbackOptions], Iterable[Observation]]":
        def callback(options: "CallbackOptions") -> "Iterable[Observation]":
            del options
            verifier = reference()
            if verifier is None:
                return
            for value, attributes in read(verifier):
                yield Observation(value, {"mode": verifier.mode.value, **attributes})

        return callback

    def of_status(
        read: "Callable[[Any], float]",
    ) -> "Callable[[BaseVerifier], Iterable[tuple[float, dict[str, str]]]]":
        return lambda verifier: [(read(verifier.status()), {})]

    it.create_observable_counter(
        "countersign.client.checks",
        [observed(lambda it: ((n, {"result": name}) for name, n in it.counts().items() if n))],
        unit="{check}",
        description="Checks of tokens by their result",
    )
    gauges: list[tuple[str, str, str, Callable[[Any], float]]] = [
        (
            "countersign.client.lease",
            "s",
            "The time for which the verifier can still answer by itself",
            lambda status: min(_LONGEST, status.lease or 0.0),
        ),
        (
            "countersign.client.watch.lag",
            "s",
            "The time of the last renewal",
            lambda status: status.lag,
        ),
        (
            "countersign.client.watch.revocations",
            "{revocation}",
            "Revocations in the copy of the verifier",
            lambda status: status.revocations,
        ),
    ]
    for name, unit, description, read in gauges:
        callbacks = [observed(of_status(read))]
        it.create_observable_gauge(name, callbacks, unit=unit, description=description)
    counters: list[tuple[str, str, str, Callable[[Any], float]]] = [
        (
            "countersign.client.watch.connections",
            "{connection}",
            "Streams, or fetches of keys, that were begun",
            lambda status: status.connections,
        ),
        (
            "countersign.client.watch.resets",
            "{reset}",
            "Streams that began with everything anew",
            lambda status: status.resets,
        ),
    ]
    for name, unit, description, read in counters:
        callbacks = [observed(of_status(read))]
        it.create_observable_counter(name, callbacks, unit=unit, description=description)


@contextmanager
def call_span(service: str, method: str) -> Iterator[None]:
    """Makes the span of a call."""
    if not _HAS_OPENTELEMETRY:
        yield
        return
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    tracer = trace.get_tracer("countersign")
    # Errors hold no token, so they may be recorded.
    kind = trace.SpanKind.CLIENT
    with tracer.start_as_current_span("countersign", kind=kind, attributes=attributes):
        yield


def call_metadata(authorization: str | None) -> tuple[tuple[str, str | bytes], ...]:
    """Returns the metadata of a call: the credentials, and the current context."""
    metadata: list[tuple[str, str | bytes]] = []
    if authorization is not None:
        metadata.append(("authorization", authorization))
    if _HAS_OPENTELEMETRY:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        metadata.extend((name.lower(), value) for name, value in carrier.items() if _can_send(name))
    return tuple(metadata)


def _can_send(name: str) -> bool:
    return all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in name)


def seconds(span: int) -> float:
    """Converts a span, for people and metrics."""
    return _LONGEST if span >= FOR_EVER else span / SECOND
