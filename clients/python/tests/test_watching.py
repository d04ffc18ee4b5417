"""Tests of the verifiers against the service: what they know, and when they know nothing."""

import asyncio
import gc
import json
import os
import threading
import time
from base64 import urlsafe_b64decode
from datetime import timedelta
from pathlib import Path

import pytest

from countersign import (
    Answer,
    Client,
    Demands,
    Inactive,
    InactiveReason,
    OnLapse,
    Unknown,
    UnknownReason,
    Verifier,
    aio,
)
from countersign._clock import SECOND, SettableClock, SystemClock
from countersign.errors import DeadlineExceededError
from countersign.proto import (
    CreateSessionRequest,
    ReauthenticateRequest,
    RevokeKeyRequest,
    RevokeRequest,
    RotateKeyRequest,
    SubjectTarget,
)
from tests.support import ISSUER, Front, Server, Site, eventually, of_token, request, sign_in

REVOKED = Inactive(InactiveReason.REVOKED)
NO_LEASE = Unknown(UnknownReason.NO_LEASE)
OVER = 3 * SECOND
"""Longer than any lease."""


def watcher(client: Client) -> Verifier:
    """Starts a verifier that answers only under a lease."""
    verifier = Verifier.local(client, on_lapse=OnLapse.REFUSE)
    assert verifier.ready(60)
    return verifier


def settled(verifier: Verifier, token: str) -> Answer:
    """Checks a token once there is a lease. On a busy machine a lease may end."""
    while (answer := verifier.verify_locally(token)) == NO_LEASE:
        assert verifier.ready(60)
    return answer


def threads() -> set[str]:
    return {it.name for it in threading.enumerate() if it.name.startswith("countersign-")}


