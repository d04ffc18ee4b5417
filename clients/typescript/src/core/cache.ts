import type { Claims } from './claims.js';

/** The memory that a token takes besides its texts, in bytes. */
const ENTRY_BYTES = 1200;

/** A token whose signature was verified. */
export interface Verified {
  readonly claims: Claims;
  readonly keyId: string;
}

interface Entry extends Verified {
  readonly bytes: number;
  isUsed: boolean;
}

/**
 * Tokens whose signature was verified. Everything that can change (time, revocation, the state of
 * the key, demands) is checked after each look-up. The tokens are kept in the order in which they
 * came. One that was used since it came to the front gets a second chance.
 */
export class VerifiedCache {
  readonly #capacity: number;
  readonly #tokens = new Map<string, Entry>();
  #bytes = 0;

  /** Creates a cache whose tokens take at most about this many bytes. */
  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  get(token: string): Verified | undefined {
    const found = this.#tokens.get(token);
    if (found !== undefined) found.isUsed = true;
    return found;
  }

  add(token: string, verified: Verified): void {
    // The token, its payload, and the claims of the session's own.
    const bytes = ENTRY_BYTES + 3 * token.length;
    if (bytes > this.#capacity || this.#tokens.has(token)) return;
    while (this.#bytes + bytes > this.#capacity) this.#evict();
    this.#bytes += bytes;
    // The token may be a part of a larger text, which would be kept too. It has only ASCII.
    const own = Buffer.from(token, 'latin1').toString('latin1');
    this.#tokens.set(own, { ...verified, bytes, isUsed: false });
  }

  get size(): number {
    return this.#tokens.size;
  }

  /** Drops the first token that was not used. */
  #evict(): void {
    for (const [token, entry] of this.#tokens) {
      this.#tokens.delete(token);
      if (!entry.isUsed) {
        this.#bytes -= entry.bytes;
        return;
      }
      entry.isUsed = false;
      this.#tokens.set(token, entry);
    }
  }
}
