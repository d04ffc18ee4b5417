"""Situations of tokens, and of requests with them."""

import asyncio
import json
import time
from base64 import urlsafe_b64decode
from typing import Any

from google.protobuf.message import Message

from countersign.proto import CreateSessionRequest
from runner.fakes import Call, TokenKey, payload
from runner.services import AUDIENCE, ISSUER
from runner.situation import (
    ACTIVE,
    UNKNOWN,
    Situation,
    anybody,
    inactive,
    sign_in,
    situation,
)

MODES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("remote", {}),
    ("local", {"refuse": True}),
    ("local_unwatched", {"issuer": ISSUER}),
)
MALFORMED = inactive("MALFORMED")
REALM = {"realm": "shop"}


async def keys_of(s: Situation) -> TokenKey:
    """Connects to a server whose key is known, and creates a verifier that has its keys."""
    key = TokenKey()

    async def answer(_: int, __: Call) -> Message:
        return key.jwks()

    fake = await s.fake(answer)
    await s.connect(fake.url)
    await s.verifier("local_unwatched", issuer=ISSUER)
    return key


@situation("a good token")
async def _(s: Situation) -> None:
    tokens = await sign_in(s.world.issuer)
    await s.connect(s.world.open.url)
    for mode, settings in MODES:
        await s.verifier(mode, **settings)
        await s.settled(anybody(), tokens.access_token)
        demands = {"audience": AUDIENCE, "scopes": ["orders:read"], "max_authentication_age": 3600}
        await s.settled(anybody(), tokens.access_token, demands=demands)
        await s.settled(inactive("WRONG_TYPE"), tokens.refresh_token)


@situation("a token of another key")
async def _(s: Situation) -> None:
    tokens = await sign_in(s.world.issuer)
    header, claims, _ = tokens.access_token.split(".")
    kid = json.loads(_decode(header))["kid"]
    forged = TokenKey(kid).sign(_decode(claims))
    unknown = TokenKey("0" * 43).sign(_decode(claims))
    await s.connect(s.world.open.url)
    for mode, settings in MODES:
        await s.verifier(mode, **settings)
        await s.settled(inactive("BAD_SIGNATURE"), forged)
        await s.settled(inactive("UNKNOWN_KEY"), unknown)


def _decode(part: str) -> str:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()


@situation("a token that has expired")
async def _(s: Situation) -> None:
    request = CreateSessionRequest(subject="brief", policy="brief")
    token = (await s.world.issuer.create(request)).access_token
    await asyncio.sleep(1.1)
    await s.connect(s.world.open.url)
    for mode, settings in MODES:
        await s.verifier(mode, **settings)
        await s.settled(inactive("EXPIRED"), token)


@situation("a token that was revoked")
async def _(s: Situation) -> None:
    await s.connect(s.world.open.url)
    for mode, settings in MODES[:2]:
        await s.verifier(mode, **settings)
        for _ in range(2):
            token = (await sign_in(s.world.issuer)).access_token
            await s.settled(anybody(), token)
            await s.expect({}, "revoke", token=token)
            await s.settled(inactive("REVOKED"), token)


@situation("a token that another process has revoked")
async def _(s: Situation) -> None:
    await s.connect(s.world.open.url)
    for mode, settings in MODES[:2]:
        await s.verifier(mode, **settings)
        for _ in range(2):
            token = (await sign_in(s.world.issuer)).access_token
            await s.settled(anybody(), token)
            await s.world.issuer.revoke(token)
            await s.settled(inactive("REVOKED"), token)


@situation("a revoked token without a watch")
async def _(s: Situation) -> None:
    token = (await sign_in(s.world.issuer)).access_token
    await s.connect(s.world.open.url)
    await s.verifier("local_unwatched", issuer=ISSUER)
    await s.expect({}, "revoke", token=token)
    # This is what the mode does not know.
    await s.expect(anybody(), "verify", token=token)
    await s.expect(inactive("REVOKED"), "validate", token=token)


@situation("an empty token, a huge one, and others that are none")
async def _(s: Situation) -> None:
    token = (await sign_in(s.world.issuer)).access_token
    header, claims, signature = token.split(".")
    await s.connect(s.world.open.url)
    for mode, settings in MODES:
        await s.verifier(mode, **settings)
        for wrong in (
            "",
            "x" * 9000,
            f"{header}.{claims}.{signature}" + "A" * 9000,
            "ä.ö.ü",
            "a.b",
            token + "=",
            f"{header}=.{claims}.{signature}",
            f" {token}",
            f"{token}.",
        ):
            await s.settled(MALFORMED, wrong)
        await s.settled(inactive("BAD_SIGNATURE"), f"{header}.{claims}.")


