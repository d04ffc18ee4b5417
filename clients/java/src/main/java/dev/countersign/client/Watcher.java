package dev.countersign.client;

import com.google.protobuf.ByteString;
import dev.countersign.client.WatchMessages.EndException;
import dev.countersign.client.internal.Index;
import dev.countersign.client.internal.KeySet;
import dev.countersign.client.internal.Lease;
import dev.countersign.client.internal.Local;
import dev.countersign.client.internal.LocalCopy;
import dev.countersign.client.internal.Rules;
import dev.countersign.v1.WatchKeys;
import dev.countersign.v1.WatchLease;
import dev.countersign.v1.WatchRenewal;
import dev.countersign.v1.WatchRequest;
import dev.countersign.v1.WatchResponse;
import dev.countersign.v1.WatchRules;
import dev.countersign.v1.WatchStart;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.concurrent.ForkJoinPool;
import java.util.concurrent.TimeUnit;

/**
 * The background task of a local verifier. It calls Watch, applies what it is sent, and renews the
 * lease.
 */
final class Watcher implements Runnable {
  private static final System.Logger LOGGER = System.getLogger("dev.countersign.client");

  /** The length of a lease before the first one has told it, in nanoseconds. */
  private static final long USUAL_LEASE = TimeUnit.SECONDS.toNanos(2);

  private static final long SHORTEST_LEASE = TimeUnit.MILLISECONDS.toNanos(200);
  private static final long LEAST_PATIENCE = TimeUnit.SECONDS.toNanos(1);

  /** The number of renewals in the time of a lease. */
  private static final int RENEWALS = 4;

  /** The most renewals that wait for an answer. */
  private static final int MAX_ASKED = 64;

  /** The longest pause between two streams that the service can ask for, in nanoseconds. */
  private static final long LONGEST_PAUSE = TimeUnit.SECONDS.toNanos(30);

  /**
   * The largest difference between the clocks of the service and of this machine under which a
   * lease is taken, in microseconds.
   */
  private static final long LARGEST_DIFFERENCE = TimeUnit.SECONDS.toMicros(5);

  private final Client client;
  private final Local local;

  /** The copy in force. */
  private LocalCopy copy;

  /** The cursor that was last applied; empty within a snapshot. */
  private ByteString cursor = ByteString.EMPTY;

  /** The start of the last lease of the copy in force; null if it has none. */
  private Lease.Start leaseStart;

  private long leaseValidFor;

  /** The length of the last lease, which sets the pace of renewals. */
  private long usualLease = USUAL_LEASE;

  /** True if the last lease was not taken, because the clocks differ. */
  private boolean isClockWrong;

  /** A renewal without an answer: its number, and the clocks before it was sent. */
  private record Renewal(long number, Lease.Start start) {}

  /** The state of a stream. */
  static final class StreamState {
    private long number;
    private final Deque<Renewal> waiting = new ArrayDeque<>();
    private boolean hadLease;

    /**
     * True if rules have arrived on this stream, and likewise keys. While there was no stream, both
     * may have changed, so the first lease must come after them.
     */
    private boolean hasRules;

    private boolean hasKeys;

    /** Keeps the clocks of a renewal. */
    private void add(long sent, Lease.Start start) {
      number = sent;
      if (waiting.size() == MAX_ASKED) {
        waiting.removeFirst();
      }
      waiting.addLast(new Renewal(sent, start));
    }

    /** Returns the clocks before this renewal was sent, and forgets it and those before. */
    private Lease.Start answered(long answer) {
      if (waiting.stream().noneMatch(renewal -> renewal.number == answer)) {
        return null;
      }
      Renewal renewal = waiting.removeFirst();
      while (renewal.number != answer) {
        renewal = waiting.removeFirst();
      }
      return renewal.start;
    }
  }

  /** Sends a message. It returns false if the connection takes no more at the moment. */
  @FunctionalInterface
  interface Sender {
    boolean send(WatchRequest request);
  }

  Watcher(Client client, Local local) {
    this.client = client;
    this.local = local;
    this.copy = local.copy();
  }

