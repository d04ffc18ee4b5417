package dev.countersign.client;

import dev.countersign.client.internal.Local;
import dev.countersign.client.internal.LocalAnswer;
import dev.countersign.client.internal.LocalCopy;
import dev.countersign.client.internal.Micros;
import dev.countersign.client.internal.Rules;
import dev.countersign.v1.ValidateResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.EnumMap;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.concurrent.atomic.LongAdder;

/**
 * Verifies access tokens. It may be used by many threads, and is made once for a process.
 *
 * <table>
 *   <caption>The modes</caption>
 *   <tr><th>mode</th><th>a check takes</th><th>it knows of revocations</th></tr>
 *   <tr><td>{@link #remote}</td><td>a round trip</td><td>everything</td></tr>
 *   <tr><td>{@link #local}</td><td>about a microsecond</td><td>everything</td></tr>
 *   <tr><td>{@link #localUnwatched}</td><td>about a microsecond</td><td>nothing</td></tr>
 * </table>
 */
public final class Verifier implements AutoCloseable {
  private static final System.Logger LOGGER = System.getLogger("dev.countersign.client");

  /** The memory for tokens whose signature was verified, in bytes. */
  private static final long CACHE_BYTES = 32 << 20;

  private static final InactiveReason[] REASONS = InactiveReason.values();
  private static final EnumMap<InactiveReason, Answer> INACTIVE =
      new EnumMap<>(InactiveReason.class);
  private static final Answer NO_LEASE = new Answer.Unknown(Answer.Unknown.Cause.NO_LEASE, null);
  private static final Answer NOT_UNDERSTOOD =
      new Answer.Unknown(Answer.Unknown.Cause.NOT_UNDERSTOOD, null);

  static {
    for (InactiveReason reason : REASONS) {
      INACTIVE.put(reason, new Answer.Inactive(reason));
    }
  }

  private final Mode mode;

  /** The copy; null in the mode {@link Mode#REMOTE}. */
  private final Local local;

  /** The client that answers where there is no lease; null if there is none. */
  private final Client fallback;

  private final LongAdder active = new LongAdder();
  private final LongAdder unknown = new LongAdder();
  private final EnumMap<InactiveReason, LongAdder> inactive = new EnumMap<>(InactiveReason.class);
  private final Thread task;

  /** The way in which a verifier gets its answers. */
  public enum Mode {
    /** It calls Validate for each token. */
    REMOTE,
    /** It verifies tokens by its own copy of the keys and the revocations. */
    LOCAL,
    /**
     * It verifies tokens by the public keys only, so it accepts revoked tokens until they expire.
     */
    LOCAL_UNWATCHED,
    /** It verifies the tokens of a {@link dev.countersign.client.testing.Authority}. */
    TESTING;

    private final String metricName = name().toLowerCase(Locale.ROOT);

    /**
     * Returns the name of the mode in metrics.
     *
     * @return the name
     */
    public String metricName() {
      return metricName;
    }
  }

  /**
   * The behaviour of a local verifier that has no lease: it is starting, or is cut off from the
   * service, or was suspended.
   */
  public enum OnLapse {
    /** It calls Validate for each token, until it has a lease again. */
    VALIDATE,
    /** It answers {@link Answer.Unknown}, without a call. */
    REFUSE
  }

  /**
   * The state of a verifier, for health checks and metrics.
   *
   * @param lease the time for which the verifier can answer by its own copy; zero if it cannot, or
   *     if it has none
   * @param revocations the number of revocations in the copy
   * @param connections the number of streams, or fetches of keys, that were begun
   * @param resets the number of times that everything was received anew
   * @param lag the time that the last renewal of the lease took; zero before the first one
   */
  public record Status(
      Duration lease, int revocations, long connections, long resets, Duration lag) {}