@situation("a key that is new, without a watch")
async def _(s: Situation) -> None:
    keys = [TokenKey("first")]

    async def answer(_: int, __: Call) -> Message:
        return keys[-1].jwks()

    fake = await s.fake(answer)
    await s.connect(fake.url)
    await s.verifier("local_unwatched", issuer=ISSUER)
    await s.expect(ACTIVE, "verify", token=keys[0].token())
    keys.append(TokenKey("second"))
    token = keys[1].token()
    await s.expect(inactive("UNKNOWN_KEY"), "verify", token=token)
    # Such a token makes the library fetch the keys again.
    await s.until(ACTIVE, "verify", token=token)
    await s.expect(inactive("UNKNOWN_KEY"), "verify", token=keys[0].token())


@situation("tokens that are signed, and malformed")
async def _(s: Situation) -> None:
    key = await keys_of(s)
    text = json.dumps(payload())
    header = json.dumps({"typ": "at+jwt", "alg": "EdDSA", "kid": key.kid})
    await s.expect(ACTIVE, "verify", token=key.sign(text))
    for signed in (
        key.sign(text[:-1] + ', "sub": "bob"}'),
        key.sign(text[:-1] + ', "custom": {"a": 1, "a": 2}}'),
        key.sign(text, header[:-1] + ', "alg": "EdDSA"}'),
        key.sign(text, header[:-1] + ', "crit": ["exp"]}'),
        key.sign(text + " x"),
        key.sign(f"[{text}]"),
        key.token(exp="soon"),
        key.token(sub=1),
        key.token(sid="no id"),
        key.sign(text) + "=",
    ):
        await s.expect(MALFORMED, "verify", token=signed)
    large = key.token(note="x" * 9000)
    await s.expect(MALFORMED, "verify", token=large)


@situation("tokens that are signed, and wrong")
async def _(s: Situation) -> None:
    key = await keys_of(s)
    now = int(time.time())
    for reason, token in (
        ("WRONG_ISSUER", key.token(iss="https://other.test")),
        ("EXPIRED", key.token(iat=now - 900, exp=now - 300, auth_time=now - 900)),
        ("NOT_YET_VALID", key.token(iat=now + 300, exp=now + 900)),
        ("UNKNOWN_KEY", TokenKey("other").token()),
        ("BAD_SIGNATURE", TokenKey(key.kid).token()),
    ):
        await s.expect(inactive(reason), "verify", token=token)
    header = json.dumps({"typ": "JWT", "alg": "EdDSA", "kid": key.kid})
    wrong_type = key.sign(json.dumps(payload()), header)
    await s.expect(inactive("WRONG_TYPE"), "verify", token=wrong_type)


def bearer(token: str) -> list[str]:
    """Returns a header."""
    return ["authorization", f"Bearer {token}"]


def cookie(token: str) -> list[str]:
    """Returns a header."""
    return ["cookie", f"theme=dark; session={token}"]


@situation("a request with one token")
async def _(s: Situation) -> None:
    key = await keys_of(s)
    token = key.token()
    for headers in (
        [bearer(token)],
        [cookie(token)],
        [bearer(token), cookie(token)],
        [["authorization", "Basic dDp0"], cookie(token)],
        [["authorization", f"bearer  {token}"]],
        [["cookie", f'session="{token}"; session={token}']],
    ):
        reached = {"status": 200, "subject": "alice"}
        await s.expect(reached, "guard", headers=headers, cookie="session")


@situation("a request with two tokens")
async def _(s: Situation) -> None:
    key = await keys_of(s)
    token, other = key.token(), key.token(sub="bob")
    several = (
        'Bearer realm="shop", error="invalid_request", '
        'error_description="more than one access token was sent"'
    )
    for headers in (
        [bearer(token), cookie(other)],
        [bearer(token), bearer(other)],
        [bearer(token), bearer(token)],
    ):
        denied = {"status": 400, "challenge": several}
        await s.expect(denied, "guard", headers=headers, cookie="session", **REALM)
    conflicting = (
        'Bearer realm="shop", error="invalid_request", error_description="several cookies of the '
        "same name were sent with different values: clear the cookies of this site and its parent "
        'domains, and sign in again"'
    )
    denied = {"status": 400, "challenge": conflicting}
    headers = [["cookie", f"session={token}; session={other}"]]
    await s.expect(denied, "guard", headers=headers, cookie="session", **REALM)


@situation("a request without a token")
async def _(s: Situation) -> None:
    token = (await keys_of(s)).token()
    for headers in (
        [],
        [["authorization", "Basic dDp0"]],
        [cookie(token)],
        [["cookie", "session="]],
        [["authorization", f"Bearerx {token}"]],
    ):
        await s.expect({"status": 401, "challenge": "Bearer"}, "guard", headers=headers)
    demands = {"scopes": ["orders:read", "orders:write"]}
    challenge = 'Bearer realm="a\\"b", scope="orders:read orders:write"'
    denied = {"status": 401, "challenge": challenge}
    await s.expect(denied, "guard", headers=[], demands=demands, realm='a"b')
    # What cannot be sent is left out.
    demands = {"scopes": ["a\r\nb: c"]}
    denied = {"status": 401, "challenge": "Bearer"}
    await s.expect(denied, "guard", headers=[], demands=demands, **REALM)