@pytest.mark.usefixtures("server")
def test_a_revoked_token_is_inactive_before_revoke_returns(site: Site) -> None:
    revoked: list[str] = []
    wrong: list[Answer] = []
    is_done = threading.Event()
    times: list[float] = []

    def check_all(verifier: Verifier) -> None:
        while not is_done.wait(0.001):
            wrong.extend(
                answer for token in list(revoked) if (answer := settled(verifier, token)) != REVOKED
            )

    with site.client(deadline=10) as client, watcher(client) as verifier:
        other = threading.Thread(target=check_all, args=(verifier,))
        other.start()
        try:
            for number in range(40):
                token = sign_in(client, f"user-{number}")
                assert settled(verifier, token)
                began = time.monotonic()
                client.revoke(of_token(token))
                times.append(time.monotonic() - began)
                assert not verifier.verify_locally(token)
                assert settled(verifier, token) == REVOKED
                revoked.append(token)
        finally:
            is_done.set()
            other.join()
        assert wrong == []
        # A revocation is confirmed at once, and not by the next renewal in time.
        assert sorted(times)[len(times) // 2] < 0.2
        assert verifier.status().revocations >= 40


@pytest.mark.usefixtures("server")
def test_each_kind_of_revocation_reaches_the_verifier(site: Site) -> None:
    with site.client(deadline=10) as client, watcher(client) as verifier:

        def create(subject: str) -> tuple[str, str]:
            created = client.create_session(CreateSessionRequest(tenant="kinds", subject=subject))
            return created.session.session_id, created.tokens.access_token

        (_, alice), (spared, kept), (_, bob) = create("alice"), create("alice"), create("bob")
        client.revoke(
            RevokeRequest(
                subject=SubjectTarget(tenant="kinds", subject="alice", except_session_id=spared)
            )
        )
        assert settled(verifier, alice) == REVOKED
        assert settled(verifier, kept)
        # A reauthentication revokes the tokens that rest on the earlier authentication.
        again = client.reauthenticate(ReauthenticateRequest(session_id=spared)).tokens.access_token
        assert settled(verifier, kept) == REVOKED
        assert settled(verifier, again)
        assert settled(verifier, bob)
        client.revoke(RevokeRequest(tenant="kinds"))
        for token in (again, bob):
            assert settled(verifier, token) == REVOKED


@pytest.mark.usefixtures("server")
def test_all_modes_give_the_same_answers(site: Site) -> None:
    with site.client(deadline=10) as client, watcher(client) as local:
        remote = Verifier.remote(client)
        assert remote.ready()
        token = sign_in(client, "alice")
        demands = Demands(scopes=["orders:read"])
        sessions = [verifier.verify(token, demands).session for verifier in (local, remote)]
        assert sessions[0] is not None
        assert sessions[1] is not None
        assert sessions[0].to_dict() == sessions[1].to_dict()
        assert sessions[0].claim("seats") == 3
        assert sessions[1].claims == {"plan": "gold", "seats": 3}
        assert type(sessions[1].claim("seats")) is int
        assert sessions[0].expires_at > sessions[0].issued_at
        cases = [
            ("", Demands(), InactiveReason.MALFORMED),
            ("a" * 100_000, Demands(), InactiveReason.MALFORMED),
            ("\ud800", Demands(), InactiveReason.MALFORMED),
            ("cs_rt_x", Demands(), InactiveReason.WRONG_TYPE),
            (token, Demands(audience="https://other.test"), InactiveReason.WRONG_AUDIENCE),
            (token, Demands(scopes=["x"]), InactiveReason.INSUFFICIENT_SCOPE),
            (token, Demands(factors=["hwk"]), InactiveReason.STEP_UP_REQUIRED),
            (token, Demands(acr_values=["gold"]), InactiveReason.STEP_UP_REQUIRED),
        ]
        for text, asked, reason in cases:
            for verifier in (local, remote):
                assert verifier.verify(text, asked) == Inactive(reason), reason
        counts = remote.counts()
        assert (counts["active"], counts["step_up_required"], counts["malformed"]) == (1, 2, 3)
        client.revoke(of_token(token))
        assert remote.verify(token) == REVOKED
        assert remote.verify_locally(token) == NO_LEASE


def test_a_lease_ends_with_the_service_and_comes_back_with_it(tmp_path: Path) -> None:
    site = Site(tmp_path, "[limits]\nmax_watchers = 1\n")
    clock = SettableClock(SystemClock().wall())
    with site.client(deadline=1) as client:
        verifier = Verifier.local(client, on_lapse=OnLapse.REFUSE, clock=clock)
        assert not verifier.ready(0.05), "it waits for the service"
        with site.start() as server:
            assert verifier.ready(60)
            token, revoked = sign_in(client, "alice"), sign_in(client, "bob")
            client.revoke(of_token(revoked))
            # There is room for only one watcher, so this one asks.
            asking = Verifier.local(client)
            eventually("it has called", lambda: asking.status().connections > 1)
            assert asking.verify_locally(token) == NO_LEASE
            assert asking.verify(token)
            assert asking.verify(revoked) == REVOKED

            server.suspend()
            assert verifier.verify(token), "the lease has not ended"
            clock.advance(OVER)
            assert verifier.verify(token) == NO_LEASE
            assert verifier.verify(revoked) == NO_LEASE
            answer = asking.verify(token)
            assert isinstance(answer, Unknown)
            assert answer.reason is UnknownReason.NOT_ANSWERED
            assert isinstance(answer.error, DeadlineExceededError)
            # The clock stands still, and a wrong clock gets no lease.
            clock.jump_to(SystemClock().wall())
            server.go_on()
            assert verifier.ready(60)
            assert settled(verifier, token)
            assert settled(verifier, revoked) == REVOKED
            jump(verifier, clock, token)
            asking.close()
            server.kill()
        clock.advance(OVER)
        assert verifier.verify(token) == NO_LEASE
        clock.jump_to(SystemClock().wall())
        with site.start():
            assert verifier.ready(60)
            assert settled(verifier, token)
            assert settled(verifier, revoked) == REVOKED
            revoke_key(client, verifier, token)
        verifier.close()
        assert verifier.verify(token) == NO_LEASE


def jump(verifier: Verifier, clock: SettableClock, token: str) -> None:
    """A clock that jumps voids the lease, and a wrong clock never gets one."""
    true = clock.wall()
    for wrong in (true + 10 * SECOND, true - 10 * SECOND):
        clock.jump_to(wrong)
        assert verifier.verify_locally(token) == NO_LEASE
        assert not verifier.ready(0.7)
    clock.jump_to(true)
    assert verifier.ready(60)
    assert settled(verifier, token)


def revoke_key(client: Client, verifier: Verifier, token: str) -> None:
    """A revoked key verifies no token, not even one that was verified before."""
    header = json.loads(urlsafe_b64decode(token.split(".", maxsplit=1)[0] + "=="))
    client.revoke_key(RevokeKeyRequest(kid=header["kid"]))
    assert settled(verifier, token) == REVOKED
    assert settled(verifier, sign_in(client, "carol"))


@pytest.mark.usefixtures("server")
def test_the_verifier_for_asyncio_does_the_same(site: Site) -> None:
    async def run() -> None:
        async with aio.Client(site.url, deadline=10) as client:
            async with aio.Verifier.local(client, on_lapse=OnLapse.REFUSE) as verifier:
                assert await verifier.ready(60)
                created = await client.create_session(request("alice"))
                token = created.tokens.access_token
                remote = aio.Verifier.remote(client)
                assert await remote.ready()
                for it in (verifier, remote):
                    answer = await it.verify(token, Demands(scopes=["orders:read"]))
                    assert answer.session is not None
                    assert answer.session.subject == "alice"
                await client.revoke(of_token(token))
                assert not verifier.verify_locally(token)
                for it in (verifier, remote):
                    assert await it.verify(token) in (REVOKED, NO_LEASE)
                assert await remote.verify("") == Inactive(InactiveReason.MALFORMED)
            assert await verifier.verify(token) == NO_LEASE
            # Without a lease it asks.
            lapsed = aio.Verifier.local(client)
            await lapsed.close()
            assert await lapsed.verify(token) == REVOKED
        nobody = aio.Client("http://127.0.0.1:1", deadline=0.2)
        async with aio.Verifier.local(nobody) as waiting:
            assert not await waiting.ready(0.05)
            answer = await waiting.verify(token)
            assert isinstance(answer, Unknown)
            assert answer.reason is UnknownReason.NOT_ANSWERED
        await nobody.close()

    asyncio.run(run())
    assert threads() == set()


@pytest.mark.usefixtures("server")
def test_the_background_threads_end_with_the_verifier(site: Site) -> None:
    with site.client() as client:
        verifier = watcher(client)
        assert "countersign-watch" in threads()
        del verifier
        gc.collect()
        eventually("the threads end", lambda: not threads())


@pytest.mark.usefixtures("server")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_has_no_lease(site: Site) -> None:
    with site.client(deadline=10) as client, watcher(client) as verifier:
        token = sign_in(client, "alice")
        assert settled(verifier, token)
        child = os.fork()
        if child == 0:
            # Nobody tells this process what is revoked.
            is_refused = verifier.verify(token) == NO_LEASE
            verifier.close()
            os._exit(0 if is_refused else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert settled(verifier, token), "the parent goes on"


@pytest.mark.usefixtures("server")
def test_an_unwatched_verifier_accepts_a_revoked_token_until_it_expires(site: Site) -> None:
    clock = SettableClock(SystemClock().wall())
    with site.client(deadline=10) as client:
        token = sign_in(client, "alice")
        client.revoke(of_token(token))
        with (
            Verifier.local_unwatched(client, ISSUER, clock=clock) as verifier,
            Verifier.local_unwatched(client, "https://other.test", clock=clock) as other,
        ):
            assert verifier.ready(60)
            assert other.ready(60)
            assert verifier.verify(token), "it knows nothing of revocations"
            assert other.verify(token) == Inactive(InactiveReason.WRONG_ISSUER)
            clock.advance(3000 * SECOND)
            assert verifier.verify(token) == Inactive(InactiveReason.EXPIRED)


@pytest.mark.usefixtures("server")
def test_keys_that_cannot_be_fetched_again_are_used_for_a_limited_time(site: Site) -> None:
    clock = SettableClock(SystemClock().wall())
    with site.client(deadline=10) as client:
        token = sign_in(client, "alice")
    front = Front(site.address, lambda _, __, forward, ___: forward())
    with (
        Client(front.url, deadline=10) as client,
        Verifier.local_unwatched(client, ISSUER, keys_valid_for=30, clock=clock) as verifier,
    ):
        assert verifier.ready(60)
        front.stop()
        clock.advance(29 * SECOND)
        assert verifier.verify(token)
        clock.advance(30 * SECOND)
        assert verifier.verify(token) == NO_LEASE


def test_an_unwatched_verifier_fetches_the_keys_again_for_a_new_key(
    site: Site, server: Server
) -> None:
    del server
    with (
        site.client(deadline=10) as client,
        Verifier.local_unwatched(client, ISSUER) as verifier,
    ):
        assert verifier.ready(60)
        # After two rotations a token has a key that did not exist before.
        for _ in range(2):
            client.rotate_key(RotateKeyRequest(force=True))
        token = sign_in(client, "alice")
        assert verifier.verify(token) == Inactive(InactiveReason.UNKNOWN_KEY)
        eventually("the keys are fetched", lambda: bool(verifier.verify_locally(token)))


def test_a_stream_that_brings_no_lease_is_given_up() -> None:
    """A replica whose connections are accepted, and whose streams are silent."""
    release = threading.Event()

    def be_silent(*_: object) -> bytes:
        release.wait(20)
        return b""

    silent = Front(None, be_silent)
    with silent, Client(silent.url) as client:
        began = time.monotonic()
        with Verifier.local(client, on_lapse=OnLapse.REFUSE) as verifier:
            eventually("it calls again", lambda: verifier.status().connections > 1)
        assert 1.5 < time.monotonic() - began < 10
        release.set()
    assert threads() == set()


def test_demands_are_checked_when_they_are_made() -> None:
    with pytest.raises(TypeError, match="not a text"):
        Demands(scopes="orders:write")
    with pytest.raises(TypeError, match="must be a list"):
        Demands(factors="hwk")
    with pytest.raises(ValueError, match="negative"):
        Demands(max_authentication_age=timedelta(seconds=-1))
