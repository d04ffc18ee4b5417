package dev.countersign.client.internal;

import java.security.DigestException;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ConcurrentHashMap;

/**
 * Has tokens whose signature was verified, by their SHA-256 digests, because tokens are secrets.
 * Everything that can change (time, revocation, the state of the key, demands) is checked after
 * each look-up.
 *
 * <p>It is a clock cache: a token that was used since the hand passed it last gets a second chance.
 */
final class VerifiedCache {
  /** The number of parts, each of which has a lock for changes. */
  private static final int SHARDS = 32;

  /** The memory that the cache itself needs for a token, in bytes. */
  private static final int ENTRY_BYTES = 176;

  private static final MessageDigest SHA_256 = newDigest();

  private final ConcurrentHashMap<Key, Entry> tokens = new ConcurrentHashMap<>();
  private final Shard[] shards = new Shard[SHARDS];

  /** Creates a cache whose tokens take at most about this many bytes. */
  VerifiedCache(long bytes) {
    for (int index = 0; index < SHARDS; index++) {
      shards[index] = new Shard(bytes / SHARDS);
    }
  }

  private static MessageDigest newDigest() {
    try {
      return MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e);
    }
  }

  /** The SHA-256 digest of a token. */
  record Key(long first, long second, long third, long fourth) {
    /** Computes the digest of the bytes of a token. */
    static Key of(byte[] token) {
      byte[] digest = new byte[32];
      try {
        // A copy is quicker than another look-up of the algorithm.
        MessageDigest sha = (MessageDigest) SHA_256.clone();
        sha.update(token);
        sha.digest(digest, 0, digest.length);
      } catch (CloneNotSupportedException | DigestException e) {
        throw new IllegalStateException(e);
      }
      return new Key(number(digest, 0), number(digest, 8), number(digest, 16), number(digest, 24));
    }

    private static long number(byte[] digest, int start) {
      long number = 0;
      for (int index = start; index < start + 8; index++) {
        number = number << 8 | (digest[index] & 0xff);
      }
      return number;
    }

    @Override
    public int hashCode() {
      return (int) first;
    }

    /** Does not print the digest, by which the token could be recognized. */
    @Override
    public String toString() {
      return "Key";
    }
  }

  private static final class Entry {
    final Key key;
    final VerifiedToken token;
    final int bytes;
    volatile boolean isUsed;

    Entry(Key key, VerifiedToken token) {
      this.key = key;
      this.token = token;
      this.bytes = ENTRY_BYTES + token.claims().memory();
    }
  }

  /** The tokens of a part, in a ring. */
  private static final class Shard {
    final long capacity;
    final List<Entry> ring = new ArrayList<>();
    long bytes;
    int hand;

    Shard(long capacity) {
      this.capacity = capacity;
    }
  }

  /** Returns the token with this digest; null if it is not cached. */
  VerifiedToken get(Key key) {
    Entry entry = tokens.get(key);
    if (entry == null) {
      return null;
    }
    if (!entry.isUsed) {
      entry.isUsed = true;
    }
    return entry.token;
  }

  /** Adds a token. */
  void add(Key key, VerifiedToken token) {
    Entry entry = new Entry(key, token);
    Shard shard = shards[(int) (key.second() & (SHARDS - 1))];
    synchronized (shard) {
      if (entry.bytes > shard.capacity || tokens.containsKey(key)) {
        return;
      }
      while (shard.bytes + entry.bytes > shard.capacity) {
        evict(shard);
      }
      shard.bytes += entry.bytes;
      shard.ring.add(entry);
      tokens.put(key, entry);
    }
  }

  /** Drops the first token from the hand on that was not used. The part must not be empty. */
  private void evict(Shard shard) {
    while (true) {
      shard.hand %= shard.ring.size();
      Entry entry = shard.ring.get(shard.hand);
      if (entry.isUsed) {
        entry.isUsed = false;
        shard.hand++;
        continue;
      }
      Entry last = shard.ring.remove(shard.ring.size() - 1);
      if (last != entry) {
        shard.ring.set(shard.hand, last);
      }
      shard.bytes -= entry.bytes;
      tokens.remove(entry.key);
      return;
    }
  }

  int size() {
    return tokens.size();
  }
}