  private Verifier(Mode mode, Local local, Client fallback, Runnable task) {
    this.mode = mode;
    this.local = local;
    this.fallback = fallback;
    for (InactiveReason reason : REASONS) {
      inactive.put(reason, new LongAdder());
    }
    if (task == null) {
      this.task = null;
    } else {
      this.task = new Thread(task, "countersign-" + mode.metricName());
      this.task.setDaemon(true);
      this.task.start();
    }
  }

  /**
   * Creates a verifier that calls Validate for each token. The caller needs the role {@code
   * validator}.
   *
   * @param client the client
   * @return the verifier
   */
  public static Verifier remote(Client client) {
    return new Verifier(Mode.REMOTE, null, Objects.requireNonNull(client, "client"), null);
  }

  /**
   * Begins the settings of a verifier that watches the service, and then checks tokens by itself.
   * It never accepts a token that was revoked before it was asked. The caller needs the role {@code
   * validator}.
   *
   * @param client the client
   * @return the settings
   */
  public static LocalBuilder local(Client client) {
    return new LocalBuilder(client);
  }

  /**
   * Begins the settings of a verifier that knows only the public keys. <strong>It accepts a revoked
   * token, and a token of a session that has ended, until the token expires.</strong> Use it only
   * where that is acceptable, with access tokens that live for a short time.
   *
   * @param client the client
   * @param issuer the {@code iss} of all tokens (the setting {@code issuer} of the service)
   * @return the settings
   */
  public static UnwatchedBuilder localUnwatched(Client client, String issuer) {
    return new UnwatchedBuilder(client, issuer);
  }

  /**
   * Creates the verifier of a {@link dev.countersign.client.testing.Authority}, which is the only
   * one that calls this.
   *
   * @param local an internal type
   * @return the verifier
   */
  public static Verifier testing(Local local) {
    return new Verifier(Mode.TESTING, local, null, null);
  }

  /** The settings of {@link Verifier#local}. */
  public static final class LocalBuilder {
    private final Client client;
    private OnLapse onLapse = OnLapse.VALIDATE;
    private long cacheBytes = CACHE_BYTES;
    private TimeSource clock = TimeSource.system();

    private LocalBuilder(Client client) {
      this.client = Objects.requireNonNull(client, "client");
    }

    /**
     * Sets the behaviour without a lease: {@link OnLapse#VALIDATE} by default.
     *
     * @param onLapse the behaviour
     * @return these settings
     */
    public LocalBuilder onLapse(OnLapse onLapse) {
      this.onLapse = Objects.requireNonNull(onLapse, "onLapse");
      return this;
    }

    /**
     * Sets the memory for tokens whose signature was verified: 32 MiB by default, which is room for
     * some 20,000 tokens.
     *
     * @param bytes the memory
     * @return these settings
     */
    public LocalBuilder cacheBytes(long bytes) {
      cacheBytes = bytes;
      return this;
    }

    /**
     * Takes the time from this clock, for tests.
     *
     * @param clock the clock
     * @return these settings
     */
    public LocalBuilder clock(TimeSource clock) {
      this.clock = Objects.requireNonNull(clock, "clock");
      return this;
    }

    /**
     * Starts the verifier, which connects in the background. Wait for {@link Verifier#awaitReady}
     * before the first request if it must not cost a call. Call {@link Verifier#close} if the
     * verifier is needed no more.
     *
     * @return the verifier
     */
    public Verifier start() {
      Local local = new Local(clock, cacheBytes);
      Client fallback = onLapse == OnLapse.VALIDATE ? client : null;
      return new Verifier(Mode.LOCAL, local, fallback, new Watcher(client, local));
    }
  }

  /** The settings of {@link Verifier#localUnwatched}. */
  public static final class UnwatchedBuilder {
    private final Client client;
    private final String issuer;
    private Duration maxLifetime = Duration.ofHours(1);
    private Duration leeway = Duration.ofSeconds(5);
    private Duration keysValidFor = Duration.ofHours(1);
    private long cacheBytes = CACHE_BYTES;
    private TimeSource clock = TimeSource.system();

