package dev.countersign.client.spring;

import dev.countersign.client.Session;
import java.util.List;
import java.util.Objects;
import org.springframework.security.authentication.AbstractAuthenticationToken;
import org.springframework.security.core.GrantedAuthority;
import org.springframework.security.core.authority.SimpleGrantedAuthority;

/**
 * A session as an authentication of Spring Security. Its authorities are the scopes with the prefix
 * {@code SCOPE_}, as those of Spring's own resource server. It holds no token.
 */
public final class SessionAuthentication extends AbstractAuthenticationToken {
  private static final long serialVersionUID = 1L;

  /** The session, which is not written if the authentication is serialized. */
  private final transient Session session;

  /**
   * Creates the authentication of a session that was checked.
   *
   * @param session the session
   */
  public SessionAuthentication(Session session) {
    super(authorities(session));
    this.session = session;
    setAuthenticated(true);
  }

  private static List<GrantedAuthority> authorities(Session session) {
    return session.scopes().stream()
        .<GrantedAuthority>map(scope -> new SimpleGrantedAuthority("SCOPE_" + scope))
        .toList();
  }

  /**
   * Returns the session.
   *
   * @return the session
   */
  @Override
  public Session getPrincipal() {
    return session;
  }

  /**
   * Returns no credentials, because a token is a secret.
   *
   * @return null
   */
  @Override
  public Object getCredentials() {
    return null;
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof SessionAuthentication authentication
        && Objects.equals(session, authentication.session);
  }

  @Override
  public int hashCode() {
    return Objects.hashCode(session);
  }
}
