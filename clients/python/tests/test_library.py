"""Tests of the authority for tests, of the metrics and spans, of secrecy, and of the README."""

import asyncio
import logging
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from countersign import (
    Active,
    Client,
    Demands,
    Factor,
    Inactive,
    InactiveReason,
    Mode,
    OnLapse,
    Unknown,
    UnknownReason,
    Verifier,
    aio,
    proto,
    structs,
    telemetry,
)
from countersign._cache import VerifiedCache
from countersign._verifying import read_answer
from countersign.errors import UnreachableError
from countersign.testing import AUDIENCE, Authority
from tests.support import Front, Server, Site, eventually, of_token, request, sign_in

ROOT = Path(__file__).parents[1]
API_KEY = "cs_ck_topsecret0123456789"


def test_tokens_expire_are_revoked_and_cannot_be_checked_while_the_authority_is_unavailable() -> (
    None
):
    authority = Authority()
    verifier = authority.verifier()
    token, other = (
        authority.token(it, tenant="acme", claims={"plan": "gold"}) for it in ("alice", "bob")
    )
    answer = verifier.verify(token)
    assert isinstance(answer, Active)
    session = answer.session
    assert (session.subject, session.tenant, session.audience) == ("alice", "acme", (AUDIENCE,))
    assert session.claim("plan") == "gold"
    assert session.claim("other") is None
    assert session.issued_at <= datetime.now(UTC)
    authority.revoke(token)
    assert verifier.verify(token) == Inactive(InactiveReason.REVOKED)
    assert verifier.verify(other)
    authority.set_unavailable(True)
    assert verifier.verify(other) == Unknown(UnknownReason.NO_LEASE)
    authority.set_unavailable(False)
    assert verifier.verify(other)
    authority.advance(timedelta(minutes=15))
    assert verifier.verify(other) == Inactive(InactiveReason.EXPIRED)
    assert Authority().verifier().verify(other) == Inactive(InactiveReason.BAD_SIGNATURE)
    with pytest.raises(ValueError, match="not from this authority"):
        Authority().revoke(other)
    with pytest.raises(ValueError, match="taken"):
        authority.token("alice", claims={"exp": 1})


def test_demands_on_factors_are_those_of_the_token() -> None:
    authority = Authority()
    verifier = authority.aio_verifier()
    token = authority.token(
        "alice", factors=["hwk"], authenticated_ago=timedelta(seconds=30), client_id="web"
    )

    def check(age: int | None) -> Any:
        max_age = None if age is None else timedelta(seconds=age)
        return asyncio.run(verifier.verify(token, Demands(factors=[Factor("hwk", max_age)])))

    assert check(None)
    assert check(60)
    assert check(10) == Inactive(InactiveReason.STEP_UP_REQUIRED)
    session = check(None).session
    assert session.client_id == "web"
    assert session.verified_at("hwk") == session.authenticated_at
    assert session.verified_at("otp") is None
    assert verifier.mode is Mode.TESTING


def test_the_cache_is_bounded_and_keeps_what_is_used() -> None:
    authority = Authority()
    verifier = authority.verifier()
    cache = VerifiedCache(100_000)
    used = authority.token("used")
    tokens = [used, *(authority.token(f"user-{it}") for it in range(200))]
    for token in tokens:
        answer = verifier.verify(token)
        assert answer.session is not None
        cache.insert(token.encode(), answer.session._claims)  # type: ignore[arg-type]
        assert cache.get(used.encode()) is not None
    assert 20 < len(cache) < 60
    assert cache.get(tokens[1].encode()) is None
    nothing = VerifiedCache(0)
    answer = verifier.verify(used)
    assert answer.session is not None
    nothing.insert(b"", answer.session._claims)  # type: ignore[arg-type]
    assert len(nothing) == 0


def test_an_answer_that_cannot_be_understood_is_never_active() -> None:
    active = proto.ValidateResponse(active=True)
    other = proto.ValidateResponse(inactive_reason=99)  # type: ignore[arg-type]
    for answer in (active, other, proto.ValidateResponse()):
        read = read_answer(answer)
        assert read == Unknown(UnknownReason.NOT_UNDERSTOOD)
        assert not read
    for reason in InactiveReason:
        number = f"INACTIVE_REASON_{reason.name}"
        assert read_answer(proto.ValidateResponse(inactive_reason=number)) == Inactive(reason)
    known = {it.removeprefix("INACTIVE_REASON_") for it in proto.InactiveReason.keys()}  # noqa: SIM118
    assert known - {"UNSPECIFIED"} == set(InactiveReason.__members__)


