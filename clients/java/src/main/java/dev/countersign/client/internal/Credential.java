package dev.countersign.client.internal;

import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/**
 * The credential of a request: the token in {@code authorization: Bearer} or, without such a
 * header, in a cookie.
 *
 * @param kind the kind
 * @param token the token, which may be empty or malformed; empty unless the kind is TOKEN
 */
public record Credential(Kind kind, String token) {
  private static final String SCHEME = "bearer";
  private static final String SPACES = " \t\n\f\r";

  /** The kind of a credential. */
  public enum Kind {
    /** No token. There may be credentials of another scheme. */
    NONE,
    /** A token, which may be empty or malformed. */
    TOKEN,
    /**
     * More than one token, or a second {@code authorization} header. The application might use
     * another token than the one that is checked (RFC 6750, section 2).
     */
    SEVERAL,
    /** Several cookies of the same name with different values. */
    CONFLICTING_COOKIES
  }

  /**
   * Finds the token among the values of the headers {@code authorization} and {@code cookie}.
   *
   * <p>An {@code authorization} header with a scheme other than {@code Bearer} is ignored, because
   * it is meant for the application.
   *
   * @param cookie the name of the cookie that holds the token; null for none
   */
  public static Credential find(List<String> authorization, List<String> cookies, String cookie) {
    String inHeader = authorization.isEmpty() ? null : bearer(authorization.get(0));
    String inCookie = null;
    if (cookie != null) {
      for (String value : named(cookies, cookie)) {
        // The application may use any of the cookies of this name, so all must be equal.
        if (inCookie != null && !inCookie.equals(value)) {
          return new Credential(Kind.CONFLICTING_COOKIES, "");
        }
        inCookie = value;
      }
    }
    boolean isSeveral =
        authorization.size() > 1
            || (inHeader != null && inCookie != null && !inHeader.equals(inCookie));
    if (isSeveral) {
      return new Credential(Kind.SEVERAL, "");
    }
    if (inHeader != null) {
      return new Credential(Kind.TOKEN, inHeader);
    }
    return inCookie == null
        ? new Credential(Kind.NONE, "")
        : new Credential(Kind.TOKEN, text(inCookie));
  }

  /**
   * Returns the text that the bytes of a header are, each of which a servlet has made a character.
   * Bytes that are not text count as an empty token, which is never valid.
   */
  private static String text(String value) {
    if (value.chars().allMatch(next -> next < 0x80)) {
      return value;
    }
    byte[] bytes = value.getBytes(StandardCharsets.ISO_8859_1);
    try {
      return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString();
    } catch (CharacterCodingException e) {
      return "";
    }
  }

  /**
   * Reads the token in a value of {@code authorization} whose scheme is Bearer (RFC 6750, section
   * 2.1). If anything but spaces and one token follows the scheme, the token is empty, because text
   * that can be read in two ways must not be accepted in either.
   *
   * @return the token; null for another scheme
   */
  private static String bearer(String header) {
    String value = trim(header);
    if (!value.regionMatches(true, 0, SCHEME, 0, SCHEME.length())
        || !value.substring(0, SCHEME.length()).toLowerCase(Locale.ROOT).equals(SCHEME)) {
      return null;
    }
    String rest = value.substring(SCHEME.length());
    if (!rest.isEmpty() && SPACES.indexOf(rest.charAt(0)) < 0) {
      return null;
    }
    int start = 0;
    while (start < rest.length() && rest.charAt(start) == ' ') {
      start++;
    }
    int end = rest.length();
    while (end > start && rest.charAt(end - 1) == '=') {
      end--;
    }
    boolean isToken = start > 0 && end > start;
    for (int index = start; index < end; index++) {
      isToken &= isTokenCharacter(rest.charAt(index));
    }
    return isToken ? rest.substring(start) : "";
  }

  private static boolean isTokenCharacter(char next) {
    return (next >= '0' && next <= '9')
        || (next >= 'a' && next <= 'z')
        || (next >= 'A' && next <= 'Z')
        || "-._~+/".indexOf(next) >= 0;
  }

  /**
   * Returns the values of the cookies of a name (RFC 6265, section 4.2.1). Empty values are left
   * out, because applications clear a cookie by setting an empty value.
   */
  private static List<String> named(List<String> cookies, String name) {
    List<String> values = new ArrayList<>();
    for (String header : cookies) {
      int start = 0;
      while (start <= header.length()) {
        int semicolon = header.indexOf(';', start);
        int end = semicolon < 0 ? header.length() : semicolon;
        String pair = header.substring(start, end);
        start = end + 1;
        int equals = pair.indexOf('=');
        if (equals < 0 || !trim(pair.substring(0, equals)).equals(name)) {
          continue;
        }
        String value = trim(pair.substring(equals + 1));
        if (value.length() > 1 && value.startsWith("\"") && value.endsWith("\"")) {
          value = value.substring(1, value.length() - 1);
        }
        if (!value.isEmpty()) {
          values.add(value);
        }
      }
    }
    return values;
  }

  private static String trim(String text) {
    int start = 0;
    int end = text.length();
    while (start < end && SPACES.indexOf(text.charAt(start)) >= 0) {
      start++;
    }
    while (end > start && SPACES.indexOf(text.charAt(end - 1)) >= 0) {
      end--;
    }
    return text.substring(start, end);
  }

  /** Does not print the token. */
  @Override
  public String toString() {
    return "Credential[" + kind + "]";
  }
}
