// These tests are about the parts that need no service.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { inspect } from 'node:util';

import { create, type DescMessage, type MessageInitShape } from '@bufbuild/protobuf';
import { context, propagation, trace } from '@opentelemetry/api';
import { W3CTraceContextPropagator } from '@opentelemetry/core';
import {
  AggregationTemporality,
  InMemoryMetricExporter,
  MeterProvider,
  PeriodicExportingMetricReader,
} from '@opentelemetry/sdk-metrics';
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  SimpleSpanProcessor,
} from '@opentelemetry/sdk-trace-base';
import { status as Code } from '@grpc/grpc-js';

import { Client } from '../src/client.js';
import { VerifiedCache } from '../src/core/cache.js';
import { parseClaims } from '../src/core/claims.js';
import { SettableClock } from '../src/core/clock.js';
import { parseId } from '../src/core/ids.js';
import { IdIndex } from '../src/core/index-of-ids.js';
import { JsonError } from '../src/core/json.js';
import { Lease, readClocks } from '../src/core/lease.js';
import { Local } from '../src/core/local.js';
import { INACTIVE_REASONS } from '../src/core/reasons.js';
import type { Demands } from '../src/demands.js';
import { REASONS } from '../src/errors.js';
import { file_countersign_v1_audit_service } from '../src/gen/countersign/v1/audit_service_pb.js';
import { file_countersign_v1_key_service } from '../src/gen/countersign/v1/key_service_pb.js';
import {
  file_countersign_v1_revocation_service,
  WatchResponseSchema,
} from '../src/gen/countersign/v1/revocation_service_pb.js';
import { file_countersign_v1_session } from '../src/gen/countersign/v1/session_pb.js';
import {
  file_countersign_v1_session_service,
  InactiveReason as Protocol,
  SessionService,
} from '../src/gen/countersign/v1/session_service_pb.js';
import { redact, WITH_SECRETS } from '../src/redact.js';
import { observe, openTelemetry } from '../src/telemetry.js';
import { AUDIENCE, Authority } from '../src/testing.js';
import { StreamState, Watching } from '../src/watching.js';
import { closing, Front, QUIET, refuse } from './support.js';

test('tokens of the authority for tests expire, are revoked, and cannot always be checked', () => {
  const authority = new Authority();
  const verifier = authority.verifier();
  const options = { tenant: 'acme', claims: { plan: 'gold' }, amr: ['hwk'], acr: 'gold' };
  const token = authority.issue('alice', { ...options, authenticatedAgoSeconds: 60 });
  const other = authority.issue('bob');
  const answer = verifier.verifyLocally(token, { factors: ['hwk'], acrValues: ['gold'] });
  assert.equal(answer.status, 'active');
  const { session } = answer;
  assert.deepEqual(
    [session.subject, session.tenant, session.audience, session.claim('plan'), session.clientId],
    ['alice', 'acme', [AUDIENCE], 'gold', ''],
  );
  assert.equal(session.iat - session.authTime, 60);
  assert.deepEqual(session.verifiedAt('hwk'), session.authenticatedAt);
  assert.equal(verifier.verifyLocally(token, { maxAuthenticationAgeSeconds: 61 }).status, 'active');
  for (const demands of [
    { maxAuthenticationAgeSeconds: 59 },
    { factors: [{ method: 'hwk', maxAgeSeconds: 59 }] },
    { factors: ['pwd'] },
  ]) {
    const stepUp = { status: 'inactive', reason: 'STEP_UP_REQUIRED' };
    assert.deepEqual(verifier.verifyLocally(token, demands), stepUp);
  }
  authority.revoke(token);
  assert.deepEqual(verifier.verifyLocally(token), { status: 'inactive', reason: 'REVOKED' });
  assert.equal(verifier.verifyLocally(other).status, 'active');
  authority.setUnavailable(true);
  assert.equal(verifier.verifyLocally(other).status, 'unknown');
  authority.setUnavailable(false);
  authority.advance(900);
  assert.deepEqual(verifier.verifyLocally(other), { status: 'inactive', reason: 'EXPIRED' });
  const elsewhere = new Authority().verifier().verifyLocally(other);
  assert.deepEqual(elsewhere, { status: 'inactive', reason: 'BAD_SIGNATURE' });
  assert.throws(() => {
    new Authority().revoke(token);
  });
});

