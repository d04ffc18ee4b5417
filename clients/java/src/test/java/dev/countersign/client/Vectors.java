package dev.countersign.client;

import com.nimbusds.jose.util.JSONObjectUtils;
import java.io.IOException;
import java.math.BigDecimal;
import java.nio.file.Files;
import java.nio.file.Path;
import java.text.ParseException;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** Reads the vectors that all client libraries share, and JSON for other tests. */
final class Vectors {
  private Vectors() {}

  static Map<String, Object> read(String file) throws IOException {
    return parse(Files.readString(Path.of("../vectors", file)));
  }

  static Map<String, Object> parse(String json) {
    try {
      return JSONObjectUtils.parse(json);
    } catch (ParseException e) {
      throw new AssertionError(e);
    }
  }

  @SuppressWarnings("unchecked") // The keys of JSON objects are texts.
  static Map<String, Object> object(Object value) {
    return value == null ? Map.of() : (Map<String, Object>) value;
  }

  static List<?> list(Object value) {
    return value == null ? List.of() : (List<?>) value;
  }

  static long number(Object value) {
    return ((Number) value).longValue();
  }

  /** Reads demands. A member that is missing demands nothing. */
  static Demands demands(Object value) {
    Map<String, Object> members = object(value);
    Demands demands =
        Demands.none()
            .withAcrValues(
                list(members.get("acr_values")).stream().map(String.class::cast).toList());
    if (members.get("audience") instanceof String audience) {
      demands = demands.withAudience(audience);
    }
    for (Object scope : list(members.get("scopes"))) {
      demands = demands.withScope((String) scope);
    }
    if (members.get("max_authentication_age") instanceof Number age) {
      demands = demands.withMaxAuthenticationAge(Duration.ofSeconds(age.longValue()));
    }
    for (Object factor : list(members.get("factors"))) {
      String method = (String) object(factor).get("method");
      demands =
          object(factor).get("max_age") instanceof Number age
              ? demands.withRecentFactor(method, Duration.ofSeconds(age.longValue()))
              : demands.withFactor(method);
    }
    return demands;
  }

  /** Returns a session as the vectors have it. */
  static Map<String, Object> describe(Session session) {
    Map<String, Object> times = new LinkedHashMap<>();
    for (String method : session.amr()) {
      session.verifiedAt(method).ifPresent(at -> times.put(method, at.getEpochSecond()));
    }
    Map<String, Object> members = new LinkedHashMap<>();
    members.put("session_id", session.id().toString());
    members.put("subject", session.subject());
    members.put("tenant", session.tenant());
    members.put("client_id", session.clientId());
    members.put("audience", session.audience());
    members.put("scopes", session.scopes());
    members.put("issued_at", session.issuedAt().getEpochSecond());
    members.put("expires_at", session.expiresAt().getEpochSecond());
    members.put("authenticated_at", session.authenticatedAt().getEpochSecond());
    members.put("acr", session.acr());
    members.put("amr", session.amr());
    members.put("amr_verified_at", times);
    members.put("claims", session.claims());
    return members;
  }

  /** Makes numbers comparable, which are equal if their values are. */
  static Object comparable(Object value) {
    if (value instanceof Number number) {
      return new BigDecimal(number.toString()).stripTrailingZeros();
    }
    if (value instanceof List<?> list) {
      return list.stream().map(element -> Optional.ofNullable(comparable(element))).toList();
    }
    if (value instanceof Map<?, ?> map) {
      Map<Object, Object> members = new LinkedHashMap<>();
      map.forEach((name, member) -> members.put(name, comparable(member)));
      return members;
    }
    return value;
  }

  static String word(Answer answer) {
    if (answer.isActive()) {
      return "ACTIVE";
    }
    return answer.inactiveReason().map(InactiveReason::name).orElse("UNKNOWN");
  }

  /**
   * Checks a token. Returns a sentence if the answer is not the one in the vector, and otherwise
   * null.
   */
  static String check(Verifier verifier, String token, Map<String, Object> vector) {
    Demands demands = demands(vector.get("demands"));
    // The second answer might come from the cache of verified tokens.
    for (int round = 0; round < 2; round++) {
      Answer answer = verifier.verifyLocally(token, demands);
      if (!word(answer).equals(vector.get("answer"))) {
        return word(answer) + " instead of " + vector.get("answer");
      }
      Object expected = comparable(vector.get("session"));
      Object session =
          answer.activeSession().map(Vectors::describe).map(Vectors::comparable).orElse(null);
      if (session != null && expected != null && !session.equals(expected)) {
        return session + " instead of " + expected;
      }
    }
    return null;
  }
}
