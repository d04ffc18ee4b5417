package dev.countersign.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.countersign.client.grpc.ProtectionInterceptor;
import dev.countersign.client.servlet.ProtectionFilter;
import dev.countersign.client.support.TestService;
import dev.countersign.client.testing.Authority;
import dev.countersign.v1.CreateSessionRequest;
import dev.countersign.v1.RefreshRequest;
import dev.countersign.v1.Tokens;
import io.grpc.inprocess.InProcessServerBuilder;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.eclipse.jetty.ee10.servlet.FilterHolder;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.server.LocalConnector;
import org.eclipse.jetty.server.Server;
import org.junit.jupiter.api.Test;

/** Runs the snippets of the README. Those between the marks are the same as those there. */
final class ReadmeTest {
  /** The service that {@code System.getenv} of the snippet names. */
  private record Environment(String url) {
    String getenv(String name) {
      return name.equals("COUNTERSIGN_ENDPOINT") ? url : "";
    }
  }

  @Test
  void theSnippetsWorkWithAService() throws Exception {
    try (TestService service = TestService.started()) {
      Environment System = new Environment(service.url());
      // snippet: start
      Client client =
          Client.builder(System.getenv("COUNTERSIGN_ENDPOINT")) // https://sessions-1.example:50051
              .apiKey(System.getenv("COUNTERSIGN_API_KEY"))
              .build();
      Verifier verifier = Verifier.local(client).start();
      // Optional: without it, the first requests cost a call.
      verifier.awaitReady(Duration.ofSeconds(5));
      // end
      assertFalse(verifier.status().lease().isZero());
      List<String> log = new ArrayList<>();
      signIn(client.withDeadline(Duration.ofSeconds(30)), log);
      assertTrue(log.get(0).startsWith("until "), log.toString());
      verifier.close();
      client.close();
    }
  }

  private static void signIn(Client client, List<String> log) {
    // snippet: issue
    CreateSessionRequest request =
        CreateSessionRequest.newBuilder()
            .setSubject("alice")
            .addScopes("orders:write")
            .addAmr("pwd")
            .build();
    Tokens tokens = client.createSession(request).getTokens();
    try {
      RefreshRequest refresh =
          RefreshRequest.newBuilder().setRefreshToken(tokens.getRefreshToken()).build();
      log.add("until " + client.refresh(refresh).getSession().getExpiresAt().getSeconds());
    } catch (CountersignException e) {
      if (e.reason() == Reason.REFRESH_TOKEN_REUSED) {
        log.add("sign in again");
      } else if (e.isTemporary()) {
        log.add("refresh the same token again: " + e.getMessage());
      } else {
        throw e;
      }
    }
    // end
  }

  /** A handler of the README. */
  private static final class Hello extends HttpServlet {
    private static final long serialVersionUID = 1L;

    @Override
    protected void service(HttpServletRequest request, HttpServletResponse response)
        throws IOException {
      // snippet: handle
      Session session = ProtectionFilter.session(request).orElseThrow();
      response.getWriter().write("hello " + session.subject());
      // end
    }
  }

  @Test
  void theSnippetsWorkWithAnAuthorityForTests() throws Exception {
    Authority others = new Authority();
    Server server = new Server();
    LocalConnector connector = new LocalConnector(server);
    server.addConnector(connector);
    ServletContextHandler context = new ServletContextHandler();
    protect(others.verifier(), context);
    context.addServlet(new ServletHolder(new Hello()), "/*");
    server.setHandler(context);
    server.start();
    String token = others.token("alice").audience("https://orders.example").issue();
    String header = " HTTP/1.0\r\nAuthorization: Bearer " + token + "\r\n\r\n";
    assertTrue(connector.getResponse("GET /me" + header).contains("hello alice"));
    assertTrue(connector.getResponse("GET /payments" + header).contains(" 403 "));
    assertTrue(connector.getResponse("GET /me HTTP/1.0\r\n\r\n").contains(" 401 "));
    server.stop();

    // snippet: test
    Authority authority = new Authority();
    Verifier verifier = authority.verifier(); // give it to your routes
    String token2 = authority.token("alice").scope("orders:write").issue();
    assertTrue(verifier.verifyLocally(token2, Demands.none()).isActive());
    authority.revoke(token2);
    assertFalse(verifier.verifyLocally(token2, Demands.none()).isActive());
    authority.setUnavailable(true); // now the middleware answers 503
    authority.advance(Duration.ofHours(1));
    // end
    assertFalse(verifier.verifyLocally(token2, Demands.none()).inactiveReason().isPresent());
    protect(verifier, InProcessServerBuilder.forName("readme"));
  }

  private static void protect(Verifier verifier, ServletContextHandler context) {
    // snippet: protect
    Demands ours = Demands.none().withAudience("https://orders.example");
    ProtectionFilter protection = new ProtectionFilter(verifier, ours);
    ProtectionFilter payments =
        protection.withDemands(
            ours.withScope("orders:write").withMaxAuthenticationAge(Duration.ofMinutes(5)));
    context.addFilter(new FilterHolder(protection), "/me", null);
    context.addFilter(new FilterHolder(payments), "/payments", null);
    // end
  }

  private static void protect(Verifier verifier, InProcessServerBuilder builder) {
    // snippet: grpc
    Demands ours = Demands.none().withAudience("https://orders.example");
    ProtectionInterceptor protection =
        new ProtectionInterceptor(verifier, ours)
            .withMethod("shop.v1.Orders/Cancel", ours.withScope("orders:write"))
            .withPublic("grpc.health.v1.Health/Check");
    builder.intercept(protection); // handlers call ProtectionInterceptor.session()
    // end
  }

  @Test
  void theSnippetsAreThoseOfTheReadme() throws IOException {
    Map<String, String> inReadme =
        snippets("README.md", "<!-- snippet: (\\w+) -->\n```java\n(.*?)\n```");
    Map<String, String> inTest =
        snippets(
            "src/test/java/dev/countersign/client/ReadmeTest.java",
            "// snippet: (\\w+)\n(.*?)\n *// end");
    assertEquals(6, inReadme.size());
    assertEquals(inReadme, inTest);
    String readme = Files.readString(Path.of("README.md"));
    assertEquals(6, Pattern.compile("```java").matcher(readme).results().count());
  }

  /** Returns the snippets of a file, without what the formatter may change. */
  private static Map<String, String> snippets(String file, String pattern) throws IOException {
    Map<String, String> found = new LinkedHashMap<>();
    Matcher matcher =
        Pattern.compile(pattern, Pattern.DOTALL).matcher(Files.readString(Path.of(file)));
    while (matcher.find()) {
      found.put(
          matcher.group(1),
          matcher.group(2).replaceAll("\\s+", " ").replace("token2", "token").strip());
    }
    return new java.util.TreeMap<>(found);
  }
}