    private UnwatchedBuilder(Client client, String issuer) {
      this.client = Objects.requireNonNull(client, "client");
      this.issuer = Objects.requireNonNull(issuer, "issuer");
    }

    /**
     * Sets the longest time between {@code iat} and {@code exp} of a token: 1 h by default. It
     * should be the setting {@code tokens.max_access_token_ttl} of the service.
     *
     * @param lifetime the time
     * @return these settings
     */
    public UnwatchedBuilder maxLifetime(Duration lifetime) {
      ClientBuilder.requirePositive(lifetime);
      maxLifetime = lifetime;
      return this;
    }

    /**
     * Sets the time by which {@code iat} and {@code nbf} may be later than the clock: 5 s by
     * default.
     *
     * @param leeway the time
     * @return these settings
     */
    public UnwatchedBuilder leeway(Duration leeway) {
      if (leeway.isNegative()) {
        throw new IllegalArgumentException("the leeway must not be negative");
      }
      this.leeway = leeway;
      return this;
    }

    /**
     * Sets the time for which keys are used that cannot be fetched again: 1 h by default. After
     * that nothing is known, and every answer is unknown.
     *
     * @param time the time
     * @return these settings
     */
    public UnwatchedBuilder keysValidFor(Duration time) {
      ClientBuilder.requirePositive(time);
      keysValidFor = time;
      return this;
    }

    /**
     * Sets the memory for tokens whose signature was verified: 32 MiB by default.
     *
     * @param bytes the memory
     * @return these settings
     */
    public UnwatchedBuilder cacheBytes(long bytes) {
      cacheBytes = bytes;
      return this;
    }

    /**
     * Takes the time from this clock, for tests.
     *
     * @param clock the clock
     * @return these settings
     */
    public UnwatchedBuilder clock(TimeSource clock) {
      this.clock = Objects.requireNonNull(clock, "clock");
      return this;
    }

    /**
     * Starts the verifier, which fetches the keys in the background. Wait for {@link
     * Verifier#awaitReady} before the first request, and call {@link Verifier#close} if the
     * verifier is needed no more.
     *
     * @return the verifier
     */
    public Verifier start() {
      Local local = new Local(clock, cacheBytes);
      // No clock can break the lease.
      Rules rules =
          new Rules(
              issuer,
              Micros.of(maxLifetime),
              Micros.of(leeway),
              Set.of(),
              Set.of(),
              Micros.FOREVER);
      Fetcher fetcher = new Fetcher(client, local, rules, Client.nanos(keysValidFor));
      return new Verifier(Mode.LOCAL_UNWATCHED, local, null, fetcher);
    }
  }

  /**
   * Checks a token, and whether it meets the demands. In the modes that verify locally this calls
   * the service only if there is no lease.
   *
   * @param token the token
   * @param demands the demands
   * @return the answer
   */
  public Answer verify(String token, Demands demands) {
    Answer answer = answerLocally(token, demands);
    if (answer == null) {
      answer = fallBack(token, demands);
    }
    count(answer);
    return answer;
  }

  /**
   * Checks a token without ever calling the service. Without a lease the answer is {@link
   * Answer.Unknown.Cause#NO_LEASE}, and so it always is in the mode {@link Mode#REMOTE}.
   *
   * @param token the token
   * @param demands the demands
   * @return the answer
   */
  public Answer verifyLocally(String token, Demands demands) {
    Answer answer = answerLocally(token, demands);
    if (answer == null) {
      answer = NO_LEASE;
    }
    count(answer);
    return answer;
  }

  private Answer answerLocally(String token, Demands demands) {
    LocalAnswer answer = local == null ? null : local.answer(token, demands);
    if (answer == null) {
      return null;
    }
    return answer.reason() == null
        ? new Answer.Active(new Session(answer.claims()))
        : INACTIVE.get(answer.reason());
  }

