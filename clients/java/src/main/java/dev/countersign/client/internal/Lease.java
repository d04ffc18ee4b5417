package dev.countersign.client.internal;

import dev.countersign.client.TimeSource;

/** The right to answer from a copy for some time. Spans are in nanoseconds. */
public final class Lease {
  /** The length of a lease that does not end. */
  public static final long FOREVER = Long.MAX_VALUE;

  /** The answer of {@link #check} if the lease is not valid. */
  static final long NOT_VALID = Long.MIN_VALUE;

  private final TimeSource clock;
  private final long marginMicros;
  private volatile Held held;

  /** A lease as it was when a look-up began. */
  record Held(Start start, long validFor) {}

  /** The instant from which a lease counts, on both clocks. */
  public record Start(long wallMicros, long uptimeNanos) {
    /**
     * Returns the instant from which a lease counts that is asked for now. This must be called
     * before the renewal is sent.
     *
     * <p>The wall clock must be read first. If the process pauses between the two readings, it then
     * seems to a later check that the uptime clock has stood still, so a long pause only makes the
     * lease void. In the opposite order, a pause could hide that the uptime clock has stood still.
     */
    public static Start read(TimeSource clock) {
      long wall = clock.wallMicros();
      return new Start(wall, clock.uptimeNanos());
    }
  }

  Lease(TimeSource clock, long marginMicros) {
    this.clock = clock;
    this.marginMicros = marginMicros;
  }

  /**
   * Takes a lease. Its end may already have passed. Everything that the lease rests on must have
   * been applied before.
   */
  public void take(Start start, long validFor) {
    held = new Held(start, validFor);
  }

  /** Ends the lease. */
  public void end() {
    held = null;
  }

  /** Returns the lease, which must be loaded before a look-up, and checked after it. */
  Held load() {
    return held;
  }

  /**
   * Returns the time of the wall clock in microseconds if a lease is still valid, and otherwise
   * {@link #NOT_VALID}. A lease is void if the wall clock and the uptime clock have moved apart
   * since it was asked for, because the uptime clock may have stood still during a pause.
   */
  long check(Held lease) {
    if (lease == null) {
      return NOT_VALID;
    }
    if (lease.validFor == FOREVER) {
      return clock.wallMicros();
    }
    long elapsed = clock.uptimeNanos() - lease.start.uptimeNanos;
    long now = clock.wallMicros();
    if (elapsed < 0 || elapsed >= lease.validFor) {
      return NOT_VALID;
    }
    long moved = now - lease.start.wallMicros - elapsed / 1_000;
    return Math.abs(moved) <= marginMicros ? now : NOT_VALID;
  }

  /** Returns the remaining time of the lease: 0 if it has ended or is void. */
  public long remaining() {
    Held lease = held;
    if (check(lease) == NOT_VALID) {
      return 0;
    }
    if (lease.validFor == FOREVER) {
      return FOREVER;
    }
    long elapsed = clock.uptimeNanos() - lease.start.uptimeNanos;
    return Math.max(lease.validFor - elapsed, 0);
  }
}
