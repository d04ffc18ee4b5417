import { type CheckedDemands, unmetDemand } from '../demands.js';
import { VerifiedCache } from './cache.js';
import type { Claims } from './claims.js';
import type { Clock } from './clock.js';
import { Index } from './index.js';
import { KeySet } from './keys.js';
import { Lease, type Start } from './lease.js';
import type { InactiveReason } from './reasons.js';
import { isText, MAX_AUDIENCE, MAX_TENANT } from './text.js';
import { plus, since } from './time.js';
import { isTooLong, parseToken, verifyToken } from './token.js';

/** The rules for tokens. Times are in milliseconds. */
export interface Rules {
  readonly issuer: string;
  readonly maxLifetime: number;
  readonly leeway: number;
  /** The tenants and audiences of tokens that are accepted; empty for no limit. */
  readonly tenants: ReadonlySet<string>;
  readonly audiences: ReadonlySet<string>;
  readonly leaseMargin: number;
}

/** The rules before any have arrived. No token meets them. */
const NO_RULES: Rules = {
  issuer: '',
  maxLifetime: 0,
  leeway: 0,
  tenants: new Set(),
  audiences: new Set(),
  leaseMargin: 0,
};

/** Returns whether the names in the limits are valid. */
export function areLimitsValid(rules: Rules): boolean {
  return (
    [...rules.tenants].every((name) => isText(name, MAX_TENANT)) &&
    [...rules.audiences].every((name) => name !== '' && isText(name, MAX_AUDIENCE))
  );
}

/** The claims of an active token, or the reason why a token is inactive. */
export type Outcome = Claims | InactiveReason;

/**
 * A copy of everything that decides whether a token is active.
 *
 * Only its index grows, and its lease is extended. When anything else changes, another copy takes
 * its place. Each copy has a lease of its own: a check that has loaded a copy with earlier keys
 * must not get a lease that rests on the later ones.
 */
export class LocalCopy {
  readonly lease: Lease;

  constructor(
    clock: Clock,
    readonly index: Index,
    readonly keys: KeySet,
    readonly rules: Rules,
    readonly cache: VerifiedCache,
  ) {
    this.lease = new Lease(clock, rules.leaseMargin);
  }

  /** Answers by this copy; `undefined` without a lease. */
  answer(token: string, demands: CheckedDemands): Outcome | undefined {
    // The lease is loaded before the look-up, and checked after it.
    const { held } = this.lease;
    const claims = this.authenticate(token);
    const isRevoked = typeof claims !== 'string' && this.index.stops(claims);
    // The time is read after the look-up. If a revocation was dropped before the look-up, all its
    // tokens have expired, so the check of the time refuses them.
    const now = this.lease.check(held);
    if (now === undefined) return undefined;
    if (typeof claims === 'string') return claims;
    return this.#denial(claims, demands, isRevoked, now) ?? claims;
  }

  /** Checks the form and the signature of a token. */
  authenticate(token: string): Outcome {
    const known = this.cache.get(token);
    if (known !== undefined) {
      const key = this.keys.find(known.keyId);
      if (typeof key === 'string') return key;
      // The rules may have changed since the token was verified.
      return this.#isTooLongLived(known.claims) ? 'MALFORMED' : known.claims;
    }
    if (isTooLong(token)) return 'MALFORMED';
    const parsed = parseToken(token);
    if (typeof parsed === 'string') return parsed;
    const key = this.keys.find(parsed.keyId);
    if (typeof key === 'string') return key;
    const claims = verifyToken(parsed, key, this.rules.issuer);
    if (typeof claims === 'string') return claims;
    if (this.#isTooLongLived(claims)) return 'MALFORMED';
    this.cache.add(token, { claims, keyId: parsed.keyId });
    return claims;
  }

  #isTooLongLived(claims: Claims): boolean {
    return since(claims.expiresAt, claims.issuedAt) > this.rules.maxLifetime;
  }

