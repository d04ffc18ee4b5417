// These tests make calls to fake replicas: deadlines, repetitions, and settings.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { credentials, status as Code } from '@grpc/grpc-js';

import { Client } from '../src/client.js';
import { Endpoints, Replica } from '../src/endpoints.js';
import {
  CreateSessionRequestSchema,
  CreateSessionResponseSchema,
  ValidateResponseSchema,
} from '../src/gen/countersign/v1/session_service_pb.js';
import { BuildError, type ClientOptions } from '../src/options.js';
import { answerOf, Verifier } from '../src/verifier.js';
import {
  closing,
  eventually,
  executable,
  Front,
  listen,
  QUIET,
  refuse,
  request,
  signIn,
  Site,
} from './support.js';

const CREATED = toBinary(
  CreateSessionResponseSchema,
  create(CreateSessionResponseSchema, { tokens: { accessToken: 'a' } }),
);

function connect(endpoints: string | string[], options: Partial<ClientOptions> = {}): Client {
  return new Client({ endpoints, deadlineMs: 10_000, logger: QUIET, ...options });
}

async function timed(run: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await run();
  return performance.now() - began;
}

test(
  'a repeated creation yields one session',
  closing(async (opened) => {
    const site = await Site.create(opened);
    await site.start(opened);
    const front = await Front.start(
      opened,
      async (call) => {
        // The first answers are lost.
        const answer = await call.forward();
        return call.number > 1 ? answer : refuse(Code.UNAVAILABLE, 'STORE_UNAVAILABLE');
      },
      { behind: site.address },
    );
    const client = opened.add(connect(front.url));
    const mine = create(CreateSessionRequestSchema, { subject: 'repeated' });
    await client.createSession(mine);
    assert.equal(mine.requestId, '', 'the request of the caller is not changed');
    const ids = front.calls.map(
      ({ message }) => fromBinary(CreateSessionRequestSchema, message).requestId,
    );
    assert.equal(ids.length, 3);
    assert.equal(new Set(ids).size, 1);
    assert.notEqual(ids[0], '');
    const { sessions } = await site.client(opened).listSessions({ subject: 'repeated' });
    assert.equal(sessions.length, 1);
    await client.createSession({ subject: 'repeated', requestId: 'mine' });
    const last = front.calls.at(-1)?.message ?? Buffer.alloc(0);
    assert.equal(fromBinary(CreateSessionRequestSchema, last).requestId, 'mine');
  }),
);

test(
  'a refresh is repeated only if the service has done nothing',
  closing(async (opened) => {
    const site = await Site.create(opened);
    await site.start(opened);
    const front = await Front.start(
      opened,
      async (call) => {
        if (call.number === 0) refuse(Code.UNAVAILABLE, 'NOT_CURRENT');
        const answer = await call.forward();
        return call.number > 1 ? answer : refuse(Code.UNAVAILABLE, 'STORE_UNAVAILABLE');
      },
      { behind: site.address },
    );
    const { tokens } = await site.client(opened).createSession(request('alice'));
    const client = opened.add(connect(front.url));
    const refresh = { refreshToken: tokens?.refreshToken ?? '' };
    await assert.rejects(client.refresh(refresh), {
      reason: 'STORE_UNAVAILABLE',
      isTemporary: true,
      isRefused: false,
    });
    assert.equal(front.calls.length, 2);
    const { replayed } = await client.refresh(refresh);
    assert.ok(replayed, 'the grace makes a repetition safe');
  }),
);

test(
  'another replica answers if one is gone or not current',
  closing(async (opened) => {
    const stopping = await Front.start(opened, () =>
      refuse(Code.UNAVAILABLE, 'NOT_CURRENT', 30_000),
    );
    const staying = await Front.start(opened, () => CREATED);
    const client = opened.add(connect(['http://127.0.0.1:1', stopping.url, staying.url]));
    for (let number = 0; number < 6; number++) await client.createSession({ subject: 'alice' });
    assert.equal(staying.calls.length, 6);
    assert.ok(stopping.calls.length <= 2, 'a replica that fails is avoided');
  }),
);

