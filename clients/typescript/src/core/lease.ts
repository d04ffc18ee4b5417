import type { Clock } from './clock.js';

/** The instant from which a lease counts, on both clocks. */
export interface Start {
  readonly now: number;
  readonly uptime: number;
}

/** A lease as it was when a look-up began. */
export interface Held {
  readonly start: Start;
  /** The length; infinite for a lease that does not end. */
  readonly validFor: number;
}

/**
 * Reads the clocks. This must happen before the renewal is sent.
 *
 * The wall clock must be read first. If the process pauses between the two readings, it then seems
 * to a later check that the uptime clock has stood still, so a long pause only makes the lease
 * void. In the opposite order, a pause could hide that the uptime clock has stood still.
 */
export function readClocks(clock: Clock): Start {
  const now = clock.now();
  return { now, uptime: clock.uptime() };
}

/** The right to answer from a copy for some time. */
export class Lease {
  readonly #clock: Clock;
  readonly #margin: number;
  /** The lease, which a check must load before a look-up. */
  held: Held | undefined;

  constructor(clock: Clock, margin: number) {
    this.#clock = clock;
    this.#margin = margin;
  }

  /**
   * Takes a lease. Its end may already have passed. Everything that the lease rests on must have
   * been applied before.
   */
  take(start: Start, validFor: number): void {
    this.held = { start, validFor };
  }

  /** Ends the lease. */
  end(): void {
    this.held = undefined;
  }

  /**
   * Returns the time of the wall clock if the lease that was loaded before a look-up is still valid
   * after it.
   *
   * A lease is also void if the wall clock and the uptime clock have moved apart since it was asked
   * for, because the uptime clock may have stood still during a pause.
   */
  check(held: Held | undefined): number | undefined {
    if (held === undefined) return undefined;
    if (held.validFor === Infinity) return this.#clock.now();
    const elapsed = this.#clock.uptime() - held.start.uptime;
    const now = this.#clock.now();
    const moved = now - held.start.now - elapsed;
    // The comparisons are false for a clock that has no number.
    const isValid = elapsed >= 0 && elapsed < held.validFor && Math.abs(moved) <= this.#margin;
    return isValid ? now : undefined;
  }

  /** Returns the remaining time of the lease: zero if it has ended or is void. */
  remaining(): number {
    const { held } = this;
    if (held === undefined || this.check(held) === undefined) return 0;
    return Math.max(held.validFor - (this.#clock.uptime() - held.start.uptime), 0);
  }
}
