package dev.countersign.client.internal;

import java.security.SecureRandom;
import java.util.UUID;

/** Identifiers of sessions, tokens and authentications, which are UUIDs. */
public final class Ids {
  private static final int LENGTH = 36;
  private static final SecureRandom RANDOM = new SecureRandom();

  private Ids() {}

  /**
   * Reads a UUID in the canonical lower-case form. Other forms are refused, so that each identifier
   * has only one spelling. {@link UUID#fromString} would accept others.
   *
   * @return the UUID, or null if the text is none
   */
  public static UUID parse(String text) {
    if (text.length() != LENGTH) {
      return null;
    }
    long high = 0;
    long low = 0;
    int digits = 0;
    for (int index = 0; index < LENGTH; index++) {
      char next = text.charAt(index);
      if (index == 8 || index == 13 || index == 18 || index == 23) {
        if (next != '-') {
          return null;
        }
        continue;
      }
      int digit;
      if (next >= '0' && next <= '9') {
        digit = next - '0';
      } else if (next >= 'a' && next <= 'f') {
        digit = next - 'a' + 10;
      } else {
        return null;
      }
      if (digits++ < 16) {
        high = high << 4 | digit;
      } else {
        low = low << 4 | digit;
      }
    }
    return new UUID(high, low);
  }

  /** Returns the time at which a session was created, in milliseconds since 1970. */
  public static long createdMillis(UUID session) {
    return session.getMostSignificantBits() >>> 16;
  }

  /**
   * Returns the identifier of the authentication with which a session was created: that of the
   * session as a UUID of version 8.
   */
  public static UUID firstAuthentication(UUID session) {
    long high = (session.getMostSignificantBits() & ~0xf000L) | 0x8000L;
    return new UUID(high, session.getLeastSignificantBits());
  }

  /** Creates a UUID of version 7 (RFC 9562, section 5.7). */
  public static UUID newSession(long micros) {
    long random = RANDOM.nextLong();
    long high = Math.max(Micros.millis(micros), 0) << 16 | 0x7000L | (random & 0xfffL);
    return new UUID(high, (RANDOM.nextLong() & ~(0b11L << 62)) | 1L << 63);
  }
}
