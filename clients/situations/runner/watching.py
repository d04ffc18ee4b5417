"""Situations of processes that verify locally: leases, clocks, and connections that are lost."""

import asyncio
import itertools
from typing import Any

import grpc

from runner.calls import answers, refuses
from runner.proxy import Proxy
from runner.situation import (
    ACTIVE,
    ANY,
    UNKNOWN,
    Situation,
    anybody,
    check,
    inactive,
    sign_in,
    situation,
)

LOCAL = {"mode": "local", "refuse": True}
# Longer than any lease.
OVER_MS = 3000
UNAVAILABLE = {"status": 503}


def guarded(token: str) -> dict[str, list[list[str]]]:
    """Returns the members of a request with a token."""
    return {"headers": [["authorization", f"Bearer {token}"]]}


async def watched(s: Situation, *, refuse: bool = True, **settings: Any) -> tuple[Proxy, str]:
    """Lets a verifier watch the service through a proxy. It accepts the token that is returned."""
    proxy = await s.proxy(s.world.open.address)
    token = (await sign_in(s.world.issuer)).access_token
    await s.connect(proxy.url, **settings)
    await s.verifier("local", refuse=refuse)
    await s.settled(anybody(), token)
    return proxy, token


@situation("a service that has no watch")
async def _(s: Situation) -> None:
    fake = await s.fake(answers)
    await s.connect(fake.url)
    # It has no lease, so the service is asked.
    await s.expect({}, "verifier", mode="local")
    await s.expect(ACTIVE, "verify", token="t")
    asked = [call for call in fake.calls if call.method == "Validate"]
    check(len(asked) == 1, f"{len(asked)} calls of Validate instead of 1")
    await s.expect({}, "verifier", **LOCAL)
    await s.expect(UNKNOWN, "verify", token="t")


@situation("a lease that ends by the clock, with fallback")
async def _(s: Situation) -> None:
    tokens = [(await sign_in(s.world.issuer)).access_token for _ in range(2)]
    await s.connect(s.world.open.url)
    await s.verifier("local")
    await s.settled(anybody(), tokens[0])
    await s.expect({}, "clock", wall_ms=OVER_MS, uptime_ms=OVER_MS)
    # The service is asked until there is the next lease.
    await s.expect(anybody(), "verify", token=tokens[0])
    await s.world.issuer.revoke(tokens[1])
    await s.expect(inactive("REVOKED"), "verify", token=tokens[1])
    await s.expect({"status": 200, "subject": ANY}, "guard", **guarded(tokens[0]))


@situation("a service that is cut off")
async def _(s: Situation) -> None:
    proxy, token = await watched(s, deadline_ms=500)
    proxy.cut()
    # Its lease ends.
    await s.until(UNKNOWN, "verify", token=token)
    await s.expect(UNAVAILABLE, "guard", **guarded(token))
    await s.expect({"ready": False}, "ready", within_ms=300)
    await s.world.issuer.revoke(token)
    await proxy.start()
    await s.ready()
    await s.settled(inactive("REVOKED"), token)


@situation("a service that hangs")
async def _(s: Situation) -> None:
    proxy, token = await watched(s, refuse=False, deadline_ms=500)
    proxy.hang()
    # The lease ends, and Validate exceeds its deadline.
    await s.until(UNKNOWN, "verify", token=token)
    await s.expect(UNAVAILABLE, "guard", **guarded(token))
    proxy.flows.set()
    await s.until(anybody(), "verify", token=token)
    await s.ready()


@situation("a revocation while a watcher is cut off")
async def _(s: Situation) -> None:
    proxy, token = await watched(s)
    proxy.hang()
    # It waits for the end of the lease.
    await s.world.issuer.revoke(token)
    await s.expect(UNKNOWN, "verify", token=token)
    proxy.flows.set()
    await s.settled(inactive("REVOKED"), token)


@situation("a service that is killed, and started again")
async def _(s: Situation) -> None:
    service = await s.service()
    token = (await sign_in(s.issuer(service))).access_token
    await s.connect(service.url, deadline_ms=500)
    await s.expect({}, "verifier", **LOCAL)
    await s.ready()
    await s.settled(anybody(), token)
    await service.kill()
    await s.until(UNKNOWN, "verify", token=token)
    await service.start()
    await s.until(anybody(), "verify", token=token)


@situation("a service that is stopped in good order")
async def _(s: Situation) -> None:
    service = await s.service()
    token = (await sign_in(s.issuer(service))).access_token
    await s.connect(service.url)
    await s.verifier("local")
    await s.settled(anybody(), token)
    await service.stop()
    await service.kill()
    await service.start()
    await s.expect(anybody(), "validate", token=token)
    await s.until(anybody(), "verify", token=token)
    await s.ready()


@situation("a watcher that goes to another replica")
async def _(s: Situation) -> None:
    proxies = [await s.proxy(s.world.open.address) for _ in range(2)]
    token = (await sign_in(s.world.issuer)).access_token
    await s.connect(*(it.url for it in proxies))
    await s.expect({}, "verifier", **LOCAL)
    await s.ready()
    await s.settled(anybody(), token)
    watched = next(it for it in proxies if it.connections)
    watched.cut()
    await asyncio.sleep(0)
    # Far longer than the lease.
    for _ in range(30):
        await s.settled(anybody(), token)
        await asyncio.sleep(0.1)
    await s.world.issuer.revoke(token)
    await s.settled(inactive("REVOKED"), token)


