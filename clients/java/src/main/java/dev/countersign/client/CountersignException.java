package dev.countersign.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.io.Serializable;
import java.time.Duration;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/** The error of a call. It holds no token. */
public final class CountersignException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  /** The reasons for which the service has certainly done nothing. */
  private static final Set<Reason> REFUSALS =
      EnumSet.of(
          Reason.NOT_CURRENT, Reason.NO_ACTIVE_KEY, Reason.OVERLOADED, Reason.CALLER_OVER_LIMIT);

  private final Status.Code code;
  private final Reason reason;
  private final String reasonName;
  private final String description;
  private final Duration retryAfter;
  private final ArrayList<FieldViolation> fields;
  private final boolean isRefused;

  /**
   * A field of a request that is not valid.
   *
   * @param field the path of the field, such as {@code audience[3]}
   * @param description the problem with it
   */
  public record FieldViolation(String field, String description) implements Serializable {}

  /** The details of a status. */
  private static final class Details {
    String reason;
    Duration retryAfter;
    final ArrayList<FieldViolation> fields = new ArrayList<>();

    void add(Any detail) throws InvalidProtocolBufferException {
      if (detail.is(ErrorInfo.class)) {
        reason = detail.unpack(ErrorInfo.class).getReason();
      } else if (detail.is(RetryInfo.class)) {
        RetryInfo info = detail.unpack(RetryInfo.class);
        if (info.hasRetryDelay()) {
          com.google.protobuf.Duration delay = info.getRetryDelay();
          retryAfter = Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
        }
      } else if (detail.is(BadRequest.class)) {
        for (BadRequest.FieldViolation violation :
            detail.unpack(BadRequest.class).getFieldViolationsList()) {
          fields.add(new FieldViolation(violation.getField(), violation.getDescription()));
        }
      }
    }
  }

  private CountersignException(
      Status.Code code,
      String reasonName,
      String description,
      Details details,
      boolean isRefused,
      Throwable cause) {
    super(message(code, reasonName, description), cause);
    this.code = code;
    this.reasonName = reasonName;
    this.reason = Reason.ofName(reasonName);
    this.description = description;
    this.retryAfter = details.retryAfter;
    this.fields = details.fields;
    this.isRefused = isRefused || REFUSALS.contains(reason);
  }

  private static String message(Status.Code code, String reasonName, String description) {
    return reasonName.isEmpty()
        ? code + ": " + description
        : reasonName + " (" + code + "): " + description;
  }

  /**
   * Reads the error of a call.
   *
   * @param failed the error
   * @param wasSent false if the request has certainly not left this process
   */
  static CountersignException of(StatusRuntimeException failed, boolean wasSent) {
    Status status = failed.getStatus();
    Details details = new Details();
    com.google.rpc.Status message = StatusProto.fromThrowable(failed);
    try {
      for (Any detail : message == null ? List.<Any>of() : message.getDetailsList()) {
        details.add(detail);
      }
    } catch (InvalidProtocolBufferException e) {
      // The details cannot be read, so the code alone counts.
      details.reason = null;
    }
    Status.Code code = status.getCode();
    String reason = details.reason;
    if (reason == null) {
      // A status with a cause was made here, because the connection failed, or because the answer
      // cannot be read. gRPC cancels such a call.
      boolean isLocal = status.getCause() != null;
      if (isLocal && (code == Status.Code.UNKNOWN || code == Status.Code.INTERNAL)) {
        code = Status.Code.UNAVAILABLE;
      } else if (code == Status.Code.CANCELLED && isUnreadable(status.getCause())) {
        code = Status.Code.INTERNAL;
      }
      reason =
          switch (code) {
            case DEADLINE_EXCEEDED -> Reason.DEADLINE_EXCEEDED.name();
            case UNAVAILABLE -> Reason.UNREACHABLE.name();
            default -> "";
          };
    }
    return new CountersignException(code, reason, describe(status), details, !wasSent, failed);
  }

  private static boolean isUnreadable(Throwable cause) {
    for (Throwable each = cause; each != null; each = each.getCause()) {
      if (each instanceof InvalidProtocolBufferException) {
        return true;
      }
    }
    return false;
  }

  /** Returns the text of a status, with its cause, such as "Connection refused". */
  private static String describe(Status status) {
    String text = status.getDescription() == null ? "" : status.getDescription();
    Throwable cause = status.getCause();
    String why = cause == null ? null : cause.getMessage();
    if (why == null || text.contains(why)) {
      return text;
    }
    return text.isEmpty() ? why : text + ": " + why;
  }

  /**
   * Creates the error of a call whose deadline has passed.
   *
   * @param wasSent false if the request has certainly not left this process
   */
  static CountersignException deadlineExceeded(boolean wasSent) {
    return new CountersignException(
        Status.Code.DEADLINE_EXCEEDED,
        Reason.DEADLINE_EXCEEDED.name(),
        "no replica has answered within the deadline",
        new Details(),
        !wasSent,
        null);
  }

  /**
   * Returns the gRPC code.
   *
   * @return the code
   */
  public Status.Code code() {
    return code;
  }

  /**
   * Returns the reason.
   *
   * @return the reason
   */
  public Reason reason() {
    return reason;
  }

  /**
   * Returns the name of the reason in {@code ErrorInfo.reason}. A service that is newer than this
   * library may send others than {@link Reason} has.
   *
   * @return the name; empty if there is none
   */
  public String reasonName() {
    return reasonName;
  }

  /**
   * Returns the message of the service, which is for people.
   *
   * @return the message
   */
  public String description() {
    return description;
  }

  /**
   * Returns the time after which the call may be repeated ({@code RetryInfo}). The library has
   * waited for it already as far as the deadline allowed.
   *
   * @return the time, if the service has named one
   */
  public Optional<Duration> retryAfter() {
    return Optional.ofNullable(retryAfter);
  }

  /**
   * Returns the fields that are not valid ({@code BadRequest}).
   *
   * @return the fields
   */
  public List<FieldViolation> fields() {
    return List.copyOf(fields);
  }

  /**
   * Returns whether the call certainly had no effect, because it did not reach the service, or
   * because the service refused it before doing anything.
   *
   * @return whether it had none
   */
  public boolean isRefused() {
    return isRefused;
  }

  /**
   * Returns whether the call may succeed later, without a change of the request.
   *
   * @return whether it may
   */
  public boolean isTemporary() {
    return code == Status.Code.UNAVAILABLE || retryAfter != null;
  }
}
