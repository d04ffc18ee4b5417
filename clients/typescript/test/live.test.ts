// These tests run the library against a real service.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { inspect } from 'node:util';

import { status as Code } from '@grpc/grpc-js';

import { Client } from '../src/client.js';
import { SettableClock, SystemClock } from '../src/core/clock.js';
import { CountersignError } from '../src/errors.js';
import { KeyPurpose } from '../src/gen/countersign/v1/key_service_pb.js';
import type { Logger } from '../src/logger.js';
import { Verifier } from '../src/verifier.js';
import {
  AUDIENCE,
  closing,
  eventually,
  Front,
  ISSUER,
  QUIET,
  refuse,
  request,
  revoke,
  signIn,
  Site,
} from './support.js';

const soon = (): AbortSignal => AbortSignal.timeout(20_000);

test(
  'a local verifier refuses what was revoked, lapses without the service, and recovers',
  closing(async (opened) => {
    const site = await Site.create(opened);
    const server = await site.start(opened);
    const client = site.client(opened);
    const verifier = opened.add(Verifier.local(client, { onLapse: 'refuse' }));
    await verifier.ready(soon());
    assert.ok(verifier.status.leaseMs > 0 && verifier.status.leaseMs <= 2000);
    const token = await signIn(client, 'alice');
    const answer = verifier.verifyLocally(token, { audience: AUDIENCE, scopes: ['orders:read'] });
    assert.equal(answer.status, 'active');
    assert.deepEqual(answer.session.claims(), { plan: 'gold', seats: 3 });
    assert.equal(answer.session.claim('plan'), 'gold');
    assert.equal(answer.session.claim('toString'), undefined);
    for (let round = 0; round < 20; round++) {
      const brief = await signIn(client, 'bob');
      assert.equal(verifier.verifyLocally(brief).status, 'active');
      await revoke(client, brief);
      assert.deepEqual(verifier.verifyLocally(brief), { status: 'inactive', reason: 'REVOKED' });
    }
    assert.equal(verifier.status.revocations, 20);
    // Nothing happens for longer than a lease, which is renewed nevertheless.
    const ends = performance.now() + 2500;
    while (performance.now() < ends) {
      assert.equal(verifier.verifyLocally(token).status, 'active');
      await sleep(20);
    }
    assert.equal(verifier.status.connections, 1);
    assert.ok(verifier.status.lagMs > 0);

    await server.close();
    await eventually('the lease ends', () => verifier.status.leaseMs === 0);
    assert.deepEqual(await verifier.verify(token), { status: 'unknown', why: 'no_lease' });
    await site.start(opened);
    await verifier.ready(soon());
    assert.equal(verifier.verifyLocally(token).status, 'active');
    assert.equal(verifier.status.revocations, 20);
    await eventually('it has called again', () => verifier.status.connections >= 2);
    verifier.close();
    assert.equal(verifier.verifyLocally(token).status, 'unknown');
  }),
);

test(
  'without a lease the service is asked, and what both answer is the same',
  closing(async (opened) => {
    const site = await Site.create(opened);
    await site.start(opened);
    const client = site.client(opened);
    const clock = new SettableClock(Date.now());
    const local = opened.add(Verifier.local(client, { clock: new SystemClock() }));
    // Its clock stands still, and jumps.
    const lapsed = opened.add(Verifier.local(client, { clock }));
    const remote = Verifier.remote(client);
    await Promise.all([local.ready(soon()), lapsed.ready(soon()), remote.ready()]);
    const [token, revoked] = [await signIn(client, 'alice'), await signIn(client, 'bob')];
    await revoke(client, revoked);
    clock.jumpTo(clock.now() + 1_000_000);
    assert.equal(lapsed.verifyLocally(token).status, 'unknown');
    for (const demands of [
      undefined,
      { scopes: ['orders:read'], audience: AUDIENCE },
      { scopes: ['other'] },
      { audience: 'https://other.test' },
      { acrValues: ['gold'] },
      { maxAuthenticationAgeSeconds: 3600 },
      { maxAuthenticationAgeSeconds: 0.000001, factors: ['hwk'] },
      { factors: [{ method: 'hwk', maxAgeSeconds: 60 }] },
    ]) {
      for (const asked of [token, revoked, 'x', '', 'x'.repeat(9000), `${token}x`]) {
        const answers = await Promise.all(
          [local, lapsed, remote].map((verifier) => verifier.verify(asked, demands)),
        );
        const words = answers.map((answer) =>
          answer.status === 'active'
            ? { ...answer.session.claims(), id: answer.session.id, exp: answer.session.exp }
            : answer,
        );
        assert.deepEqual(words[1], words[0], inspect(demands));
        assert.deepEqual(words[2], words[0], inspect(demands));
        assert.notEqual(answers[0]?.status, 'unknown');
      }
    }
    assert.equal(lapsed.status.leaseMs, 0);
    assert.equal(remote.verifyLocally(token).status, 'unknown');
    assert.equal(remote.counts.get('revoked'), 8);
    assert.equal(remote.counts.get('unknown'), 1);
  }),
);

