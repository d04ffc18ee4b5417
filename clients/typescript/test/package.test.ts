// These tests use the package as its users do: `check` has packed it, and laid it into
// .cache/consumer/node_modules. The programs here, the examples, and the snippets of the documents
// run there.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import type { Client } from '../src/client.js';
import { type Closing, closing, HANGS, Program, repository, root, Site } from './support.js';

const consumer = join(root, '.cache', 'consumer');
const NAMES = ['', '/express', '/fastify', '/grpc', '/testing', '/telemetry', '/proto'];

test('the package has what it should, and nothing else', () => {
  const folder = join(consumer, 'node_modules', 'countersign-client');
  const files = readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((it) => it.isFile())
    .map((it) => join(it.parentPath, it.name).slice(folder.length + 1));
  const besides = files.filter((name) => !/^dist\/(esm|cjs)\/.*\.(js|d\.ts)$/.test(name)).sort();
  assert.deepEqual(besides, [
    'CHANGELOG.md',
    'LICENSE',
    'README.md',
    'dist/cjs/package.json',
    'dist/esm/package.json',
    'package.json',
  ]);
  for (const kind of ['esm', 'cjs']) {
    for (const name of NAMES) {
      const file = `dist/${kind}${name === '' ? '/index' : name}`;
      assert.ok(files.includes(`${file}.js`) && files.includes(`${file}.d.ts`), file);
    }
  }
});

/** Writes programs that import and require each module of the package. */
function writeImports(): string[] {
  const use = (names: string): string => `
    const authority = new Authority();
    const answer = authority.verifier().verifyLocally(authority.issue('alice'));
    if (answer.status !== 'active' || answer.session.subject !== 'alice') throw new Error();
    if ([${names}].some((it) => it === undefined)) throw new Error();
    // @ts-expect-error -- An unknown answer has no session.
    void (answer as Unknown).session;
    const options: ClientOptions = { endpoints: 'http://127.0.0.1:1' };
    new Client(options).close();
  `;
  const all = 'express.protect, fastify.protect, grpc.protect, observe, SessionService, Client';
  const imports = `
    import { Client, type ClientOptions, type Unknown } from 'countersign-client';
    import * as express from 'countersign-client/express';
    import * as fastify from 'countersign-client/fastify';
    import * as grpc from 'countersign-client/grpc';
    import { SessionService } from 'countersign-client/proto';
    import { observe } from 'countersign-client/telemetry';
    import { Authority } from 'countersign-client/testing';
  `;
  return ['imports.mts', 'requires.cts'].map((file) => {
    writeFileSync(join(consumer, file), imports + use(all));
    return file;
  });
}

/** Compiles programs, and checks their types. */
function compile(files: string[]): void {
  const compiler = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  const options = '--strict --module nodenext --target es2023 --types node --ignoreConfig'.split(
    ' ',
  );
  try {
    execFileSync(process.execPath, [compiler, ...options, ...files], {
      cwd: consumer,
      encoding: 'utf8',
      stdio: 'pipe',
    });
  } catch (error) {
    assert.fail((error as { stdout: string }).stdout);
  }
}

test(
  'it can be imported and required with its types, and each snippet of the documents runs',
  closing(async (opened) => {
    const site = await Site.create(opened);
    await site.start(opened);
    const files: string[] = [];
    const imports = writeImports();
    for (const document of ['clients/typescript/README.md', 'docs/clients/typescript.md']) {
      const text = readFileSync(join(repository, document), 'utf8');
      for (const [, snippet = ''] of text.matchAll(/```ts\n(.*?)```/gs)) {
        let program = snippet.replace(/https:\/\/sessions-\d\.example:50051/g, site.url);
        if (program.includes('app.listen')) {
          program = program.replace('3000', '0');
          program += 'verifier.close();\nclient.close();\nprocess.exit();\n';
        }
        const file = `snippet-${files.length.toFixed(0)}.mts`;
        writeFileSync(join(consumer, file), program);
        files.push(file);
      }
    }
    assert.equal(files.length, 7);
    // The compiler is started once, because that takes long.
    compile([...imports, ...files]);
    const required = readFileSync(join(consumer, 'requires.cjs'), 'utf8');
    assert.match(required, /require\("countersign-client"\)/);
    for (const file of [...imports, ...files]) {
      const compiled = join(consumer, file.replace(/\.(.)ts$/, '.$1js'));
      const program = opened.add(new Program(process.execPath, [compiled]));
      assert.equal(await program.ended(), 0, `${file}: ${program.lines.join('\n')}`);
    }
  }),
);

const SHOP = 'https://shop.example';

interface Answered {
  status: number;
  challenge: string;
  body: string;
}

/** A shop that serves at an address. */
class Shop {
  constructor(readonly port: string) {}

  /** Calls a route, such as `GET /me`. */
  call(route: string, token?: string, headers: Record<string, string> = {}): Promise<Answered> {
    const [method, path] = route.split(' ');
    const all = token === undefined ? headers : { ...headers, authorization: `Bearer ${token}` };
    const options = {
      method,
      path,
      host: '127.0.0.1',
      port: this.port,
      headers: all,
      agent: false,
    };
    return new Promise((resolve, reject) => {
      httpRequest(options, (response) => {
        let body = '';
        response.setEncoding('utf8').on('data', (part: string) => (body += part));
        response.on('end', () => {
          const challenge = response.headers['www-authenticate'] ?? '';
          resolve({ status: response.statusCode ?? 0, challenge, body });
        });
      })
        .on('error', reject)
        .end();
    });
  }

