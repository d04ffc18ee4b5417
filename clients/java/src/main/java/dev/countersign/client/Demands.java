package dev.countersign.client;

import dev.countersign.v1.FactorDemand;
import dev.countersign.v1.ValidateRequest;
import dev.countersign.v1.ValidateView;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.stream.Stream;

/**
 * The demands that a route makes on the session of a request. Without any, every live session
 * passes. Demands do not change: each method returns others.
 *
 * <pre>{@code
 * Demands demands = Demands.none()
 *     .withAudience("https://orders.example")
 *     .withScope("orders:write")
 *     .withMaxAuthenticationAge(Duration.ofMinutes(5));
 * }</pre>
 */
public final class Demands {
  private static final Demands NONE = new Demands("", List.of(), List.of(), null, List.of());

  private final String audience;
  private final List<String> scopes;
  private final List<String> acrValues;
  private final Duration maxAuthenticationAge;
  private final List<Factor> factors;

  /**
   * A demand for an authentication method ({@code amr}, RFC 8176).
   *
   * @param method the method that the token must name
   * @param maxAge the time within which the method must have been verified; null demands nothing
   */
  public record Factor(String method, Duration maxAge) {
    /** Checks the values. */
    public Factor {
      Objects.requireNonNull(method, "method");
      requirePositive(maxAge);
    }
  }

  private Demands(
      String audience,
      List<String> scopes,
      List<String> acrValues,
      Duration maxAuthenticationAge,
      List<Factor> factors) {
    this.audience = audience;
    this.scopes = scopes;
    this.acrValues = acrValues;
    this.maxAuthenticationAge = maxAuthenticationAge;
    this.factors = factors;
  }

  /**
   * Demands nothing but a live session.
   *
   * @return the demands
   */
  public static Demands none() {
    return NONE;
  }

  /**
   * Demands that the token is meant for this audience ({@code aud}). A service should always demand
   * its own.
   *
   * @param audience the audience; empty for no demand
   * @return the demands
   */
  public Demands withAudience(String audience) {
    Objects.requireNonNull(audience, "audience");
    return new Demands(audience, scopes, acrValues, maxAuthenticationAge, factors);
  }

  /**
   * Demands that the token carries this scope, besides the others that are demanded.
   *
   * @param scope the scope
   * @return the demands
   */
  public Demands withScope(String scope) {
    List<String> all = with(scopes, Objects.requireNonNull(scope, "scope"));
    return new Demands(audience, all, acrValues, maxAuthenticationAge, factors);
  }

  /**
   * Demands that the authentication context class ({@code acr}) is one of these. A session that
   * lacks it is asked to step up (RFC 9470).
   *
   * @param values the values; none for no demand
   * @return the demands
   */
  public Demands withAcrValues(Collection<String> values) {
    return new Demands(audience, scopes, List.copyOf(values), maxAuthenticationAge, factors);
  }

  /**
   * Demands that the authentication context class is one of these.
   *
   * @param values the values
   * @return the demands
   */
  public Demands withAcrValues(String... values) {
    return withAcrValues(List.of(values));
  }

  /**
   * Demands that the user has authenticated within this time. Otherwise the session is asked to
   * step up (RFC 9470).
   *
   * @param age the time
   * @return the demands
   */
  public Demands withMaxAuthenticationAge(Duration age) {
    requirePositive(Objects.requireNonNull(age, "age"));
    return new Demands(audience, scopes, acrValues, age, factors);
  }

  /**
   * Demands that the user has used this authentication method ({@code amr}, RFC 8176).
   *
   * @param method the method
   * @return the demands
   */
  public Demands withFactor(String method) {
    return with(new Factor(method, null));
  }

  /**
   * Demands that the user has used this authentication method within this time.
   *
   * @param method the method
   * @param maxAge the time
   * @return the demands
   */
  public Demands withRecentFactor(String method, Duration maxAge) {
    return with(new Factor(method, Objects.requireNonNull(maxAge, "maxAge")));
  }

  private Demands with(Factor factor) {
    List<Factor> all = with(factors, factor);
    return new Demands(audience, scopes, acrValues, maxAuthenticationAge, all);
  }

  private static <T> List<T> with(List<T> list, T added) {
    List<T> all = new ArrayList<>(list);
    all.add(added);
    return List.copyOf(all);
  }

  private static void requirePositive(Duration age) {
    if (age != null && age.isNegative()) {
      throw new IllegalArgumentException("an age must not be negative");
    }
  }

  /**
   * Returns the demanded audience.
   *
   * @return the audience; empty for no demand
   */
  public String audience() {
    return audience;
  }

  /**
   * Returns the demanded scopes.
   *
   * @return the scopes
   */
  public List<String> scopes() {
    return scopes;
  }

  /**
   * Returns the accepted values of {@code acr}.
   *
   * @return the values; none for no demand
   */
  public List<String> acrValues() {
    return acrValues;
  }

  /**
   * Returns the longest time since the user authenticated.
   *
   * @return the time; null for no demand
   */
  public Duration maxAuthenticationAge() {
    return maxAuthenticationAge;
  }

  /**
   * Returns the demanded authentication methods.
   *
   * @return the methods
   */
  public List<Factor> factors() {
    return factors;
  }

  /**
   * Returns the shortest of the demanded times since an authentication.
   *
   * @return the time, if there is one
   */
  public Optional<Duration> shortestAge() {
    Stream<Duration> ages = factors.stream().map(Factor::maxAge);
    return Stream.concat(ages, Stream.ofNullable(maxAuthenticationAge))
        .filter(Objects::nonNull)
        .min(Duration::compareTo);
  }

  /** Asks the service the same. */
  ValidateRequest request(String token) {
    ValidateRequest.Builder request =
        ValidateRequest.newBuilder()
            .setAccessToken(token)
            .setAudience(audience)
            .addAllScopes(scopes)
            .addAllAcrValues(acrValues)
            .setView(ValidateView.VALIDATE_VIEW_FULL);
    if (maxAuthenticationAge != null) {
      request.setMaxAuthenticationAge(message(maxAuthenticationAge));
    }
    for (Factor factor : factors) {
      FactorDemand.Builder demand = request.addFactorsBuilder().setMethod(factor.method());
      if (factor.maxAge() != null) {
        demand.setMaxAge(message(factor.maxAge()));
      }
    }
    return request.build();
  }

  private static com.google.protobuf.Duration message(Duration span) {
    return com.google.protobuf.Duration.newBuilder()
        .setSeconds(span.getSeconds())
        .setNanos(span.getNano())
        .build();
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Demands demands
        && audience.equals(demands.audience)
        && scopes.equals(demands.scopes)
        && acrValues.equals(demands.acrValues)
        && Objects.equals(maxAuthenticationAge, demands.maxAuthenticationAge)
        && factors.equals(demands.factors);
  }

  @Override
  public int hashCode() {
    return Objects.hash(audience, scopes, acrValues, maxAuthenticationAge, factors);
  }

  @Override
  public String toString() {
    return String.format(
        "Demands[audience=%s, scopes=%s, acrValues=%s, maxAuthenticationAge=%s, factors=%s]",
        audience, scopes, acrValues, maxAuthenticationAge, factors);
  }
}
