"""The client of the Countersign session authority: typed calls, and verification of access tokens.

`countersign.aio` has the client and the verifier for asyncio. The middleware is in
`countersign.asgi`, `countersign.fastapi`, `countersign.wsgi`, `countersign.django` and
`countersign.interceptors`, and an authority for tests in `countersign.testing`.
"""

from countersign.answer import Active, Answer, Inactive, Unknown
from countersign.client import Client
from countersign.demands import Demands, Factor
from countersign.errors import BuildError, CountersignError, FieldViolation, Reason
from countersign.reasons import InactiveReason, UnknownReason
from countersign.session import Session
from countersign.verifier import Mode, OnLapse, Status, Verifier

__all__ = [
    "Active",
    "Answer",
    "BuildError",
    "Client",
    "CountersignError",
    "Demands",
    "Factor",
    "FieldViolation",
    "Inactive",
    "InactiveReason",
    "Mode",
    "OnLapse",
    "Reason",
    "Session",
    "Status",
    "Unknown",
    "UnknownReason",
    "Verifier",
]
