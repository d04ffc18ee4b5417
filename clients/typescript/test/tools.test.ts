// These tests start the watcher of the torture test, and the driver of the situations, as programs.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import {
  type Closing,
  closing,
  HANGS,
  ISSUER,
  Program,
  revoke,
  root,
  signIn,
  Site,
} from './support.js';

function start(opened: Closing, name: string, ...parameters: string[]): Program {
  const file = join(root, '.cache', 'build', 'tools', `${name}.js`);
  return opened.add(new Program(process.execPath, [file, ...parameters], {}, 'stdout'));
}

/** Writes lines to a program, and returns the answer to each of the lines that have one. */
async function ask(program: Program, lines: string[], answers = lines.length): Promise<string[]> {
  const before = program.lines.length;
  program.process.stdin?.write(lines.map((line) => `${line}\n`).join(''));
  const ends = performance.now() + HANGS;
  while (program.lines.length < before + answers) {
    assert.ok(performance.now() < ends && !program.hasEnded, program.lines.join('\n'));
    await sleep(1);
  }
  return program.lines.slice(before);
}

test(
  'the watcher answers each line by its own copy',
  closing(async (opened) => {
    const site = await Site.create(opened);
    await site.start(opened);
    const client = site.client(opened);
    const watcher = start(opened, 'watcher', '127.0.0.1:1', site.address);
    const check = async (...tokens: string[]): Promise<string[]> => {
      const began = process.hrtime.bigint();
      const answers = await ask(
        watcher,
        tokens.map((token) => `0 ${token}`),
      );
      return answers.map((answer) => {
        const [number, count, begin = '', end = '', begun, ended, ...words] = answer.split(' ');
        assert.deepEqual([number, count, begun, ended], ['0', '1', begin, end]);
        assert.ok(began <= BigInt(begin) && BigInt(begin) <= BigInt(end));
        assert.ok(BigInt(end) <= process.hrtime.bigint());
        return words.join(' ');
      });
    };
    const settled = async (...tokens: string[]): Promise<string[]> => {
      const ends = performance.now() + HANGS;
      for (;;) {
        const words = await check(...tokens);
        if (!words.includes('unknown NO_LEASE')) return words;
        assert.ok(performance.now() < ends);
        await sleep(10);
      }
    };
    const [good, revoked] = [await signIn(client, 'alice'), await signIn(client, 'bob')];
    assert.deepEqual(await settled(good, revoked, 'x'), ['active', 'active', 'inactive MALFORMED']);
    await revoke(client, revoked);
    assert.deepEqual(await settled(good, revoked), ['active', 'inactive REVOKED']);
    const [, wrong] = await ask(watcher, ['clock 10000000000 0', `0 ${good}`], 1);
    assert.equal(wrong, undefined);
    assert.match(watcher.lines.at(-1) ?? '', /unknown NO_LEASE$/, 'its wall clock has moved');
    watcher.process.stdin?.write('clock 0 900000000\n');
    assert.deepEqual(await settled(good, revoked), ['active', 'inactive REVOKED']);
    watcher.process.stdin?.end();
    assert.equal(await watcher.ended(), 0);
  }),
);

type Json = Record<string, unknown>;