test('a misspelled or impossible demand is no demand that is met', async () => {
  const authority = new Authority();
  const verifier = authority.verifier();
  const token = authority.issue('alice');
  for (const wrong of [
    { scope: 'orders:write' },
    { scopes: 'orders:write' },
    { scopes: [1] },
    { maxAuthenticationAgeSeconds: NaN },
    { maxAuthenticationAgeSeconds: -1 },
    { factors: [{ method: 'hwk', maxAgeSeconds: '5' }] },
    { audience: ['a'] },
  ]) {
    const demands = wrong as unknown as Demands;
    assert.throws(() => verifier.verifyLocally(token, demands), TypeError, inspect(wrong));
    await assert.rejects(verifier.verify(token, demands), TypeError);
  }
  const noToken = verifier.verifyLocally(undefined as unknown as string);
  assert.deepEqual(noToken, { status: 'inactive', reason: 'MALFORMED' });
});

test('the reasons have the numbers of the protocol', () => {
  assert.deepEqual(
    INACTIVE_REASONS.map((name) => Protocol[name]),
    INACTIVE_REASONS.map((_, index) => index + 1),
  );
  assert.equal(new Set(REASONS).size, 30);
});

test('each message with a token or with claims is redacted', () => {
  const files = [
    file_countersign_v1_audit_service,
    file_countersign_v1_key_service,
    file_countersign_v1_revocation_service,
    file_countersign_v1_session,
    file_countersign_v1_session_service,
  ];
  const messages = files.flatMap((file): DescMessage[] => file.messages);
  const isSecret = (message: DescMessage): boolean =>
    message.fields.some(
      (field) =>
        ['token', 'access_token', 'refresh_token'].includes(field.name) ||
        field.message?.typeName === 'google.protobuf.Struct',
    );
  const names = messages.filter(isSecret).map((message) => message.typeName);
  assert.ok(names.length >= 8);
  for (const name of names) assert.ok(WITH_SECRETS.has(name), name);
  const { output } = SessionService.method.createSession;
  const message = create(output, { tokens: { accessToken: 'hidden' }, session: { subject: 'x' } });
  assert.match(inspect(redact(message)), /Tokens { \[redacted\] }/);
});

const id = (): number[] => {
  const bytes = randomBytes(16);
  return [0, 4, 8, 12].map((at) => bytes.readUInt32BE(at));
};

test('the index finds what was revoked, forgets what has expired, and takes little memory', () => {
  const index = new IdIndex();
  const ids = Array.from({ length: 200_000 }, id);
  for (const [number, it] of ids.entries()) index.add(it, 1000 * (1 + (number % 100)));
  assert.equal(index.size, ids.length);
  assert.ok(index.bytes / ids.length <= 64, `${(index.bytes / ids.length).toFixed(1)} bytes each`);
  assert.ok(ids.every((it) => index.has(it)));
  for (let number = 0; number < 10_000; number++) assert.ok(!index.has(id()));
  const [first = []] = ids;
  index.add(first, 500_000);
  index.add(first, 1);
  assert.equal(index.size, ids.length);
  const steps = [...index.purge(50_500)].length;
  assert.ok(steps > 1, 'it is purged in steps');
  assert.equal(index.size, ids.length / 2 + 1);
  for (const [number, it] of ids.entries()) {
    assert.equal(index.has(it), it === first || number % 100 >= 50);
  }
  for (const it of ids) index.add(it, 60_000);
  assert.equal(index.size, ids.length);
  assert.ok(ids.every((it) => index.has(it)));
  assert.deepEqual([...index.purge(499_999)].length > 0 && index.size, 1);
});