  #denial(
    claims: Claims,
    demands: CheckedDemands,
    isRevoked: boolean,
    now: number,
  ): InactiveReason | undefined {
    const { tenants, audiences, leeway } = this.rules;
    if (tenants.size > 0 && !tenants.has(claims.tenant)) return 'FOREIGN_TENANT';
    if (now >= claims.expiresAt || this.index.isExpired(claims.expiresAt)) return 'EXPIRED';
    if (Math.max(claims.notBefore, claims.issuedAt) > plus(now, leeway)) return 'NOT_YET_VALID';
    if (isRevoked) return 'REVOKED';
    if (audiences.size > 0 && !claims.audience.some((name) => audiences.has(name))) {
      return 'WRONG_AUDIENCE';
    }
    return unmetDemand(demands, claims, now);
  }
}

/** The copy in force, which a background task replaces. */
export class Local {
  /** The number of streams, or fetches of keys, that were begun. */
  connections = 0;
  /** The number of times that everything was received anew. */
  resets = 0;
  /** The time that the last renewal of the lease took, in milliseconds. */
  lag = 0;
  /** Called if a token names a key that is not known. */
  onUnknownKey: () => void = () => undefined;

  readonly clock: Clock;
  readonly #cacheBytes: number;
  #copy: LocalCopy;
  readonly #waiting = new Set<() => void>();

  /** Creates a copy that has nothing. Verified tokens are kept in about so many bytes. */
  constructor(clock: Clock, cacheBytes: number) {
    this.clock = clock;
    this.#cacheBytes = cacheBytes;
    const cache = new VerifiedCache(cacheBytes);
    this.#copy = new LocalCopy(clock, new Index(), KeySet.EMPTY, NO_RULES, cache);
  }

  /** The copy in force. */
  get copy(): LocalCopy {
    return this.#copy;
  }

  /** Answers by the copy in force; `undefined` without a lease. */
  answer(token: string, demands: CheckedDemands): Outcome | undefined {
    const outcome = this.#copy.answer(token, demands);
    if (outcome === 'UNKNOWN_KEY') this.onUnknownKey();
    return outcome;
  }

  /**
   * Puts a copy without revocations and without a lease in force. The verified tokens outlive the
   * reset, and a token that has expired stays expired.
   */
  reset(): LocalCopy {
    const { index, keys, rules, cache } = this.#copy;
    const empty = new Index(index.expiredUpTo);
    this.#copy = new LocalCopy(this.clock, empty, keys, rules, cache);
    return this.#copy;
  }

  /**
   * Puts a copy with the same revocations and other keys or rules in force. `lease` is the lease
   * that is good for it too. The copy has it from the beginning, so that no check finds none.
   */
  replace(
    keys: KeySet,
    rules: Rules,
    lease: { start: Start; validFor: number } | undefined,
  ): LocalCopy {
    const former = this.#copy;
    // The cache holds tokens that had the earlier issuer, and a signature of the earlier keys.
    const isCacheGood = rules.issuer === former.rules.issuer && keys.includes(former.keys);
    const cache = isCacheGood ? former.cache : new VerifiedCache(this.#cacheBytes);
    const copy = new LocalCopy(this.clock, former.index, keys, rules, cache);
    if (lease !== undefined) copy.lease.take(lease.start, lease.validFor);
    this.#copy = copy;
    return copy;
  }

  /** Takes a lease of the copy in force. */
  take(start: Start, validFor: number): void {
    this.#copy.lease.take(start, validFor);
    for (const leased of [...this.#waiting]) leased();
  }

  /** Waits until the copy in force has a lease. */
  async ready(signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted();
    if (this.#copy.lease.remaining() > 0) return;
    await new Promise<void>((resolve, reject) => {
      const end = (): void => {
        this.#waiting.delete(check);
        signal?.removeEventListener('abort', abort);
      };
      const check = (): void => {
        if (this.#copy.lease.remaining() === 0) return;
        end();
        resolve();
      };
      const abort = (): void => {
        end();
        // The reason is what the caller has given to its signal.
        // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors
        reject(signal?.reason);
      };
      this.#waiting.add(check);
      signal?.addEventListener('abort', abort, { once: true });
    });
  }
}
