"""Tests of calls: deadlines, repetitions at other replicas, errors, and credentials."""

import asyncio
import pickle
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import grpc
import pytest

from countersign import (
    BuildError,
    Client,
    CountersignError,
    Reason,
    Verifier,
    aio,
)
from countersign._endpoints import Endpoints
from countersign.errors import (
    CallerNotAllowedError,
    CallerUnknownError,
    DeadlineExceededError,
    InvalidFieldError,
    OverloadedError,
    SessionNotFoundError,
    StoreUnavailableError,
    UnreachableError,
)
from countersign.proto import (
    CreateSessionRequest,
    CreateSessionResponse,
    GetJwksRequest,
    GetSessionRequest,
    ListSessionsRequest,
    ReauthenticateRequest,
    RefreshRequest,
)
from tests.support import Front, Site, executable, refuse, request, sign_in, variables

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def sessions(client: Client, subject: str) -> int:
    return len(client.list_sessions(ListSessionsRequest(subject=subject)).sessions)


@pytest.mark.usefixtures("server")
def test_a_repeated_creation_yields_one_session(site: Site) -> None:
    def answer(
        number: int, _: bytes, forward: Callable[[], bytes], context: grpc.ServicerContext
    ) -> bytes:
        # The first answers are lost.
        answered = forward()
        return answered if number > 1 else refuse(context, UNAVAILABLE, "STORE_UNAVAILABLE")

    with Front(site.address, answer) as front, Client(front.url, deadline=10) as client:
        mine = request("repeated")
        client.create_session(mine)
        assert mine.request_id == "", "the request of the caller is not changed"
        ids = {CreateSessionRequest.FromString(call).request_id for _, call in front.calls}
    assert len(front.calls) == 3
    assert len(ids) == 1
    assert ids != {""}
    with site.client() as client:
        assert sessions(client, "repeated") == 1


@pytest.mark.usefixtures("server")
def test_a_refresh_is_repeated_only_if_the_service_has_done_nothing(site: Site) -> None:
    def answer(
        number: int, _: bytes, forward: Callable[[], bytes], context: grpc.ServicerContext
    ) -> bytes:
        if number == 0:
            return refuse(context, UNAVAILABLE, "NOT_CURRENT")
        answered = forward()
        return answered if number > 1 else refuse(context, UNAVAILABLE, "STORE_UNAVAILABLE")

    with site.client() as client:
        tokens = client.create_session(request("alice")).tokens
    refresh = RefreshRequest(refresh_token=tokens.refresh_token)
    with Front(site.address, answer) as front, Client(front.url, deadline=10) as client:
        with pytest.raises(StoreUnavailableError) as raised:
            client.refresh(refresh)
        assert raised.value.is_temporary
        assert not raised.value.is_refused
        assert len(front.calls) == 2
        assert client.refresh(refresh).replayed, "the grace makes a repetition safe"


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("reason", ["NOT_CURRENT", "STORE_UNAVAILABLE"])
def test_another_replica_answers_if_one_is_gone_or_not_current(site: Site, reason: str) -> None:
    def answer(_: int, __: bytes, ___: Callable[[], bytes], context: grpc.ServicerContext) -> bytes:
        return refuse(context, UNAVAILABLE, reason, 30.0)

    with (
        Front(None, answer) as stopping,
        Client(["http://127.0.0.1:1", stopping.url, site.url], deadline=10) as client,
    ):
        for _ in range(6):
            client.create_session(request(reason))
        assert sessions(client, reason) == 6
        assert len(stopping.calls) <= 2, "a replica that fails is avoided"


def test_the_wait_that_a_service_asks_for_is_kept() -> None:
    def answer(
        number: int, _: bytes, __: Callable[[], bytes], context: grpc.ServicerContext
    ) -> bytes:
        exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
        if number == 0:
            return refuse(context, exhausted, "OVERLOADED", 0.15)
        if number == 2:
            return refuse(context, exhausted, "OVERLOADED", 60.0)
        return CreateSessionResponse().SerializeToString()

    # With an overloaded service, another replica makes no difference.
    with Front(None, answer) as front, Client([front.url] * 2, deadline=10) as client:
        began = time.monotonic()
        client.create_session(request("alice"))
        assert time.monotonic() - began >= 0.15
        assert len(front.calls) == 2
        with pytest.raises(OverloadedError) as raised:
            client.create_session(request("alice"))
        assert raised.value.retry_after == 60.0
        assert len(front.calls) == 3


