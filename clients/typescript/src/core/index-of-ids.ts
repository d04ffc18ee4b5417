import { WORDS, word } from './ids.js';

/** The number of parts. Each grows, and is purged, by itself, so that nothing waits long. */
const PARTS = 64;
/** The words of a slot: the identifier, and the second from which the entry may be dropped. */
const SLOT = WORDS + 1;
const LEAST_SLOTS = 8;
const LAST_SECOND = 0xffff_ffff;

/**
 * Identifiers of what is revoked, in open-addressed hash tables. An entry takes 20 bytes of a
 * table, and tables are at least half full once they have grown.
 */
export class IdIndex {
  readonly #parts = Array.from({ length: PARTS }, () => new Part());

  /** Adds an identifier. The later of two expiries is kept. */
  add(id: readonly number[], expiresAt: number): void {
    // The second is rounded up, so that no entry is dropped too early. Zero stands for no entry.
    const second = Math.min(Math.max(Math.ceil(expiresAt / 1000), 1), LAST_SECOND);
    this.#part(id).add(id, second);
  }

  has(id: readonly number[]): boolean {
    return this.#part(id).find(id) >= 0;
  }

  /** Drops the entries that have expired, one part after the other. */
  *purge(upTo: number): Generator<void> {
    for (const part of this.#parts) if (part.purge(Math.floor(upTo / 1000))) yield;
  }

  get size(): number {
    return this.#parts.reduce((sum, part) => sum + part.size, 0);
  }

  /** Returns the memory of the tables in bytes. */
  get bytes(): number {
    return this.#parts.reduce((sum, part) => sum + part.bytes, 0);
  }

  #part(id: readonly number[]): Part {
    // The last bytes of an identifier are random.
    const part = this.#parts[word(id, 3) % PARTS];
    if (part === undefined) throw new RangeError('an identifier has four words');
    return part;
  }
}

class Part {
  size = 0;
  /** The earliest second of an entry. */
  #earliest = LAST_SECOND;
  #slots = 0;
  #table = new Uint32Array(0);

  get bytes(): number {
    return this.#table.byteLength;
  }

  /** Returns the place of an identifier, or -1 if it is not there. */
  find(id: readonly number[]): number {
    if (this.size === 0) return -1;
    const at = this.#placeOf(id);
    return this.#table[at + WORDS] === 0 ? -1 : at;
  }

  add(id: readonly number[], second: number): void {
    if (this.size + 1 > this.#slots * 0.8) this.#resize(Math.ceil(this.#slots * 1.5));
    const at = this.#placeOf(id);
    const known = this.#table[at + WORDS] ?? 0;
    if (known === 0) {
      this.#table.set(id, at);
      this.size++;
    }
    this.#table[at + WORDS] = Math.max(known, second);
    this.#earliest = Math.min(this.#earliest, second);
  }

  /** Drops the entries up to a second. Returns whether there was something to do. */
  purge(second: number): boolean {
    if (this.size === 0 || this.#earliest > second) return false;
    const table = this.#table;
    let left = 0;
    this.#earliest = LAST_SECOND;
    for (let at = WORDS; at < table.length; at += SLOT) {
      const expiry = table[at] ?? 0;
      if (expiry > second) {
        left++;
        this.#earliest = Math.min(this.#earliest, expiry);
      } else {
        table[at] = 0;
      }
    }
    this.size = left;
    // Entries may be found no more from where their search begins, so the table is made anew.
    this.#resize(Math.ceil(left * 1.5));
    return true;
  }

  /** Returns the place of the identifier, or the free place where it belongs. */
  #placeOf(id: readonly number[]): number {
    const table = this.#table;
    const [first, second, third, fourth] = id;
    let slot = this.#hash(third, fourth) % this.#slots;
    for (;;) {
      const at = slot * SLOT;
      const isSame =
        table[at + 3] === fourth &&
        table[at + 2] === third &&
        table[at + 1] === second &&
        table[at] === first;
      if (isSame || table[at + WORDS] === 0) return at;
      slot = slot + 1 === this.#slots ? 0 : slot + 1;
    }
  }

  /** Mixes the random words of an identifier. */
  #hash(third = 0, fourth = 0): number {
    const mixed = Math.imul(third ^ Math.imul(fourth, 0x9e37_79b1), 0x85eb_ca6b);
    return (mixed ^ (mixed >>> 15)) >>> 0;
  }

  #resize(slots: number): void {
    const former = this.#table;
    this.#slots = Math.max(slots, LEAST_SLOTS);
    this.#table = new Uint32Array(this.#slots * SLOT);
    for (let at = 0; at < former.length; at += SLOT) {
      if (former[at + WORDS] === 0) continue;
      const entry = former.subarray(at, at + SLOT);
      this.#table.set(entry, this.#placeOf(entry as unknown as readonly number[]));
    }
  }
}
