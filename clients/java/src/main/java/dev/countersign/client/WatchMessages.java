package dev.countersign.client;

import com.google.protobuf.Duration;
import com.google.protobuf.Timestamp;
import dev.countersign.client.internal.CutOff;
import dev.countersign.client.internal.Ids;
import dev.countersign.client.internal.Index;
import dev.countersign.client.internal.Micros;
import dev.countersign.client.internal.Rules;
import dev.countersign.v1.RevokedId;
import dev.countersign.v1.RevokedSessions;
import dev.countersign.v1.WatchRevocations;
import dev.countersign.v1.WatchRules;
import java.nio.ByteBuffer;
import java.util.Set;
import java.util.UUID;

/**
 * Reads messages of Watch. Anything that this version does not understand is an error, because it
 * might stop a token.
 */
final class WatchMessages {
  private static final int ID_BYTES = 16;
  private static final long NANOS = 1_000_000_000;

  private WatchMessages() {}

  /** The end of a stream. It has no stack trace. */
  static final class EndException extends Exception {
    private static final long serialVersionUID = 1L;

    EndException(String message) {
      super(message, null, false, false);
    }
  }

  static EndException notUnderstood() {
    return new EndException(
        "the service has sent a message that this version of the library does not understand");
  }

  static void apply(WatchRevocations revocations, Index index) throws EndException {
    for (RevokedId revoked : revocations.getIdsList()) {
      if (revoked.getId().size() != ID_BYTES || !revoked.hasExpiresAt()) {
        throw notUnderstood();
      }
      ByteBuffer id = revoked.getId().asReadOnlyByteBuffer();
      index.revoke(new UUID(id.getLong(), id.getLong()), micros(revoked.getExpiresAt()));
    }
    for (RevokedSessions revoked : revocations.getSessionsList()) {
      apply(revoked, index);
    }
  }

  private static void apply(RevokedSessions revoked, Index index) throws EndException {
    boolean isEverywhere =
        switch (revoked.getWhereCase()) {
          case TENANT -> false;
          case ALL_TENANTS -> true;
          case WHERE_NOT_SET -> throw notUnderstood();
        };
    if (isEverywhere && !revoked.getAllTenants()) {
      throw notUnderstood();
    }
    Timestamp upTo =
        switch (revoked.getInstantCase()) {
          case CREATED_UP_TO -> revoked.getCreatedUpTo();
          case AUTHENTICATED_UP_TO -> revoked.getAuthenticatedUpTo();
          case INSTANT_NOT_SET -> throw notUnderstood();
        };
    UUID spared = null;
    if (!revoked.getSparedSessionId().isEmpty()) {
      spared = Ids.parse(revoked.getSparedSessionId());
      if (spared == null) {
        throw notUnderstood();
      }
    }
    CutOff.Key key =
        CutOff.Key.of(
            isEverywhere,
            isEverywhere ? "" : revoked.getTenant(),
            revoked.getSubject(),
            revoked.getClientId(),
            revoked.hasAuthenticatedUpTo());
    if (key == null || !revoked.hasExpiresAt()) {
      throw notUnderstood();
    }
    index.revoke(key, new CutOff(micros(upTo), spared), micros(revoked.getExpiresAt()));
  }

  static Rules rules(WatchRules message) throws EndException {
    if (!message.hasMaxLifetime() || !message.hasLeeway() || !message.hasLeaseMargin()) {
      throw notUnderstood();
    }
    Rules rules =
        new Rules(
            message.getIssuer(),
            nanos(message.getMaxLifetime()) / 1_000,
            nanos(message.getLeeway()) / 1_000,
            Set.copyOf(message.getTenantsList()),
            Set.copyOf(message.getAudiencesList()),
            nanos(message.getLeaseMargin()) / 1_000);
    if (!rules.areValid()) {
      throw notUnderstood();
    }
    return rules;
  }

  /**
   * Reads a span, which must not be negative.
   *
   * @return nanoseconds, at most some centuries
   */
  static long nanos(Duration span) throws EndException {
    long seconds = Micros.plus(span.getSeconds(), Math.floorDiv(span.getNanos(), (int) NANOS));
    if (seconds < 0) {
      throw notUnderstood();
    }
    long most = Long.MAX_VALUE / NANOS / 2;
    return Math.min(seconds, most) * NANOS + Math.floorMod(span.getNanos(), (int) NANOS);
  }

  /** Reads an instant in microseconds. Fractions of a microsecond are dropped. */
  static long micros(Timestamp at) {
    return Micros.plus(Micros.ofSeconds(at.getSeconds()), at.getNanos() / 1_000);
  }
}
