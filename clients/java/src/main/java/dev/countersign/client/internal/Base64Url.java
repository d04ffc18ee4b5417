package dev.countersign.client.internal;

import java.util.Base64;

/** base64url without padding (RFC 7515, section 2). */
public final class Base64Url {
  private Base64Url() {}

  /**
   * Decodes a text. Padding, and unused bits at the end that are not zero, are refused, which the
   * decoder of the JDK accepts.
   *
   * @return the bytes, or null if the text is not base64url
   */
  static byte[] decode(String text) {
    int length = text.length();
    int unused =
        switch (length % 4) {
          case 0 -> 0;
          case 2 -> 0b1111;
          case 3 -> 0b11;
          default -> -1;
        };
    if (unused < 0 || text.indexOf('=') >= 0) {
      return null;
    }
    if (unused > 0 && (value(text.charAt(length - 1)) & unused) != 0) {
      return null;
    }
    try {
      return Base64.getUrlDecoder().decode(text);
    } catch (IllegalArgumentException e) {
      return null;
    }
  }

  /** Returns the value of a character, or 0 if the decoder of the JDK will refuse it. */
  private static int value(char digit) {
    if (digit >= 'A' && digit <= 'Z') {
      return digit - 'A';
    }
    if (digit >= 'a' && digit <= 'z') {
      return digit - 'a' + 26;
    }
    if (digit >= '0' && digit <= '9') {
      return digit - '0' + 52;
    }
    return digit == '-' ? 62 : digit == '_' ? 63 : 0;
  }

  /** Encodes bytes. */
  public static String encode(byte[] bytes) {
    return Base64.getUrlEncoder().withoutPadding().encodeToString(bytes);
  }
}
