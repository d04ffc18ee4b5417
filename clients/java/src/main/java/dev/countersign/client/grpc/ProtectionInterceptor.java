package dev.countersign.client.grpc;

import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.countersign.client.Answer;
import dev.countersign.client.Demands;
import dev.countersign.client.InactiveReason;
import dev.countersign.client.Session;
import dev.countersign.client.Verifier;
import dev.countersign.client.internal.Credential;
import dev.countersign.client.internal.Denial;
import io.grpc.Context;
import io.grpc.Contexts;
import io.grpc.Metadata;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;

/**
 * Lets only calls pass whose access token is active and meets the demands of the method. The token
 * is in the metadata {@code authorization}, with the scheme {@code Bearer}.
 *
 * <p>The session is in the context of the call: {@link #session()} returns it. A stream is checked
 * when it begins. Other calls are answered, with an {@code ErrorInfo} whose domain is {@code
 * countersign}:
 *
 * <table>
 *   <caption>Answers</caption>
 *   <tr><th>the call</th><th>the code</th><th>the reason</th></tr>
 *   <tr><td>has no token, or several</td><td>UNAUTHENTICATED</td>
 *     <td>{@code NO_TOKEN}, {@code SEVERAL_TOKENS}</td></tr>
 *   <tr><td>has an inactive token</td><td>UNAUTHENTICATED</td>
 *     <td>the name of the {@link InactiveReason}, such as {@code EXPIRED}</td></tr>
 *   <tr><td>needs a stronger or more recent authentication</td><td>UNAUTHENTICATED</td>
 *     <td>{@code STEP_UP_REQUIRED}, with {@code acr_values} and {@code max_age}</td></tr>
 *   <tr><td>lacks a scope</td><td>PERMISSION_DENIED</td>
 *     <td>{@code INSUFFICIENT_SCOPE}, with {@code scope}</td></tr>
 *   <tr><td>cannot be checked now</td><td>UNAVAILABLE</td>
 *     <td>{@code TOKEN_NOT_CHECKED}, with {@code RetryInfo}</td></tr>
 * </table>
 *
 * <p>An interceptor does not change: each method returns another one. A check may call the service,
 * so a server must not run its calls in the threads of its connections ({@code directExecutor}).
 */
public final class ProtectionInterceptor implements ServerInterceptor {
  private static final String DOMAIN = "countersign";
  private static final int RETRY_NANOS = 500_000_000;
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
  private static final Context.Key<Session> SESSION = Context.key("countersign-session");

  private final Verifier verifier;
  private final Demands demands;

  /** The methods with other demands, or with none, by their paths. */
  private final Map<String, Optional<Demands>> methods;

  /**
   * Creates an interceptor with these demands on all methods.
   *
   * @param verifier the verifier
   * @param demands the demands
   */
  public ProtectionInterceptor(Verifier verifier, Demands demands) {
    this(
        Objects.requireNonNull(verifier, "verifier"),
        Objects.requireNonNull(demands, "demands"),
        Map.of());
  }

  private ProtectionInterceptor(
      Verifier verifier, Demands demands, Map<String, Optional<Demands>> methods) {
    this.verifier = verifier;
    this.demands = demands;
    this.methods = methods;
  }

  /**
   * Sets other demands on a method.
   *
   * @param method the full name of the method, such as {@code shop.v1.Orders/Cancel}
   * @param demands the demands
   * @return the interceptor
   */
  public ProtectionInterceptor withMethod(String method, Demands demands) {
    return with(method, Optional.of(demands));
  }

  /**
   * Lets all calls of a method pass without a check.
   *
   * @param method the full name of the method, such as {@code grpc.health.v1.Health/Check}
   * @return the interceptor
   */
  public ProtectionInterceptor withPublic(String method) {
    return with(method, Optional.empty());
  }

  private ProtectionInterceptor with(String method, Optional<Demands> ofMethod) {
    Map<String, Optional<Demands>> all = new HashMap<>(methods);
    all.put(method.startsWith("/") ? method.substring(1) : method, ofMethod);
    return new ProtectionInterceptor(verifier, demands, Map.copyOf(all));
  }

  /**
   * Returns the session of the call that is under way.
   *
   * @return the session, unless no interceptor has checked the call
   */
  public static Optional<Session> session() {
    return Optional.ofNullable(SESSION.get());
  }

  @Override
  public <Q, R> ServerCall.Listener<Q> interceptCall(
      ServerCall<Q, R> call, Metadata headers, ServerCallHandler<Q, R> next) {
    Optional<Demands> ofMethod =
        methods.getOrDefault(call.getMethodDescriptor().getFullMethodName(), Optional.of(demands));
    if (ofMethod.isEmpty()) {
      return next.startCall(call, headers);
    }
    List<String> values = new ArrayList<>();
    Iterable<String> sent = headers.getAll(AUTHORIZATION);
    if (sent != null) {
      sent.forEach(values::add);
    }
    Credential credential = Credential.find(values, List.of(), null);
    Denial denial = Denial.of(credential);
    if (denial == null) {
      Answer answer = verifier.verify(credential.token(), ofMethod.get());
      denial = Denial.of(answer);
      if (answer instanceof Answer.Active active) {
        Context context = Context.current().withValue(SESSION, active.session());
        return Contexts.interceptCall(context, call, headers, next);
      }
    }
    StatusRuntimeException status = status(denial, ofMethod.get());
    Metadata trailers = status.getTrailers();
    call.close(status.getStatus(), trailers == null ? new Metadata() : trailers);
    return new ServerCall.Listener<>() {};
  }

  private static StatusRuntimeException status(Denial denial, Demands demands) {
    Status.Code code = Status.Code.UNAUTHENTICATED;
    ErrorInfo.Builder info = ErrorInfo.newBuilder().setDomain(DOMAIN);
    com.google.rpc.Status.Builder status = com.google.rpc.Status.newBuilder();
    switch (denial.kind()) {
      case NO_TOKEN -> info.setReason("NO_TOKEN");
      case SEVERAL_TOKENS, CONFLICTING_COOKIES -> info.setReason("SEVERAL_TOKENS");
      case UNKNOWN -> {
        code = Status.Code.UNAVAILABLE;
        info.setReason("TOKEN_NOT_CHECKED");
      }
      case INACTIVE -> {
        info.setReason(denial.reason().name());
        if (denial.reason() == InactiveReason.INSUFFICIENT_SCOPE) {
          code = Status.Code.PERMISSION_DENIED;
          info.putMetadata("scope", String.join(" ", demands.scopes()));
        } else if (denial.reason() == InactiveReason.STEP_UP_REQUIRED) {
          addStepUp(info, demands);
        }
      }
    }
    status.addDetails(Any.pack(info.build()));
    if (code == Status.Code.UNAVAILABLE) {
      Duration delay = Duration.newBuilder().setNanos(RETRY_NANOS).build();
      status.addDetails(Any.pack(RetryInfo.newBuilder().setRetryDelay(delay).build()));
    }
    return StatusProto.toStatusRuntimeException(
        status.setCode(code.value()).setMessage(denial.description(demands)).build());
  }

  private static void addStepUp(ErrorInfo.Builder info, Demands demands) {
    if (!demands.acrValues().isEmpty()) {
      info.putMetadata("acr_values", String.join(" ", demands.acrValues()));
    }
    demands
        .shortestAge()
        .ifPresent(age -> info.putMetadata("max_age", String.valueOf(age.toSeconds())));
  }

  @Override
  public String toString() {
    return "ProtectionInterceptor[" + demands + "]";
  }
}
