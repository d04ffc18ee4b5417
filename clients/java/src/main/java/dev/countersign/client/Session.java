package dev.countersign.client;

import com.google.protobuf.Timestamp;
import dev.countersign.client.internal.Claims;
import dev.countersign.client.internal.Ids;
import dev.countersign.client.internal.Json;
import dev.countersign.client.internal.Micros;
import dev.countersign.v1.ValidateResponse;
import java.security.Principal;
import java.time.Instant;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.UUID;

/**
 * The session that an active token belongs to, with the claims of the token. It does not change.
 * Printed, it shows neither the token nor the claims, but its identifier.
 *
 * <p>Two are equal if they are of the same check, or share the same verified token.
 */
public final class Session implements Principal {
  private final Claims claims;

  Session(Claims claims) {
    this.claims = claims;
  }

  /** Reads the answer of Validate for an active token; null if it is incomplete. */
  static Session ofAnswer(ValidateResponse answer) {
    UUID id = Ids.parse(answer.getSessionId());
    boolean isComplete =
        id != null && answer.hasIssuedAt() && answer.hasExpiresAt() && answer.hasAuthenticatedAt();
    if (!isComplete) {
      return null;
    }
    Claims.Builder claims = new Claims.Builder();
    claims.sessionId = id;
    claims.subject = answer.getSubject();
    claims.tenant = answer.getTenant();
    claims.clientId = answer.getClientId();
    claims.audience = answer.getAudienceList();
    claims.scopes = answer.getScopesList();
    claims.issuedAt = micros(answer.getIssuedAt());
    claims.expiresAt = micros(answer.getExpiresAt());
    claims.authenticatedAt = micros(answer.getAuthenticatedAt());
    claims.acr = answer.getAcr();
    claims.amr = answer.getAmrList();
    claims.amrVerifiedAt = new HashMap<>();
    answer
        .getAmrVerifiedAtMap()
        .forEach((method, at) -> claims.amrVerifiedAt.put(method, micros(at)));
    claims.custom = new HashMap<>();
    Json.fromStruct(answer.getClaims())
        .forEach((name, value) -> claims.custom.put(name, Json.encode(value)));
    return new Session(claims.build());
  }

  private static long micros(Timestamp at) {
    return Micros.ofSeconds(at.getSeconds());
  }

  /**
   * Returns the identifier of the session ({@code sid}).
   *
   * @return the identifier
   */
  public UUID id() {
    return claims.sessionId;
  }

  /**
   * Returns the user ({@code sub}).
   *
   * @return the user
   */
  public String subject() {
    return claims.subject;
  }

  /**
   * Returns the user, too.
   *
   * @return the user
   */
  @Override
  public String getName() {
    return claims.subject;
  }

  /**
   * Returns the tenant.
   *
   * @return the tenant; empty for the default tenant
   */
  public String tenant() {
    return claims.tenant;
  }

  /**
   * Returns the OAuth client.
   *
   * @return the client; may be empty
   */
  public String clientId() {
    return claims.clientId;
  }

  /**
   * Returns the services that the token is meant for ({@code aud}).
   *
   * @return the audiences
   */
  public List<String> audience() {
    return claims.audience;
  }

  /**
   * Returns the scopes of the token.
   *
   * @return the scopes
   */
  public List<String> scopes() {
    return claims.scopes;
  }

  /**
   * Returns whether the token carries a scope.
   *
   * @param scope the scope
   * @return whether it does
   */
  public boolean hasScope(String scope) {
    return claims.scopes.contains(scope);
  }

  /**
   * Returns the time at which the token was issued, in whole seconds.
   *
   * @return the time
   */
  public Instant issuedAt() {
    return instant(claims.issuedAt);
  }

  /**
   * Returns the time at which the token expires, in whole seconds.
   *
   * @return the time
   */
  public Instant expiresAt() {
    return instant(claims.expiresAt);
  }

  /**
   * Returns the time at which the user authenticated ({@code auth_time}), in whole seconds.
   *
   * @return the time
   */
  public Instant authenticatedAt() {
    return instant(claims.authenticatedAt);
  }

  /**
   * Returns the authentication context class.
   *
   * @return the class; may be empty
   */
  public String acr() {
    return claims.acr;
  }

  /**
   * Returns the authentication methods (RFC 8176).
   *
   * @return the methods
   */
  public List<String> amr() {
    return claims.amr;
  }

  /**
   * Returns the time at which an authentication method was verified.
   *
   * @param method the method
   * @return the time, if it is known
   */
  public Optional<Instant> verifiedAt(String method) {
    return Optional.ofNullable(claims.amrVerifiedAt.get(method)).map(Session::instant);
  }

  /**
   * Returns a claim of the session's own: a {@link String}, a {@link Number}, a {@link Boolean}, a
   * {@link List} or a {@link Map}.
   *
   * @param name the name of the claim
   * @return the claim, unless it is missing or null
   */
  public Optional<Object> claim(String name) {
    return Optional.ofNullable(claims.claim(name));
  }

  /**
   * Returns all claims of the session's own.
   *
   * @return the claims by their names
   */
  public Map<String, Object> claims() {
    return claims.claims();
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Session session && claims == session.claims;
  }

  @Override
  public int hashCode() {
    return System.identityHashCode(claims);
  }

  @Override
  public String toString() {
    return "Session[" + claims.sessionId + "]";
  }

  private static Instant instant(long micros) {
    return Instant.ofEpochSecond(
        Micros.seconds(micros), Math.floorMod(micros, Micros.SECOND) * 1_000);
  }
}
