"""Runs the vectors that all client libraries share (`clients/vectors`)."""

import json
from base64 import b64decode
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from countersign import Active, Demands, Factor, Inactive, Verifier
from countersign._clock import SECOND, SettableClock
from countersign._index import NotUnderstoodError
from countersign._local import Local
from countersign._verifying import Mode, Source
from countersign._watching import OtherTenantsError, UnexpectedLeaseError, Watching
from countersign.proto import (
    WatchKeys,
    WatchLease,
    WatchRequest,
    WatchResponse,
    WatchRevocations,
    WatchRules,
)

VECTORS = Path(__file__).resolve().parents[2] / "vectors"


def read(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


def demands(value: dict[str, Any]) -> Demands:
    """Reads demands. A member that is missing demands nothing."""

    def span(seconds: int | None) -> timedelta | None:
        return None if seconds is None else timedelta(seconds=seconds)

    factors = value.get("factors", [])
    return Demands(
        audience=value.get("audience", ""),
        scopes=value.get("scopes", []),
        acr_values=value.get("acr_values", []),
        max_authentication_age=span(value.get("max_authentication_age")),
        factors=[Factor(factor["method"], span(factor.get("max_age"))) for factor in factors],
    )


class Site:
    """A watcher that is handed the messages of a feed."""

    def __init__(self, wall: int) -> None:
        self.clock = SettableClock(wall)
        local = Local(self.clock, 1 << 20)
        self.watching = Watching(local)
        self.verifier = Verifier(Source(Mode.LOCAL, local))

    def hear(self, response: WatchResponse, cursor: bytes = b"") -> None:
        response.cursor = cursor
        self.watching.apply(response)

    def renew(self) -> WatchRequest:
        return self.watching.renew()

    def prepare(self, file: dict[str, Any]) -> None:
        """Gives the watcher the rules and keys of a file, no revocations, and a lease."""
        self.watching.open()
        rules = WatchRules(issuer=file["issuer"])
        rules.max_lifetime.seconds = file["max_lifetime"]
        rules.leeway.seconds = file["leeway"]
        rules.lease_margin.seconds = 1
        self.hear(WatchResponse(rules=rules))
        self.hear(WatchResponse(keys=WatchKeys(jwks=json.dumps(file["jwks"]))))
        self.hear(WatchResponse(revocations=WatchRevocations()), b"1")
        self.renew()
        lease = WatchLease(number=1)
        lease.valid_for.seconds = 2
        lease.expired_up_to.seconds = 0
        lease.now.seconds = file["at"]
        self.hear(WatchResponse(lease=lease))

    def check(self, token: str, vector: dict[str, Any]) -> str | None:
        """Checks a token. Returns a sentence if the answer is not the one in the vector."""
        asked = demands(vector.get("demands", {}))
        # The second answer might come from the cache of verified tokens.
        for _ in range(2):
            answer = self.verifier.verify_locally(token, asked)
            if isinstance(answer, Active):
                word = "ACTIVE"
            else:
                word = answer.reason.name if isinstance(answer, Inactive) else "UNKNOWN"
            if word != vector["answer"]:
                return f"{word} instead of {vector['answer']}"
            if bool(answer) != (word == "ACTIVE"):
                return "only an active answer may be true"
            expected = vector.get("session")
            if answer.session is not None and expected is not None:
                session = answer.session.to_dict()
                if session != expected:
                    return f"{session} instead of {expected}"
        return None

    def step(self, tokens: dict[str, str], step: dict[str, Any]) -> str | None:
        """Carries out a step. Returns a sentence if it does not lead to what it should."""
        match step["step"]:
            case "open":
                cursor = self.watching.open().start.cursor
                return None if cursor == b64decode(step["cursor"]) else f"the cursor is {cursor!r}"
            case "receive":
                self.watching.apply(WatchResponse.FromString(b64decode(step["message"])))
            case "refuse":
                try:
                    self.watching.apply(WatchResponse.FromString(b64decode(step["message"])))
                except (NotUnderstoodError, OtherTenantsError, UnexpectedLeaseError):
                    return None
                return "it was not refused"
            case "renew":
                applied = self.renew().renewal.applied
                return None if applied == b64decode(step["applied"]) else f"{applied!r} is applied"
            case "advance":
                target = self.clock.wall() + step["wall_ms"] * 1000
                self.clock.advance(step["uptime_ms"] * 1000)
                self.clock.jump_to(target)
            case "check":
                return self.check(tokens[step["token"]], step)
            case other:
                raise AssertionError(other)
        return None


@pytest.mark.parametrize("name", ["eddsa", "es256", "rs256", "demands"])
def test_the_vectors_of_tokens_hold(name: str) -> None:
    file = read(f"tokens-{name}")
    site = Site(file["at"] * SECOND)
    site.prepare(file)
    problems = [
        f"{vector['name']}: {problem}"
        for vector in file["vectors"]
        if (problem := site.check(vector["token"], vector)) is not None
    ]
    assert len(file["vectors"]) > 30
    assert problems == []


FEEDS = [feed for name in ("rules", "recorded") for feed in read(f"feeds-{name}")["feeds"]]


@pytest.mark.parametrize("feed", FEEDS, ids=[feed["name"] for feed in FEEDS])
def test_the_vectors_of_feeds_hold(feed: dict[str, Any]) -> None:
    site = Site(feed["wall_ms"] * 1000)
    problems = [
        f"step {number} {step}: {problem}"
        for number, step in enumerate(feed["steps"])
        if (problem := site.step(feed["tokens"], step)) is not None
    ]
    assert problems == []