def test_a_call_ends_at_its_deadline() -> None:
    release = Event()

    def answer(_: int, __: bytes, ___: Callable[[], bytes], ____: grpc.ServicerContext) -> bytes:
        release.wait(20)
        return b""

    with Front(None, answer) as front:
        with Client(front.url, deadline=0.3) as client:
            for deadline, expected in ((None, 0.3), (0.1, 0.1)):
                began = time.monotonic()
                with pytest.raises(DeadlineExceededError):
                    client.get_session(GetSessionRequest(), deadline=deadline)
                assert expected <= time.monotonic() - began < expected + 5
        release.set()
    with Client("http://127.0.0.1:1", deadline=0.3) as client:
        with pytest.raises(UnreachableError) as raised:
            client.refresh(RefreshRequest())
        assert raised.value.is_refused, "the call has not left this process"


def test_a_connection_that_is_accepted_and_never_answered_does_not_hold_up_calls() -> None:
    def answer(_: int, __: bytes, ___: Callable[[], bytes], ____: grpc.ServicerContext) -> bytes:
        return CreateSessionResponse().SerializeToString()

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Front(None, answer) as front,
        Client(
            [f"http://127.0.0.1:{silent.getsockname()[1]}", front.url],
            deadline=10,
            connect_timeout=0.2,
        ) as client,
    ):
        began = time.monotonic()
        client.create_session(request("alice"))
        assert time.monotonic() - began < 5


def test_calls_go_on_after_a_server_says_goaway() -> None:
    def answer(_: int, __: bytes, ___: Callable[[], bytes], ____: grpc.ServicerContext) -> bytes:
        time.sleep(0.2)
        return CreateSessionResponse().SerializeToString()

    with Front(None, answer) as leaving, Front(None, answer) as staying:
        client = Client([leaving.url, staying.url], deadline=10)
        client.create_session(request("alice"))
        # A server that stops in good order finishes its calls, and accepts no more.
        stopped = leaving.server.stop(10)
        for _ in range(4):
            client.create_session(request("alice"))
        stopped.wait()
        assert len(leaving.calls) + len(staying.calls) == 5
        client.close()


@pytest.mark.usefixtures("server")
def test_errors_have_their_reason_and_their_details(site: Site) -> None:
    with site.client() as client:
        with pytest.raises(InvalidFieldError) as invalid:
            client.create_session(CreateSessionRequest())
        error = invalid.value
        assert (error.code, error.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            Reason.INVALID_FIELD,
        )
        assert error.fields[0].field == "subject"
        assert str(error).startswith("INVALID_FIELD (INVALID_ARGUMENT): subject")
        with pytest.raises(SessionNotFoundError) as missing:
            client.get_session(GetSessionRequest(session_id="0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22"))
        assert not missing.value.is_temporary
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copied) is InvalidFieldError
    assert (str(copied), copied.fields) == (str(error), error.fields)


def test_every_reason_of_the_service_is_known() -> None:
    source = Path(__file__).parents[3] / "src" / "grpc" / "status.rs"
    code = source.read_text(encoding="utf-8").split("#[cfg(test)]", maxsplit=1)[0]
    reasons = re.findall('"([A-Z_]{5,})"', code)
    assert len(reasons) > 25
    for reason in reasons:
        assert Reason(reason) is not Reason.OTHER
        made = CountersignError.of(grpc.StatusCode.UNKNOWN, Reason(reason), "")
        assert type(made) is not CountersignError, reason


