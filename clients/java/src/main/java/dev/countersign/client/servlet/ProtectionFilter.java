package dev.countersign.client.servlet;

import dev.countersign.client.Answer;
import dev.countersign.client.Demands;
import dev.countersign.client.Session;
import dev.countersign.client.Verifier;
import dev.countersign.client.internal.Credential;
import dev.countersign.client.internal.Denial;
import dev.countersign.client.internal.Json;
import jakarta.servlet.Filter;
import jakarta.servlet.FilterChain;
import jakarta.servlet.ServletException;
import jakarta.servlet.ServletRequest;
import jakarta.servlet.ServletResponse;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletRequestWrapper;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.security.Principal;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;

/**
 * Lets only requests pass whose access token is active and meets the demands.
 *
 * <p>The token is in {@code Authorization: Bearer} or, with {@link #withCookie}, in a cookie. The
 * session is an attribute of the request, which {@link #session} returns, and its principal. Other
 * requests are answered:
 *
 * <table>
 *   <caption>Answers</caption>
 *   <tr><th>the request</th><th>the answer</th></tr>
 *   <tr><td>has no token</td><td>401, with a challenge that names the demanded scopes</td></tr>
 *   <tr><td>has several tokens</td><td>400, {@code invalid_request} (RFC 6750)</td></tr>
 *   <tr><td>has an inactive token</td><td>401, {@code invalid_token}</td></tr>
 *   <tr><td>lacks a scope</td><td>403, {@code insufficient_scope}</td></tr>
 *   <tr><td>needs a stronger or more recent authentication</td>
 *     <td>401, {@code insufficient_user_authentication} (RFC 9470)</td></tr>
 *   <tr><td>cannot be checked now</td><td>503, with {@code Retry-After}</td></tr>
 * </table>
 *
 * <p>A request must have exactly one token. If it has two different ones, the application might use
 * another one than was checked, so it is denied.
 *
 * <p>A filter does not change: each method returns another one.
 */
public final class ProtectionFilter implements Filter {
  private static final String ATTRIBUTE = "dev.countersign.client.session";

  private final Verifier verifier;
  private final Demands demands;
  private final String cookie;
  private final String realm;
  private final boolean isOptional;

  /**
   * Creates a filter with these demands.
   *
   * @param verifier the verifier
   * @param demands the demands
   */
  public ProtectionFilter(Verifier verifier, Demands demands) {
    this(
        Objects.requireNonNull(verifier, "verifier"),
        Objects.requireNonNull(demands, "demands"),
        null,
        null,
        false);
  }

  private ProtectionFilter(
      Verifier verifier, Demands demands, String cookie, String realm, boolean isOptional) {
    this.verifier = verifier;
    this.demands = demands;
    this.cookie = cookie;
    this.realm = realm;
    this.isOptional = isOptional;
  }

  /**
   * Replaces the demands, for a route that has others.
   *
   * @param demands the demands
   * @return the filter
   */
  public ProtectionFilter withDemands(Demands demands) {
    Objects.requireNonNull(demands, "demands");
    return new ProtectionFilter(verifier, demands, cookie, realm, isOptional);
  }

  /**
   * Also takes the token from the cookie of this name. The cookie should be {@code HttpOnly} and
   * {@code SameSite}, because browsers send it with requests that other sites have caused.
   *
   * @param name the name; null for no cookie
   * @return the filter
   */
  public ProtectionFilter withCookie(String name) {
    return new ProtectionFilter(verifier, demands, name, realm, isOptional);
  }

  /**
   * Sets the realm of challenges (RFC 9110, section 11.5), such as the URL of the service.
   *
   * @param realm the realm; null for none
   * @return the filter
   */
  public ProtectionFilter withRealm(String realm) {
    return new ProtectionFilter(verifier, demands, cookie, realm, isOptional);
  }

  /**
   * Also lets requests pass that have no token; they have no session. A request with a bad token is
   * denied nevertheless.
   *
   * @return the filter
   */
  public ProtectionFilter optional() {
    return new ProtectionFilter(verifier, demands, cookie, realm, true);
  }

  /**
   * Returns the session of a request that a filter has let pass.
   *
   * @param request the request
   * @return the session, unless the request has none
   */
  public static Optional<Session> session(ServletRequest request) {
    return Optional.ofNullable((Session) request.getAttribute(ATTRIBUTE));
  }

  @Override
  public void doFilter(ServletRequest request, ServletResponse response, FilterChain chain)
      throws IOException, ServletException {
    if (!(request instanceof HttpServletRequest http)
        || !(response instanceof HttpServletResponse answer)) {
      throw new ServletException("only requests of HTTP can be protected");
    }
    // An outer filter may have put a session into the request that was not checked here.
    boolean hadSession = session(request).isPresent();
    request.removeAttribute(ATTRIBUTE);
    Credential credential =
        Credential.find(values(http, "Authorization"), values(http, "Cookie"), cookie);
    if (isOptional && credential.kind() == Credential.Kind.NONE) {
      chain.doFilter(hadSession ? new Authenticated(http, null) : request, response);
      return;
    }
    Denial denial = Denial.of(credential);
    if (denial == null) {
      Answer checked = verifier.verify(credential.token(), demands);
      denial = Denial.of(checked);
      if (checked instanceof Answer.Active active) {
        request.setAttribute(ATTRIBUTE, active.session());
        chain.doFilter(new Authenticated(http, active.session()), response);
        return;
      }
    }
    deny(answer, denial);
  }

  private static List<String> values(HttpServletRequest request, String name) {
    return Collections.list(request.getHeaders(name));
  }

  private void deny(HttpServletResponse response, Denial denial) throws IOException {
    Map<String, String> body = new LinkedHashMap<>();
    body.put("error", denial.code());
    body.put("error_description", denial.description(demands));
    byte[] text = Json.encode(body).getBytes(StandardCharsets.UTF_8);
    response.setStatus(denial.status());
    response.setContentType("application/json");
    response.setContentLength(text.length);
    response.setHeader("Cache-Control", "no-store");
    if (denial.kind() == Denial.Kind.UNKNOWN) {
      response.setHeader("Retry-After", "1");
    } else {
      response.setHeader("WWW-Authenticate", denial.challenge(realm, demands));
    }
    response.getOutputStream().write(text);
  }

  /** A request whose user is known, or which has none. */
  private static final class Authenticated extends HttpServletRequestWrapper {
    private final Session session;

    Authenticated(HttpServletRequest request, Session session) {
      super(request);
      this.session = session;
    }

    @Override
    public Principal getUserPrincipal() {
      return session;
    }

    @Override
    public String getRemoteUser() {
      return session == null ? null : session.subject();
    }

    @Override
    public String getAuthType() {
      return session == null ? null : "Bearer";
    }
  }

  @Override
  public String toString() {
    return "ProtectionFilter[" + demands + "]";
  }
}
