package dev.countersign.client.internal;

import dev.countersign.client.Demands;
import dev.countersign.client.InactiveReason;
import dev.countersign.client.TimeSource;
import java.nio.charset.StandardCharsets;

/**
 * A copy of everything that decides whether a token is active.
 *
 * <p>Only its index grows, and its lease is extended. When anything else changes, another copy
 * takes its place. Each copy has a lease of its own: a check that has loaded a copy with earlier
 * keys must not get a lease that rests on the later ones.
 */
public final class LocalCopy {
  private final Index index;
  private final Lease lease;
  private final KeySet keys;
  private final Rules rules;
  private final VerifiedCache cache;

  LocalCopy(TimeSource clock, Index index, KeySet keys, Rules rules, VerifiedCache cache) {
    this.index = index;
    this.keys = keys;
    this.rules = rules;
    this.cache = cache;
    lease = new Lease(clock, rules.leaseMargin());
  }

  /** Returns the revocations. */
  public Index index() {
    return index;
  }

  /** Returns the lease. */
  public Lease lease() {
    return lease;
  }

  /** Returns the keys. */
  public KeySet keys() {
    return keys;
  }

  /** Returns the rules. */
  public Rules rules() {
    return rules;
  }

  VerifiedCache cache() {
    return cache;
  }

  /** Answers by this copy; null without a lease. */
  LocalAnswer answer(String token, Demands demands) {
    // The lease is loaded before the look-up, and checked after it.
    Lease.Held held = lease.load();
    if (held == null) {
      return null;
    }
    Claims claims = null;
    InactiveReason reason = null;
    boolean isRevoked = false;
    try {
      claims = authenticate(token);
      isRevoked = index.stops(claims);
    } catch (Inactive inactive) {
      reason = inactive.reason;
    }
    // The time is read after the look-up. If a revocation was dropped before the look-up, all its
    // tokens have expired, so the check of the time refuses them.
    long now = lease.check(held);
    if (now == Lease.NOT_VALID) {
      return null;
    }
    if (reason == null) {
      reason = decide(claims, demands, isRevoked, now);
    }
    return reason == null ? new LocalAnswer(claims, null) : new LocalAnswer(null, reason);
  }

  /** Checks the form and the signature of a token. */
  Claims authenticate(String token) throws Inactive {
    // No text has fewer bytes than characters.
    if (token.length() > UnverifiedToken.MAX_BYTES) {
      throw new Inactive(InactiveReason.MALFORMED);
    }
    byte[] bytes = token.getBytes(StandardCharsets.UTF_8);
    if (bytes.length > UnverifiedToken.MAX_BYTES) {
      throw new Inactive(InactiveReason.MALFORMED);
    }
    VerifiedCache.Key digest = VerifiedCache.Key.of(bytes);
    VerifiedToken known = cache.get(digest);
    if (known != null) {
      keys.find(known.keyId());
      // The rules may have changed since the token was verified.
      rules.checkLifetime(known.claims());
      return known.claims();
    }
    UnverifiedToken unverified = UnverifiedToken.parse(token);
    Claims claims = unverified.verify(keys.find(unverified.keyId), rules);
    cache.add(digest, new VerifiedToken(unverified.keyId, claims));
    return claims;
  }

  private InactiveReason decide(Claims claims, Demands demands, boolean isRevoked, long now) {
    if (!rules.tenants().isEmpty() && !rules.tenants().contains(claims.tenant)) {
      return InactiveReason.FOREIGN_TENANT;
    }
    if (now >= claims.expiresAt || index.isExpired(claims.expiresAt)) {
      return InactiveReason.EXPIRED;
    }
    // A token that was issued by a replica whose clock is ahead must be valid at once. So this
    // check allows for differences between clocks, and no other check does.
    if (Math.max(claims.notBefore, claims.issuedAt) > Micros.plus(now, rules.leeway())) {
      return InactiveReason.NOT_YET_VALID;
    }
    if (isRevoked) {
      return InactiveReason.REVOKED;
    }
    if (!rules.audiences().isEmpty()
        && claims.audience.stream().noneMatch(rules.audiences()::contains)) {
      return InactiveReason.WRONG_AUDIENCE;
    }
    return DemandsCheck.check(demands, claims, now);
  }
}
