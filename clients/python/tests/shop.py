"""The cases that the example applications have in common."""

import http.client
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from countersign import Client
from countersign.proto import CreateSessionRequest, ReauthenticateRequest, RevokeRequest
from countersign.structs import to_struct
from tests.support import HANGS, Site

SHOP = "https://shop.example"


@dataclass
class Answered:
    """An answer of the shop."""

    status: int
    challenge: str
    body: str


class Shop:
    """A shop that serves at an address."""

    def __init__(self, address: str) -> None:
        self._address = address

    def call(self, request: str, token: str | None = None, **headers: str) -> Answered:
        """Calls a route, such as `GET /me`."""
        method, target = request.split(" ")
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection(self._address, timeout=30)
        try:
            connection.request(method, target, headers=headers)
            answer = connection.getresponse()
            challenge = answer.headers.get("www-authenticate", "")
            return Answered(answer.status, challenge, answer.read().decode())
        finally:
            connection.close()

    def until(self, token: str, is_expected: Callable[[Answered], bool]) -> None:
        """Calls until the answer is as expected."""
        ends = time.monotonic() + HANGS
        while not is_expected(answer := self.call("GET /me", token)):
            assert time.monotonic() < ends, answer
            time.sleep(0.02)


@contextmanager
def running(program: Path, endpoint: str) -> Iterator[Shop]:
    """Runs a shop, which ends with the test."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("COUNTERSIGN")
    }
    variables |= {"COUNTERSIGN_ENDPOINTS": endpoint, "LISTEN": "127.0.0.1:0"}
    process = subprocess.Popen(
        [sys.executable, str(program)], env=variables, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    output = process.stderr
    log = []
    try:
        for line in output:
            log.append(line)
            found = re.search(r"on http://(127\.0\.0\.1:\d+)", line)
            if found is not None:
                # The pipe must not fill up.
                reader = Thread(target=output.read, daemon=True)
                reader.start()
                yield Shop(found.group(1))
                break
        else:
            raise AssertionError("the shop has ended: " + "".join(log))
    finally:
        process.kill()
        process.wait()
        # Closing waits for the thread that reads.
        output.close()


def check_shop(program: Path, folder: Path) -> None:
    """Starts the authority and the shop, and calls each route with each kind of token."""
    site = Site(folder)
    text = site.file.read_text(encoding="utf-8")
    site.file.write_text(re.sub("default_audience = .*", f"default_audience = '{SHOP}'", text))
    with (
        site.start() as authority,
        running(program, site.url) as shop,
        site.client(deadline=10) as client,
    ):
        brief = CreateSessionRequest(subject="alice")
        brief.access_token_ttl.seconds = 1
        expiring = client.create_session(brief).tokens.access_token
        good = check_tokens(client, shop)
        check_step_up(client, shop)
        shop.until(expiring, lambda answer: "has expired" in answer.challenge)

        authority.kill()
        shop.until(good, lambda answer: answer.status == 503)
        assert shop.call("GET /").status == 200, "what is public stays so"


def check_tokens(client: Client, shop: Shop) -> str:
    """Calls the routes with tokens of all kinds. Returns a good one."""

    def sign_in(audience: list[str], scopes: list[str]) -> str:
        request = CreateSessionRequest(
            subject="alice", audience=audience, scopes=scopes, claims=to_struct({"plan": "gold"})
        )
        return client.create_session(request).tokens.access_token

    good = sign_in([], [])
    assert shop.call("GET /") == Answered(200, "", "welcome")
    assert shop.call("GET /", good).body == "welcome back, alice"
    answer = shop.call("GET /me")
    assert (answer.status, answer.challenge) == (401, f'Bearer realm="{SHOP}"')
    answer = shop.call("GET /me", "bad")
    assert answer.status == 401
    assert 'error="invalid_token"' in answer.challenge
    assert answer.body.startswith('{"error":"invalid_token"')
    answer = shop.call("GET /me", good)
    assert answer.status == 200
    assert '"subject":"alice"' in answer.body
    assert '"plan":"gold"' in answer.body
    assert shop.call("GET /me", cookie=f"access_token={good}").status == 200
    ordering = sign_in([], ["orders:write"])
    answer = shop.call("GET /me", good, cookie=f"access_token={ordering}")
    assert answer.status == 400
    assert 'error="invalid_request"' in answer.challenge

    answer = shop.call("GET /me", sign_in(["https://other.example"], []))
    assert answer.status == 401
    assert "not meant for this resource" in answer.challenge
    answer = shop.call("POST /orders", good)
    assert answer.status == 403
    assert 'scope="orders:write"' in answer.challenge
    assert shop.call("POST /orders", ordering) == Answered(200, "", "ordered by alice")
    client.revoke(RevokeRequest(token=ordering))
    answer = shop.call("POST /orders", ordering)
    assert answer.status == 401
    assert "has been revoked" in answer.challenge
    return good


def check_step_up(client: Client, shop: Shop) -> None:
    """Pays, which needs another authentication."""
    created = client.create_session(CreateSessionRequest(subject="bob"))
    token = created.tokens.access_token
    answer = shop.call("POST /payments", token)
    assert answer.status == 401
    for part in ("insufficient_user_authentication", 'acr_values="gold"', 'max_age="300"'):
        assert part in answer.challenge
    again = ReauthenticateRequest(session_id=created.session.session_id, acr="gold")
    tokens = client.reauthenticate(again).tokens
    assert shop.call("POST /payments", tokens.access_token) == Answered(200, "", "paid by bob")
    assert "has been revoked" in shop.call("GET /me", token).challenge, "the earlier token"
