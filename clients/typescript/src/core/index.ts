import type { Claims } from './claims.js';
import { type CutOff, CutOffs, type Scope } from './cut-offs.js';
import { IdIndex } from './index-of-ids.js';
import { EARLIEST } from './time.js';

/** The revocations in force. */
export class Index {
  readonly #ids = new IdIndex();
  readonly #cutOffs = new CutOffs();
  #expiredUpTo: number;

  /**
   * Creates an index without revocations. Tokens that expire until `expiredUpTo` have expired,
   * whatever the clock says.
   */
  constructor(expiredUpTo = EARLIEST) {
    this.#expiredUpTo = expiredUpTo;
  }

  /** Adds a revocation of a session, a token or an authentication. */
  revokeId(id: readonly number[], expiresAt: number): void {
    this.#ids.add(id, expiresAt);
  }

  /** Adds a revocation of many sessions. */
  revokeSessions(scope: Scope, byAuthentication: boolean, cutOff: CutOff): void {
    this.#cutOffs.apply(scope, byAuthentication, cutOff);
  }

  /** Returns whether a revocation stops a token. */
  stops(claims: Claims): boolean {
    const ids = this.#ids;
    return (
      ids.has(claims.session) ||
      ids.has(claims.token) ||
      ids.has(claims.authentication) ||
      this.#cutOffs.cover(claims)
    );
  }

  /**
   * Returns whether a token with this expiry counts as expired, whatever the clock says: a
   * revocation that stops it may have been dropped.
   */
  isExpired(expiresAt: number): boolean {
    return expiresAt <= this.#expiredUpTo;
  }

  /**
   * Raises the instant up to which tokens have expired. It never goes back. Returns whether it was
   * raised, so that `purge` has something to do.
   */
  expire(upTo: number): boolean {
    if (!(upTo > this.#expiredUpTo)) return false;
    this.#expiredUpTo = upTo;
    return true;
  }

  get expiredUpTo(): number {
    return this.#expiredUpTo;
  }

  /** Drops the revocations whose tokens have all expired, in small steps. */
  *purge(): Generator<void> {
    this.#cutOffs.purge(this.#expiredUpTo);
    yield* this.#ids.purge(this.#expiredUpTo);
  }

  /** The number of revocations. */
  get size(): number {
    return this.#ids.size + this.#cutOffs.size;
  }

  /** The memory of the revocations of single identifiers, in bytes. */
  get bytes(): number {
    return this.#ids.bytes;
  }
}