def test_json_survives_the_conversion_to_a_struct_and_back() -> None:
    claims: dict[str, structs.Json] = {
        "text": "\u00e9",
        "whole": 42,
        "negative": -7,
        "fraction": 0.5,
        "null": None,
        "yes": True,
        "list": [1, [True, {}], "x"],
        "deep": {"a": {"b": []}},
    }
    back = structs.from_struct(structs.to_struct(claims))
    assert back == claims
    assert type(back["whole"]) is int
    assert type(back["yes"]) is bool


def test_proto_has_all_messages() -> None:
    for name in ("audit_service", "key_service", "revocation_service", "session"):
        module = __import__(f"countersign.v1.{name}_pb2", fromlist=["DESCRIPTOR"])
        descriptor = module.DESCRIPTOR
        for it in (*descriptor.message_types_by_name, *descriptor.enum_types_by_name):
            assert it in proto.__all__
            assert getattr(proto, it) is getattr(module, it)


def read_metrics(reader: InMemoryMetricReader) -> dict[str, list[tuple[dict[str, Any], float]]]:
    data = reader.get_metrics_data()
    seen: dict[str, list[tuple[dict[str, Any], float]]] = {}
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points: Any = metric.data.data_points
                seen[metric.name] = [(dict(it.attributes), it.value) for it in points]
    return seen


def test_checks_are_counted_by_mode_and_result_as_long_as_the_verifier_lives() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    authority = Authority()
    verifier = authority.verifier()
    telemetry.observe(verifier, provider.get_meter("test"))
    token = authority.token("alice")
    for _ in range(2):
        verifier.verify(token)
    authority.revoke(token)
    verifier.verify(token)
    seen = read_metrics(reader)
    assert seen["countersign.client.lease"] == [({"mode": "testing"}, 86_400.0)]
    authority.set_unavailable(True)
    verifier.verify(token)
    seen = read_metrics(reader)
    assert sorted(seen["countersign.client.checks"], key=str) == [
        ({"mode": "testing", "result": "active"}, 2),
        ({"mode": "testing", "result": "revoked"}, 1),
        ({"mode": "testing", "result": "unknown"}, 1),
    ]
    assert seen["countersign.client.lease"] == [({"mode": "testing"}, 0.0)]
    assert seen["countersign.client.watch.revocations"] == [({"mode": "testing"}, 1)]
    assert set(seen) == {
        *("countersign.client.checks", "countersign.client.lease"),
        *("countersign.client.watch.lag", "countersign.client.watch.revocations"),
        *("countersign.client.watch.connections", "countersign.client.watch.resets"),
    }
    del verifier
    # Counters keep their last values; the gauges have none any more.
    assert "countersign.client.lease" not in read_metrics(reader)
    provider.shutdown()


def test_calls_have_spans_and_carry_the_context() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    assert "traceparent" in propagate.get_global_textmap().fields

    def answer(*_: object) -> bytes:
        return b""

    with Front(None, answer) as front:
        with Client(front.url, api_key=API_KEY) as client:
            client.get_session(proto.GetSessionRequest())
        with (
            Client("http://127.0.0.1:1", deadline=0.1) as nobody,
            pytest.raises(UnreachableError),
        ):
            nobody.get_session(proto.GetSessionRequest())
        good, bad = exporter.get_finished_spans()
        assert good.name == "countersign"
        assert good.kind is trace.SpanKind.CLIENT
        assert good.attributes == {
            "rpc.system": "grpc",
            "rpc.service": "SessionService",
            "rpc.method": "GetSession",
        }
        assert bad.status.status_code is trace.StatusCode.ERROR
        (metadata,) = front.metadata
        assert good.context is not None
        assert f"{good.context.span_id:016x}" in metadata["traceparent"]
        assert metadata["authorization"] == f"Bearer {API_KEY}"