  /** Calls until the answer is as expected. */
  async until(token: string, isExpected: (answer: Answered) => boolean): Promise<void> {
    const ends = performance.now() + HANGS;
    for (;;) {
      const answer = await this.call('GET /me', token);
      if (isExpected(answer)) return;
      assert.ok(performance.now() < ends, JSON.stringify(answer));
      await sleep(20);
    }
  }
}

async function openShop(opened: Closing, name: string, site: Site): Promise<Shop> {
  const folder = join(consumer, name);
  mkdirSync(folder, { recursive: true });
  for (const file of ['shop.js', 'package.json']) {
    copyFileSync(join(repository, 'examples', name, file), join(folder, file));
  }
  const variables = { COUNTERSIGN_ENDPOINTS: site.url, LISTEN: '127.0.0.1:0' };
  const program = new Program(process.execPath, [join(folder, 'shop.js')], variables, 'stdout');
  opened.add(program);
  return new Shop(await program.find((line) => /127\.0\.0\.1:(\d+)/.exec(line)?.[1]));
}

/** Calls the routes with tokens of all kinds. Returns a good one. */
async function checkTokens(client: Client, shop: Shop): Promise<string> {
  const signIn = async (audience: string[], scopes: string[]): Promise<string> => {
    const claims = { plan: 'gold' };
    const { tokens } = await client.createSession({ subject: 'alice', audience, scopes, claims });
    return tokens?.accessToken ?? '';
  };
  const good = await signIn([], []);
  const ordering = await signIn([], ['orders:write']);
  const welcome = { status: 200, challenge: '', body: 'welcome' };
  assert.deepEqual(await shop.call('GET /'), welcome);
  assert.equal((await shop.call('GET /', good)).body, 'welcome back, alice');
  const none = await shop.call('GET /me');
  assert.deepEqual([none.status, none.challenge], [401, `Bearer realm="${SHOP}"`]);
  const bad = await shop.call('GET /me', 'bad');
  assert.equal(bad.status, 401);
  assert.match(bad.challenge, /error="invalid_token"/);
  const me = await shop.call('GET /me', good);
  assert.equal(me.status, 200);
  const { subject, plan } = JSON.parse(me.body) as { subject: string; plan: string };
  assert.deepEqual([subject, plan], ['alice', 'gold']);
  const inCookie = await shop.call('GET /me', undefined, { cookie: `access_token=${good}` });
  assert.equal(inCookie.status, 200);
  const two = await shop.call('GET /me', good, { cookie: `access_token=${ordering}` });
  assert.equal(two.status, 400);
  assert.match(two.challenge, /error="invalid_request"/);
  const elsewhere = await shop.call('GET /me', await signIn(['https://other.example'], []));
  assert.equal(elsewhere.status, 401);
  assert.match(elsewhere.challenge, /not meant for this resource/);
  const lacking = await shop.call('POST /orders', good);
  assert.equal(lacking.status, 403);
  assert.match(lacking.challenge, /scope="orders:write"/);
  assert.equal((await shop.call('POST /orders', ordering)).body, 'ordered by alice');
  await client.revoke({ target: { case: 'token', value: ordering } });
  const revoked = await shop.call('POST /orders', ordering);
  assert.equal(revoked.status, 401);
  assert.match(revoked.challenge, /has been revoked/);
  return good;
}

/** Pays, which needs another authentication. */
async function checkStepUp(client: Client, shop: Shop): Promise<void> {
  const { session, tokens } = await client.createSession({ subject: 'bob' });
  const weak = await shop.call('POST /payments', tokens?.accessToken);
  assert.equal(weak.status, 401);
  assert.match(
    weak.challenge,
    /insufficient_user_authentication.*acr_values="gold", max_age="300"/,
  );
  const again = await client.reauthenticate({
    session: { case: 'sessionId', value: session?.sessionId ?? '' },
    acr: 'gold',
  });
  const paid = await shop.call('POST /payments', again.tokens?.accessToken);
  assert.deepEqual([paid.status, paid.body], [200, 'paid by bob']);
  const earlier = await shop.call('GET /me', tokens?.accessToken);
  assert.match(earlier.challenge, /has been revoked/);
}

for (const name of ['express', 'fastify']) {
  test(
    `each route of examples/${name} lets the right sessions pass`,
    closing(async (opened) => {
      const site = await Site.create(opened);
      site.configure('', SHOP);
      const authority = await site.start(opened);
      const shop = await openShop(opened, name, site);
      const client = site.client(opened);
      const brief = { subject: 'alice', accessTokenTtl: { seconds: 1n, nanos: 0 } };
      const { tokens: expiring } = await client.createSession(brief);
      const good = await checkTokens(client, shop);
      await checkStepUp(client, shop);
      await shop.until(expiring?.accessToken ?? '', ({ challenge }) => {
        return challenge.includes('has expired');
      });
      await authority.close();
      await shop.until(good, ({ status }) => status === 503);
      assert.equal((await shop.call('GET /')).status, 200, 'what is public stays so');
    }),
  );
}
