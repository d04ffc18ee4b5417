package dev.countersign.client;

import dev.countersign.client.Endpoints.Replica;
import dev.countersign.v1.BatchValidateRequest;
import dev.countersign.v1.BatchValidateResponse;
import dev.countersign.v1.CountSessionsRequest;
import dev.countersign.v1.CountSessionsResponse;
import dev.countersign.v1.CreateSessionRequest;
import dev.countersign.v1.CreateSessionResponse;
import dev.countersign.v1.GetJwksRequest;
import dev.countersign.v1.GetJwksResponse;
import dev.countersign.v1.GetSessionRequest;
import dev.countersign.v1.GetSessionResponse;
import dev.countersign.v1.ImportSessionsRequest;
import dev.countersign.v1.ImportSessionsResponse;
import dev.countersign.v1.ListAuditRequest;
import dev.countersign.v1.ListAuditResponse;
import dev.countersign.v1.ListKeysRequest;
import dev.countersign.v1.ListKeysResponse;
import dev.countersign.v1.ListRevocationsRequest;
import dev.countersign.v1.ListRevocationsResponse;
import dev.countersign.v1.ListSessionsRequest;
import dev.countersign.v1.ListSessionsResponse;
import dev.countersign.v1.ReauthenticateRequest;
import dev.countersign.v1.ReauthenticateResponse;
import dev.countersign.v1.RefreshRequest;
import dev.countersign.v1.RefreshResponse;
import dev.countersign.v1.RevokeKeyRequest;
import dev.countersign.v1.RevokeKeyResponse;
import dev.countersign.v1.RevokeRequest;
import dev.countersign.v1.RevokeResponse;
import dev.countersign.v1.RotateKeyRequest;
import dev.countersign.v1.RotateKeyResponse;
import dev.countersign.v1.UpdateSessionRequest;
import dev.countersign.v1.UpdateSessionResponse;
import dev.countersign.v1.ValidateRequest;
import dev.countersign.v1.ValidateResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.ClientStreamTracer;
import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.time.Duration;
import java.util.Objects;
import java.util.UUID;
import java.util.concurrent.TimeUnit;

/**
 * A client of the service. It may be used by many threads, and is made once for a process.
 *
 * <p>Every call has a deadline. A call that a replica cannot answer is repeated at another replica
 * until the deadline, unless it may have taken effect and must not take effect twice. All errors
 * are {@link CountersignException}s.
 *
 * <pre>{@code
 * Client client = Client.builder("https://sessions-1.example:50051")
 *     .endpoint("https://sessions-2.example:50051")
 *     .apiKey(System.getenv("COUNTERSIGN_API_KEY"))
 *     .build();
 * }</pre>
 */
public final class Client implements AutoCloseable {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private final Endpoints endpoints;
  private final Settings settings;

  /** The settings of calls. */
  record Settings(
      String authorization, Duration deadline, Duration revocationDeadline, CallObserver observer) {
    /** Does not print the API key. */
    @Override
    public String toString() {
      return "Settings[deadline=" + deadline + ", revocationDeadline=" + revocationDeadline + "]";
    }
  }

  Client(Endpoints endpoints, Settings settings) {
    this.endpoints = endpoints;
    this.settings = settings;
  }

  /**
   * Begins the settings of a client.
   *
   * @param endpoint the URL of a replica, such as {@code https://sessions.example:50051}
   * @return the settings
   */
  public static ClientBuilder builder(String endpoint) {
    return new ClientBuilder(endpoint);
  }

  /**
   * Returns a client with the same connections, whose calls have another deadline.
   *
   * @param deadline the longest time that a call may take, with its repetitions
   * @return the client
   */
  public Client withDeadline(Duration deadline) {
    ClientBuilder.requirePositive(deadline);
    return new Client(
        endpoints, new Settings(settings.authorization, deadline, deadline, settings.observer));
  }

