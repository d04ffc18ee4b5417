package dev.countersign.client.internal;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;

/**
 * The claims of an access token, or what Validate has answered. They are shared by all checks of a
 * token, and do not change. Instants are in microseconds.
 */
public final class Claims {
  /** The issuer. */
  public final String issuer;

  /** The session. */
  public final UUID sessionId;

  /** The token. */
  public final UUID tokenId;

  /** The authentication that the token rests on. */
  public final UUID authenticationId;

  /** The user. */
  public final String subject;

  /** The tenant; empty for the default tenant. */
  public final String tenant;

  /** The OAuth client; may be empty. */
  public final String clientId;

  /** The services that the token is meant for. */
  public final List<String> audience;

  /** The scopes. */
  public final List<String> scopes;

  /** The instant at which the token was issued. */
  public final long issuedAt;

  /** The instant at which the token expires. */
  public final long expiresAt;

  /** The instant before which the token is not valid. */
  public final long notBefore;

  /** The instant at which the user authenticated. */
  public final long authenticatedAt;

  /** The authentication context class; may be empty. */
  public final String acr;

  /** The authentication methods. */
  public final List<String> amr;

  /** The instants at which methods were verified. */
  public final Map<String, Long> amrVerifiedAt;

  /** The session's own claims: each value as JSON. */
  private final Map<String, String> custom;

  Claims(Builder builder) {
    issuer = builder.issuer;
    sessionId = builder.sessionId;
    tokenId = builder.tokenId;
    authenticationId = builder.authenticationId;
    subject = builder.subject;
    tenant = builder.tenant;
    clientId = builder.clientId;
    audience = List.copyOf(builder.audience);
    scopes = List.copyOf(builder.scopes);
    issuedAt = builder.issuedAt;
    expiresAt = builder.expiresAt;
    notBefore = builder.notBefore;
    authenticatedAt = builder.authenticatedAt;
    acr = builder.acr;
    amr = List.copyOf(builder.amr);
    amrVerifiedAt = Map.copyOf(builder.amrVerifiedAt);
    custom = Map.copyOf(builder.custom);
  }

  /** Returns whether the session has a claim of its own of this name. */
  public boolean hasClaim(String name) {
    return custom.containsKey(name);
  }

  /** Returns a claim of the session's own; null if it is missing. */
  public Object claim(String name) {
    String text = custom.get(name);
    if (text == null) {
      return null;
    }
    return Json.decode(text);
  }

  /** Returns all claims of the session's own. */
  public Map<String, Object> claims() {
    Map<String, Object> claims = new LinkedHashMap<>();
    for (String name : custom.keySet()) {
      claims.put(name, claim(name));
    }
    return claims;
  }

  /** Estimates the memory that the claims take, in bytes. */
  int memory() {
    int bytes = 320;
    for (String text : List.of(issuer, subject, tenant, clientId, acr)) {
      bytes += memory(text);
    }
    for (List<String> texts : List.of(audience, scopes, amr)) {
      for (String text : texts) {
        bytes += memory(text);
      }
    }
    for (String method : amrVerifiedAt.keySet()) {
      bytes += memory(method) + 40;
    }
    for (Map.Entry<String, String> claim : custom.entrySet()) {
      bytes += memory(claim.getKey()) + memory(claim.getValue()) + 16;
    }
    return bytes;
  }

  private static int memory(String text) {
    return 56 + text.length();
  }

  /** Prints nothing but the kind, because claims may hold personal data. */
  @Override
  public String toString() {
    return "Claims";
  }

  /** Claims that are being read. */
  public static final class Builder {
    /** See {@link Claims#issuer}. */
    public String issuer = "";

    /** See {@link Claims#sessionId}. */
    public UUID sessionId;

    /** See {@link Claims#tokenId}. */
    public UUID tokenId;

    /** See {@link Claims#authenticationId}. */
    public UUID authenticationId;

    /** See {@link Claims#subject}. */
    public String subject = "";

    /** See {@link Claims#tenant}. */
    public String tenant = "";

    /** See {@link Claims#clientId}. */
    public String clientId = "";

    /** See {@link Claims#audience}. */
    public List<String> audience = List.of();

    /** See {@link Claims#scopes}. */
    public List<String> scopes = List.of();

    /** See {@link Claims#issuedAt}. */
    public long issuedAt;

    /** See {@link Claims#expiresAt}. */
    public long expiresAt;

    /** See {@link Claims#notBefore}. */
    public long notBefore;

    /** See {@link Claims#authenticatedAt}. */
    public long authenticatedAt;

    /** See {@link Claims#acr}. */
    public String acr = "";

    /** See {@link Claims#amr}. */
    public List<String> amr = List.of();

    /** See {@link Claims#amrVerifiedAt}. */
    public Map<String, Long> amrVerifiedAt = Map.of();

    /** The session's own claims: each value as JSON. */
    public Map<String, String> custom = Map.of();

    /** Creates a builder that has nothing. */
    public Builder() {}

    /** Returns the claims. */
    public Claims build() {
      return new Claims(this);
    }
  }
}
