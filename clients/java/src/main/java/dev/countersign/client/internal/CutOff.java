package dev.countersign.client.internal;

import java.nio.charset.StandardCharsets;
import java.util.UUID;

/**
 * A revocation of many sessions: the instant up to which sessions are covered, and a session that
 * is not; null for none.
 */
public record CutOff(long upTo, UUID spared) {
  /** A kind: the sessions among which a revocation chooses, and the time that it compares. */
  enum Kind {
    TENANT,
    SUBJECT,
    ALL,
    CLIENT,
    CLIENT_EVERYWHERE,
    AUTHENTICATED_TENANT,
    AUTHENTICATED_ALL,
    AUTHENTICATED_CLIENT,
    AUTHENTICATED_CLIENT_EVERYWHERE;

    /** Returns the key of the only revocation of this kind that may cover a token. */
    Key keyOf(Claims claims) {
      return switch (this) {
        case TENANT, AUTHENTICATED_TENANT -> new Key(this, claims.tenant, "");
        case SUBJECT -> new Key(this, claims.tenant, claims.subject);
        case CLIENT, AUTHENTICATED_CLIENT -> new Key(this, claims.tenant, claims.clientId);
        case CLIENT_EVERYWHERE, AUTHENTICATED_CLIENT_EVERYWHERE ->
            new Key(this, "", claims.clientId);
        case ALL, AUTHENTICATED_ALL -> new Key(this, "", "");
      };
    }

    boolean isByAuthentication() {
      return compareTo(AUTHENTICATED_TENANT) >= 0;
    }
  }

  /** The identity of a revocation of many sessions. There is at most one for each. */
  public record Key(Kind kind, String tenant, String name) {
    /**
     * Returns the key of a revocation. The texts are empty for no condition.
     *
     * @return the key, or null if no revocation may be of this kind
     */
    public static Key of(
        boolean allTenants,
        String tenant,
        String subject,
        String clientId,
        boolean isByAuthentication) {
      boolean isValid =
          isText(tenant, 128)
              && isText(subject, 256)
              && isText(clientId, 256)
              && (!allTenants || tenant.isEmpty());
      if (!isValid) {
        return null;
      }
      if (!subject.isEmpty()) {
        boolean isKnown = clientId.isEmpty() && !allTenants && !isByAuthentication;
        return isKnown ? new Key(Kind.SUBJECT, tenant, subject) : null;
      }
      Kind kind;
      if (clientId.isEmpty()) {
        kind =
            allTenants
                ? isByAuthentication ? Kind.AUTHENTICATED_ALL : Kind.ALL
                : isByAuthentication ? Kind.AUTHENTICATED_TENANT : Kind.TENANT;
      } else if (allTenants) {
        kind = isByAuthentication ? Kind.AUTHENTICATED_CLIENT_EVERYWHERE : Kind.CLIENT_EVERYWHERE;
      } else {
        kind = isByAuthentication ? Kind.AUTHENTICATED_CLIENT : Kind.CLIENT;
      }
      return new Key(kind, tenant, clientId);
    }
  }

  /** Returns whether a text has no control characters, and at most this many bytes. */
  static boolean isText(String text, int limit) {
    return text.getBytes(StandardCharsets.UTF_8).length <= limit
        && text.chars().noneMatch(Character::isISOControl);
  }

  boolean covers(Kind kind, Claims claims) {
    if (kind.isByAuthentication()) {
      return claims.authenticatedAt <= upTo;
    }
    return coversCreated(claims.sessionId);
  }

  private boolean coversCreated(UUID session) {
    return Ids.createdMillis(session) <= Micros.millis(upTo) && !session.equals(spared);
  }

  /** Returns the cut-off that covers exactly the sessions that at least one of the two covers. */
  CutOff union(CutOff other) {
    CutOff earlier = upTo <= other.upTo ? this : other;
    CutOff later = upTo <= other.upTo ? other : this;
    boolean isCovered = later.spared != null && earlier.coversCreated(later.spared);
    return isCovered ? new CutOff(later.upTo, null) : later;
  }
}
