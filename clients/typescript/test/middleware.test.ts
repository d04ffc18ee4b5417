// These tests are about the middleware for HTTP and the interceptor for gRPC.
import assert from 'node:assert/strict';
import { createServer, type IncomingMessage, request as httpRequest, type Server } from 'node:http';
import { type AddressInfo } from 'node:net';
import { test } from 'node:test';

import { fromBinary } from '@bufbuild/protobuf';
import { anyUnpack } from '@bufbuild/protobuf/wkt';
import * as grpc from '@grpc/grpc-js';
import express from 'express';
import fastify from 'fastify';

import { INACTIVE_REASONS } from '../src/core/reasons.js';
import { checkDemands, type Demands } from '../src/demands.js';
import * as forExpress from '../src/express.js';
import * as forFastify from '../src/fastify.js';
import {
  ErrorInfoSchema,
  RetryInfoSchema,
  StatusSchema,
} from '../src/gen/google/rpc/error_details_pb.js';
import { findSession, protect, sessionOf } from '../src/grpc.js';
import { challenge } from '../src/http/challenge.js';
import { findCredential } from '../src/http/credential.js';
import { AUDIENCE, Authority } from '../src/testing.js';
import type { Verifier } from '../src/verifier.js';
import { type Closing, closing } from './support.js';

interface Answered {
  status: number;
  headers: IncomingMessage['headers'];
  body: string;
}

type Header = readonly [name: string, value: string];

/** Calls a server with headers, each of which may be there twice. */
function call(port: number, path: string, headers: readonly Header[]): Promise<Answered> {
  const all = ['host', 'shop.test', ...headers.flat()];
  return new Promise((resolve, reject) => {
    const options = { port, path, host: '127.0.0.1', headers: all, agent: false };
    httpRequest(options, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (part: string) => (body += part));
      response.on('end', () => {
        resolve({ status: response.statusCode ?? 0, headers: response.headers, body });
      });
    })
      .on('error', reject)
      .end();
  });
}

const bearer = (token: string): Header => ['authorization', `Bearer ${token}`];
const cookie = (value: string): Header => ['cookie', value];

const DEMANDS: Demands = { audience: AUDIENCE, scopes: ['orders:write', 'b"c'] };
const STRONG: Demands = {
  acrValues: ['gold'],
  maxAuthenticationAgeSeconds: 300,
  factors: [{ method: 'hwk', maxAgeSeconds: 60.9 }, 'pwd'],
};
const OPTIONS = { cookie: 'session', realm: 'https://shop.test/é' };

/** The routes of an application. */
interface Application {
  port: number;
}

async function expressShop(opened: Closing, verifier: Verifier): Promise<Application> {
  const { protect: guard, sessionOf: of, findSession: find } = forExpress;
  const app = express();
  app.get('/orders', guard(verifier, DEMANDS, OPTIONS), (request, response) => {
    response.send(of(request).subject);
  });
  app.get('/pay', guard(verifier, STRONG), (request, response) => {
    response.send(of(request).subject);
  });
  app.get('/', guard(verifier, {}, { ...OPTIONS, optional: true }), (request, response) => {
    response.send(find(request)?.subject ?? 'nobody');
  });
  app.get('/odd', guard(verifier, { scopes: ['a\nb'] }), (_, response) => {
    response.send('odd');
  });
  app.get('/open', (request, response) => {
    assert.throws(() => of(request), /has no session/);
    response.send('open');
  });
  return serve(opened, createServer(app));
}

async function fastifyShop(opened: Closing, verifier: Verifier): Promise<Application> {
  const { protect: guard, sessionOf: of, findSession: find } = forFastify;
  const app = opened.add(fastify());
  const orders = { onRequest: guard(verifier, DEMANDS, OPTIONS) };
  app.get('/orders', orders, (request) => of(request).subject);
  app.get('/pay', { onRequest: guard(verifier, STRONG) }, (request) => of(request).subject);
  const optional = { onRequest: guard(verifier, {}, { ...OPTIONS, optional: true }) };
  app.get('/', optional, (request) => find(request)?.subject ?? 'nobody');
  app.get('/odd', { onRequest: guard(verifier, { scopes: ['a\nb'] }) }, () => 'odd');
  app.get('/open', (request) => {
    assert.throws(() => of(request), /has no session/);
    return 'open';
  });
  await app.listen({ port: 0, host: '127.0.0.1' });
  return { port: (app.server.address() as AddressInfo).port };
}

