package dev.countersign.client;

import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;

/** Delays that grow, and differ from client to client. */
final class Backoff {
  private final long longest;
  private long current;

  Backoff(Duration shortest, Duration longest) {
    this.current = shortest.toNanos();
    this.longest = longest.toNanos();
  }

  /** Returns the next delay in nanoseconds. */
  long next() {
    long delay = current + ThreadLocalRandom.current().nextLong(current);
    current = Math.min(2 * current, longest);
    return delay;
  }
}