test(
  'the wait that a service asks for is kept',
  closing(async (opened) => {
    const front = await Front.start(opened, ({ number }) => {
      if (number === 0) refuse(Code.RESOURCE_EXHAUSTED, 'OVERLOADED', 150);
      if (number === 2) refuse(Code.RESOURCE_EXHAUSTED, 'OVERLOADED', 60_000);
      return CREATED;
    });
    // With an overloaded service, another replica makes no difference.
    const client = opened.add(connect([front.url, front.url]));
    assert.ok((await timed(() => client.createSession({ subject: 'alice' }))) >= 150);
    assert.equal(front.calls.length, 2);
    const refused = { reason: 'OVERLOADED', retryAfterMs: 60_000, isRefused: true };
    await assert.rejects(client.createSession({ subject: 'alice' }), refused);
    assert.equal(front.calls.length, 3);
  }),
);

test(
  'a call ends at its deadline, and when it is aborted',
  closing(async (opened) => {
    const slow = await Front.start(opened, () => sleep(20_000, CREATED, { ref: false }));
    const client = opened.add(connect(slow.url, { deadlineMs: 300, revocationDeadlineMs: 500 }));
    const passed = { reason: 'DEADLINE_EXCEEDED', code: Code.DEADLINE_EXCEEDED };
    const validate = () => assert.rejects(client.validate({ accessToken: 'a' }), passed);
    assert.ok((await timed(validate)) >= 290);
    const brief = () =>
      assert.rejects(client.validate({ accessToken: 'a' }, { deadlineMs: 50 }), passed);
    assert.ok((await timed(brief)) < 290);
    const revoke = () => assert.rejects(client.revoke({}), passed);
    assert.ok((await timed(revoke)) >= 490);

    for (const delay of [0, 100]) {
      const silent = await Front.start(opened, () => sleep(20_000, CREATED, { ref: false }));
      const patient = opened.add(connect([silent.url, 'http://127.0.0.1:1']));
      const controller = new AbortController();
      const calling = patient.validate({ accessToken: 'a' }, { signal: controller.signal });
      const reason = new Error('no more');
      setTimeout(() => {
        controller.abort(reason);
      }, delay);
      await assert.rejects(calling, (error) => error === reason);
      await sleep(50);
      assert.ok(silent.calls.length <= 1, 'it is not repeated');
    }
    const patient = opened.add(connect(slow.url));
    const verifying = Verifier.remote(patient).verify('a.b.c', {}, { signal: AbortSignal.abort() });
    await assert.rejects(verifying, { name: 'AbortError' });
    await assert.rejects(patient.validate({}, { deadlineMs: Number.NaN }), BuildError);

    const nobody = opened.add(connect('http://127.0.0.1:1', { deadlineMs: 200 }));
    const gone = { reason: 'UNREACHABLE', isRefused: true, message: /ECONNREFUSED/ };
    await assert.rejects(nobody.refresh({ refreshToken: 'a' }), gone);
    nobody.close();
    await assert.rejects(nobody.refresh({ refreshToken: 'a' }), /the client is closed/);
  }),
);

test(
  'a connection that is accepted and never answered does not hold up calls',
  closing(async (opened) => {
    const front = await Front.start(opened, () => CREATED);
    for (const scheme of ['http', 'https']) {
      const silent = await listen();
      let accepted = 0;
      let closed = 0;
      silent.on('connection', (socket) => {
        accepted++;
        socket.on('close', () => closed++).on('error', () => undefined);
        socket.resume();
      });
      const { port } = silent.address() as AddressInfo;
      const url = `${scheme}://localhost:${port.toFixed(0)}`;
      const client = opened.add(connect([url, front.url], { connectTimeoutMs: 200 }));
      assert.ok((await timed(() => client.createSession({ subject: 'alice' }))) < 5000);
      await eventually('the connection is given up', () => accepted > 0 && closed > 0);
      silent.close();
    }
  }),
);

