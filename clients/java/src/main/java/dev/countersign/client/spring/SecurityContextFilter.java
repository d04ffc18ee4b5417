package dev.countersign.client.spring;

import dev.countersign.client.Session;
import dev.countersign.client.servlet.ProtectionFilter;
import jakarta.servlet.Filter;
import jakarta.servlet.FilterChain;
import jakarta.servlet.ServletException;
import jakarta.servlet.ServletRequest;
import jakarta.servlet.ServletResponse;
import java.io.IOException;
import java.util.Optional;
import org.springframework.security.core.context.SecurityContext;
import org.springframework.security.core.context.SecurityContextHolder;

/**
 * Puts the session of a request into the security context of Spring Security, as a {@link
 * SessionAuthentication}. It comes after a {@link ProtectionFilter}, for instance:
 *
 * <pre>{@code
 * http.addFilterBefore(protection, AuthorizationFilter.class)
 *     .addFilterBefore(new SecurityContextFilter(), AuthorizationFilter.class)
 *     .authorizeHttpRequests(it -> it
 *         .requestMatchers(HttpMethod.POST, "/orders").hasAuthority("SCOPE_orders:write")
 *         .anyRequest().authenticated());
 * }</pre>
 */
public final class SecurityContextFilter implements Filter {
  /** Creates a filter. */
  public SecurityContextFilter() {}

  @Override
  public void doFilter(ServletRequest request, ServletResponse response, FilterChain chain)
      throws IOException, ServletException {
    Optional<Session> session = ProtectionFilter.session(request);
    if (session.isEmpty()) {
      chain.doFilter(request, response);
      return;
    }
    SecurityContext former = SecurityContextHolder.getContext();
    SecurityContext context = SecurityContextHolder.createEmptyContext();
    context.setAuthentication(new SessionAuthentication(session.get()));
    SecurityContextHolder.setContext(context);
    try {
      chain.doFilter(request, response);
    } finally {
      SecurityContextHolder.setContext(former);
    }
  }
}
