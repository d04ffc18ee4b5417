package dev.countersign.client.internal;

import dev.countersign.client.Demands;
import dev.countersign.client.InactiveReason;
import java.time.Duration;
import java.util.List;

/** Checks whether a token meets the demands of a route. */
final class DemandsCheck {
  private DemandsCheck() {}

  /** Returns the reason why a token does not meet the demands; null if it does. */
  static InactiveReason check(Demands demands, Claims claims, long now) {
    String audience = demands.audience();
    if (!audience.isEmpty() && !claims.audience.contains(audience)) {
      return InactiveReason.WRONG_AUDIENCE;
    }
    List<String> scopes = demands.scopes();
    for (int index = 0; index < scopes.size(); index++) {
      if (!claims.scopes.contains(scopes.get(index))) {
        return InactiveReason.INSUFFICIENT_SCOPE;
      }
    }
    if (!demands.acrValues().isEmpty() && !demands.acrValues().contains(claims.acr)) {
      return InactiveReason.STEP_UP_REQUIRED;
    }
    Duration age = demands.maxAuthenticationAge();
    if (age != null && Micros.since(now, claims.authenticatedAt) > Micros.of(age)) {
      return InactiveReason.STEP_UP_REQUIRED;
    }
    List<Demands.Factor> factors = demands.factors();
    for (int index = 0; index < factors.size(); index++) {
      if (!isMet(factors.get(index), claims, now)) {
        return InactiveReason.STEP_UP_REQUIRED;
      }
    }
    return null;
  }

  private static boolean isMet(Demands.Factor factor, Claims claims, long now) {
    if (!claims.amr.contains(factor.method())) {
      return false;
    }
    if (factor.maxAge() == null) {
      return true;
    }
    // A method without a time is never recent.
    Long at = claims.amrVerifiedAt.get(factor.method());
    return at != null && Micros.since(now, at) <= Micros.of(factor.maxAge());
  }
}
