/** A source of time, which tests can replace. */
export interface Clock {
  /** Returns the time of the wall clock in milliseconds since 1970. It may jump. */
  now(): number;
  /**
   * Returns the time since some fixed instant in milliseconds. It never goes back, and it should
   * advance while the machine is suspended.
   */
  uptime(): number;
}

/**
 * The clocks of the operating system.
 *
 * Node.js has no clock that counts the time for which the machine is suspended. After such a time
 * the wall clock has moved against the uptime, so a lease is void, as long as it was longer than
 * the margin of leases.
 */
export class SystemClock implements Clock {
  /** Returns the time of the wall clock. */
  now(): number {
    return Date.now();
  }

  /** Returns the time since this process was started. */
  uptime(): number {
    return performance.now();
  }
}

/** A clock for tests, which stands still until it is moved. */
export class SettableClock implements Clock {
  #now: number;
  #uptime = 0;

  /** Creates a clock that stands at an instant. */
  constructor(now: Date | number) {
    this.#now = Number(now);
  }

  /** Returns the time of the wall clock. */
  now(): number {
    return this.#now;
  }

  /** Returns the time by which the clock was advanced. */
  uptime(): number {
    return this.#uptime;
  }

  /** Moves the wall clock and the uptime forward by milliseconds. */
  advance(milliseconds: number): void {
    if (!(milliseconds >= 0)) throw new RangeError('time does not go back');
    this.#now += milliseconds;
    this.#uptime += milliseconds;
  }

  /** Sets the wall clock, as an administrator or NTP would. The uptime does not change. */
  jumpTo(now: Date | number): void {
    this.#now = Number(now);
  }
}