def test_opentelemetry_is_not_needed() -> None:
    program = """
import sys
sys.modules["opentelemetry"] = None
from countersign import Client, CountersignError, telemetry
from countersign.proto import GetJwksRequest
from countersign.testing import Authority
assert telemetry.call_metadata("x") == (("authorization", "x"),)
authority = Authority()
assert authority.verifier().verify(authority.token("alice"))
try:
    Client("http://127.0.0.1:1", deadline=0.05).get_jwks(GetJwksRequest())
except CountersignError:
    pass
try:
    telemetry.observe(authority.verifier())
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout == "metrics need the package opentelemetry-api\n"


def test_no_text_form_and_no_error_holds_a_secret() -> None:
    authority = Authority()
    token = authority.token("alice", claims={"plan": "gold"})
    verifier = authority.verifier()
    answer = verifier.verify(token)
    with Client("http://127.0.0.1:1", api_key=API_KEY, deadline=0.1) as client:
        unknown = Verifier.remote(client).verify(token)
        assert isinstance(unknown, Unknown)
        tokens = proto.Tokens(access_token=token)
        outputs: list[object] = [
            *(answer, authority, verifier, client, unknown, unknown.error),
            *(authority.aio_verifier(), aio.Client("http://127.0.0.1:1", api_key=API_KEY)),
            *(client.settings, tokens, request("alice"), of_token(token)),
            proto.ValidateRequest(access_token=token),
            proto.BatchValidateRequest(requests=[proto.ValidateRequest(access_token=token)]),
            proto.RefreshRequest(refresh_token=token),
            proto.CreateSessionResponse(tokens=tokens),
            read_answer(proto.ValidateResponse(active=True, subject="alice")),
        ]
    for output in outputs:
        for form in (repr(output), str(output), f"{output}"):
            for secret in (token.rsplit(".", 1)[1], API_KEY, "gold", "alice"):
                assert secret not in form, form


def test_the_log_holds_no_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    site = Site(tmp_path)
    with (
        site.start() as server,
        Client(site.url, api_key=API_KEY, deadline=2) as client,
        Verifier.local(client) as verifier,
        Verifier.local(client, on_lapse=OnLapse.REFUSE) as refusing,
    ):
        assert verifier.ready(60)
        token = sign_in(client, "alice")
        assert refusing.ready(60)
        server.kill()
        # The lease outlives the stream.
        eventually("the lease ends", lambda: verifier.status().lease is None)
        answer = verifier.verify(token)
        assert isinstance(answer, Unknown)
        assert answer.reason is UnknownReason.NOT_ANSWERED
        eventually(
            "the other one, too",
            lambda: refusing.verify(token) == Unknown(UnknownReason.NO_LEASE),
        )
    assert "the watch stream has ended" in caplog.text
    assert "could not be validated" in caplog.text
    for secret in (token.rsplit(".", 1)[1], API_KEY):
        assert secret not in caplog.text


def test_a_service_that_refuses_to_validate_is_an_error_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(_: int, __: bytes, ___: object, context: grpc.ServicerContext) -> bytes:
        from tests.support import refuse  # noqa: PLC0415

        return refuse(context, grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNKNOWN")

    with Front(None, answer) as front, Client(front.url) as client:
        assert not Verifier.remote(client).verify("a.b.c")
    assert "the service refuses to validate tokens: CALLER_UNKNOWN" in caplog.text


def snippets() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT.parents[1] / "docs" / "clients" / "python.md").read_text(encoding="utf-8")
    return re.findall("```python\n(.*?)```", text + page, re.DOTALL)


@pytest.mark.parametrize("snippet", snippets())
def test_every_snippet_of_the_documentation_runs(
    snippet: str, site: Site, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    del server
    monkeypatch.setenv("COUNTERSIGN_API_KEY", API_KEY)
    # The documentation names replicas that do not exist here, with encryption.
    runnable = re.sub(r"https://sessions-\d\.example:50051", site.url, snippet)
    for argument in ("ca_certificate", "client_certificate", "server_name"):
        runnable = re.sub(rf"^ +{argument}=.*\n", "", runnable, flags=re.MULTILINE)
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(runnable, "snippet", "exec"), names)  # noqa: S102
    for name, function in list(names.items()):
        if name.startswith("test_") and callable(function):
            function()
    if asyncio.iscoroutinefunction(names.get("main")):
        asyncio.run(names["main"]())
    for value in names.values():
        if isinstance(value, Verifier | Client):
            value.close()