test(
  'an unwatched verifier knows the keys only, and finds a new one',
  closing(async (opened) => {
    const site = await Site.create(opened);
    await site.start(opened);
    const client = site.client(opened);
    const verifier = opened.add(Verifier.localUnwatched(client, ISSUER));
    await verifier.ready(soon());
    const token = await signIn(client, 'alice');
    await revoke(client, token);
    assert.equal((await verifier.verify(token)).status, 'active', 'it does not know');
    const other = opened.add(Verifier.localUnwatched(client, 'https://other.test'));
    await other.ready(soon());
    assert.deepEqual(await other.verify(token), { status: 'inactive', reason: 'WRONG_ISSUER' });
    await client.rotateKey({ purpose: KeyPurpose.ACCESS_TOKEN, force: true });
    const newer = await signIn(client, 'alice');
    await eventually('the new key is fetched', async () => {
      return (await verifier.verify(newer)).status === 'active';
    });
  }),
);

test(
  'errors have their reason and their details, and show no token',
  closing(async (opened) => {
    const site = await Site.create(opened);
    await site.start(opened);
    const client = site.client(opened);
    await assert.rejects(client.createSession({}), (error: unknown) => {
      assert.ok(error instanceof CountersignError);
      assert.equal(error.code, Code.INVALID_ARGUMENT);
      assert.equal(error.reason, 'INVALID_FIELD');
      assert.equal(error.fields[0]?.field, 'subject');
      assert.ok(!error.isTemporary && !error.isRefused);
      assert.match(error.message, /^INVALID_FIELD \(INVALID_ARGUMENT\): /);
      return true;
    });
    const sessionId = '0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22';
    await assert.rejects(client.getSession({ sessionId }), { reason: 'SESSION_NOT_FOUND' });

    const created = await client.createSession(request('alice'));
    const { tokens } = created;
    assert.ok(tokens);
    const verifier = Verifier.remote(client);
    const answer = await verifier.verify(tokens.accessToken);
    assert.equal(answer.status, 'active');
    const secret = `cs_rt_${randomBytes(30).toString('base64url')}`;
    const error: unknown = await client
      .refresh({ refreshToken: secret })
      .catch((it: unknown) => it);
    const shown = [created, tokens, answer, client, verifier, error];
    const texts = shown.map((it) => inspect(it, { depth: 20, showHidden: true })).join('\n');
    for (const hidden of [tokens.accessToken, tokens.refreshToken, secret, 'gold']) {
      assert.ok(!texts.includes(hidden), texts);
    }
    assert.ok(texts.includes('Tokens { [redacted] }') && texts.includes(answer.session.id));
    assert.ok(!JSON.stringify(answer).includes('gold'));
    const wrong = { refreshToken: { secret } as unknown as string };
    await assert.rejects(client.refresh(wrong), (it: Error) => !inspect(it).includes(secret));
  }),
);

test(
  'callers identify by an API key, which is nowhere shown',
  closing(async (opened) => {
    const key = 'cs_ck_topsecret0123456789';
    const logged: string[] = [];
    const logger: Logger = {
      error: (message) => logged.push(message),
      warn: (message) => logged.push(message),
    };
    const front = await Front.start(opened, () => refuse(Code.UNAUTHENTICATED, 'CALLER_UNKNOWN'));
    const client = opened.add(new Client({ endpoints: front.url, apiKey: key, logger }));
    const answer = await Verifier.remote(client).verify('a.b.c');
    assert.equal(answer.status, 'unknown');
    assert.equal(answer.error?.reason, 'CALLER_UNKNOWN');
    assert.deepEqual(front.calls[0]?.metadata.get('authorization'), [`Bearer ${key}`]);
    assert.ok(logged.some((line) => line.includes('refuses to validate')));
    assert.ok(!inspect([client, answer, logged], { depth: 20, showHidden: true }).includes(key));
    new Client({ endpoints: 'http://sessions.example', apiKey: key, logger }).close();
    assert.ok(logged.some((line) => line.includes('without encryption')));
  }),
);

test(
  'a lease is not taken while the clocks differ',
  closing(async (opened) => {
    const site = await Site.create(opened);
    await site.start(opened);
    const logged: string[] = [];
    const logger: Logger = { ...QUIET, error: (message) => logged.push(message) };
    const client = site.client(opened, { logger });
    const clock = new SettableClock(Date.now() - 60_000);
    const verifier = opened.add(Verifier.local(client, { onLapse: 'refuse', clock }));
    await eventually('the problem is noted', () => logged.length > 0);
    assert.match(logged[0] ?? '', /the clock of this machine, or that of the service, is wrong/);
    await assert.rejects(verifier.ready(AbortSignal.timeout(300)), { name: 'TimeoutError' });
    assert.equal(verifier.status.leaseMs, 0);
    assert.equal(logged.length, 1, 'it is noted once');
  }),
);

test(
  'a suspended service is given up, and the verifier watches the other replica',
  closing(async (opened) => {
    const site = await Site.create(opened);
    const server = await site.start(opened);
    const client = site.client(opened);
    const verifier = opened.add(Verifier.local(client, { onLapse: 'refuse' }));
    await verifier.ready(soon());
    server.signal('SIGSTOP');
    await eventually('the lease ends', () => verifier.status.leaseMs === 0);
    const { connections } = verifier.status;
    await eventually('it calls again', () => verifier.status.connections > connections);
    server.signal('SIGCONT');
    await verifier.ready(soon());
    await sleep(1);
  }),
);