  /**
   * Watches until the thread is interrupted. After the end of a stream another one is opened, if
   * possible at another replica. Until then the lease goes on.
   */
  @Override
  public void run() {
    Backoff delays = newDelays();
    int failed = 0;
    while (!Thread.currentThread().isInterrupted()) {
      local.countConnection();
      StreamState state = new StreamState();
      String ended;
      CountersignException error = null;
      try {
        ended = watch(state).getMessage();
      } catch (CountersignException e) {
        ended = e.getMessage();
        error = e;
      } catch (InterruptedException e) {
        return;
      } catch (RuntimeException e) {
        // This is a bug of this library. It must not end the watch without a word.
        endLease();
        ended = e.toString();
        LOGGER.log(System.Logger.Level.ERROR, "the watcher has failed", e);
      }
      if (state.hadLease) {
        delays = newDelays();
        failed = 0;
      }
      failed++;
      long delay = delays.next();
      if (error != null) {
        if (error.reason() == Reason.INVALID_FIELD || error.reason() == Reason.NOT_SENT) {
          // The service does not understand the cursor.
          cursor = ByteString.EMPTY;
        }
        // The wait that a replica asks for is for itself, and others may have room.
        if (failed >= client.endpoints().size()) {
          long asked = Client.nanos(error.retryAfter().orElse(Duration.ZERO));
          delay = Math.max(delay, Math.min(asked, LONGEST_PAUSE));
        }
      }
      LOGGER.log(
          System.Logger.Level.WARNING, "the watch stream has ended: will call again: {0}", ended);
      try {
        TimeUnit.NANOSECONDS.sleep(delay);
      } catch (InterruptedException e) {
        return;
      }
    }
  }

  private static Backoff newDelays() {
    return new Backoff(Duration.ofMillis(25), Duration.ofSeconds(1));
  }

  /** Watches until the stream ends. Returns the reason, unless it is an error of the call. */
  private EndException watch(StreamState state) throws InterruptedException {
    try (WatchStream stream = WatchStream.open(client)) {
      stream.send(startMessage());
      stream.awaitConnection(client.deadline().toNanos());
      return follow(stream, state);
    }
  }

  /** Handles the messages one after the other, and renews the lease. */
  private EndException follow(WatchStream stream, StreamState state) throws InterruptedException {
    long leased = System.nanoTime();
    long renewAt = leased + usualLease / RENEWALS;
    while (true) {
      long now = System.nanoTime();
      long giveUpAt = leased + Math.max(usualLease, LEAST_PATIENCE);
      if (giveUpAt - now <= 0) {
        return new EndException("the stream has brought no lease for too long");
      }
      WatchResponse response = stream.next(Math.min(renewAt - now, giveUpAt - now));
      if (response != null) {
        boolean isNews;
        try {
          isNews = apply(state, response);
        } catch (EndException e) {
          return e;
        }
        // A large snapshot takes a while.
        if (response.hasLease() || cursor.isEmpty()) {
          leased = System.nanoTime();
        }
        if (!isNews) {
          if (renewAt - System.nanoTime() > 0) {
            continue;
          }
        }
      } else if (stream.hasEnded()) {
        return new EndException("the service has ended the stream");
      } else if (renewAt - System.nanoTime() > 0) {
        continue;
      }
      renew(state, stream::send);
      renewAt = System.nanoTime() + usualLease / RENEWALS;
    }
  }

  /** Returns the message that begins a stream. */
  WatchRequest startMessage() {
    return WatchRequest.newBuilder().setStart(WatchStart.newBuilder().setCursor(cursor)).build();
  }

  /**
   * Applies a message completely. After a message that cannot be understood there is no lease.
   *
   * @return whether to renew the lease at once, because there is something new to confirm
   */
  boolean apply(StreamState state, WatchResponse response) throws EndException {
    try {
      switch (response.getEventCase()) {
        case RESET -> reset(state);
        case RULES -> takeRules(state, response.getRules());
        case KEYS -> takeKeys(state, response.getKeys());
        case REVOCATIONS -> WatchMessages.apply(response.getRevocations(), copy.index());
        case LEASE -> takeLease(state, response.getLease());
        case EVENT_NOT_SET -> throw WatchMessages.notUnderstood();
      }
    } catch (EndException e) {
      endLease();
      throw e;
    }
    if (response.getCursor().isEmpty()) {
      return false;
    }
    cursor = response.getCursor();
    return true;
  }