test(
  'the driver does what it is told',
  closing(async (opened) => {
    const site = await Site.create(opened);
    const server = await site.start(opened);
    const driver = start(opened, 'driver');
    const tell = async (command: Json): Promise<Json> => {
      const [answer = ''] = await ask(driver, [JSON.stringify(command)]);
      return JSON.parse(answer) as Json;
    };
    const text = (value: unknown): string => {
      assert.ok(typeof value === 'string' && value !== '');
      return value;
    };
    assert.deepEqual(await tell({ do: 'connect', endpoints: ['nowhere'] }), { refused: true });
    const endpoints = [site.url];
    assert.deepEqual(await tell({ do: 'connect', endpoints, deadline_ms: 5000 }), {});
    assert.deepEqual(await tell({ do: 'verifier', mode: 'local', refuse: true }), {});
    assert.deepEqual(await tell({ do: 'ready', within_ms: 20_000 }), { ready: true });
    const created = await tell({ do: 'create', subject: 'alice', scopes: ['a'], tenant: 'acme' });
    const token = text(created['access_token']);
    text(created['session_id']);
    const active = { answer: 'ACTIVE', subject: 'alice' };
    assert.deepEqual(await tell({ do: 'verify', token, demands: { scopes: ['a'] } }), active);
    assert.deepEqual(await tell({ do: 'validate', token }), active);
    const lacking = { answer: 'INACTIVE', reason: 'INSUFFICIENT_SCOPE' };
    assert.deepEqual(await tell({ do: 'verify', token, demands: { scopes: ['b'] } }), lacking);
    const guard = { do: 'guard', cookie: 't', realm: 'r' };
    const passed = { status: 200, subject: 'alice' };
    const authorization = ['Authorization', `Bearer ${token}`];
    assert.deepEqual(await tell({ ...guard, headers: [authorization] }), passed);
    assert.deepEqual(await tell({ ...guard, headers: [['cookie', `t=${token}`]] }), passed);
    const none = { status: 401, challenge: 'Bearer realm="r"' };
    assert.deepEqual(await tell({ ...guard, headers: [] }), none);
    const twice = await tell({ ...guard, headers: [authorization, authorization] });
    assert.equal(twice['status'], 400);
    const refreshed = await tell({ do: 'refresh', refresh_token: created['refresh_token'] });
    const newer = text(refreshed['access_token']);
    assert.notEqual(refreshed['refresh_token'], created['refresh_token']);
    assert.deepEqual(await tell({ do: 'revoke', token: newer }), {});
    const revoked = { answer: 'INACTIVE', reason: 'REVOKED' };
    assert.deepEqual(await tell({ do: 'verify', token: newer }), revoked);
    assert.deepEqual(await tell({ do: 'revoke', token: 'x' }), { error: 'INVALID_FIELD' });
    const ended = { error: 'SESSION_REVOKED' };
    assert.deepEqual(await tell({ do: 'refresh', ...refreshed }), ended);

    assert.deepEqual(await tell({ do: 'load', subject: 'bob' }), {});
    await sleep(300);
    const load = await tell({ do: 'load_end' });
    assert.ok(Number(load['rounds']) > 0, JSON.stringify(load));
    assert.deepEqual([load['failed'], load['errors']], [0, []]);

    const another = text((await tell({ do: 'create', subject: 'carol' }))['access_token']);
    assert.deepEqual(await tell({ do: 'clock', wall_ms: 60_000, uptime_ms: 0 }), {});
    assert.deepEqual(await tell({ do: 'verify', token: another }), { answer: 'UNKNOWN' });
    assert.deepEqual(await tell({ do: 'clock', wall_ms: -60_000, uptime_ms: 0 }), {});
    await tell({ do: 'verifier', mode: 'local_unwatched', issuer: ISSUER });
    await tell({ do: 'ready', within_ms: 20_000 });
    const known = { answer: 'ACTIVE', subject: 'carol' };
    assert.deepEqual(await tell({ do: 'verify', token: another }), known);
    assert.deepEqual(await tell({ do: 'clock', wall_ms: 3_700_000, uptime_ms: 3_700_000 }), {});
    assert.deepEqual(await tell({ do: 'verify', token: another }), { answer: 'UNKNOWN' });
    await tell({ do: 'verifier', mode: 'remote' });
    assert.deepEqual(await tell({ do: 'verify', token: another }), known);

    await tell({ do: 'connect', endpoints, deadline_ms: 200 });
    await tell({ do: 'verifier', mode: 'local' });
    await server.close();
    assert.deepEqual(await tell({ do: 'ready', within_ms: 100 }), { ready: false });
    assert.deepEqual(await tell({ do: 'create', subject: 'dave' }), { error: 'UNREACHABLE' });
    driver.process.stdin?.write('{"do":"dance"}\n');
    assert.notEqual(await driver.ended(), 0);
  }),
);
