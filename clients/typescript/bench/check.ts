// Compares a check by this library with `jwtVerify` of jose, which knows nothing of revocations.
//
// Usage: node .cache/build/bench/check.js
import { randomBytes } from 'node:crypto';

import { type CryptoKey, exportJWK, generateKeyPair, jwtVerify, SignJWT } from 'jose';

import { SystemClock } from '../src/core/clock.js';
import { newSessionId } from '../src/core/ids.js';
import { KeySet } from '../src/core/keys.js';
import { readClocks } from '../src/core/lease.js';
import { Local } from '../src/core/local.js';
import { Verifier } from '../src/verifier.js';

const ISSUER = 'https://auth.test';
const AUDIENCE = 'https://orders.test';
const REVOCATIONS = 100_000;
const ROUNDS = 7;
const TOKENS = 500;

async function sign(key: CryptoKey, algorithm: string): Promise<string> {
  const now = Math.floor(Date.now() / 1000);
  return new SignJWT({
    client_id: 'web',
    sid: newSessionId(Date.now()),
    auth_time: now,
    scope: 'orders:read orders:write',
    amr: ['pwd'],
    plan: 'gold',
  })
    .setProtectedHeader({ alg: algorithm, typ: 'at+jwt', kid: 'key' })
    .setIssuer(ISSUER)
    .setAudience(AUDIENCE)
    .setSubject('alice')
    .setJti(crypto.randomUUID())
    .setIssuedAt(now)
    .setExpirationTime(now + 900)
    .sign(key);
}

/** Returns a verifier with a lease, for the tokens of a key. */
async function verifying(key: CryptoKey, algorithm: string, cacheBytes: number): Promise<Verifier> {
  const jwk = { ...(await exportJWK(key)), alg: algorithm, kid: 'key' };
  const local = new Local(new SystemClock(), cacheBytes);
  const rules = {
    issuer: ISSUER,
    maxLifetime: 3_600_000,
    leeway: 5000,
    tenants: new Set<string>(),
    audiences: new Set<string>(),
    leaseMargin: 250,
  };
  local.replace(KeySet.read(JSON.stringify({ keys: [jwk] }), []) ?? KeySet.EMPTY, rules, undefined);
  for (let number = 0; number < REVOCATIONS; number++) {
    const id = randomBytes(16);
    local.copy.index.revokeId(
      [0, 4, 8, 12].map((at) => id.readUInt32BE(at)),
      Date.now() + 900_000,
    );
  }
  local.take(readClocks(local.clock), 3_600_000);
  return new Verifier('local', local, undefined);
}

/** Returns the time of each run for one token, in microseconds. */
async function time(tokens: readonly string[], check: (token: string) => unknown): Promise<number> {
  const began = performance.now();
  for (const token of tokens) await check(token);
  return ((performance.now() - began) * 1000) / tokens.length;
}

function median(values: number[]): number {
  return values.sort((one, other) => one - other)[values.length >> 1] ?? NaN;
}

for (const algorithm of ['EdDSA', 'ES256', 'RS256']) {
  const { publicKey, privateKey } = await generateKeyPair(algorithm, { extractable: true });
  const warm = await verifying(publicKey, algorithm, 32 << 20);
  const cold = await verifying(publicKey, algorithm, 0);
  const tokens = await Promise.all(
    Array.from({ length: TOKENS }, () => sign(privateKey, algorithm)),
  );
  const demands = { audience: AUDIENCE, scopes: ['orders:read'] };
  const verify = async (verifier: Verifier, token: string): Promise<void> => {
    const { status } = await verifier.verify(token, demands);
    if (status !== 'active') throw new Error(`the token is ${status}`);
  };
  const times: Record<'jose' | 'seen' | 'fresh', number[]> = { jose: [], seen: [], fresh: [] };
  for (let round = 0; round < ROUNDS; round++) {
    times.jose.push(
      await time(tokens, (token) => {
        return jwtVerify(token, publicKey, { issuer: ISSUER, audience: AUDIENCE, typ: 'at+jwt' });
      }),
    );
    times.fresh.push(await time(tokens, (token) => verify(cold, token)));
    times.seen.push(await time(tokens, (token) => verify(warm, token)));
  }
  const [jose, seen, fresh] = [median(times.jose), median(times.seen), median(times.fresh)];
  const text = [
    `${algorithm}: jwtVerify of jose ${jose.toFixed(1)} us`,
    `a token seen before ${seen.toFixed(2)} us (${(jose / seen).toFixed(0)} times faster)`,
    `a new token ${fresh.toFixed(1)} us (${(fresh / jose).toFixed(2)} of the time)`,
  ];
  process.stdout.write(`${text.join('; ')}\n`);
}