@situation("a watch stream that is reset again and again")
async def _(s: Situation) -> None:
    proxy = await s.proxy(s.world.open.address)
    await s.connect(proxy.url)
    await s.expect({}, "verifier", **LOCAL)
    for _ in range(5):
        await s.ready()
        token = (await sign_in(s.world.issuer)).access_token
        await s.settled(anybody(), token)
        proxy.reset()
        await s.world.issuer.revoke(token)
        await s.settled(inactive("REVOKED"), token)
    check(proxy.connections > 1, "the stream was not opened again")


@situation("a wall clock that jumps ahead")
async def _(s: Situation) -> None:
    token = (await sign_in(s.world.issuer)).access_token
    await s.connect(s.world.open.url)
    await s.expect({}, "verifier", **LOCAL)
    await s.ready()
    await s.settled(anybody(), token)
    await s.expect({}, "clock", wall_ms=3_600_000)
    # The clocks disagree, so the lease is void, and no other is taken.
    await s.expect(UNKNOWN, "verify", token=token)
    await s.expect({"ready": False}, "ready", within_ms=700)
    await s.expect({}, "clock", wall_ms=-3_600_000)
    await s.settled(anybody(), token)


@situation("a wall clock that jumps back")
async def _(s: Situation) -> None:
    token = (await sign_in(s.world.issuer)).access_token
    await s.connect(s.world.open.url)
    await s.expect({}, "verifier", **LOCAL)
    await s.ready()
    await s.settled(anybody(), token)
    await s.expect({}, "clock", wall_ms=-3_600_000)
    await s.expect(UNKNOWN, "verify", token=token)
    await s.expect({"ready": False}, "ready", within_ms=700)


@situation("a wall clock that jumps a little")
async def _(s: Situation) -> None:
    token = (await sign_in(s.world.issuer)).access_token
    await s.connect(s.world.open.url)
    await s.expect({}, "verifier", **LOCAL)
    await s.ready()
    for jump in (2000, -4000, 2000):
        await s.settled(anybody(), token)
        await s.expect({}, "clock", wall_ms=jump)
        # More than the margin, and less than the difference under which leases are taken.
        await s.ready()
    await s.settled(anybody(), token)


@situation("a token that expires by the clock, without a watch")
async def _(s: Situation) -> None:
    token = (await sign_in(s.world.issuer)).access_token
    await s.connect(s.world.open.url)
    await s.verifier("local_unwatched", issuer="https://auth.test")
    await s.expect(anybody(), "verify", token=token)
    await s.expect({}, "clock", wall_ms=601_000, uptime_ms=601_000)
    await s.expect(inactive("EXPIRED"), "verify", token=token)
    await s.expect({}, "clock", wall_ms=-601_000)
    await s.expect(anybody(), "verify", token=token)
    await s.expect({}, "clock", wall_ms=-601_000)
    await s.expect(inactive("NOT_YET_VALID"), "verify", token=token)


@situation("keys that are too old, without a watch")
async def _(s: Situation) -> None:
    proxy = await s.proxy(s.world.open.address)
    token = (await sign_in(s.world.issuer)).access_token
    await s.connect(proxy.url, deadline_ms=500)
    await s.verifier("local_unwatched", issuer="https://auth.test")
    proxy.cut()
    await s.expect(anybody(), "verify", token=token)
    await s.expect({}, "clock", uptime_ms=3_590_000)
    await s.expect(anybody(), "verify", token=token)
    await s.expect({}, "clock", uptime_ms=20_000)
    await s.expect(UNKNOWN, "verify", token=token)


@situation("a process that was suspended")
async def _(s: Situation) -> None:
    proxy, token = await watched(s)
    proxy.hang()
    await s.expect({}, "clock", wall_ms=OVER_MS, uptime_ms=OVER_MS)
    await s.expect(UNKNOWN, "verify", token=token)
    # Both clocks go on, and the service is there again. Its clock is still near enough.
    proxy.flows.set()
    await s.settled(anybody(), token)


@situation("replicas that have too many watchers")
async def _(s: Situation) -> None:
    pause = 1.0
    refusing = refuses("TOO_MANY_WATCHERS", grpc.StatusCode.RESOURCE_EXHAUSTED, pause)
    replicas = [await s.fake(refusing) for _ in range(2)]
    await s.connect(*(it.url for it in replicas))
    await s.expect({}, "verifier", **LOCAL)
    for replica in replicas:
        await replica.arrivals(2)
    times = sorted(call.at for it in replicas for call in it.calls)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    # Another replica may have room, but once all have been asked, the pause is kept.
    check(pauses[0] < pause, f"the pauses were {pauses}")
    check(min(pauses[1:3]) >= pause, f"the pauses were {pauses}")


@situation("an application at work")
async def _(s: Situation) -> None:
    await s.connect(s.world.open.url)
    for mode in ("remote", "local"):
        await s.verifier(mode)
        await s.expect({}, "load", subject="load")
        await asyncio.sleep(0.5)
        done = await s.do("load_end")
        check(done["rounds"] > 0 and done["failed"] == 0, f"{done}")