def certificates(folder: Path) -> None:
    """Makes an authority, a certificate of a server, and one of a client."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test")
    for name, names in (("server", "DNS:localhost,IP:127.0.0.1"), ("shop", "DNS:shop.test")):
        (folder / "names").write_text(f"subjectAltName={names}\n", encoding="utf-8")
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=x")
        ca = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *ca, "-out", f"{name}.pem")


def api_key() -> tuple[str, str]:
    """Returns an API key and its hash."""
    command = [executable(), "caller", "new", "--role", "issuer", "login"]
    done = subprocess.run(command, env=variables(), check=True, capture_output=True, text=True)
    key, hashed = re.search(r"cs_ck_\S+", done.stdout), re.search(r"sha256:[\w-]+", done.stdout)
    assert key is not None
    assert hashed is not None
    return key.group(), hashed.group()


def test_callers_identify_by_an_api_key_or_a_client_certificate(tmp_path: Path) -> None:
    certificates(tmp_path)
    key, hashed = api_key()
    site = Site(
        tmp_path,
        f"[[callers]]\nname = 'login'\nkey_hashes = ['{hashed}']\nroles = ['issuer', 'validator']\n"
        "[[callers]]\nname = 'shop'\ncertificate_names = ['dns:shop.test']\n"
        "roles = ['validator']\n"
        f"[tls]\ncertificate_file = '{tmp_path / 'server.pem'}'\n"
        f"private_key_file = '{tmp_path / 'server.key'}'\n"
        f"client_ca_file = '{tmp_path / 'ca.pem'}'\n",
    )
    url = site.url.replace("http://", "https://")
    ca = (tmp_path / "ca.pem").read_bytes()
    identity = ((tmp_path / "shop.pem").read_bytes(), (tmp_path / "shop.key").read_bytes())
    with site.start():
        with (
            Client(url, ca_certificate=ca, deadline=10) as nobody,
            pytest.raises(CallerUnknownError),
        ):
            nobody.create_session(request("alice"))
        with Client(url, ca_certificate=ca, api_key=key) as login:
            token = sign_in(login, "alice")
        with Client(url, ca_certificate=ca, client_certificate=identity, deadline=10) as shop:
            with pytest.raises(CallerNotAllowedError):
                shop.create_session(request("alice"))
            assert Verifier.remote(shop).verify(token)
            with Verifier.local(shop) as verifier:
                assert verifier.ready(20)
                assert verifier.verify_locally(token)

            async def asks() -> bool:
                async with aio.Client(
                    url, ca_certificate=ca, client_certificate=identity, deadline=10
                ) as client:
                    return bool(await aio.Verifier.remote(client).verify(token))

            assert asyncio.run(asks())
        for settings in (Client(url), Client(url, ca_certificate=ca, server_name="other.test")):
            with settings as stranger, pytest.raises(UnreachableError):
                stranger.get_jwks(GetJwksRequest())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:50051",
        "ftp://localhost",
        "http://",
        "http://a:b",
        "http://u@a",
        "http://a/b",
        "http://a b",
        "http://a\n",
    ],
)
def test_wrong_endpoints_are_refused(url: str) -> None:
    with pytest.raises(BuildError, match="is not the URL of an endpoint"):
        Client(url)
    with pytest.raises(BuildError, match="is not the URL of an endpoint"):
        aio.Client(url)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(BuildError, match="no endpoint"):
        Client([])
    with pytest.raises(BuildError, match="is not encrypted"):
        Client("http://localhost", ca_certificate=b"x")
    with pytest.raises(BuildError, match="characters that cannot be sent"):
        Client("http://localhost", api_key="a\nb")
    with pytest.raises(BuildError, match="not in PEM"):
        Client("https://localhost", client_certificate=(b"x", b"y"))
    with pytest.raises(BuildError, match="others are not"):
        Client(["https://localhost", "http://localhost"])
    with pytest.raises(BuildError, match="greater than zero"):
        Client("http://localhost", deadline=0)


def test_an_api_key_that_is_not_encrypted_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    Client("http://127.0.0.1", api_key="topsecret").close()
    assert caplog.text == ""
    Client("http://sessions.test", api_key="topsecret").close()
    assert "without encryption" in caplog.text
    assert "topsecret" not in caplog.text


def test_calls_go_around_and_avoid_a_replica_that_has_failed() -> None:
    endpoints = Endpoints(3)
    assert [endpoints.next() for _ in range(4)] == [0, 1, 2, 0]
    endpoints.avoid(1)
    assert [endpoints.next() for _ in range(4)] == [2, 2, 0, 2]
    endpoints.trust(1)
    assert [endpoints.next() for _ in range(3)] == [2, 0, 1]
    for replica in range(3):
        endpoints.avoid(replica)
    assert [endpoints.next() for _ in range(3)] == [2, 0, 1], "one is chosen although all failed"


@pytest.mark.usefixtures("server")
def test_the_client_for_asyncio_does_the_same(site: Site) -> None:
    is_slow = Event()

    def answer(
        number: int, _: bytes, forward: Callable[[], bytes], context: grpc.ServicerContext
    ) -> bytes:
        if is_slow.is_set():
            time.sleep(0.5)
        answered = forward()
        return answered if number > 0 else refuse(context, UNAVAILABLE, "STORE_UNAVAILABLE")

    async def run(front: Front) -> None:
        async with aio.Client(["http://127.0.0.1:1", front.url], deadline=10) as client:
            created = await client.create_session(request("awaited"))
            assert created.session.subject == "awaited"
            unknown = GetSessionRequest(session_id="0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22")
            with pytest.raises(SessionNotFoundError):
                await client.get_session(unknown)
            reauthenticate = ReauthenticateRequest(session_id=created.session.session_id)
            again = await client.reauthenticate(reauthenticate)
            assert again.session.session_id == created.session.session_id
            assert reauthenticate.request_id == ""
            is_slow.set()
            with pytest.raises(DeadlineExceededError):
                await client.list_sessions(ListSessionsRequest(), deadline=0.1)

    with Front(site.address, answer) as front:
        asyncio.run(run(front))
        creations = [call for path, call in front.calls if path.endswith("CreateSession")]
        assert len(creations) == 2
        assert creations[0] == creations[1]
    with site.client() as client:
        assert sessions(client, "awaited") == 1