test(
  'calls go on after a server says GOAWAY',
  closing(async (opened) => {
    const answer = () => sleep(100, CREATED);
    const leaving = await Front.start(opened, answer);
    const staying = await Front.start(opened, answer);
    const client = opened.add(connect([leaving.url, staying.url]));
    await client.createSession({ subject: 'alice' });
    const pending = client.createSession({ subject: 'alice' });
    const more = client.createSession({ subject: 'alice' });
    await sleep(50);
    // A server that stops in good order finishes its calls, and accepts no more.
    const stopped = new Promise((resolve) => {
      leaving.server.tryShutdown(resolve);
    });
    for (let number = 0; number < 4; number++) await client.createSession({ subject: 'alice' });
    await Promise.all([pending, more, stopped]);
    assert.equal(leaving.calls.length + staying.calls.length, 7, 'no call is made twice');
  }),
);

/** Makes certificates of an authority of our own: for the service, and for a caller. */
function makeCertificates(folder: string): void {
  const openssl = (line: string): void => {
    execFileSync('openssl', line.split(' '), { cwd: folder, stdio: 'ignore' });
  };
  const curve = '-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc';
  openssl(`req -x509 ${curve} -keyout ca.key -out ca.pem -subj /CN=test`);
  for (const name of ['service', 'shop']) {
    writeFileSync(join(folder, 'names'), `subjectAltName=DNS:${name}.test\n`);
    openssl(`req ${curve} -keyout ${name}.key -out ${name}.csr -subj /CN=x`);
    const by = '-CA ca.pem -CAkey ca.key -CAcreateserial -extfile names';
    openssl(`x509 -req -in ${name}.csr ${by} -out ${name}.pem`);
  }
}

test(
  'callers identify by an API key or a client certificate, to a service that is trusted',
  closing(async (opened) => {
    const site = await Site.create(opened);
    makeCertificates(site.folder);
    const created = execFileSync(executable(), 'caller new --role issuer login'.split(' '), {
      encoding: 'utf8',
      stdio: 'pipe',
    });
    const [key] = /cs_ck_\S+/.exec(created) ?? [];
    const [hash = ''] = /sha256:[\w-]+/.exec(created) ?? [];
    const path = (name: string): string => join(site.folder, name);
    site.configure(`
      [[callers]]
      name = 'login'
      key_hashes = ['${hash}']
      roles = ['issuer', 'validator']
      [[callers]]
      name = 'shop'
      certificate_names = ['dns:shop.test']
      roles = ['validator']
      [tls]
      certificate_file = '${path('service.pem')}'
      private_key_file = '${path('service.key')}'
      client_ca_file = '${path('ca.pem')}'
    `);
    await site.start(opened);
    const url = `https://${site.address}`;
    const caCertificate = readFileSync(path('ca.pem'));
    const trusting = { caCertificate, serverName: 'service.test' };
    const certificate = readFileSync(path('shop.pem'), 'utf8');
    const clientCertificate = { certificate, key: readFileSync(path('shop.key'), 'utf8') };
    const open = (options: Partial<ClientOptions>): Client => opened.add(connect(url, options));

    await assert.rejects(signIn(open(trusting), 'alice'), { reason: 'CALLER_UNKNOWN' });
    const token = await signIn(open({ ...trusting, apiKey: key }), 'alice');
    const shop = open({ ...trusting, clientCertificate });
    await assert.rejects(signIn(shop, 'alice'), { reason: 'CALLER_NOT_ALLOWED' });
    assert.equal((await Verifier.remote(shop).verify(token)).status, 'active');
    const verifier = opened.add(Verifier.local(shop));
    await verifier.ready(AbortSignal.timeout(20_000));
    assert.equal(verifier.verifyLocally(token).status, 'active');
    for (const options of [
      { ...trusting, serverName: 'other.test' },
      { caCertificate },
      { serverName: 'service.test' },
    ]) {
      const stranger = open({ ...options, deadlineMs: 500 });
      await assert.rejects(stranger.getJwks(), { reason: 'UNREACHABLE', message: /certificate/ });
    }
  }),
);

