package dev.countersign.client;

import java.util.Objects;
import java.util.Optional;

/** The answer of a {@link Verifier}. Only an active one lets a request pass. */
public sealed interface Answer {
  /**
   * The token is authentic, its session is live, and all demands are met.
   *
   * @param session the session
   */
  record Active(Session session) implements Answer {
    /** Checks the values. */
    public Active {
      Objects.requireNonNull(session, "session");
    }
  }

  /**
   * The token is not accepted.
   *
   * @param reason the reason
   */
  record Inactive(InactiveReason reason) implements Answer {
    /** Checks the values. */
    public Inactive {
      Objects.requireNonNull(reason, "reason");
    }
  }

  /**
   * It is not known whether the token is active, so the request must not pass. The client may try
   * again.
   *
   * @param cause the cause
   * @param error the error of the call if the service did not answer; otherwise null
   */
  record Unknown(Cause cause, CountersignException error) implements Answer {
    /** The cause for which it is not known whether a token is active. */
    public enum Cause {
      /**
       * This process has no lease: it is starting, or is cut off from the service, or was
       * suspended.
       */
      NO_LEASE,
      /** The service did not answer the question. */
      NOT_ANSWERED,
      /** The answer of the service cannot be understood; it may be newer than this library. */
      NOT_UNDERSTOOD
    }

    /** Checks the values. */
    public Unknown {
      Objects.requireNonNull(cause, "cause");
    }
  }

  /**
   * Returns whether the token is active.
   *
   * @return whether it is
   */
  default boolean isActive() {
    return this instanceof Active;
  }

  /**
   * Returns the session if the token is active.
   *
   * @return the session
   */
  default Optional<Session> activeSession() {
    return this instanceof Active active ? Optional.of(active.session()) : Optional.empty();
  }

  /**
   * Returns the reason if the token is inactive.
   *
   * @return the reason
   */
  default Optional<InactiveReason> inactiveReason() {
    return this instanceof Inactive inactive ? Optional.of(inactive.reason()) : Optional.empty();
  }
}