  /**
   * Starts a session for a user whom the caller has authenticated.
   *
   * <p>If the request has no request id, it gets one, so that a repetition by this method yields
   * the same session. To make a later call safe too, set a request id of your own.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public CreateSessionResponse createSession(CreateSessionRequest request) {
    CreateSessionRequest identified = request;
    if (request.getRequestId().isEmpty()) {
      identified = request.toBuilder().setRequestId(UUID.randomUUID().toString()).build();
    }
    return call(Methods.CREATE_SESSION, identified);
  }

  /**
   * Records that the user of a session has authenticated again. No earlier token of the session is
   * accepted any more. The request gets a request id as in {@link #createSession}.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public ReauthenticateResponse reauthenticate(ReauthenticateRequest request) {
    ReauthenticateRequest identified = request;
    if (request.getRequestId().isEmpty()) {
      identified = request.toBuilder().setRequestId(UUID.randomUUID().toString()).build();
    }
    return call(Methods.REAUTHENTICATE, identified);
  }

  /**
   * Exchanges a refresh token for the next pair of tokens.
   *
   * <p>The call is repeated only if the service has certainly not exchanged the token. After
   * another error, exchange the same refresh token again: within the grace of its policy, it yields
   * the same tokens.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public RefreshResponse refresh(RefreshRequest request) {
    return call(Methods.REFRESH, request);
  }

  /**
   * Changes data of a live session. The call is not repeated once it may have taken effect.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public UpdateSessionResponse updateSession(UpdateSessionRequest request) {
    return call(Methods.UPDATE_SESSION, request);
  }

  /**
   * Takes over live sessions of another system.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public ImportSessionsResponse importSessions(ImportSessionsRequest request) {
    return call(Methods.IMPORT_SESSIONS, request);
  }

  /**
   * Checks whether an access token is active. A {@link Verifier} has a simpler answer, and can do
   * it without a call.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public ValidateResponse validate(ValidateRequest request) {
    return call(Methods.VALIDATE, request);
  }

  /**
   * Validates up to 256 tokens in one call.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public BatchValidateResponse batchValidate(BatchValidateRequest request) {
    return call(Methods.BATCH_VALIDATE, request);
  }

  /**
   * Ends sessions, or makes a single access token inactive. Once this has returned, no replica and
   * no watcher accepts a revoked token any more.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public RevokeResponse revoke(RevokeRequest request) {
    return call(Methods.REVOKE, request);
  }

  /**
   * Lists revocations of many sessions.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public ListRevocationsResponse listRevocations(ListRevocationsRequest request) {
    return call(Methods.LIST_REVOCATIONS, request);
  }

  /**
   * Returns one session.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public GetSessionResponse getSession(GetSessionRequest request) {
    return call(Methods.GET_SESSION, request);
  }

  /**
   * Lists sessions of a tenant.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public ListSessionsResponse listSessions(ListSessionsRequest request) {
    return call(Methods.LIST_SESSIONS, request);
  }

  /**
   * Counts sessions of a tenant.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public CountSessionsResponse countSessions(CountSessionsRequest request) {
    return call(Methods.COUNT_SESSIONS, request);
  }

  /**
   * Returns the public keys that verify access tokens.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public GetJwksResponse getJwks(GetJwksRequest request) {
    return call(Methods.GET_JWKS, request);
  }

  /**
   * Lists all keys.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public ListKeysResponse listKeys(ListKeysRequest request) {
    return call(Methods.LIST_KEYS, request);
  }

  /**
   * Makes the pending key active. The call is repeated only if the service has certainly done
   * nothing.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public RotateKeyResponse rotateKey(RotateKeyRequest request) {
    return call(Methods.ROTATE_KEY, request);
  }

  /**
   * Revokes a key. Once this has returned, no replica and no watcher accepts any token of that key.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public RevokeKeyResponse revokeKey(RevokeKeyRequest request) {
    return call(Methods.REVOKE_KEY, request);
  }

  /**
   * Lists records of the audit.
   *
   * @param request the request
   * @return the answer
   * @throws CountersignException if the call fails
   */
  public ListAuditResponse listAudit(ListAuditRequest request) {
    return call(Methods.LIST_AUDIT, request);
  }

  /** Makes a call, and repeats it at other replicas until its deadline. */
  <Q, R> R call(Methods.Call<Q, R> call, Q request) {
    Objects.requireNonNull(request, "request");
    CallObserver.Call observed = null;
    if (settings.observer != null) {
      String service = Objects.requireNonNull(call.descriptor().getServiceName());
      String method = Objects.requireNonNull(call.descriptor().getBareMethodName());
      observed = settings.observer.begin(service, method);
    }
    Metadata metadata = metadata();
    if (observed != null) {
      observed.addMetadata(metadata);
    }
    try {
      R response = repeat(call, request, metadata);
      if (observed != null) {
        observed.end(null);
      }
      return response;
    } catch (CountersignException e) {
      if (observed != null) {
        observed.end(e);
      }
      throw e;
    }
  }

  private <Q, R> R repeat(Methods.Call<Q, R> call, Q request, Metadata metadata) {
    Duration span = call.isRevocation() ? settings.revocationDeadline : settings.deadline;
    long ends = System.nanoTime() + span.toNanos();
    Backoff delays = new Backoff(Duration.ofMillis(10), Duration.ofMillis(500));
    Replica last = null;
    CountersignException earlier = null;
    for (int failed = 1; ; failed++) {
      last = endpoints.next(last);
      try {
        return attempt(last, call, request, metadata, ends);
      } catch (CountersignException e) {
        // The time was too short to connect once more, so the earlier error says more.
        boolean isTooLate = e.reason() == Reason.DEADLINE_EXCEEDED && e.isRefused();
        if (isTooLate && earlier != null) {
          throw earlier;
        }
        earlier = e;
        long delay = delay(e, failed, delays.next());
        if (!mayRepeat(e, call) || ends - System.nanoTime() <= delay) {
          throw e;
        }
        try {
          TimeUnit.NANOSECONDS.sleep(delay);
        } catch (InterruptedException interrupted) {
          Thread.currentThread().interrupt();
          throw e;
        }
      }
    }
  }

