package dev.countersign.client.tools;

import dev.countersign.client.TimeSource;
import java.util.concurrent.atomic.AtomicLong;

/** The clocks of this machine, moved. */
final class MovedClock implements TimeSource {
  private final AtomicLong wallMicros = new AtomicLong();
  private final AtomicLong uptimeNanos = new AtomicLong();

  @Override
  public long wallMicros() {
    return TimeSource.system().wallMicros() + wallMicros.get();
  }

  @Override
  public long uptimeNanos() {
    return TimeSource.system().uptimeNanos() + uptimeNanos.get();
  }

  /** Moves the clocks further. */
  void move(long wall, long uptime) {
    wallMicros.addAndGet(wall);
    uptimeNanos.addAndGet(uptime);
  }

  /** Sets by how much the clocks are moved. */
  void set(long wall, long uptime) {
    wallMicros.set(wall);
    uptimeNanos.set(uptime);
  }
}
