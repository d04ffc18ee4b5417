/**
 * An authority within the process, for the tests of an application: it issues tokens, revokes them,
 * and can be unavailable. It needs no server.
 *
 * ```ts
 * const authority = new Authority();
 * const verifier = authority.verifier();
 * const token = authority.issue('alice', { scopes: ['orders:write'] });
 * assert.equal(verifier.verifyLocally(token).status, 'active');
 * authority.revoke(token);
 * assert.equal(verifier.verifyLocally(token).status, 'inactive');
 * ```
 *
 * @module
 */
import { generateKeyPairSync, type KeyObject, randomUUID, sign } from 'node:crypto';
import { inspect } from 'node:util';

import type { JsonObject } from '@bufbuild/protobuf';

import { type Clock, SettableClock } from './core/clock.js';
import { newSessionId } from './core/ids.js';
import { KeySet } from './core/keys.js';
import { Local } from './core/local.js';
import { TOKEN_TYPE } from './core/token.js';
import { Verifier } from './verifier.js';

export { type Clock, SettableClock, SystemClock } from './core/clock.js';

/** The issuer of the tokens. */
export const ISSUER = 'https://authority.test';
/** The audience of tokens that name no other. */
export const AUDIENCE = 'https://api.test';

const KEY_ID = 'testing';
const LIFETIME_MS = 900_000;
const LONGEST_LIFETIME_MS = 366 * 86_400_000;

/** The contents of a token. */
export interface TokenOptions {
  /** The tenant. */
  readonly tenant?: string | undefined;
  /** The OAuth client. */
  readonly clientId?: string | undefined;
  /** The audiences: {@link AUDIENCE} by default. */
  readonly audience?: readonly string[] | undefined;
  /** The scopes. */
  readonly scopes?: readonly string[] | undefined;
  /** The authentication context class. */
  readonly acr?: string | undefined;
  /** The authentication methods, which were verified when the user authenticated. */
  readonly amr?: readonly string[] | undefined;
  /** The time since the authentication, in seconds. */
  readonly authenticatedAgoSeconds?: number | undefined;
  /** The lifetime in seconds: 15 minutes by default. */
  readonly lifetimeSeconds?: number | undefined;
  /** The session's own claims. */
  readonly claims?: JsonObject | undefined;
}

/**
 * An authority within the process. Its clock starts at the present time, and moves only when
 * {@link Authority.advance} is called.
 */
export class Authority {
  readonly #key: KeyObject;
  readonly #clock = new SettableClock(Date.now());
  readonly #local: Local;

  /**
   * Creates an authority with a key of its own. `clock` is the clock of its verifiers, if that is
   * not the one that {@link Authority.advance} moves.
   */
  constructor(clock?: Clock) {
    const { publicKey, privateKey } = generateKeyPairSync('ed25519');
    this.#key = privateKey;
    this.#local = new Local(clock ?? this.#clock, 1 << 20);
    const jwk = { ...publicKey.export({ format: 'jwk' }), alg: 'EdDSA', kid: KEY_ID };
    const keys = KeySet.read(JSON.stringify({ keys: [jwk] }), []) ?? KeySet.EMPTY;
    const rules = {
      issuer: ISSUER,
      maxLifetime: LONGEST_LIFETIME_MS,
      leeway: 0,
      tenants: new Set<string>(),
      audiences: new Set<string>(),
      leaseMargin: Infinity,
    };
    this.#local.replace(keys, rules, undefined);
    this.setUnavailable(false);
  }

  /** Returns a verifier that accepts the tokens of this authority. */
  verifier(): Verifier {
    return new Verifier('testing', this.#local, undefined);
  }

  /** Issues a token of a session of its own, for this user. */
  issue(subject: string, options: TokenOptions = {}): string {
    const issuedAt = Math.floor(this.#clock.now() / 1000);
    const authenticatedAt = issuedAt - Math.floor(options.authenticatedAgoSeconds ?? 0);
    const { amr = [], scopes = [], audience = [] } = options;
    const lifetime = Math.floor(options.lifetimeSeconds ?? LIFETIME_MS / 1000);
    const claims = {
      ...options.claims,
      iss: ISSUER,
      sub: subject,
      aud: audience.length > 0 ? audience : [AUDIENCE],
      client_id: options.clientId ?? '',
      iat: issuedAt,
      exp: issuedAt + lifetime,
      jti: randomUUID(),
      sid: newSessionId(this.#clock.now()),
      auth_time: authenticatedAt,
      ...(options.tenant !== undefined && { tenant: options.tenant }),
      ...(scopes.length > 0 && { scope: scopes.join(' ') }),
      ...(options.acr !== undefined && { acr: options.acr }),
      ...(amr.length > 0 && {
        amr,
        countersign_amr_verified_at: Object.fromEntries(
          amr.map((method) => [method, authenticatedAt]),
        ),
      }),
    };
    const encode = (part: object): string =>
      Buffer.from(JSON.stringify(part)).toString('base64url');
    const header = { typ: TOKEN_TYPE, alg: 'EdDSA', kid: KEY_ID };
    const signed = `${encode(header)}.${encode(claims)}`;
    return `${signed}.${sign(null, Buffer.from(signed), this.#key).toString('base64url')}`;
  }

  /**
   * Revokes the session of a token of this authority.
   *
   * @throws Error if the token is from elsewhere
   */
  revoke(token: string): void {
    const { copy } = this.#local;
    const claims = copy.authenticate(token);
    if (typeof claims === 'string') throw new Error('the token is not from this authority');
    copy.index.revokeId(claims.session, claims.expiresAt);
  }

  /** Sets whether the authority is unavailable. Then it is unknown whether a token is active. */
  setUnavailable(isUnavailable: boolean): void {
    if (isUnavailable) this.#local.copy.lease.end();
    else this.#local.take({ now: 0, uptime: 0 }, Infinity);
  }

  /** Moves the clock forward by seconds, for instance until a token has expired. */
  advance(seconds: number): void {
    this.#clock.advance(seconds * 1000);
  }

  /** Names the class. */
  [inspect.custom](): string {
    return 'Authority {}';
  }
}
