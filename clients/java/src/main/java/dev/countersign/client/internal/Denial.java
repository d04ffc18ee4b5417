package dev.countersign.client.internal;

import dev.countersign.client.Answer;
import dev.countersign.client.Demands;
import dev.countersign.client.InactiveReason;
import java.util.ArrayList;
import java.util.List;

/**
 * The reason why a request may not pass, and the challenge according to RFC 6750 (section 3) and
 * RFC 9470 (section 3). The texts are those of the service's answers to gateways.
 *
 * @param kind the kind
 * @param reason the reason if the token is inactive; otherwise null
 */
public record Denial(Kind kind, InactiveReason reason) {
  /** The kind of a denial. */
  public enum Kind {
    /** The request has no token. */
    NO_TOKEN,
    /** The request has several tokens. */
    SEVERAL_TOKENS,
    /** The request has several cookies for the token, with different values. */
    CONFLICTING_COOKIES,
    /** The token is inactive, or does not meet the demands. */
    INACTIVE,
    /** It is not known whether the token is active. */
    UNKNOWN
  }

  /** Returns the denial of a request without a usable token; null if the credential has one. */
  public static Denial of(Credential credential) {
    return switch (credential.kind()) {
      case TOKEN -> null;
      case NONE -> new Denial(Kind.NO_TOKEN, null);
      case SEVERAL -> new Denial(Kind.SEVERAL_TOKENS, null);
      case CONFLICTING_COOKIES -> new Denial(Kind.CONFLICTING_COOKIES, null);
    };
  }

  /** Returns the denial of an answer; null if it is active. */
  public static Denial of(Answer answer) {
    if (answer.isActive()) {
      return null;
    }
    return answer
        .inactiveReason()
        .map(reason -> new Denial(Kind.INACTIVE, reason))
        .orElse(new Denial(Kind.UNKNOWN, null));
  }

  /** Returns the error code of RFC 6750 or RFC 9470. */
  public String code() {
    return switch (kind) {
      case NO_TOKEN -> "unauthorized";
      case SEVERAL_TOKENS, CONFLICTING_COOKIES -> "invalid_request";
      case UNKNOWN -> "temporarily_unavailable";
      case INACTIVE ->
          switch (reason) {
            case INSUFFICIENT_SCOPE -> "insufficient_scope";
            case STEP_UP_REQUIRED -> "insufficient_user_authentication";
            default -> "invalid_token";
          };
    };
  }

  /** Returns the status of HTTP. */
  public int status() {
    return switch (kind) {
      case UNKNOWN -> 503;
      case SEVERAL_TOKENS, CONFLICTING_COOKIES -> 400;
      case INACTIVE -> reason == InactiveReason.INSUFFICIENT_SCOPE ? 403 : 401;
      case NO_TOKEN -> 401;
    };
  }

  /** Describes the problem for the developer of the client. */
  public String description(Demands demands) {
    return switch (kind) {
      case NO_TOKEN -> "an access token is needed";
      case SEVERAL_TOKENS -> "more than one access token was sent";
      case CONFLICTING_COOKIES ->
          "several cookies of the same name were sent with different values: clear the cookies of"
              + " this site and its parent domains, and sign in again";
      case UNKNOWN -> "the access token cannot be checked at the moment: try again";
      case INACTIVE ->
          switch (reason) {
            case INSUFFICIENT_SCOPE -> "the access token lacks a scope";
            case STEP_UP_REQUIRED -> stepUp(demands);
            case EXPIRED -> "the access token has expired";
            case NOT_YET_VALID -> "the access token is not valid yet";
            case REVOKED -> "the access token has been revoked";
            case WRONG_AUDIENCE, FOREIGN_TENANT ->
                "the access token is not meant for this resource";
            default -> "the access token is not valid";
          };
    };
  }

  /**
   * Returns the value of {@code WWW-Authenticate}.
   *
   * @param realm the realm; null for none
   */
  public String challenge(String realm, Demands demands) {
    List<String> parameters = new ArrayList<>();
    if (realm != null) {
      add(parameters, "realm", realm);
    }
    // A request without a token gets no error code (RFC 6750, section 3.1).
    if (kind != Kind.NO_TOKEN) {
      add(parameters, "error", code());
      add(parameters, "error_description", description(demands));
    }
    boolean isScope = kind == Kind.NO_TOKEN || reason == InactiveReason.INSUFFICIENT_SCOPE;
    if (isScope && !demands.scopes().isEmpty()) {
      add(parameters, "scope", String.join(" ", demands.scopes()));
    }
    if (reason == InactiveReason.STEP_UP_REQUIRED) {
      if (!demands.acrValues().isEmpty()) {
        add(parameters, "acr_values", String.join(" ", demands.acrValues()));
      }
      demands
          .shortestAge()
          .ifPresent(age -> add(parameters, "max_age", String.valueOf(age.toSeconds())));
    }
    String challenge = parameters.isEmpty() ? "Bearer" : "Bearer " + String.join(", ", parameters);
    // A demand may have characters that a header cannot have.
    boolean isHeader = challenge.chars().allMatch(next -> next == '\t' || isVisible(next));
    return isHeader ? challenge : "Bearer";
  }

  private static boolean isVisible(int next) {
    return next >= ' ' && next != 0x7f;
  }

  /** Adds a parameter as a quoted string (RFC 9110, section 5.6.4). */
  private static void add(List<String> parameters, String name, String value) {
    String quoted = value.replace("\\", "\\\\").replace("\"", "\\\"");
    parameters.add(name + "=\"" + quoted + "\"");
  }

  /**
   * Describes the authentication that a route demands. RFC 9470 has no parameter for methods, so
   * the text names them.
   */
  private static String stepUp(Demands demands) {
    StringBuilder text = new StringBuilder("a stronger or more recent authentication is needed");
    String start = ": the route demands ";
    for (Demands.Factor factor : demands.factors()) {
      text.append(start).append(factor.method());
      if (factor.maxAge() != null) {
        text.append(" within ").append(factor.maxAge().toSeconds()).append(" seconds");
      }
      start = ", ";
    }
    return text.toString();
  }
}
