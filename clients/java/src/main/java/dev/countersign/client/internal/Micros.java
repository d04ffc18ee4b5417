package dev.countersign.client.internal;

import java.time.Duration;

/**
 * Instants in microseconds since 1970-01-01T00:00:00Z, and spans in microseconds. The arithmetic
 * saturates at the earliest and latest instants that a {@code long} can hold.
 */
public final class Micros {
  /** The microseconds of a second. */
  public static final long SECOND = 1_000_000;

  /** A span that does not end. */
  public static final long FOREVER = Long.MAX_VALUE;

  private Micros() {}

  /** Returns the instant this many seconds after the epoch. */
  public static long ofSeconds(long seconds) {
    if (seconds > Long.MAX_VALUE / SECOND) {
      return Long.MAX_VALUE;
    }
    if (seconds < Long.MIN_VALUE / SECOND) {
      return Long.MIN_VALUE;
    }
    return seconds * SECOND;
  }

  /** Returns a span, which must not be negative. Fractions of a microsecond are dropped. */
  public static long of(Duration span) {
    return plus(ofSeconds(span.getSeconds()), span.getNano() / 1_000);
  }

  /** Returns the sum of an instant and a span. */
  public static long plus(long instant, long span) {
    long sum = instant + span;
    if (span > 0 && sum < instant) {
      return Long.MAX_VALUE;
    }
    if (span < 0 && sum > instant) {
      return Long.MIN_VALUE;
    }
    return sum;
  }

  /** Returns the time from an earlier instant to a later one, or 0 if it is not later. */
  public static long since(long later, long earlier) {
    if (later <= earlier) {
      return 0;
    }
    long span = later - earlier;
    return span < 0 ? Long.MAX_VALUE : span;
  }

  /** Returns the whole seconds since the epoch, rounded down. */
  public static long seconds(long instant) {
    return Math.floorDiv(instant, SECOND);
  }

  /** Returns the whole milliseconds since the epoch, rounded down. */
  public static long millis(long instant) {
    return Math.floorDiv(instant, 1_000L);
  }
}