  /** Returns the time to wait before a call is repeated. */
  private long delay(CountersignException failure, int failed, long delay) {
    // Another replica may answer at once. The wait that a replica asks for is for itself, except
    // that an overloaded service must get fewer calls.
    boolean isElsewhere = failed < endpoints.size() && failure.reason() != Reason.OVERLOADED;
    if (isElsewhere) {
      return delay;
    }
    return Math.max(delay, nanos(failure.retryAfter().orElse(Duration.ZERO)));
  }

  private static boolean mayRepeat(CountersignException failure, Methods.Call<?, ?> call) {
    boolean hasEffectOnce = call.isRepeatable() || failure.isRefused();
    return failure.isTemporary() && hasEffectOnce && failure.reason() != Reason.KEY_TOO_NEW;
  }

  private <Q, R> R attempt(
      Replica replica, Methods.Call<Q, R> call, Q request, Metadata metadata, long ends) {
    SentTracer tracer = new SentTracer();
    CallOptions options =
        CallOptions.DEFAULT
            .withDeadlineAfter(ends - System.nanoTime(), TimeUnit.NANOSECONDS)
            .withStreamTracerFactory(tracer);
    try {
      R response =
          ClientCalls.blockingUnaryCall(
              channel(replica, metadata), call.descriptor(), options, request);
      endpoints.trust(replica);
      return response;
    } catch (StatusRuntimeException e) {
      CountersignException failure = CountersignException.of(e, tracer.wasSent);
      // The status of gRPC would name the time of each step.
      boolean isLate = e.getStatus().getCode() == Status.Code.DEADLINE_EXCEEDED;
      if (isLate && ends - System.nanoTime() <= 0) {
        failure = CountersignException.deadlineExceeded(tracer.wasSent);
      }
      note(replica, failure);
      throw failure;
    }
  }

  /** Returns the connection that calls share, with metadata. */
  private static Channel channel(Replica replica, Metadata metadata) {
    ManagedChannel channel = replica.channel();
    // gRPC would wait before it connects again, for up to two minutes, and fail all calls
    // meanwhile.
    if (channel.getState(false) == ConnectivityState.TRANSIENT_FAILURE) {
      channel.enterIdle();
    }
    return ClientInterceptors.intercept(
        channel, MetadataUtils.newAttachHeadersInterceptor(metadata));
  }

  /** Notices that a request leaves this process. */
  private static final class SentTracer extends ClientStreamTracer.Factory {
    volatile boolean wasSent;

    @Override
    public ClientStreamTracer newClientStreamTracer(
        ClientStreamTracer.StreamInfo info, Metadata headers) {
      return new ClientStreamTracer() {
        @Override
        public void outboundHeaders() {
          wasSent = true;
        }
      };
    }
  }

  /** Keeps in mind that a replica has failed, or that it works. */
  void note(Replica replica, CountersignException failure) {
    switch (failure.reason()) {
      case UNREACHABLE, NOT_CURRENT, STORE_UNAVAILABLE, OVERLOADED, DEADLINE_EXCEEDED ->
          endpoints.avoid(replica);
      default -> {
        // The caller may have given up the call, which says nothing of the replica.
        if (failure.code() != Status.Code.CANCELLED) {
          endpoints.trust(replica);
        }
      }
    }
  }

  /** Returns the metadata with the credentials of this client. */
  Metadata metadata() {
    Metadata metadata = new Metadata();
    if (settings.authorization != null) {
      metadata.put(AUTHORIZATION, settings.authorization);
    }
    return metadata;
  }

  /** Returns a span in nanoseconds, at most some centuries. */
  static long nanos(Duration span) {
    try {
      return span.toNanos();
    } catch (ArithmeticException e) {
      return Long.MAX_VALUE;
    }
  }

  Endpoints endpoints() {
    return endpoints;
  }

  Duration deadline() {
    return settings.deadline;
  }

  /** Closes the connections, also those of clients that {@link #withDeadline} has returned. */
  @Override
  public void close() {
    for (Replica replica : endpoints.all()) {
      replica.channel().shutdownNow();
    }
  }

  @Override
  public String toString() {
    return "Client[endpoints=" + endpoints.size() + ", " + settings + "]";
  }
}
