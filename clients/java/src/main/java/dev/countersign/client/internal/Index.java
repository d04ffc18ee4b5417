package dev.countersign.client.internal;

import java.util.EnumMap;
import java.util.HashMap;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;

/**
 * The revocations in force. All checks share it, but there is no lock that every check takes.
 * Instants are in microseconds.
 */
public final class Index {
  private static final int SHARDS = 64;

  private final IdTable[] ids = new IdTable[SHARDS];

  /** The revocations of many sessions, by their kind. */
  private volatile Map<CutOff.Kind, Map<CutOff.Key, Entry>> cutOffs = Map.of();

  private final AtomicLong expiredUpTo = new AtomicLong(Long.MIN_VALUE);

  private record Entry(CutOff cutOff, long expiresAt) {}

  /** Creates an empty index. */
  public Index() {
    for (int index = 0; index < SHARDS; index++) {
      ids[index] = new IdTable();
    }
  }

  /** Returns the part that has an identifier. Its last bits are random. */
  private IdTable table(UUID id) {
    return ids[(int) (id.getLeastSignificantBits() & (SHARDS - 1))];
  }

  /** Adds a revocation of a session, a token or an authentication. */
  public void revoke(UUID id, long expiresAt) {
    // The second is rounded up, so that no revocation is dropped too early.
    table(id).add(id, Micros.seconds(Micros.plus(expiresAt, Micros.SECOND - 1)));
  }

  /** Adds a revocation of many sessions. */
  public synchronized void revoke(CutOff.Key key, CutOff cutOff, long expiresAt) {
    Map<CutOff.Kind, Map<CutOff.Key, Entry>> changed = new EnumMap<>(CutOff.Kind.class);
    changed.putAll(cutOffs);
    Map<CutOff.Key, Entry> ofKind =
        changed.computeIfAbsent(key.kind(), kind -> new ConcurrentHashMap<>());
    ofKind.merge(
        key,
        new Entry(cutOff, expiresAt),
        (known, added) ->
            new Entry(
                known.cutOff.union(added.cutOff), Math.max(known.expiresAt, added.expiresAt)));
    cutOffs = changed;
  }

  /** Returns whether a revocation stops a token. */
  boolean stops(Claims claims) {
    return has(claims.sessionId)
        || has(claims.tokenId)
        || has(claims.authenticationId)
        || isCovered(claims);
  }

  private boolean has(UUID id) {
    return table(id).has(id);
  }

  private boolean isCovered(Claims claims) {
    for (Map.Entry<CutOff.Kind, Map<CutOff.Key, Entry>> ofKind : cutOffs.entrySet()) {
      CutOff.Kind kind = ofKind.getKey();
      Entry entry = ofKind.getValue().get(kind.keyOf(claims));
      if (entry != null && entry.cutOff.covers(kind, claims)) {
        return true;
      }
    }
    return false;
  }

  /**
   * Returns whether a token with this expiry counts as expired, whatever the clock says: a
   * revocation that stops it may have been dropped.
   */
  boolean isExpired(long expiresAt) {
    return expiresAt <= expiredUpTo.get();
  }

  /**
   * Raises the instant up to which tokens have expired. It never goes back.
   *
   * @return whether it was raised, so that {@link #purge} has something to do
   */
  public boolean expire(long upTo) {
    return expiredUpTo.getAndAccumulate(upTo, Math::max) < upTo;
  }

  long expiredUpTo() {
    return expiredUpTo.get();
  }

  /** Drops the revocations whose tokens have all expired. */
  public void purge() {
    long upTo = expiredUpTo.get();
    for (IdTable table : ids) {
      table.purge(Micros.seconds(upTo));
    }
    synchronized (this) {
      Map<CutOff.Kind, Map<CutOff.Key, Entry>> changed = new HashMap<>();
      for (Map.Entry<CutOff.Kind, Map<CutOff.Key, Entry>> ofKind : cutOffs.entrySet()) {
        ofKind.getValue().values().removeIf(entry -> entry.expiresAt <= upTo);
        if (!ofKind.getValue().isEmpty()) {
          changed.put(ofKind.getKey(), ofKind.getValue());
        }
      }
      cutOffs = changed;
    }
  }

  /** Returns the number of revocations. */
  public int size() {
    int size = 0;
    for (IdTable table : ids) {
      size += table.size();
    }
    for (Map<CutOff.Key, Entry> ofKind : cutOffs.values()) {
      size += ofKind.size();
    }
    return size;
  }
}
