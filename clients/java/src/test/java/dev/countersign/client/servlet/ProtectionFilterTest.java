package dev.countersign.client.servlet;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.countersign.client.Demands;
import dev.countersign.client.spring.SecurityContextFilter;
import dev.countersign.client.spring.SessionAuthentication;
import dev.countersign.client.support.GuardedServer;
import dev.countersign.client.support.GuardedServer.Reply;
import dev.countersign.client.testing.Authority;
import jakarta.servlet.Filter;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.springframework.security.core.Authentication;
import org.springframework.security.core.context.SecurityContextHolder;

/** Requests to an application that the filter protects. */
final class ProtectionFilterTest {
  private final Authority authority = new Authority();
  private final Demands demands =
      Demands.none()
          .withAudience(Authority.AUDIENCE)
          .withScope("read")
          .withScope("write")
          .withAcrValues("gold", "silver")
          .withMaxAuthenticationAge(Duration.ofSeconds(300))
          .withRecentFactor("hwk", Duration.ofSeconds(60));

  private String good() {
    return authority.token("alice").scope("read").scope("write").acr("gold").factor("hwk").issue();
  }

  private static Reply send(Filter filter, String... headers) throws Exception {
    List<Map.Entry<String, String>> all = new ArrayList<>();
    for (int index = 0; index < headers.length; index += 2) {
      all.add(Map.entry(headers[index], headers[index + 1]));
    }
    try (GuardedServer server = new GuardedServer(filter)) {
      return server.send(all);
    }
  }

  private Reply bearer(String token) throws Exception {
    ProtectionFilter filter = new ProtectionFilter(authority.verifier(), demands);
    return send(filter, "Authorization", "Bearer " + token);
  }

  @Test
  void aTokenPassesInTheHeaderAndInTheCookieAndNowhereElse() throws Exception {
    ProtectionFilter plain = new ProtectionFilter(authority.verifier(), demands);
    ProtectionFilter cookie = plain.withCookie("session");
    String token = good();
    Reply passed = send(plain, "authorization", "bearer  " + token);
    assertEquals(200, passed.status());
    assertEquals("alice", passed.body());
    assertNull(passed.challenge());
    assertEquals("alice", send(cookie, "Cookie", "a=b; session=\"" + token + "\"").body());
    assertEquals(
        "alice",
        send(cookie, "Cookie", "session=" + token, "Authorization", "Bearer " + token).body());
    assertEquals("alice", send(cookie, "Cookie", "session=; session=" + token).body());
    assertEquals(401, send(plain, "Cookie", "session=" + token).status());
    assertEquals(401, send(cookie, "Cookie", "Session=" + token).status());
    assertEquals(401, send(plain, "Authorization", "Basic " + token).status());
  }

  @Test
  void twoDifferentTokensAreDenied() throws Exception {
    ProtectionFilter cookie =
        new ProtectionFilter(authority.verifier(), demands).withCookie("session");
    String token = good();
    String several =
        "Bearer error=\"invalid_request\", error_description=\"more than one access token was"
            + " sent\"";
    for (String[] headers :
        List.of(
            new String[] {"Authorization", "Bearer " + token, "Cookie", "session=" + good()},
            new String[] {"Authorization", "Bearer " + token, "Authorization", "Bearer " + token},
            new String[] {"Authorization", "Bearer " + token, "Authorization", "Basic x"})) {
      Reply denied = send(cookie, headers);
      assertEquals(400, denied.status());
      assertEquals(several, denied.challenge());
    }
    Reply denied = send(cookie, "Cookie", "session=" + token + "; session=" + good());
    assertEquals(400, denied.status());
    assertTrue(denied.challenge().contains("several cookies"), denied.challenge());
  }

