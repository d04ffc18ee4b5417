package dev.countersign.client;

import java.time.Instant;

/** A source of time, which tests can replace. Implementations must be safe for many threads. */
public interface TimeSource {
  /**
   * Returns the time of the wall clock, which may jump in either direction.
   *
   * @return microseconds since 1970-01-01T00:00:00Z
   */
  long wallMicros();

  /**
   * Returns the time since some fixed instant. It never goes back, and it should advance while the
   * machine is suspended.
   *
   * @return nanoseconds
   */
  long uptimeNanos();

  /**
   * Returns the clocks of this machine.
   *
   * <p>{@link System#nanoTime()} stands still while the machine is suspended. A suspension is
   * noticed nevertheless, because the wall clock then moves against it, which makes a lease void.
   *
   * @return the clocks of this machine
   */
  static TimeSource system() {
    return SystemTimeSource.INSTANCE;
  }

  /** The clocks of this machine. */
  enum SystemTimeSource implements TimeSource {
    /** The only instance. */
    INSTANCE;

    @Override
    public long wallMicros() {
      Instant now = Instant.now();
      return now.getEpochSecond() * 1_000_000 + now.getNano() / 1_000;
    }

    @Override
    public long uptimeNanos() {
      return System.nanoTime();
    }
  }
}