test('a lease ends in time, and when the clocks move apart', () => {
  const clock = new SettableClock(1_700_000_000_000);
  const lease = new Lease(clock, 250);
  assert.equal(lease.check(lease.held), undefined);
  const start = readClocks(clock);
  clock.advance(1500);
  const before = lease.held;
  lease.take(start, 2000);
  assert.equal(lease.check(before), undefined, 'the look-up was before the lease');
  assert.equal(lease.remaining(), 500);
  clock.advance(499);
  assert.equal(lease.check(lease.held), clock.now());
  clock.advance(1);
  assert.equal(lease.check(lease.held), undefined);
  for (const direction of [1, -1]) {
    lease.take(readClocks(clock), 2000);
    const now = clock.now();
    clock.jumpTo(now + direction * 250);
    assert.notEqual(lease.check(lease.held), undefined, 'within the margin');
    clock.jumpTo(now + direction * 251);
    assert.equal(lease.check(lease.held), undefined);
  }
  assert.throws(() => {
    clock.advance(-1);
  });
});

test('a token that is used stays in the cache longer than one that is not', () => {
  const claims = parseClaims(
    JSON.stringify({
      ...{ iss: '', sub: '', aud: 'a', client_id: '', iat: 0, exp: 1, auth_time: 0 },
      ...{ jti: '0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22' },
      ...{ sid: '0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22' },
    }),
  );
  const cache = new VerifiedCache(10_000);
  cache.add('used', { claims, keyId: '' });
  for (let number = 0; number < 1000; number++) {
    assert.ok(cache.get('used'));
    cache.add(number.toFixed(0), { claims, keyId: '' });
  }
  assert.ok(cache.size > 3 && cache.size <= 10_000 / 1200);
  assert.equal(cache.get('0'), undefined);
  const small = new VerifiedCache(100);
  small.add('x', { claims, keyId: '' });
  assert.equal(small.size, 0);
});

test('no object in a claim has two members of one name, or is nested too deeply', () => {
  const known =
    '"iss":"","sub":"","aud":"a","client_id":"","iat":0,"exp":1,"auth_time":0,' +
    '"jti":"0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22","sid":"0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22"';
  const claim = (value: string): string => parseClaims(`{${known},"own":${value}}`).custom;
  const deep = (depth: number): string => '['.repeat(depth) + ']'.repeat(depth);
  for (const good of [
    '{"a":{"b":1},"b":[{"b":2}]}',
    deep(127),
    '"\\ud83d\\ude00"',
    '-0.5e3',
    'null',
  ]) {
    assert.deepEqual(JSON.parse(claim(good)), { own: JSON.parse(good) as unknown });
  }
  for (const bad of [
    ...['{"a":1,"a":1}', '{"b":[{"a":1,"\\u0061":1}]}', deep(128), '1e999', '"\\ud83d"', '01'],
    ...['[1,]', '{"a"}', '{"a":1,}', 'nul', '"\t"', '"\\x"', '', '[', '1.', '+1', "'a'", '1 2'],
  ]) {
    assert.throws(() => claim(bad), JsonError, bad);
  }
});

test('after a reset a lease needs rules and keys of its own', () => {
  const clock = new SettableClock(1_700_000_000_000);
  const now = { seconds: 1_700_000_000n, nanos: 0 };
  const second = { seconds: 1n, nanos: 0 };
  const watching = new Watching(new Local(clock, 0), QUIET);
  const state = new StreamState();
  const receive = (message: MessageInitShape<typeof WatchResponseSchema>): void => {
    watching.apply(state, create(WatchResponseSchema, message));
  };
  const rules = { maxLifetime: second, leeway: second, leaseMargin: second };
  const begin = (): void => {
    receive({ event: { case: 'rules', value: rules } });
    receive({ event: { case: 'keys', value: { jwks: '{"keys":[]}' } } });
  };
  const lease = (): void => {
    const cursor = new Uint8Array([1]);
    receive({ cursor, event: { case: 'revocations', value: {} } });
    const { number } = watching.renew(state);
    const value = { number, validFor: second, expiredUpTo: now, now };
    receive({ event: { case: 'lease', value } });
  };
  begin();
  lease();
  receive({ event: { case: 'reset', value: {} } });
  assert.throws(lease, /was not asked for, or too early/);
  begin();
  lease();
});