test('settings that cannot be used are refused', () => {
  const url = 'https://sessions.example';
  const pem = '-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----';
  const wrong: [Partial<ClientOptions>, RegExp][] = [
    [{ endpoints: [] }, /no endpoint is given/],
    [{ endpoints: 'sessions.example:50051' }, /is not the URL/],
    [{ endpoints: 'ftp://a' }, /is not the URL/],
    [{ endpoints: 'http://a/path' }, /is not the URL/],
    [{ endpoints: '' }, /is not the URL/],
    [{ endpoints: 'http://a', caCertificate: pem }, /is not encrypted/],
    [{ caCertificate: 'nothing' }, /no certificate in PEM/],
    [{ caCertificate: pem }, /the certificates cannot be used/],
    [{ clientCertificate: { certificate: pem, key: 'x' } }, /the certificates cannot be used/],
    [{ apiKey: 'a\nb' }, /the API key/],
    [{ apiKey: '' }, /the API key/],
    [{ deadlineMs: 0 }, /deadlineMs/],
    [{ deadlineMs: Number.NaN }, /deadlineMs/],
    [{ revocationDeadlineMs: -1 }, /revocationDeadlineMs/],
    [{ connectTimeoutMs: '5' as unknown as number }, /connectTimeoutMs/],
  ];
  for (const [options, message] of wrong) {
    const build = (): Client => new Client({ endpoints: url, logger: QUIET, ...options });
    assert.throws(build, { name: 'BuildError', message }, String(message));
  }
  const client = new Client({ endpoints: url });
  for (const options of [{ leewayMs: -1 }, { maxLifetimeMs: NaN }, { keysValidForMs: NaN }]) {
    assert.throws(() => Verifier.localUnwatched(client, 'https://a', options), BuildError);
  }
  const typo = { onLapse: 'fail' } as unknown as { onLapse: 'refuse' };
  assert.throws(() => Verifier.local(client, typo), BuildError);
  client.close();
});

test('calls go around, and avoid a replica that has failed', () => {
  const named = ['a', 'b', 'c'].map((address, number) => {
    return new Replica(number, address, credentials.createInsecure(), {});
  });
  const [a, b] = named;
  assert.ok(a && b);
  const endpoints = new Endpoints(named);
  const order = (count: number): string =>
    Array.from({ length: count }, () => endpoints.next().address).join('');
  assert.equal(order(4), 'abca');
  endpoints.avoid(b);
  assert.equal(order(4), 'ccac');
  endpoints.trust(b);
  assert.equal(order(3), 'cab');
  named.forEach((replica) => {
    endpoints.avoid(replica);
  });
  assert.equal(order(3).length, 3, 'a replica is chosen although all have failed');

  const two = new Endpoints([a, b]);
  two.trust(a);
  two.avoid(b);
  // Other calls may take any turns in between.
  for (let turn = 0; turn < 3; turn++) assert.equal(two.next(a), b);
  assert.equal(new Endpoints([a]).next(a), a);
});

test('an answer that cannot be understood is never active', () => {
  const active = create(ValidateResponseSchema, { active: true });
  const incomplete = create(ValidateResponseSchema, { active: true, sessionId: 'x' });
  const other = create(ValidateResponseSchema, { inactiveReason: 99 as never });
  const none = create(ValidateResponseSchema, {});
  for (const response of [active, incomplete, other, none]) {
    assert.deepEqual(answerOf(response), { status: 'unknown', why: 'not_understood' });
  }
});
