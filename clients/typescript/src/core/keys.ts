import { createPublicKey, type KeyObject, verify } from 'node:crypto';

import { decode } from './base64url.js';
import type { InactiveReason } from './reasons.js';

/** The sizes of RSA keys that are used, in bits. */
const MIN_RSA_BITS = 2048;
const MAX_RSA_BITS = 8192;

/** The length of a coordinate of Ed25519 and P-256 in bytes. */
const COORDINATE = 32;
/** The length of a signature of EdDSA and ES256 in bytes. */
const SIGNATURE = 64;

/** A key that verifies access tokens by one algorithm only. */
export interface Key {
  readonly algorithm: string;
  /** The public key as text, by which keys are compared. */
  readonly material: string;
  /** Returns whether the key has made a signature. */
  verifies(message: string, signature: Buffer): boolean;
}

/** The keys by their names (`kid`). */
export class KeySet {
  readonly #keys = new Map<string, Key>();
  readonly #revoked: ReadonlySet<string>;
  /** The number of keys in the JWK set that this library cannot use. */
  readonly unusable: number = 0;

  private constructor(keys: readonly unknown[], revoked: Iterable<string>) {
    for (const jwk of keys) {
      const read = readKey(jwk);
      if (read === undefined) this.unusable++;
      else this.#keys.set(...read);
    }
    this.#revoked = new Set(revoked);
  }

  /** A set without keys. */
  static readonly EMPTY = new KeySet([], []);

  /**
   * Reads a JWK set (RFC 7517, section 5), and the names of revoked keys; `undefined` if it is not
   * a JWK set. A key that this library cannot use is left out, so its tokens are refused.
   */
  static read(jwks: string, revoked: Iterable<string>): KeySet | undefined {
    let set: unknown;
    try {
      set = JSON.parse(jwks);
    } catch {
      return undefined;
    }
    const keys = isObject(set) ? set['keys'] : undefined;
    return Array.isArray(keys) ? new KeySet(keys, revoked) : undefined;
  }

  /** Returns the key of a name if its tokens are accepted, or the reason why they are not. */
  find(name: string): Key | InactiveReason {
    if (this.#revoked.has(name)) return 'REVOKED';
    return this.#keys.get(name) ?? 'UNKNOWN_KEY';
  }

  /**
   * Returns whether the set has all keys of an earlier one. Only then is each signature still good
   * that was verified with the earlier keys.
   */
  includes(earlier: KeySet): boolean {
    for (const [name, other] of earlier.#keys) {
      const key = this.#keys.get(name);
      if (key?.algorithm !== other.algorithm || key.material !== other.material) return false;
    }
    return true;
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

function readKey(jwk: unknown): [string, Key] | undefined {
  if (!isObject(jwk)) return undefined;
  const { kid, alg, kty, crv } = jwk;
  if (typeof kid !== 'string') return undefined;
  let key: Key | undefined;
  if (alg === 'EdDSA' && kty === 'OKP' && crv === 'Ed25519') key = edwardsKey(jwk['x']);
  else if (alg === 'ES256' && kty === 'EC' && crv === 'P-256')
    key = ellipticKey(jwk['x'], jwk['y']);
  else if (alg === 'RS256' && kty === 'RSA') key = rsaKey(jwk['n'], jwk['e']);
  return key && [kid, key];
}

function publicKey(jwk: Record<string, string>): KeyObject | undefined {
  try {
    return createPublicKey({ key: jwk, format: 'jwk' });
  } catch {
    return undefined;
  }
}

function coordinate(value: unknown): string | undefined {
  return typeof value === 'string' && decode(value)?.length === COORDINATE ? value : undefined;
}

function edwardsKey(value: unknown): Key | undefined {
  const x = coordinate(value);
  if (x === undefined) return undefined;
  const key = publicKey({ kty: 'OKP', crv: 'Ed25519', x });
  if (key === undefined) return undefined;
  return {
    algorithm: 'EdDSA',
    material: x,
    verifies: (message, signature) =>
      signature.length === SIGNATURE && verify(null, Buffer.from(message), key, signature),
  };
}

function ellipticKey(first: unknown, second: unknown): Key | undefined {
  const x = coordinate(first);
  const y = coordinate(second);
  if (x === undefined || y === undefined) return undefined;
  const key = publicKey({ kty: 'EC', crv: 'P-256', x, y });
  if (key === undefined) return undefined;
  const options = { key, dsaEncoding: 'ieee-p1363' } as const;
  return {
    algorithm: 'ES256',
    material: `${x}.${y}`,
    // RFC 7518, section 3.4.
    verifies: (message, signature) =>
      signature.length === SIGNATURE && verify('sha256', Buffer.from(message), options, signature),
  };
}

function rsaKey(n: unknown, e: unknown): Key | undefined {
  if (typeof n !== 'string' || typeof e !== 'string' || !decode(n) || !decode(e)) return undefined;
  const key = publicKey({ kty: 'RSA', n, e });
  const { modulusLength = 0, publicExponent = 0n } = key?.asymmetricKeyDetails ?? {};
  const isUsable =
    modulusLength >= MIN_RSA_BITS &&
    modulusLength <= MAX_RSA_BITS &&
    publicExponent >= 3n &&
    publicExponent < 2n ** 31n &&
    publicExponent % 2n === 1n;
  if (!key || !isUsable) return undefined;
  return {
    algorithm: 'RS256',
    material: `${n}.${e}`,
    verifies: (message, signature) => verify('sha256', Buffer.from(message), key, signature),
  };
}
