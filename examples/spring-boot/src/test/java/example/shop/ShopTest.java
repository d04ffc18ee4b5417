package example.shop;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Duration;
import dev.countersign.client.Client;
import dev.countersign.v1.CreateSessionRequest;
import dev.countersign.v1.CreateSessionResponse;
import dev.countersign.v1.ReauthenticateRequest;
import dev.countersign.v1.RevokeRequest;
import java.io.BufferedReader;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.web.server.servlet.context.ServletWebServerApplicationContext;

/**
 * Starts the authority as a process and the shop, and calls each route with each kind of token. The
 * variable {@code COUNTERSIGN} has the path of the authority's binary.
 */
final class ShopTest {
  private final HttpClient http = HttpClient.newHttpClient();
  private String url;

  private static Process start(Path folder, String address) throws IOException {
    String binary = Objects.requireNonNull(System.getenv("COUNTERSIGN"), "COUNTERSIGN is not set");
    ProcessBuilder builder =
        new ProcessBuilder(binary, "serve", "--listen", address, "--data-dir", folder.toString());
    builder.environment().keySet().removeIf(name -> name.startsWith("COUNTERSIGN_"));
    builder.environment().put("COUNTERSIGN_HTTP_LISTEN", "127.0.0.1:0");
    Process process = builder.start();
    BufferedReader log = process.errorReader(StandardCharsets.UTF_8);
    String line = log.readLine();
    while (line != null && !line.contains("\"message\":\"serving\"")) {
      line = log.readLine();
    }
    assertTrue(line != null, "the authority does not start");
    // Nobody reads the rest of the log, so it must not fill the pipe.
    Thread reader = new Thread(() -> log.lines().forEach(rest -> {}));
    reader.setDaemon(true);
    reader.start();
    return process;
  }

  /** An answer of the shop. */
  private record Reply(int status, String challenge, String body) {}

  private Reply send(String method, String path, String... headers) {
    HttpRequest.Builder request =
        HttpRequest.newBuilder(URI.create(url + path))
            .method(method, HttpRequest.BodyPublishers.noBody());
    if (headers.length > 0) {
      request.headers(headers);
    }
    try {
      HttpResponse<String> response =
          http.send(request.build(), HttpResponse.BodyHandlers.ofString());
      String challenge = response.headers().firstValue("WWW-Authenticate").orElse("");
      return new Reply(response.statusCode(), challenge, response.body());
    } catch (IOException | InterruptedException e) {
      throw new AssertionError(e);
    }
  }

  private Reply call(String method, String path, String token) {
    return send(method, path, "Authorization", "Bearer " + token);
  }

  private void expect(String method, String path, String token, int status, String part) {
    Reply reply = call(method, path, token);
    assertEquals(status, reply.status(), reply.toString());
    assertTrue((reply.challenge() + reply.body()).contains(part), reply.toString());
  }

  private static void eventually(BooleanSupplier holds) throws InterruptedException {
    long began = System.nanoTime();
    while (!holds.getAsBoolean()) {
      assertTrue(System.nanoTime() - began < TimeUnit.MINUTES.toNanos(1), "not within a minute");
      Thread.sleep(10);
    }
  }

  private static CreateSessionResponse signIn(Client client, CreateSessionRequest.Builder request) {
    if (request.getAudienceCount() == 0) {
      request.addAudience(Shop.AUDIENCE);
    }
    return client.createSession(request.setSubject("alice").build());
  }

  private static String token(Client client, CreateSessionRequest.Builder request) {
    return signIn(client, request).getTokens().getAccessToken();
  }

  @Test
  void eachRouteLetsTheRightSessionsPass(@TempDir Path folder) throws Exception {
    String address;
    try (ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      address = "127.0.0.1:" + socket.getLocalPort();
    }
    Process authority = start(folder, address);
    SpringApplication application = new SpringApplication(Shop.class);
    application.setDefaultProperties(
        Map.of("COUNTERSIGN_ENDPOINTS", "http://" + address, "server.port", "0"));
    try (ServletWebServerApplicationContext context =
            (ServletWebServerApplicationContext) application.run();
        Client client =
            Client.builder("http://" + address)
                .deadline(java.time.Duration.ofSeconds(30))
                .revocationDeadline(java.time.Duration.ofSeconds(30))
                .build()) {
      url = "http://127.0.0.1:" + context.getWebServer().getPort();
      checkTokens(client);
      checkStepUp(client);
      String good = token(client, CreateSessionRequest.newBuilder());
      expect("GET", "/me", good, 200, "alice");
      authority.destroyForcibly().waitFor();
      eventually(() -> call("GET", "/me", good).status() == 503);
      assertEquals("welcome", send("GET", "/").body());
    } finally {
      authority.destroyForcibly().waitFor();
    }
  }

  private void checkTokens(Client client) throws InterruptedException {
    CreateSessionRequest.Builder brief =
        CreateSessionRequest.newBuilder().setAccessTokenTtl(Duration.newBuilder().setSeconds(1));
    String expiring = token(client, brief);
    String good = token(client, CreateSessionRequest.newBuilder());
    String elsewhere =
        token(client, CreateSessionRequest.newBuilder().addAudience("https://other.example"));
    String ordering = token(client, CreateSessionRequest.newBuilder().addScopes("orders:write"));
    assertEquals("welcome", send("GET", "/").body());
    expect("GET", "/", good, 200, "welcome back, alice");
    Reply denied = send("GET", "/me");
    assertEquals(401, denied.status());
    assertEquals("Bearer realm=\"https://shop.example\"", denied.challenge());
    expect("GET", "/me", "bad", 401, "error=\"invalid_token\"");
    expect("GET", "/me", good, 200, "\"subject\":\"alice\"");
    String cookie = "access_token=" + good;
    assertEquals(200, send("GET", "/me", "Cookie", cookie).status());
    denied = send("GET", "/me", "Cookie", cookie, "Authorization", "Bearer " + ordering);
    assertEquals(400, denied.status());
    assertTrue(denied.challenge().contains("invalid_request"), denied.toString());
    expect("GET", "/me", elsewhere, 401, "not meant for this resource");
    expect("POST", "/orders", good, 403, "scope=\"orders:write\"");
    expect("POST", "/orders", ordering, 200, "ordered by alice");
    client.revoke(RevokeRequest.newBuilder().setToken(ordering).build());
    expect("GET", "/me", ordering, 401, "has been revoked");
    eventually(() -> call("GET", "/me", expiring).challenge().contains("has expired"));
  }

  /** Pays, which needs another authentication. */
  private void checkStepUp(Client client) {
    CreateSessionResponse created = signIn(client, CreateSessionRequest.newBuilder());
    String token = created.getTokens().getAccessToken();
    expect("POST", "/payments", token, 401, "insufficient_user_authentication");
    expect("POST", "/payments", token, 401, "acr_values=\"gold\", max_age=\"300\"");
    ReauthenticateRequest again =
        ReauthenticateRequest.newBuilder()
            .setSessionId(created.getSession().getSessionId())
            .setAcr("gold")
            .build();
    String later = client.reauthenticate(again).getTokens().getAccessToken();
    expect("POST", "/payments", later, 200, "paid by alice");
    // The earlier token rests on the earlier authentication.
    expect("GET", "/me", token, 401, "has been revoked");
  }
}
