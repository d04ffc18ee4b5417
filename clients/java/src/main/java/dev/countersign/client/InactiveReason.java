package dev.countersign.client;

import java.util.Locale;

/**
 * The reason why a token is inactive. If several apply, it is the first in the following order:
 * form, key (also a revoked one) and signature, tenant, time, revocation, audience, demands.
 *
 * <p>The numbers of the constants, from 1 on, are those of the protocol.
 */
public enum InactiveReason {
  /** The token is not a JWT of the form that the service issues. */
  MALFORMED,
  /** The signature was not made by the key that the token names. */
  BAD_SIGNATURE,
  /** The token names a key that is not known. */
  UNKNOWN_KEY,
  /** The token is not an access token. */
  WRONG_TYPE,
  /** The token has expired. */
  EXPIRED,
  /** The token is not valid yet. */
  NOT_YET_VALID,
  /** The token is from another issuer. */
  WRONG_ISSUER,
  /**
   * The token is not for the demanded audience, or it is for none of the audiences that the caller
   * is limited to.
   */
  WRONG_AUDIENCE,
  /** The token lacks a demanded scope. */
  INSUFFICIENT_SCOPE,
  /** The authentication is too weak or too old for the demand (RFC 9470). */
  STEP_UP_REQUIRED,
  /** The session, the token, or the key that signed it was revoked. */
  REVOKED,
  /** The caller may not see tokens of this tenant. */
  FOREIGN_TENANT;

  private final String metricName = name().toLowerCase(Locale.ROOT);

  /**
   * Returns the name of the reason in metrics, such as {@code wrong_audience}.
   *
   * @return the name
   */
  public String metricName() {
    return metricName;
  }
}
