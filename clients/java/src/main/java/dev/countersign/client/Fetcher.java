package dev.countersign.client;

import dev.countersign.client.internal.KeySet;
import dev.countersign.client.internal.Lease;
import dev.countersign.client.internal.Local;
import dev.countersign.client.internal.Rules;
import dev.countersign.v1.GetJwksRequest;
import dev.countersign.v1.GetJwksResponse;
import java.util.List;
import java.util.concurrent.TimeUnit;

/** The background task of a verifier without a watch: it fetches the public keys. */
final class Fetcher implements Runnable {
  private static final System.Logger LOGGER = System.getLogger("dev.countersign.client");

  /** The least time between two fetches, in nanoseconds. */
  private static final long LEAST_DELAY = TimeUnit.SECONDS.toNanos(1);

  /**
   * The time after which keys are fetched again that the service would allow to cache for longer,
   * in nanoseconds.
   */
  private static final long LONGEST_DELAY = TimeUnit.MINUTES.toNanos(10);

  private final Client client;
  private final Local local;
  private final Rules rules;
  private final long keysValidFor;

  Fetcher(Client client, Local local, Rules rules, long keysValidFor) {
    this.client = client;
    this.local = local;
    this.rules = rules;
    this.keysValidFor = keysValidFor;
  }

  /** Fetches the keys again and again, until the thread is interrupted. */
  @Override
  public void run() {
    while (!Thread.currentThread().isInterrupted()) {
      local.countConnection();
      Lease.Start start = Lease.Start.read(local.clock());
      long delay = 0;
      try {
        GetJwksResponse answer = client.getJwks(GetJwksRequest.getDefaultInstance());
        take(answer.getJwks(), start);
        delay = delay(WatchMessages.nanos(answer.getMaxAge()));
      } catch (CountersignException e) {
        LOGGER.log(
            System.Logger.Level.WARNING,
            "the public keys could not be fetched: {0}",
            e.getMessage());
      } catch (WatchMessages.EndException e) {
        LOGGER.log(System.Logger.Level.WARNING, e.getMessage());
      } catch (RuntimeException e) {
        // This is a bug of this library. It must not end the fetches without a word.
        LOGGER.log(System.Logger.Level.ERROR, "the public keys could not be used", e);
      }
      try {
        TimeUnit.NANOSECONDS.sleep(LEAST_DELAY);
        // A token with a new key may have arrived.
        local.awaitUnknownKey(delay);
      } catch (InterruptedException e) {
        return;
      }
    }
  }

  /**
   * Returns the time until keys are fetched again that the service allows to cache for this time.
   * It must be well before they may no longer be used.
   */
  long delay(long maxAge) {
    return Math.min(Math.min(maxAge, LONGEST_DELAY), keysValidFor / 2);
  }

  private void take(String jwks, Lease.Start start) {
    KeySet keys = KeySet.read(jwks, List.of());
    if (keys == null) {
      LOGGER.log(
          System.Logger.Level.ERROR, "the public keys that the service has sent cannot be read");
      return;
    }
    Watcher.warnOfKeys(keys);
    local.replace(keys, rules, start, keysValidFor);
    local.take(start, keysValidFor);
  }
}
