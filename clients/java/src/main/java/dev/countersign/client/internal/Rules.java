package dev.countersign.client.internal;

import dev.countersign.client.InactiveReason;
import java.util.Set;

/**
 * The rules for tokens. Spans are in microseconds. The tenants and audiences limit the tokens that
 * are accepted; they are empty for no limit.
 */
public record Rules(
    String issuer,
    long maxLifetime,
    long leeway,
    Set<String> tenants,
    Set<String> audiences,
    long leaseMargin) {
  /** The rules before any have arrived. No token meets them. */
  static final Rules NONE = new Rules("", 0, 0, Set.of(), Set.of(), 0);

  /** Returns whether the names in the limits are valid. */
  public boolean areValid() {
    return tenants.stream().allMatch(name -> CutOff.isText(name, 128))
        && audiences.stream().allMatch(name -> !name.isEmpty() && CutOff.isText(name, 256));
  }

  void checkLifetime(Claims claims) throws Inactive {
    if (Micros.since(claims.expiresAt, claims.issuedAt) > maxLifetime) {
      throw new Inactive(InactiveReason.MALFORMED);
    }
  }
}
