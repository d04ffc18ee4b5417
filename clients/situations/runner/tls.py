"""Situations of TLS, callers and roles."""

from typing import Any

from runner.calls import answers
from runner.situation import (
    ACTIVE,
    ANY,
    UNKNOWN,
    Situation,
    anybody,
    check,
    failed,
    inactive,
    sign_in,
    situation,
)

UNREACHABLE = failed("UNREACHABLE")
CREATED = {"session_id": ANY, "access_token": ANY, "refresh_token": ANY}
# Long enough for a handshake on a busy machine.
SOON_MS = 1500


def ca(s: Situation) -> dict[str, Any]:
    """Returns the setting that trusts the servers."""
    return {"ca": str(s.world.ca)}


@situation("TLS")
async def _(s: Situation) -> None:
    await s.connect(s.world.secure_url, api_key=s.world.keys["login"], **ca(s))
    created = await s.expect(CREATED, "create", subject="tls")
    await s.expect(anybody(), "validate", token=created["access_token"])
    await s.verifier("local", refuse=True)
    await s.settled(anybody(), created["access_token"])
    await s.expect({}, "revoke", token=created["access_token"])
    await s.settled(inactive("REVOKED"), created["access_token"])


@situation("TLS with an unknown authority")
async def _(s: Situation) -> None:
    key = s.world.keys["login"]
    await s.connect(s.world.secure_url, api_key=key, deadline_ms=SOON_MS)
    await s.expect_at_deadline(UNREACHABLE, "validate", token="t")
    other = str(s.world.other_ca)
    await s.connect(s.world.secure_url, api_key=key, ca=other, deadline_ms=SOON_MS)
    await s.expect_at_deadline(UNREACHABLE, "validate", token="t")


@situation("TLS with another name")
async def _(s: Situation) -> None:
    fake = await s.fake(answers, s.world.named)
    await s.connect(fake.url, **ca(s), deadline_ms=SOON_MS)
    await s.expect_at_deadline(UNREACHABLE, "validate", token="t")
    check(not fake.calls, "the call has arrived")


@situation("TLS with a name that is set")
async def _(s: Situation) -> None:
    fake = await s.fake(answers, s.world.named)
    await s.connect(fake.url, **ca(s), server_name="sessions.example")
    await s.expect(ACTIVE, "validate", token="t")
    await s.connect(fake.url, **ca(s), server_name="other.example", deadline_ms=SOON_MS)
    await s.expect_at_deadline(UNREACHABLE, "validate", token="t")


@situation("a client certificate that is demanded, and missing")
async def _(s: Situation) -> None:
    fake = await s.fake(answers, s.world.mutual)
    await s.connect(fake.url, **ca(s), deadline_ms=SOON_MS)
    await s.expect_at_deadline(UNREACHABLE, "validate", token="t")
    certificate, key = (str(it) for it in s.world.stranger)
    await s.connect(fake.url, **ca(s), certificate=certificate, key=key, deadline_ms=SOON_MS)
    await s.expect_at_deadline(UNREACHABLE, "validate", token="t")
    check(not fake.calls, "the call has arrived")


@situation("a client certificate that is demanded, and given")
async def _(s: Situation) -> None:
    fake = await s.fake(answers, s.world.mutual)
    certificate, key = (str(it) for it in s.world.identity)
    await s.connect(fake.url, **ca(s), certificate=certificate, key=key)
    await s.expect(ACTIVE, "validate", token="t")


@situation("a caller with a client certificate")
async def _(s: Situation) -> None:
    certificate, key = (str(it) for it in s.world.identity)
    tokens = await sign_in(s.world.secure_issuer)
    await s.connect(s.world.secure_url, **ca(s), certificate=certificate, key=key)
    await s.expect(anybody(), "validate", token=tokens.access_token)
    await s.expect(failed("CALLER_NOT_ALLOWED"), "create", subject="alice")
    await s.connect(s.world.secure_url, **ca(s))
    await s.expect(failed("CALLER_UNKNOWN"), "validate", token=tokens.access_token)


@situation("no TLS, but the port has")
async def _(s: Situation) -> None:
    await s.connect(s.world.secure_url.replace("https://", "http://"), deadline_ms=SOON_MS)
    await s.expect_at_deadline(UNREACHABLE, "validate", token="t")


@situation("TLS, but the port has none")
async def _(s: Situation) -> None:
    await s.connect(s.world.open.url.replace("http://", "https://"), **ca(s), deadline_ms=SOON_MS)
    await s.expect_at_deadline(UNREACHABLE, "validate", token="t")


@situation("a wrong API key")
async def _(s: Situation) -> None:
    key = s.world.keys["login"]
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    for api_key in (wrong, "wrong"):
        await s.connect(s.world.secure_url, api_key=api_key, **ca(s))
        await s.expect(failed("CALLER_UNKNOWN"), "create", subject="alice")
        await s.expect({}, "verifier", mode="remote")
        await s.expect(UNKNOWN, "verify", token="t")
        await s.expect({"status": 503}, "guard", headers=[["authorization", "Bearer t"]])


@situation("a caller without the role")
async def _(s: Situation) -> None:
    tokens = await sign_in(s.world.secure_issuer)
    await s.connect(s.world.secure_url, api_key=s.world.keys["checker"], **ca(s))
    await s.expect(failed("CALLER_NOT_ALLOWED"), "create", subject="alice")
    await s.expect(failed("CALLER_NOT_ALLOWED"), "revoke", token=tokens.access_token)
    await s.connect(s.world.secure_url, api_key=s.world.keys["writer"], **ca(s))
    for mode in ("remote", "local"):
        await s.expect({}, "verifier", mode=mode)
        await s.expect(UNKNOWN, "verify", token=tokens.access_token)
    await s.expect({"ready": False}, "ready", within_ms=500)


@situation("a validator that is limited to a tenant")
async def _(s: Situation) -> None:
    ours = await sign_in(s.world.secure_issuer, tenant="acme")
    theirs = await sign_in(s.world.secure_issuer, tenant="umbrella")
    await s.connect(s.world.secure_url, api_key=s.world.keys["acme"], **ca(s))
    for mode, settings in (("remote", {}), ("local", {"refuse": True})):
        await s.verifier(mode, **settings)
        await s.settled(anybody(), ours.access_token)
        await s.settled(inactive("FOREIGN_TENANT"), theirs.access_token)
    await s.world.secure_issuer.revoke(ours.access_token)
    await s.settled(inactive("REVOKED"), ours.access_token)
