package dev.countersign.client.internal;

import dev.countersign.client.Demands;
import dev.countersign.client.InactiveReason;
import dev.countersign.client.TimeSource;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;

/** The copy in force, which a background task replaces. */
public final class Local {
  private final TimeSource clock;
  private final long cacheBytes;
  private volatile LocalCopy copy;
  private final ReentrantLock leaseLock = new ReentrantLock();
  private final Condition leased = leaseLock.newCondition();

  /** Has a permit if a token has named a key that is not known. */
  private final Semaphore unknownKey = new Semaphore(0);

  private final AtomicLong connections = new AtomicLong();
  private final AtomicLong resets = new AtomicLong();
  private volatile long lagNanos;

  /** Creates a copy that has nothing. Verified tokens are kept in about so many bytes. */
  public Local(TimeSource clock, long cacheBytes) {
    this.clock = clock;
    this.cacheBytes = cacheBytes;
    VerifiedCache cache = new VerifiedCache(cacheBytes);
    copy = new LocalCopy(clock, new Index(), KeySet.NONE, Rules.NONE, cache);
  }

  /** Returns the clocks. */
  public TimeSource clock() {
    return clock;
  }

  /** Returns the copy in force. */
  public LocalCopy copy() {
    return copy;
  }

  /** Answers by the copy in force; null without a lease. */
  public LocalAnswer answer(String token, Demands demands) {
    LocalAnswer answer = copy.answer(token, demands);
    boolean isUnknownKey = answer != null && answer.reason() == InactiveReason.UNKNOWN_KEY;
    if (isUnknownKey && unknownKey.availablePermits() == 0) {
      unknownKey.release();
    }
    return answer;
  }

  /** Returns the claims of a token that the copy in force has the key for; null for another one. */
  public Claims authenticate(String token) {
    try {
      return copy.authenticate(token);
    } catch (Inactive inactive) {
      return null;
    }
  }

  /** Waits for a token that names a key that is not known, at most for this time. */
  public void awaitUnknownKey(long nanos) throws InterruptedException {
    if (unknownKey.tryAcquire(nanos, TimeUnit.NANOSECONDS)) {
      unknownKey.drainPermits();
    }
  }

  /**
   * Puts a copy without revocations and without a lease in force. The lease of the copy before
   * remains to the checks that have loaded it. The verified tokens outlive the reset.
   */
  public LocalCopy reset() {
    LocalCopy former = copy;
    Index index = new Index();
    // A token that has expired stays expired.
    index.expire(former.index().expiredUpTo());
    resets.incrementAndGet();
    return put(new LocalCopy(clock, index, former.keys(), former.rules(), former.cache()));
  }

  /**
   * Puts a copy with the same revocations and other keys or rules in force. If {@code start} is not
   * null, it has a lease from the beginning, so that no check finds none.
   */
  public LocalCopy replace(KeySet keys, Rules rules, Lease.Start start, long validFor) {
    LocalCopy former = copy;
    // The cache holds tokens that had the earlier issuer, and a signature of the earlier keys.
    boolean isCacheGood =
        rules.issuer().equals(former.rules().issuer()) && keys.includes(former.keys());
    VerifiedCache cache = isCacheGood ? former.cache() : new VerifiedCache(cacheBytes);
    LocalCopy replacement = new LocalCopy(clock, former.index(), keys, rules, cache);
    if (start != null) {
      replacement.lease().take(start, validFor);
    }
    return put(replacement);
  }

  private LocalCopy put(LocalCopy replacement) {
    copy = replacement;
    return replacement;
  }

  /** Takes a lease of the copy in force. */
  public void take(Lease.Start start, long validFor) {
    copy.lease().take(start, validFor);
    leaseLock.lock();
    try {
      leased.signalAll();
    } finally {
      leaseLock.unlock();
    }
  }

  /**
   * Waits until the copy in force has a lease.
   *
   * @return false if it has none within this time
   */
  public boolean awaitLease(long nanos) throws InterruptedException {
    leaseLock.lock();
    try {
      long left = nanos;
      while (copy.lease().remaining() == 0) {
        if (left <= 0) {
          return false;
        }
        left = leased.awaitNanos(left);
      }
      return true;
    } finally {
      leaseLock.unlock();
    }
  }

  /** Counts a stream, or a fetch of keys, that is begun. */
  public void countConnection() {
    connections.incrementAndGet();
  }

  /** Returns the number of streams, or fetches of keys, that were begun. */
  public long connections() {
    return connections.get();
  }

  /** Returns the number of times that everything was received anew. */
  public long resets() {
    return resets.get();
  }

  /** Sets the time that the last renewal took. */
  public void setLagNanos(long nanos) {
    lagNanos = nanos;
  }

  /** Returns the time that the last renewal took; 0 before the first one. */
  public long lagNanos() {
    return lagNanos;
  }
}
