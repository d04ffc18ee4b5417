package dev.countersign.client.testing;

import dev.countersign.client.TimeSource;
import java.time.Duration;
import java.time.Instant;
import java.util.concurrent.TimeUnit;

/** A clock for tests, which stands still until it is moved. */
public final class SettableClock implements TimeSource {
  private long wallMicros;
  private long uptimeNanos;

  /**
   * Creates a clock that stands at an instant.
   *
   * @param now the instant
   */
  public SettableClock(Instant now) {
    wallMicros = micros(now);
  }

  private static long micros(Instant at) {
    return TimeUnit.SECONDS.toMicros(at.getEpochSecond()) + at.getNano() / 1_000;
  }

  @Override
  public synchronized long wallMicros() {
    return wallMicros;
  }

  @Override
  public synchronized long uptimeNanos() {
    return uptimeNanos;
  }

  /**
   * Moves the wall clock and the uptime forward.
   *
   * @param span the time by which they move
   */
  public synchronized void advance(Duration span) {
    if (span.isNegative()) {
      throw new IllegalArgumentException("the uptime never goes back");
    }
    wallMicros += span.toNanos() / 1_000;
    uptimeNanos += span.toNanos();
  }

  /**
   * Sets the wall clock, as an administrator or NTP would. The uptime does not change.
   *
   * @param now the time
   */
  public synchronized void jumpTo(Instant now) {
    wallMicros = micros(now);
  }

  /**
   * Returns the time of the wall clock.
   *
   * @return the time
   */
  public Instant now() {
    return Instant.EPOCH.plusNanos(TimeUnit.MICROSECONDS.toNanos(wallMicros()));
  }
}
