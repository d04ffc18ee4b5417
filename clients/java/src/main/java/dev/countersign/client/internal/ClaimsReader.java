package dev.countersign.client.internal;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;

/**
 * Reads the payload of a token. Every required claim must be present, every claim must have the
 * right type, and no name may occur twice.
 */
final class ClaimsReader {
  private static final int ISSUER = 1;
  private static final int SUBJECT = 1 << 1;
  private static final int AUDIENCE = 1 << 2;
  private static final int CLIENT_ID = 1 << 3;
  private static final int ISSUED_AT = 1 << 4;
  private static final int EXPIRES_AT = 1 << 5;
  private static final int TOKEN_ID = 1 << 6;
  private static final int SESSION_ID = 1 << 7;
  private static final int AUTHENTICATED_AT = 1 << 8;
  private static final int REQUIRED = (1 << 9) - 1;
  private static final int NOT_BEFORE = 1 << 9;
  private static final int AUTHENTICATION_ID = 1 << 10;
  private static final int TENANT = 1 << 11;
  private static final int SCOPE = 1 << 12;
  private static final int ACR = 1 << 13;
  private static final int AMR = 1 << 14;
  private static final int AMR_VERIFIED_AT = 1 << 15;

  private final JsonReader reader;
  private final Claims.Builder claims = new Claims.Builder();
  private int seen;

  private ClaimsReader(byte[] payload) throws JsonException {
    reader = new JsonReader(payload);
  }

  static Claims read(byte[] payload) throws JsonException {
    return new ClaimsReader(payload).read();
  }

  private Claims read() throws JsonException {
    for (boolean more = reader.begin('{', '}'); more; more = reader.more('}')) {
      claim(reader.name());
    }
    reader.end();
    if ((seen & REQUIRED) != REQUIRED) {
      throw new JsonException();
    }
    if ((seen & NOT_BEFORE) == 0) {
      claims.notBefore = claims.issuedAt;
    }
    if ((seen & AUTHENTICATION_ID) == 0) {
      claims.authenticationId = Ids.firstAuthentication(claims.sessionId);
    }
    return claims.build();
  }

  private void claim(String name) throws JsonException {
    switch (name) {
      case "iss" -> claims.issuer = text(ISSUER);
      case "sub" -> claims.subject = text(SUBJECT);
      case "aud" -> claims.audience = audience();
      case "client_id" -> claims.clientId = text(CLIENT_ID);
      case "iat" -> claims.issuedAt = instant(ISSUED_AT);
      case "exp" -> claims.expiresAt = instant(EXPIRES_AT);
      case "nbf" -> claims.notBefore = instant(NOT_BEFORE);
      case "auth_time" -> claims.authenticatedAt = instant(AUTHENTICATED_AT);
      case "jti" -> claims.tokenId = id(TOKEN_ID);
      case "sid" -> claims.sessionId = id(SESSION_ID);
      case "countersign_authentication_id" -> claims.authenticationId = id(AUTHENTICATION_ID);
      case "tenant" -> claims.tenant = text(TENANT);
      case "scope" -> claims.scopes = words(text(SCOPE));
      case "acr" -> claims.acr = text(ACR);
      case "amr" -> {
        once(AMR);
        claims.amr = texts();
      }
      case "countersign_amr_verified_at" -> claims.amrVerifiedAt = times();
      default -> custom(name);
    }
  }

  /** Checks that a claim was not seen before. */
  private void once(int claim) throws JsonException {
    if ((seen & claim) != 0) {
      throw new JsonException();
    }
    seen |= claim;
  }

  private String text(int claim) throws JsonException {
    once(claim);
    return reader.string();
  }

  private long instant(int claim) throws JsonException {
    once(claim);
    return Micros.ofSeconds(reader.integer());
  }

  private UUID id(int claim) throws JsonException {
    UUID id = Ids.parse(text(claim));
    if (id == null) {
      throw new JsonException();
    }
    return id;
  }

  private List<String> texts() throws JsonException {
    List<String> texts = new ArrayList<>();
    for (boolean more = reader.begin('[', ']'); more; more = reader.more(']')) {
      texts.add(reader.string());
    }
    return texts;
  }

  private List<String> audience() throws JsonException {
    once(AUDIENCE);
    if (reader.peek() == '"') {
      return List.of(reader.string());
    }
    List<String> audience = texts();
    if (audience.isEmpty()) {
      throw new JsonException();
    }
    return audience;
  }

  /** Splits a scope claim into its scopes, which are separated by spaces. */
  private static List<String> words(String scope) {
    List<String> words = new ArrayList<>();
    int start = 0;
    while (start <= scope.length()) {
      int space = scope.indexOf(' ', start);
      int end = space < 0 ? scope.length() : space;
      if (end > start) {
        words.add(scope.substring(start, end));
      }
      start = end + 1;
    }
    return words;
  }

  private Map<String, Long> times() throws JsonException {
    once(AMR_VERIFIED_AT);
    Map<String, Long> times = new HashMap<>();
    for (boolean more = reader.begin('{', '}'); more; more = reader.more('}')) {
      String method = reader.name();
      if (times.put(method, Micros.ofSeconds(reader.integer())) != null) {
        throw new JsonException();
      }
    }
    return times;
  }

  private void custom(String name) throws JsonException {
    if (claims.custom.isEmpty()) {
      claims.custom = new LinkedHashMap<>();
    }
    int start = reader.position();
    reader.check(0);
    if (claims.custom.put(name, reader.textFrom(start)) != null) {
      throw new JsonException();
    }
  }
}