  private void reset(StreamState state) {
    copy = local.reset();
    cursor = ByteString.EMPTY;
    leaseStart = null;
    state.hasRules = false;
    state.hasKeys = false;
  }

  private void takeRules(StreamState state, WatchRules message) throws EndException {
    Rules rules = WatchMessages.rules(message);
    // This process has only the revocations of the tenants that it could accept before.
    if (!cursor.isEmpty() && !rules.tenants().equals(copy.rules().tenants())) {
      throw new EndException(
          "the tenants of this caller have changed, so the revocations must be received anew");
    }
    replace(copy.keys(), rules);
    state.hasRules = true;
  }

  private void takeKeys(StreamState state, WatchKeys message) throws EndException {
    KeySet keys = KeySet.read(message.getJwks(), message.getRevokedList());
    if (keys == null) {
      throw WatchMessages.notUnderstood();
    }
    warnOfKeys(keys);
    replace(keys, copy.rules());
    state.hasKeys = true;
  }

  static void warnOfKeys(KeySet keys) {
    if (keys.unusable() > 0) {
      LOGGER.log(
          System.Logger.Level.WARNING,
          "{0} public keys cannot be used: their tokens will be refused",
          keys.unusable());
    }
  }

  /**
   * Replaces the copy. The lease that this process has is good for the new copy too, which knows
   * more. No later lease is good for the earlier copy.
   */
  private void replace(KeySet keys, Rules rules) {
    copy = local.replace(keys, rules, leaseStart, leaseValidFor);
  }

  private void takeLease(StreamState state, WatchLease lease) throws EndException {
    boolean isComplete = state.hasRules && state.hasKeys && !cursor.isEmpty();
    Lease.Start start = state.answered(lease.getNumber());
    if (start == null || !isComplete) {
      throw new EndException("the service has sent a lease that was not asked for, or too early");
    }
    if (!lease.hasValidFor() || !lease.hasExpiredUpTo() || !lease.hasNow()) {
      throw WatchMessages.notUnderstood();
    }
    long validFor = WatchMessages.nanos(lease.getValidFor());
    // The tokens that have expired no longer need their revocations, with or without a lease. The
    // instant is raised first.
    Index index = copy.index();
    if (index.expire(WatchMessages.micros(lease.getExpiredUpTo()))) {
      // An index of a million entries takes a while.
      ForkJoinPool.commonPool().execute(index::purge);
    }
    long difference = local.clock().wallMicros() - WatchMessages.micros(lease.getNow());
    boolean isWrong = Math.abs(difference) > LARGEST_DIFFERENCE;
    if (isWrong && !isClockWrong) {
      LOGGER.log(
          System.Logger.Level.ERROR,
          "the clock of this machine, or that of the service, is wrong by {0} ms: no lease is"
              + " taken",
          difference / 1_000);
    }
    isClockWrong = isWrong;
    if (isWrong) {
      return;
    }
    local.take(start, validFor);
    local.setLagNanos(Math.max(local.clock().uptimeNanos() - start.uptimeNanos(), 0));
    leaseStart = start;
    leaseValidFor = validFor;
    usualLease = Math.min(Math.max(validFor, SHORTEST_LEASE), 10 * USUAL_LEASE);
    state.hadLease = true;
  }

  /** Asks for a lease, and confirms the cursor. The clocks are read first. */
  void renew(StreamState state, Sender sender) {
    Lease.Start start = Lease.Start.read(local.clock());
    long number = state.number + 1;
    WatchRenewal renewal = WatchRenewal.newBuilder().setNumber(number).setApplied(cursor).build();
    // If the connection takes no more, the next renewal will confirm the same.
    if (sender.send(WatchRequest.newBuilder().setRenewal(renewal).build())) {
      state.add(number, start);
    }
  }

  /** Ends the lease, because the service has said something that this process cannot follow. */
  private void endLease() {
    copy.lease().end();
    leaseStart = null;
    // The next stream begins with a snapshot.
    cursor = ByteString.EMPTY;
  }
}