  private Answer fallBack(String token, Demands demands) {
    if (fallback == null) {
      return NO_LEASE;
    }
    // The service would refuse such a request as malformed, which says nothing of the token. Half
    // of a surrogate pair cannot be sent.
    boolean isSendable =
        !token.isEmpty()
            && token.length() <= 8192
            && token.getBytes(StandardCharsets.UTF_8).length <= 8192
            && StandardCharsets.UTF_8.newEncoder().canEncode(token);
    if (!isSendable) {
      return INACTIVE.get(InactiveReason.MALFORMED);
    }
    try {
      return read(fallback.validate(demands.request(token)));
    } catch (CountersignException e) {
      switch (e.reason()) {
        case INVALID_FIELD, CALLER_UNKNOWN, CALLER_NOT_ALLOWED ->
            LOGGER.log(
                System.Logger.Level.ERROR,
                "the service refuses to validate tokens: {0}",
                e.getMessage());
        default ->
            LOGGER.log(
                System.Logger.Level.DEBUG, "a token could not be validated: {0}", e.getMessage());
      }
      return new Answer.Unknown(Answer.Unknown.Cause.NOT_ANSWERED, e);
    }
  }

  /** Reads the answer of Validate. */
  static Answer read(ValidateResponse answer) {
    if (answer.getActive()) {
      Session session = Session.ofAnswer(answer);
      return session == null ? NOT_UNDERSTOOD : new Answer.Active(session);
    }
    // The numbers of the reasons are those of the protocol, which a test checks.
    int number = answer.getInactiveReasonValue();
    return number < 1 || number > REASONS.length
        ? NOT_UNDERSTOOD
        : INACTIVE.get(REASONS[number - 1]);
  }

  private void count(Answer answer) {
    if (answer instanceof Answer.Active) {
      active.increment();
    } else if (answer instanceof Answer.Inactive refused) {
      inactive.get(refused.reason()).increment();
    } else {
      unknown.increment();
    }
  }

  /**
   * Waits until the verifier can answer by its own copy. Returns at once in the mode {@link
   * Mode#REMOTE}.
   *
   * @param timeout the longest time to wait
   * @return whether the verifier can answer by its own copy, or needs none
   * @throws InterruptedException if the thread is interrupted
   */
  public boolean awaitReady(Duration timeout) throws InterruptedException {
    return local == null || local.awaitLease(Client.nanos(timeout));
  }

  /**
   * Returns the mode.
   *
   * @return the mode
   */
  public Mode mode() {
    return mode;
  }

  /**
   * Returns the state.
   *
   * @return the state
   */
  public Status status() {
    if (local == null) {
      return new Status(Duration.ZERO, 0, 0, 0, Duration.ZERO);
    }
    LocalCopy copy = local.copy();
    return new Status(
        Duration.ofNanos(copy.lease().remaining()),
        copy.index().size(),
        local.connections(),
        local.resets(),
        Duration.ofNanos(local.lagNanos()));
  }

  /**
   * Returns the number of checks so far with each result: {@code active}, the name of an {@link
   * InactiveReason}, or {@code unknown}.
   *
   * @return the numbers by the name of the result
   */
  public Map<String, Long> counts() {
    Map<String, Long> counts = new LinkedHashMap<>();
    counts.put("active", active.sum());
    for (InactiveReason reason : REASONS) {
      counts.put(reason.metricName(), inactive.get(reason).sum());
    }
    counts.put("unknown", unknown.sum());
    return counts;
  }

  /**
   * Ends the background task, and the lease. The verifier then behaves as without a lease. It does
   * not close the client.
   */
  @Override
  public void close() {
    if (task == null) {
      return;
    }
    task.interrupt();
    boolean isInterrupted = false;
    while (task.isAlive()) {
      try {
        task.join();
      } catch (InterruptedException e) {
        isInterrupted = true;
      }
    }
    local.copy().lease().end();
    if (isInterrupted) {
      Thread.currentThread().interrupt();
    }
  }

  @Override
  public String toString() {
    return "Verifier[" + mode.metricName() + "]";
  }
}
