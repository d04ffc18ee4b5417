package dev.countersign.client.testing;

import dev.countersign.client.TimeSource;
import dev.countersign.client.Verifier;
import dev.countersign.client.internal.Base64Url;
import dev.countersign.client.internal.Claims;
import dev.countersign.client.internal.Ids;
import dev.countersign.client.internal.Json;
import dev.countersign.client.internal.KeySet;
import dev.countersign.client.internal.Lease;
import dev.countersign.client.internal.Local;
import dev.countersign.client.internal.Micros;
import dev.countersign.client.internal.Rules;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.Signature;
import java.security.interfaces.EdECPublicKey;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;

/**
 * An authority within the process, for the tests of an application: it issues tokens, revokes them,
 * and can be unavailable. It needs no server. Its clock starts at the present time, and moves only
 * when {@link #advance} is called.
 *
 * <pre>{@code
 * Authority authority = new Authority();
 * Verifier verifier = authority.verifier(); // give it to your routes
 * String token = authority.token("alice").scope("orders:write").issue();
 * authority.revoke(token);
 * }</pre>
 */
public final class Authority {
  /** The issuer of the tokens. */
  public static final String ISSUER = "https://authority.test";

  /** The audience of tokens that name no other. */
  public static final String AUDIENCE = "https://api.test";

  private static final String KEY_ID = "testing";
  private static final Duration LIFETIME = Duration.ofMinutes(15);
  private static final int KEY_BYTES = 32;

  private final KeyPair pair;
  private final SettableClock clock;
  private final Local local;
  private final Verifier verifier;

  /** Creates an authority with a key of its own. */
  public Authority() {
    clock = new SettableClock(Instant.ofEpochSecond(Instant.now().getEpochSecond()));
    pair = newPair();
    local = new Local(clock, 1 << 20);
    Rules rules = new Rules(ISSUER, Micros.FOREVER, 0, Set.of(), Set.of(), Micros.FOREVER);
    Map<String, Object> key =
        Map.of("kty", "OKP", "crv", "Ed25519", "alg", "EdDSA", "kid", KEY_ID, "x", x());
    KeySet keys = KeySet.read(Json.encode(Map.of("keys", List.of(key))), List.of());
    local.replace(keys, rules, null, 0);
    setUnavailable(false);
    verifier = Verifier.testing(local);
  }

  private static KeyPair newPair() {
    try {
      return KeyPairGenerator.getInstance("Ed25519").generateKeyPair();
    } catch (GeneralSecurityException e) {
      throw new IllegalStateException(e);
    }
  }

  private String x() {
    EdECPublicKey key = (EdECPublicKey) pair.getPublic();
    byte[] big = key.getPoint().getY().toByteArray();
    byte[] little = new byte[KEY_BYTES];
    for (int index = 0; index < Math.min(big.length, KEY_BYTES); index++) {
      little[index] = big[big.length - 1 - index];
    }
    if (key.getPoint().isXOdd()) {
      little[KEY_BYTES - 1] |= (byte) 0x80;
    }
    return Base64Url.encode(little);
  }

  /**
   * Returns a verifier that accepts the tokens of this authority.
   *
   * @return the verifier, which is always the same
   */
  public Verifier verifier() {
    return verifier;
  }

  /**
   * Begins a token of a session of its own.
   *
   * @param subject the user
   * @return the token that is being made
   */
  public TokenBuilder token(String subject) {
    return new TokenBuilder(subject);
  }

  /**
   * Revokes the session of a token of this authority.
   *
   * @param token the token
   * @throws IllegalArgumentException if the token is not from this authority
   */
  public void revoke(String token) {
    Claims claims = local.authenticate(token);
    if (claims == null) {
      throw new IllegalArgumentException("the token is not from this authority");
    }
    local.copy().index().revoke(claims.sessionId, claims.expiresAt);
  }

  /**
   * Sets whether the authority is unavailable. Then each answer is {@link
   * dev.countersign.client.Answer.Unknown}.
   *
   * @param isUnavailable whether it is
   */
  public void setUnavailable(boolean isUnavailable) {
    if (isUnavailable) {
      local.copy().lease().end();
    } else {
      local.take(Lease.Start.read(clock), Lease.FOREVER);
    }
  }

  /**
   * Moves the clock forward, for instance until a token has expired.
   *
   * @param span the time by which it moves
   */
  public void advance(Duration span) {
    clock.advance(span);
  }

  /**
   * Returns the clock, which only this authority should move.
   *
   * @return the clock
   */
  public TimeSource clock() {
    return clock;
  }