async function serve(opened: Closing, server: Server): Promise<Application> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  opened.add(server);
  return { port: (server.address() as AddressInfo).port };
}

for (const [name, start] of [
  ['Express', expressShop],
  ['Fastify', fastifyShop],
] as const) {
  test(
    `${name} answers requests that may not pass as the RFCs demand`,
    closing(async (opened) => {
      const authority = new Authority();
      const verifier = authority.verifier();
      const { port } = await start(opened, verifier);
      const scopes = ['orders:write', 'b"c'];
      const [good, other] = [authority.issue('alice', { scopes }), authority.issue('bob')];
      const orders = (...headers: Header[]): Promise<Answered> => call(port, '/orders', headers);

      for (const headers of [
        [bearer(good)],
        [['AUTHORIZATION', `bearer  ${good}`]],
        [cookie(`a=b; session=${good}`)],
        [bearer(good), cookie(`session="${good}"; session=`)],
        [['authorization', 'Basic dDp0'], cookie(`session=${good}`)],
      ] satisfies Header[][]) {
        const { status, body } = await orders(...headers);
        assert.deepEqual([status, body], [200, 'alice'], JSON.stringify(headers.map(([it]) => it)));
      }

      const realm = 'Bearer realm="https://shop.test/é"';
      const scope = 'scope="orders:write b\\"c"';
      const check = (answer: Answered, status: number, expected: string, error: string): void => {
        assert.equal(answer.status, status);
        const found = answer.headers['www-authenticate'] ?? '';
        assert.equal(Buffer.from(found, 'latin1').toString(), expected);
        assert.equal(answer.headers['content-type'], 'application/json');
        assert.equal(answer.headers['cache-control'], 'no-store');
        assert.equal((JSON.parse(answer.body) as { error: string }).error, error);
      };
      check(await orders(), 401, `${realm}, ${scope}`, 'unauthorized');
      const several =
        `${realm}, error="invalid_request", ` +
        'error_description="more than one access token was sent"';
      for (const headers of [
        [bearer(good), bearer(good)],
        [bearer(good), cookie(`session=${other}`)],
        [['authorization', 'Bearer a b'], cookie(`session=${good}`)],
        [['authorization', 'Basic dDp0'], bearer(good)],
      ] satisfies Header[][]) {
        check(await orders(...headers), 400, several, 'invalid_request');
      }
      const conflict = await orders(cookie(`session=${good}`), cookie(`session=${other}`));
      assert.equal(conflict.status, 400);
      assert.match(conflict.body, /several cookies of the same name/);
      const invalid = (text: string): string =>
        `${realm}, error="invalid_token", error_description="the access token ${text}"`;
      check(await orders(bearer('x')), 401, invalid('is not valid'), 'invalid_token');
      const elsewhere = authority.issue('alice', { scopes, audience: ['https://other.test'] });
      const foreign = invalid('is not meant for this resource');
      check(await orders(bearer(elsewhere)), 401, foreign, 'invalid_token');
      const lacking =
        `${realm}, error="insufficient_scope", ` +
        `error_description="the access token lacks a scope", ${scope}`;
      check(await orders(bearer(other)), 403, lacking, 'insufficient_scope');
      const weak = await call(port, '/pay', [bearer(good)]);
      const stepUp =
        'Bearer error="insufficient_user_authentication", error_description="a stronger or more ' +
        'recent authentication is needed: the route demands hwk within 60 seconds, pwd", ' +
        'acr_values="gold", max_age="60"';
      check(weak, 401, stepUp, 'insufficient_user_authentication');
      const strong = authority.issue('carol', { acr: 'gold', amr: ['hwk', 'pwd'] });
      assert.equal((await call(port, '/pay', [bearer(strong)])).status, 200);
      const odd = await call(port, '/odd', [bearer(good)]);
      check(odd, 403, 'Bearer', 'insufficient_scope');
      assert.equal((await call(port, '/open', [])).body, 'open');

      assert.equal((await call(port, '/', [])).body, 'nobody');
      assert.equal((await call(port, '/', [cookie(`session=${good}`)])).body, 'alice');
      assert.equal((await call(port, '/', [bearer('x')])).status, 401);
      assert.equal((await call(port, '/', [bearer(good), bearer(good)])).status, 400);

      authority.revoke(good);
      check(await orders(bearer(good)), 401, invalid('has been revoked'), 'invalid_token');
      authority.setUnavailable(true);
      const unknown = await orders(bearer(other));
      assert.equal(unknown.status, 503);
      assert.equal(unknown.headers['retry-after'], '1');
      assert.equal(unknown.headers['www-authenticate'], undefined);
      authority.setUnavailable(false);
      authority.advance(900);
      check(await orders(bearer(other)), 401, invalid('has expired'), 'invalid_token');
    }),
  );
}

