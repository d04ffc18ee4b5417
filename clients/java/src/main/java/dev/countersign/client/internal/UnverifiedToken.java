package dev.countersign.client.internal;

import dev.countersign.client.InactiveReason;
import java.nio.charset.StandardCharsets;
import java.util.HashSet;
import java.util.Set;

/**
 * A token whose header was read, and whose signature was not checked. It is a JWT in the form of
 * RFC 9068.
 */
final class UnverifiedToken {
  /** The size of the longest token that is read, in bytes. */
  static final int MAX_BYTES = 8192;

  /** The only {@code typ} that is accepted (RFC 9068, section 2.1). */
  static final String TYPE = "at+jwt";

  private static final String REFRESH_TOKEN_PREFIX = "cs_rt_";

  /** The name of the key. */
  final String keyId;

  private final String algorithm;
  private final String signed;
  private final String payload;
  private final String signature;

  private UnverifiedToken(Header header, String signed, String payload, String signature) {
    keyId = header.keyId;
    algorithm = header.algorithm;
    this.signed = signed;
    this.payload = payload;
    this.signature = signature;
  }

  /** Reads the header of a token, whose size was checked before. */
  static UnverifiedToken parse(String token) throws Inactive {
    if (token.startsWith(REFRESH_TOKEN_PREFIX)) {
      throw new Inactive(InactiveReason.WRONG_TYPE);
    }
    int first = token.indexOf('.');
    int last = token.lastIndexOf('.');
    if (first < 0 || first == last || token.indexOf('.', first + 1) != last) {
      throw new Inactive(InactiveReason.MALFORMED);
    }
    Header header = Header.read(token.substring(0, first));
    if (header.hasExtension) {
      throw new Inactive(InactiveReason.MALFORMED);
    }
    if (!header.type.equals(TYPE)) {
      throw new Inactive(InactiveReason.WRONG_TYPE);
    }
    return new UnverifiedToken(
        header,
        token.substring(0, last),
        token.substring(first + 1, last),
        token.substring(last + 1));
  }

  /** Checks the signature, and then reads the claims. */
  Claims verify(VerifyingKey key, Rules rules) throws Inactive {
    if (!algorithm.equals(key.algorithm())) {
      throw new Inactive(InactiveReason.BAD_SIGNATURE);
    }
    // A signature that is not base64url makes the token malformed. All other failures mean that the
    // key did not make the signature.
    byte[] bytes = decode(signature);
    if (!key.verifies(signed.getBytes(StandardCharsets.UTF_8), bytes)) {
      throw new Inactive(InactiveReason.BAD_SIGNATURE);
    }
    Claims claims;
    try {
      claims = ClaimsReader.read(decode(payload));
    } catch (JsonException e) {
      throw new Inactive(InactiveReason.MALFORMED);
    }
    if (!claims.issuer.equals(rules.issuer())) {
      throw new Inactive(InactiveReason.WRONG_ISSUER);
    }
    // `iat` and `exp` are equal if the token was issued in the last second of its session.
    if (claims.issuedAt > claims.expiresAt || claims.issuedAt < 0) {
      throw new Inactive(InactiveReason.MALFORMED);
    }
    rules.checkLifetime(claims);
    return claims;
  }

  private static byte[] decode(String part) throws Inactive {
    byte[] bytes = Base64Url.decode(part);
    if (bytes == null) {
      throw new Inactive(InactiveReason.MALFORMED);
    }
    return bytes;
  }

  /** A JOSE header. Members that this library does not know are ignored. */
  private static final class Header {
    String algorithm;
    String keyId;
    String type = "";

    /**
     * True if there is an extension that changes the meaning of the token ({@code crit} or {@code
     * b64}). None is supported, so such a token is refused (RFC 7515, section 4.1.11).
     */
    boolean hasExtension;

    /** Reads a header, whose names must be unique (RFC 7515, section 4). */
    static Header read(String encoded) throws Inactive {
      Header header = new Header();
      try {
        JsonReader reader = new JsonReader(decode(encoded));
        Set<String> names = new HashSet<>(8);
        for (boolean more = reader.begin('{', '}'); more; more = reader.more('}')) {
          String name = reader.name();
          if (!names.add(name)) {
            throw new JsonException();
          }
          header.member(name, reader);
        }
        reader.end();
        if (header.algorithm == null || header.keyId == null) {
          throw new JsonException();
        }
      } catch (JsonException e) {
        throw new Inactive(InactiveReason.MALFORMED);
      }
      return header;
    }

    private void member(String name, JsonReader reader) throws JsonException {
      switch (name) {
        case "alg" -> algorithm = reader.string();
        case "kid" -> keyId = reader.string();
        case "typ" -> {
          if (reader.peek() == 'n') {
            reader.expectNull();
          } else {
            type = reader.string();
          }
        }
        case "crit", "b64" -> {
          hasExtension = true;
          reader.ignore();
        }
        default -> reader.ignore();
      }
    }
  }
}