  @Test
  void otherRequestsAreChallengedAsTheStandardsSay() throws Exception {
    ProtectionFilter filter = new ProtectionFilter(authority.verifier(), demands);
    Reply denied = send(filter.withRealm("a\"b"));
    assertEquals(401, denied.status());
    assertEquals("Bearer realm=\"a\\\"b\", scope=\"read write\"", denied.challenge());
    assertEquals("no-store", denied.cacheControl());
    assertEquals(
        "{\"error\":\"unauthorized\",\"error_description\":\"an access token is needed\"}",
        denied.body());
    assertEquals("Bearer", send(filter.withDemands(Demands.none())).challenge());
    for (String bad : List.of("bad", "a.b.c", "a b", "")) {
      denied = bearer(bad);
      assertEquals(401, denied.status());
      assertEquals(
          "Bearer error=\"invalid_token\", error_description=\"the access token is not valid\"",
          denied.challenge());
    }
    denied = bearer(authority.token("alice").scope("read").issue());
    assertEquals(403, denied.status());
    assertEquals(
        "Bearer error=\"insufficient_scope\", error_description=\"the access token lacks a"
            + " scope\", scope=\"read write\"",
        denied.challenge());
    denied = bearer(authority.token("alice").scope("read").scope("write").issue());
    assertEquals(401, denied.status());
    assertEquals(
        "Bearer error=\"insufficient_user_authentication\", error_description=\"a stronger or more"
            + " recent authentication is needed: the route demands hwk within 60 seconds\","
            + " acr_values=\"gold silver\", max_age=\"60\"",
        denied.challenge());
    denied = bearer(authority.token("alice").audience("https://other.test").issue());
    assertEquals(401, denied.status());
    assertTrue(denied.challenge().contains("not meant for this resource"), denied.challenge());
    String token = good();
    authority.revoke(token);
    assertTrue(bearer(token).challenge().contains("has been revoked"));
    String expiring = good();
    authority.advance(Duration.ofMinutes(15));
    assertTrue(bearer(expiring).challenge().contains("has expired"));
    Demands strange = Demands.none().withScope("a\nb");
    assertEquals("Bearer", send(filter.withDemands(strange)).challenge());
  }

  @Test
  void nothingPassesWhileTheAuthorityIsUnavailable() throws Exception {
    String token = good();
    authority.setUnavailable(true);
    Reply denied = bearer(token);
    assertEquals(503, denied.status());
    assertEquals("1", denied.retryAfter());
    assertNull(denied.challenge());
    assertTrue(denied.body().contains("temporarily_unavailable"), denied.body());
    assertFalse(denied.body().contains(token));
  }

  @Test
  void anOptionalFilterDeniesBadTokensOnly() throws Exception {
    ProtectionFilter filter = new ProtectionFilter(authority.verifier(), demands).optional();
    assertEquals("nobody", send(filter).body());
    assertEquals("alice", send(filter, "Authorization", "Bearer " + good()).body());
    assertEquals(401, send(filter, "Authorization", "Bearer bad").status());
    // An inner filter replaces the session of an outer one.
    ProtectionFilter outer =
        new ProtectionFilter(authority.verifier(), demands).withCookie("session");
    try (GuardedServer server = new GuardedServer(outer, filter)) {
      Map.Entry<String, String> cookie = Map.entry("Cookie", "session=" + good());
      assertEquals("nobody", server.send(List.of(cookie)).body());
    }
  }

  @Test
  void springSecurityHasTheSessionDuringTheRequestOnly() throws Exception {
    List<Authentication> seen = new ArrayList<>();
    Filter look =
        (request, response, chain) -> {
          seen.add(SecurityContextHolder.getContext().getAuthentication());
          chain.doFilter(request, response);
        };
    ProtectionFilter filter = new ProtectionFilter(authority.verifier(), demands);
    try (GuardedServer server =
        new GuardedServer(look, filter, new SecurityContextFilter(), look)) {
      server.send(List.of(Map.entry("Authorization", "Bearer " + good())));
      server.send(List.of(Map.entry("Authorization", "Bearer bad")));
    }
    assertEquals(3, seen.size());
    assertNull(seen.get(0));
    SessionAuthentication authentication = (SessionAuthentication) seen.get(1);
    assertEquals("alice", authentication.getName());
    assertTrue(authentication.isAuthenticated());
    assertEquals(
        List.of("SCOPE_read", "SCOPE_write"),
        authentication.getAuthorities().stream().map(it -> it.getAuthority()).toList());
    assertNull(seen.get(2));
  }
}