test('a challenge has an error for each reason, and credentials are found strictly', () => {
  const demands = checkDemands(STRONG);
  for (const reason of INACTIVE_REASONS) {
    assert.match(challenge(reason, undefined, demands), /^Bearer error="/);
  }
  assert.equal(challenge('no_token', undefined, checkDemands({})), 'Bearer');
  const found = (authorization: string[], cookies: string[] = []): unknown =>
    findCredential(authorization, cookies, 'session');
  for (const malformed of [
    'Bearer',
    'Bearer ',
    'Bearer t u',
    'Bearer t,',
    'Bearer\tt',
    'bearer é',
  ]) {
    assert.deepEqual(found([malformed]), { token: '' }, malformed);
  }
  for (const other of ['', 'Basic t', 'Bearert', 'Bearer:t', 'XBearer t']) {
    assert.equal(found([other]), 'none', other);
  }
  for (const value of ['', 'Session=t', 'xsession=t', 'session', 'a=session=t', 'session=""']) {
    assert.equal(found([], [value]), 'none', value);
  }
  for (const value of ['session=t', ' session = t ', 'sessio=x;session=t;=;;', 'session="t"']) {
    assert.deepEqual(found([], [value]), { token: 't' }, value);
  }
  assert.equal(found([], ['session=t; session=u']), 'conflicting_cookies');
  assert.equal(findCredential([], ['session=t'], undefined), 'none');
});

const identity = (bytes: Buffer): Buffer => bytes;
const METHOD = {
  requestSerialize: identity,
  requestDeserialize: identity,
  responseSerialize: identity,
  responseDeserialize: identity,
};

test(
  'a server of gRPC lets only calls pass that may',
  closing(async (opened) => {
    const authority = new Authority();
    const verifier = authority.verifier();
    const interceptor = protect(verifier, DEMANDS, {
      methods: { '/shop.Orders/Health': 'public', '/shop.Orders/Pay': STRONG },
    });
    const server = new grpc.Server({ interceptors: [interceptor] });
    const unary = (path: string) => ({
      ...METHOD,
      path,
      requestStream: false,
      responseStream: false,
    });
    server.addService(
      {
        List: unary('/shop.Orders/List'),
        Pay: unary('/shop.Orders/Pay'),
        Health: unary('/shop.Orders/Health'),
        Chat: { ...METHOD, path: '/shop.Orders/Chat', requestStream: true, responseStream: true },
      },
      {
        List: (call: grpc.ServerUnaryCall<Buffer, Buffer>, end: grpc.sendUnaryData<Buffer>) => {
          end(null, Buffer.from(sessionOf(call).subject));
        },
        Pay: (call: grpc.ServerUnaryCall<Buffer, Buffer>, end: grpc.sendUnaryData<Buffer>) => {
          end(null, Buffer.from(sessionOf(call).subject));
        },
        Health: (call: grpc.ServerUnaryCall<Buffer, Buffer>, end: grpc.sendUnaryData<Buffer>) => {
          assert.equal(findSession(call), undefined);
          end(null, Buffer.from('good'));
        },
        Chat: (call: grpc.ServerDuplexStream<Buffer, Buffer>) => {
          call.on('data', (part: Buffer) => {
            call.write(Buffer.concat([Buffer.from(sessionOf(call).subject), part]));
          });
          call.on('end', () => call.end());
        },
      },
    );
    const credentials = grpc.ServerCredentials.createInsecure();
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync('127.0.0.1:0', credentials, (error, bound) => {
        if (error === null) resolve(bound);
        else reject(error);
      });
    });
    opened.add({
      close: () => {
        server.forceShutdown();
      },
    });
    const address = `127.0.0.1:${port.toFixed(0)}`;
    const client = opened.add(new grpc.Client(address, grpc.credentials.createInsecure()));
    const metadata = (tokens: string[]): grpc.Metadata => {
      const sent = new grpc.Metadata();
      for (const token of tokens) sent.add('authorization', token);
      return sent;
    };
    const ask = (name: string, ...tokens: string[]): Promise<string> =>
      new Promise((resolve, reject) => {
        const path = `/shop.Orders/${name}`;
        const empty = Buffer.alloc(0);
        client.makeUnaryRequest(
          path,
          identity,
          identity,
          empty,
          metadata(tokens),
          (error, answer) => {
            if (error === null) resolve(String(answer));
            else reject(error);
          },
        );
      });
    const denied = async (calling: Promise<unknown>): Promise<unknown[]> => {
      const error = await calling.then(
        () => assert.fail('it has passed'),
        (it: unknown) => it as grpc.ServiceError,
      );
      const [bytes] = error.metadata.get('grpc-status-details-bin');
      assert.ok(Buffer.isBuffer(bytes));
      const status = fromBinary(StatusSchema, bytes);
      assert.equal(status.code, error.code);
      assert.equal(status.message, error.details);
      const [info, retry] = status.details;
      const {
        reason,
        domain,
        metadata: data,
      } = anyUnpack(info ?? assert.fail(), ErrorInfoSchema) ?? {};
      assert.equal(domain, 'countersign');
      const delay = retry && anyUnpack(retry, RetryInfoSchema)?.retryDelay?.nanos;
      return [error.code, reason, data, ...(delay === undefined ? [] : [delay])];
    };
    const { UNAUTHENTICATED, PERMISSION_DENIED, UNAVAILABLE } = grpc.status;
    const scopes = ['orders:write', 'b"c'];
    const good = `Bearer ${authority.issue('alice', { scopes })}`;
    const other = `Bearer ${authority.issue('bob')}`;
    assert.equal(await ask('List', good), 'alice');
    assert.equal(await ask('Health'), 'good');
    assert.deepEqual(await denied(ask('List')), [UNAUTHENTICATED, 'NO_TOKEN', {}]);
    assert.deepEqual(await denied(ask('List', 'Bearer x')), [UNAUTHENTICATED, 'MALFORMED', {}]);
    const scope = { scope: 'orders:write b"c' };
    assert.deepEqual(await denied(ask('List', other)), [
      PERMISSION_DENIED,
      'INSUFFICIENT_SCOPE',
      scope,
    ]);
    assert.deepEqual(await denied(ask('Pay', good)), [
      UNAUTHENTICATED,
      'STEP_UP_REQUIRED',
      { acr_values: 'gold', max_age: '60' },
    ]);
    const chat = (token: string): Promise<string> =>
      new Promise((resolve, reject) => {
        const path = '/shop.Orders/Chat';
        const stream = client.makeBidiStreamRequest(path, identity, identity, metadata([token]));
        let heard = '';
        stream.on('data', (part: Buffer) => (heard += part.toString()));
        stream.on('error', reject);
        stream.on('end', () => {
          resolve(heard);
        });
        stream.write(Buffer.from(' says a;'));
        stream.end(Buffer.from(' says b;'));
      });
    assert.equal(await chat(good), 'alice says a;alice says b;');
    assert.deepEqual((await denied(chat(other)))[1], 'INSUFFICIENT_SCOPE');
    authority.revoke(good.slice('Bearer '.length));
    assert.deepEqual(await denied(ask('List', good)), [UNAUTHENTICATED, 'REVOKED', {}]);
    authority.setUnavailable(true);
    const unknown = await denied(ask('List', good));
    assert.deepEqual(unknown, [UNAVAILABLE, 'TOKEN_NOT_CHECKED', {}, 500_000_000]);
  }),
);