  /** A token that is being made. */
  public final class TokenBuilder {
    private final String subject;
    private final long issuedAt = Micros.seconds(clock.wallMicros());
    private String tenant = "";
    private String clientId = "";
    private final List<String> audience = new ArrayList<>();
    private final List<String> scopes = new ArrayList<>();
    private String acr = "";
    private final List<String> amr = new ArrayList<>();
    private long authenticatedAt = issuedAt;
    private long expiresAt = issuedAt + LIFETIME.toSeconds();
    private final Map<String, Object> custom = new LinkedHashMap<>();

    private TokenBuilder(String subject) {
      this.subject = subject;
    }

    /**
     * Sets the tenant.
     *
     * @param tenant the tenant
     * @return this token
     */
    public TokenBuilder tenant(String tenant) {
      this.tenant = tenant;
      return this;
    }

    /**
     * Sets the OAuth client.
     *
     * @param clientId the client
     * @return this token
     */
    public TokenBuilder clientId(String clientId) {
      this.clientId = clientId;
      return this;
    }

    /**
     * Adds an audience. Without any, it is {@link Authority#AUDIENCE}.
     *
     * @param audience the audience
     * @return this token
     */
    public TokenBuilder audience(String audience) {
      this.audience.add(audience);
      return this;
    }

    /**
     * Adds a scope.
     *
     * @param scope the scope
     * @return this token
     */
    public TokenBuilder scope(String scope) {
      scopes.add(scope);
      return this;
    }

    /**
     * Sets the authentication context class.
     *
     * @param acr the class
     * @return this token
     */
    public TokenBuilder acr(String acr) {
      this.acr = acr;
      return this;
    }

    /**
     * Adds an authentication method, which was verified when the user authenticated.
     *
     * @param method the method
     * @return this token
     */
    public TokenBuilder factor(String method) {
      amr.add(method);
      return this;
    }

    /**
     * Makes the authentication older by this time.
     *
     * @param ago the time
     * @return this token
     */
    public TokenBuilder authenticatedAgo(Duration ago) {
      authenticatedAt = issuedAt - ago.toSeconds();
      return this;
    }

    /**
     * Sets the lifetime: 15 minutes by default.
     *
     * @param lifetime the lifetime, of which whole seconds count
     * @return this token
     */
    public TokenBuilder lifetime(Duration lifetime) {
      expiresAt = issuedAt + lifetime.toSeconds();
      return this;
    }

    /**
     * Adds a claim of the session's own.
     *
     * @param name the name
     * @param value a text, a number, a boolean, null, or a list or map of those
     * @return this token
     */
    public TokenBuilder claim(String name, Object value) {
      custom.put(name, value);
      return this;
    }

    /**
     * Signs the token.
     *
     * @return the token
     */
    public String issue() {
      Map<String, Object> claims = new LinkedHashMap<>(custom);
      claims.put("iss", ISSUER);
      claims.put("sub", subject);
      claims.put("aud", audience.isEmpty() ? List.of(AUDIENCE) : audience);
      claims.put("client_id", clientId);
      claims.put("iat", issuedAt);
      claims.put("exp", expiresAt);
      claims.put("jti", UUID.randomUUID().toString());
      claims.put("sid", Ids.newSession(clock.wallMicros()).toString());
      claims.put("auth_time", authenticatedAt);
      putUnlessEmpty(claims, "tenant", tenant);
      putUnlessEmpty(claims, "acr", acr);
      putUnlessEmpty(claims, "scope", String.join(" ", scopes));
      if (!amr.isEmpty()) {
        Map<String, Object> times = new LinkedHashMap<>();
        amr.forEach(method -> times.put(method, authenticatedAt));
        claims.put("amr", amr);
        claims.put("countersign_amr_verified_at", times);
      }
      Map<String, Object> header = new LinkedHashMap<>();
      header.put("typ", "at+jwt");
      header.put("alg", "EdDSA");
      header.put("kid", KEY_ID);
      String signed = encode(header) + "." + encode(claims);
      return signed + "." + Base64Url.encode(sign(signed.getBytes(StandardCharsets.UTF_8)));
    }

    private static void putUnlessEmpty(Map<String, Object> claims, String name, String value) {
      if (!value.isEmpty()) {
        claims.put(name, value);
      }
    }

    private static String encode(Map<String, Object> members) {
      return Base64Url.encode(Json.encode(members).getBytes(StandardCharsets.UTF_8));
    }

    private byte[] sign(byte[] message) {
      try {
        Signature signature = Signature.getInstance("Ed25519");
        signature.initSign(pair.getPrivate());
        signature.update(message);
        return signature.sign();
      } catch (GeneralSecurityException e) {
        throw new IllegalStateException(e);
      }
    }

    /** Does not print the claims. */
    @Override
    public String toString() {
      return "TokenBuilder";
    }
  }
}