@situation("a request with an inactive token")
async def _(s: Situation) -> None:
    key = await keys_of(s)
    now = int(time.time())
    expired = key.token(iat=now - 900, exp=now - 300, auth_time=now - 900)
    for header, text in (
        (bearer("x"), "the access token is not valid"),
        (["authorization", "Bearer"], "the access token is not valid"),
        (["authorization", "Bearer a b"], "the access token is not valid"),
        (bearer(expired), "the access token has expired"),
        (bearer(key.token(iat=now + 300, exp=now + 900)), "the access token is not valid yet"),
    ):
        challenge = f'Bearer error="invalid_token", error_description="{text}"'
        await s.expect({"status": 401, "challenge": challenge}, "guard", headers=[header])


@situation("a request with a revoked token")
async def _(s: Situation) -> None:
    token = (await sign_in(s.world.issuer)).access_token
    await s.world.issuer.revoke(token)
    await s.connect(s.world.open.url)
    challenge = (
        'Bearer error="invalid_token", error_description="the access token has been revoked"'
    )
    for mode, settings in (MODES[0], ("local", {})):
        await s.verifier(mode, **settings)
        denied = {"status": 401, "challenge": challenge}
        await s.expect(denied, "guard", headers=[bearer(token)])


@situation("a token without the scope")
async def _(s: Situation) -> None:
    token = (await sign_in(s.world.issuer)).access_token
    demands = {"scopes": ["orders:read", "orders:write"]}
    challenge = (
        'Bearer realm="shop", error="insufficient_scope", error_description="the access token '
        'lacks a scope", scope="orders:read orders:write"'
    )
    await _denied(s, token, demands, "INSUFFICIENT_SCOPE", 403, challenge)


@situation("a token for another audience")
async def _(s: Situation) -> None:
    token = (await sign_in(s.world.issuer)).access_token
    challenge = (
        'Bearer realm="shop", error="invalid_token", error_description="the access token is not '
        'meant for this resource"'
    )
    demands = {"audience": "https://other.test"}
    await _denied(s, token, demands, "WRONG_AUDIENCE", 401, challenge)


STEP_UP = (
    'Bearer realm="shop", error="insufficient_user_authentication", error_description="a stronger '
    "or more recent authentication is needed"
)


@situation("step-up by the context class")
async def _(s: Situation) -> None:
    token = (await sign_in(s.world.issuer, acr="silver")).access_token
    demands = {"acr_values": ["gold", "platinum"]}
    challenge = f'{STEP_UP}", acr_values="gold platinum"'
    await _denied(s, token, demands, "STEP_UP_REQUIRED", 401, challenge)


@situation("step-up by the age of the authentication")
async def _(s: Situation) -> None:
    request = CreateSessionRequest(subject="old", scopes=["orders:read"])
    request.authenticated_at.FromSeconds(int(time.time()) - 120)
    token = (await s.world.issuer.create(request)).access_token
    challenge = f'{STEP_UP}", max_age="60"'
    demands = {"max_authentication_age": 60}
    await _denied(s, token, demands, "STEP_UP_REQUIRED", 401, challenge)


@situation("step-up by factors")
async def _(s: Situation) -> None:
    token = (await sign_in(s.world.issuer, amr=["pwd"])).access_token
    demands = {
        "factors": [{"method": "hwk", "max_age": 60}, {"method": "pwd"}],
        "max_authentication_age": 300,
    }
    challenge = f'{STEP_UP}: the route demands hwk within 60 seconds, pwd", max_age="60"'
    await _denied(s, token, demands, "STEP_UP_REQUIRED", 401, challenge)


async def _denied(  # noqa: PLR0913, PLR0917
    s: Situation,
    token: str,
    demands: dict[str, Any],
    reason: str,
    status: int,
    challenge: str,
) -> None:
    """Checks that demands are not met in all modes."""
    await s.connect(s.world.open.url)
    for mode, settings in (MODES[0], ("local", {}), MODES[2]):
        await s.verifier(mode, **settings)
        await s.settled(inactive(reason), token, demands=demands)
        denied = {"status": status, "challenge": challenge}
        await s.expect(denied, "guard", headers=[bearer(token)], demands=demands, **REALM)


@situation("a token that cannot be checked")
async def _(s: Situation) -> None:
    await s.connect(s.closed_url(), deadline_ms=500)
    for mode, settings in MODES:
        await s.expect({}, "verifier", mode=mode, **settings)
        await s.expect(UNKNOWN, "verify", token="t")
        await s.expect({"status": 503}, "guard", headers=[bearer("t")])
