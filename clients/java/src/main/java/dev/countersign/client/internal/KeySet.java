package dev.countersign.client.internal;

import com.nimbusds.jose.util.JSONObjectUtils;
import dev.countersign.client.InactiveReason;
import java.text.ParseException;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** The keys that verify access tokens, by their names ({@code kid}). */
public final class KeySet {
  /** A set without keys. */
  public static final KeySet NONE = new KeySet(Map.of(), Set.of(), 0);

  private final Map<String, VerifyingKey> keys;
  private final Set<String> revoked;

  /** The number of keys that this library cannot use, so that their tokens are refused. */
  private final int unusable;

  private KeySet(Map<String, VerifyingKey> keys, Set<String> revoked, int unusable) {
    this.keys = keys;
    this.revoked = revoked;
    this.unusable = unusable;
  }

  /**
   * Reads a JWK set (RFC 7517, section 5), and the names of revoked keys. A key that this library
   * cannot use is left out, so its tokens are refused.
   *
   * @return the keys, or null if the text is not a JWK set
   */
  public static KeySet read(String jwks, Collection<String> revoked) {
    List<Object> members;
    try {
      Map<String, Object> set = JSONObjectUtils.parse(jwks);
      members = set.containsKey("keys") ? JSONObjectUtils.getJSONArray(set, "keys") : null;
    } catch (ParseException e) {
      return null;
    }
    if (members == null) {
      return null;
    }
    Map<String, VerifyingKey> keys = new HashMap<>();
    int unusable = 0;
    for (Object member : members) {
      VerifyingKey key = member instanceof Map<?, ?> jwk ? VerifyingKey.read(jwk) : null;
      if (key != null && member instanceof Map<?, ?> jwk && jwk.get("kid") instanceof String name) {
        keys.put(name, key);
      } else {
        unusable++;
      }
    }
    return new KeySet(keys, Set.copyOf(revoked), unusable);
  }

  /** Returns the number of keys that were left out. */
  public int unusable() {
    return unusable;
  }

  /** Returns the key of a name if its tokens are accepted. */
  VerifyingKey find(String name) throws Inactive {
    if (revoked.contains(name)) {
      throw new Inactive(InactiveReason.REVOKED);
    }
    VerifyingKey key = keys.get(name);
    if (key == null) {
      throw new Inactive(InactiveReason.UNKNOWN_KEY);
    }
    return key;
  }

  /**
   * Returns whether the set has all keys of an earlier one. Only then is each signature still good
   * that was verified with the earlier keys.
   */
  boolean includes(KeySet earlier) {
    for (Map.Entry<String, VerifyingKey> entry : earlier.keys.entrySet()) {
      VerifyingKey key = keys.get(entry.getKey());
      if (key == null || !key.isSame(entry.getValue())) {
        return false;
      }
    }
    return true;
  }

  @Override
  public String toString() {
    return "KeySet" + keys.keySet();
  }
}
