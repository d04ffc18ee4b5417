package dev.countersign.client.internal;

import java.util.UUID;
import java.util.concurrent.locks.StampedLock;

/**
 * Revoked identifiers, each with the second from which it may be dropped. Arrays of numbers take a
 * fraction of the memory of objects: 20 bytes for a place, of which at least three eighths are
 * used.
 */
final class IdTable {
  private static final int MIN_PLACES = 16;

  private final StampedLock lock = new StampedLock();
  private volatile Places places = new Places(MIN_PLACES);
  private volatile int size;

  /** Places for identifiers, which are found by linear probing. */
  private static final class Places {
    /** Each identifier as two numbers. */
    final long[] ids;

    /** The seconds since 1970, without a sign; 0 where there is no identifier. */
    final int[] seconds;

    Places(int count) {
      ids = new long[2 * count];
      seconds = new int[count];
    }

    /** Returns the place of an identifier, or the free place where it belongs. */
    int find(long high, long low) {
      int mask = seconds.length - 1;
      int place = (int) mix(high, low) & mask;
      // The number of steps is limited, because a reader may see a change that is under way.
      for (int step = 0; step < mask; step++) {
        boolean isFree = seconds[place] == 0;
        if (isFree || (ids[2 * place] == high && ids[2 * place + 1] == low)) {
          return place;
        }
        place = (place + 1) & mask;
      }
      return place;
    }

    void put(long high, long low, int second) {
      int place = find(high, low);
      ids[2 * place] = high;
      ids[2 * place + 1] = low;
      seconds[place] = second;
    }

    boolean has(long high, long low) {
      int place = find(high, low);
      return seconds[place] != 0 && ids[2 * place] == high && ids[2 * place + 1] == low;
    }
  }

  private static long mix(long high, long low) {
    long mixed = (high ^ Long.rotateLeft(low, 29)) * 0x9e3779b97f4a7c15L;
    return mixed ^ mixed >>> 32;
  }

  boolean has(UUID id) {
    long high = id.getMostSignificantBits();
    long low = id.getLeastSignificantBits();
    long stamp = lock.tryOptimisticRead();
    if (stamp != 0) {
      boolean isFound = places.has(high, low);
      if (lock.validate(stamp)) {
        return isFound;
      }
    }
    stamp = lock.readLock();
    try {
      return places.has(high, low);
    } finally {
      lock.unlockRead(stamp);
    }
  }

  /** Adds an identifier. The later of two seconds is kept. */
  @SuppressWarnings("NonAtomicVolatileUpdate") // Only who holds the lock writes the size.
  void add(UUID id, long second) {
    // No identifier has the second 0, which marks a free place.
    int kept = (int) Math.min(Math.max(second, 1), 0xffff_ffffL);
    long high = id.getMostSignificantBits();
    long low = id.getLeastSignificantBits();
    long stamp = lock.writeLock();
    try {
      int place = places.find(high, low);
      int known = places.seconds[place];
      if (known != 0) {
        if (Integer.compareUnsigned(kept, known) > 0) {
          places.seconds[place] = kept;
        }
        return;
      }
      if (4L * (size + 1) > 3L * places.seconds.length) {
        places = copied(2 * places.seconds.length, 0);
      }
      places.put(high, low, kept);
      size = size + 1;
    } finally {
      lock.unlockWrite(stamp);
    }
  }

  /** Drops the identifiers whose second has come. */
  void purge(long upToSecond) {
    long stamp = lock.writeLock();
    try {
      int left = 0;
      for (int second : places.seconds) {
        if (second != 0 && Integer.toUnsignedLong(second) > upToSecond) {
          left++;
        }
      }
      if (left == size) {
        return;
      }
      int count = MIN_PLACES;
      while (4L * left > 3L * count) {
        count *= 2;
      }
      places = copied(count, upToSecond);
      size = left;
    } finally {
      lock.unlockWrite(stamp);
    }
  }

  private Places copied(int count, long upToSecond) {
    Places from = places;
    Places into = new Places(count);
    for (int place = 0; place < from.seconds.length; place++) {
      int second = from.seconds[place];
      if (second != 0 && Integer.toUnsignedLong(second) > upToSecond) {
        into.put(from.ids[2 * place], from.ids[2 * place + 1], second);
      }
    }
    return into;
  }

  int size() {
    return size;
  }
}