test('identifiers have one spelling', () => {
  assert.deepEqual(
    parseId('0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22'),
    [0x0190a5c8, 0x7f3e7a51, 0x9c442f6d, 0x0c8a1b22],
  );
  for (const text of [
    '0190A5C8-7f3e-7a51-9c44-2f6d0c8a1b22',
    '{0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22}',
    '0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22\n',
    '0190a5c87f3e7a519c442f6d0c8a1b22',
    '',
  ]) {
    assert.equal(parseId(text), undefined, text);
  }
});

test('checks are counted by mode and result as long as the verifier is open', async () => {
  const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE);
  const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 86_400_000 });
  const provider = new MeterProvider({ readers: [reader] });
  const authority = new Authority();
  const verifier = authority.verifier();
  observe(verifier, provider.getMeter('test'));
  const token = authority.issue('alice');
  verifier.verifyLocally(token);
  verifier.verifyLocally(token);
  authority.revoke(token);
  verifier.verifyLocally(token);
  authority.setUnavailable(true);
  verifier.verifyLocally(token);
  const collect = async (
    from: PeriodicExportingMetricReader,
  ): Promise<Record<string, string[]>> => {
    const { resourceMetrics } = await from.collect();
    const found = resourceMetrics.scopeMetrics.flatMap(({ metrics }) => metrics);
    return Object.fromEntries(
      found.map(({ descriptor, dataPoints }) => [
        `${descriptor.name} ${descriptor.unit}`,
        dataPoints.map(({ attributes, value }) => {
          const texts = Object.entries(attributes).map(([name, it]) => `${name}=${it as string}`);
          return `${texts.join(',')} ${(value as number).toString()}`;
        }),
      ]),
    );
  };
  assert.deepEqual(await collect(reader), {
    'countersign.client.checks {check}': [
      'mode=testing,result=active 2',
      'mode=testing,result=revoked 1',
      'mode=testing,result=unknown 1',
    ],
    'countersign.client.lease s': ['mode=testing 0'],
    'countersign.client.watch.lag s': ['mode=testing 0'],
    'countersign.client.watch.revocations {revocation}': ['mode=testing 1'],
    'countersign.client.watch.connections {connection}': ['mode=testing 0'],
    'countersign.client.watch.resets {reset}': ['mode=testing 0'],
  });
  verifier.close();
  // The reader remembers what it has seen, so another one is used.
  const later = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 86_400_000 });
  const another = new MeterProvider({ readers: [later] });
  observe(verifier, another.getMeter('test'));
  assert.ok(Object.values(await collect(later)).every((points) => points.length === 0));
  await Promise.all([provider.shutdown(), another.shutdown()]);
});

test(
  'calls have spans, and carry the context',
  closing(async (opened) => {
    const exporter = new InMemorySpanExporter();
    const provider = new BasicTracerProvider({
      spanProcessors: [new SimpleSpanProcessor(exporter)],
    });
    trace.setGlobalTracerProvider(provider);
    propagation.setGlobalPropagator(new W3CTraceContextPropagator());
    const front = await Front.start(opened, ({ number }) =>
      number === 0 ? new Uint8Array() : refuse(Code.NOT_FOUND, 'SESSION_NOT_FOUND'),
    );
    const tracing = openTelemetry();
    const client = opened.add(new Client({ endpoints: front.url, logger: QUIET, tracing }));
    await client.getSession({});
    await assert.rejects(client.getSession({}));
    const spans = exporter.getFinishedSpans();
    assert.deepEqual(
      spans.map(({ name, kind, status, attributes }) => [name, kind, status.code, attributes]),
      [0, Code.NOT_FOUND].map((code) => [
        'countersign.v1.SessionService/GetSession',
        2,
        code === 0 ? 0 : 2,
        {
          'rpc.system': 'grpc',
          'rpc.service': 'countersign.v1.SessionService',
          'rpc.method': 'GetSession',
          'rpc.grpc.status_code': code,
        },
      ]),
    );
    const carried = front.calls[0]?.metadata.get('traceparent').map(String);
    assert.deepEqual(
      carried?.map((it) => it.slice(3, 52)),
      [`${spans[0]?.spanContext().traceId ?? ''}-${spans[0]?.spanContext().spanId ?? ''}`],
    );
    trace.disable();
    propagation.disable();
    context.disable();
  }),
);
