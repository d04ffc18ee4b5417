package dev.countersign.client.tools;

import com.nimbusds.jose.util.JSONObjectUtils;
import dev.countersign.client.Answer;
import dev.countersign.client.BuildException;
import dev.countersign.client.Client;
import dev.countersign.client.ClientBuilder;
import dev.countersign.client.CountersignException;
import dev.countersign.client.Demands;
import dev.countersign.client.Session;
import dev.countersign.client.Verifier;
import dev.countersign.client.internal.Json;
import dev.countersign.client.servlet.ProtectionFilter;
import dev.countersign.client.support.GuardedServer;
import dev.countersign.v1.CreateSessionRequest;
import dev.countersign.v1.CreateSessionResponse;
import dev.countersign.v1.RefreshRequest;
import dev.countersign.v1.RefreshResponse;
import dev.countersign.v1.RevokeRequest;
import dev.countersign.v1.ValidateRequest;
import dev.countersign.v1.ValidateResponse;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Does with the library what it is told ({@code clients/situations/README.md}). */
public final class Driver {
  private final MovedClock clock = new MovedClock();
  private Client client;
  private Verifier verifier;
  private Load load;

  private Driver() {}

  public static void main(String[] arguments) throws Exception {
    Driver driver = new Driver();
    PrintStream answers = new PrintStream(System.out, false, StandardCharsets.UTF_8);
    BufferedReader commands =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = commands.readLine(); line != null; line = commands.readLine()) {
      answers.println(Json.encode(driver.answer(JSONObjectUtils.parse(line))));
      answers.flush();
    }
    driver.close();
  }

  private Map<String, ?> answer(Map<String, Object> command) throws Exception {
    try {
      return carryOut(command);
    } catch (CountersignException e) {
      Map<String, Object> error = new LinkedHashMap<>();
      error.put("error", name(e));
      e.retryAfter().ifPresent(after -> error.put("retry_after_ms", after.toMillis()));
      return error;
    }
  }

  private static String name(CountersignException error) {
    return error.reasonName().isEmpty() ? error.code().name() : error.reasonName();
  }

  private Map<String, ?> carryOut(Map<String, Object> command) throws Exception {
    return switch (text(command, "do")) {
      case "connect" -> connect(command);
      case "verifier" -> startVerifier(command);
      case "ready" -> Map.of("ready", verifier.awaitReady(millis(command, "within_ms")));
      case "verify" ->
          describe(verifier.verify(text(command, "token"), demands(command.get("demands"))));
      case "guard" -> guard(command);
      case "create" -> create(command);
      case "refresh" -> {
        RefreshRequest request =
            RefreshRequest.newBuilder().setRefreshToken(text(command, "refresh_token")).build();
        RefreshResponse answer = client.refresh(request);
        yield Map.of(
            "access_token", answer.getTokens().getAccessToken(),
            "refresh_token", answer.getTokens().getRefreshToken());
      }
      case "revoke" -> {
        client.revoke(RevokeRequest.newBuilder().setToken(text(command, "token")).build());
        yield Map.of();
      }
      case "validate" -> validate(command);
      case "clock" -> {
        clock.move(number(command, "wall_ms") * 1_000, number(command, "uptime_ms") * 1_000_000);
        yield Map.of();
      }
      case "load" -> {
        load = new Load(client, verifier, text(command, "subject"));
        load.start();
        yield Map.of();
      }
      case "load_end" -> load.end();
      default -> throw new IOException("the command is not known: " + command.get("do"));
    };
  }

  private static String text(Map<String, Object> members, String name) {
    return members.get(name) instanceof String text ? text : "";
  }

  private static List<String> texts(Object value) {
    return value instanceof List<?> list
        ? list.stream().map(String.class::cast).toList()
        : List.of();
  }

  private static long number(Map<String, Object> members, String name) {
    return members.get(name) instanceof Number number ? number.longValue() : 0;
  }

  private static Duration millis(Map<String, Object> members, String name) {
    return Duration.ofMillis(number(members, name));
  }

  private void close() {
    if (verifier != null) {
      verifier.close();
      verifier = null;
    }
    if (client != null) {
      client.close();
      client = null;
    }
  }

  private Map<String, ?> connect(Map<String, Object> command) throws IOException {
    close();
    try {
      List<String> endpoints = texts(command.get("endpoints"));
      ClientBuilder builder = Client.builder(endpoints.isEmpty() ? "" : endpoints.get(0));
      endpoints.stream().skip(1).forEach(builder::endpoint);
      if (command.containsKey("api_key")) {
        builder.apiKey(text(command, "api_key"));
      }
      if (command.containsKey("ca")) {
        builder.caCertificate(read(command, "ca"));
      }
      if (command.containsKey("certificate")) {
        builder.clientCertificate(read(command, "certificate"), read(command, "key"));
      }
      if (command.containsKey("server_name")) {
        builder.serverName(text(command, "server_name"));
      }
      if (command.containsKey("deadline_ms")) {
        builder.deadline(millis(command, "deadline_ms"));
      }
      if (command.containsKey("revocation_deadline_ms")) {
        builder.revocationDeadline(millis(command, "revocation_deadline_ms"));
      }
      if (command.containsKey("connect_timeout_ms")) {
        builder.connectTimeout(millis(command, "connect_timeout_ms"));
      }
      client = builder.build();
      return Map.of();
    } catch (BuildException e) {
      return Map.of("refused", true);
    }
  }

  private static byte[] read(Map<String, Object> command, String name) throws IOException {
    return Files.readAllBytes(Path.of(text(command, name)));
  }

  private Map<String, ?> startVerifier(Map<String, Object> command) throws IOException {
    if (verifier != null) {
      verifier.close();
    }
    boolean isRefusing = Boolean.TRUE.equals(command.get("refuse"));
    verifier =
        switch (text(command, "mode")) {
          case "remote" -> Verifier.remote(client);
          case "local" ->
              Verifier.local(client)
                  .clock(clock)
                  .onLapse(isRefusing ? Verifier.OnLapse.REFUSE : Verifier.OnLapse.VALIDATE)
                  .start();
          case "local_unwatched" ->
              Verifier.localUnwatched(client, text(command, "issuer")).clock(clock).start();
          default -> throw new IOException("the mode is not known: " + command.get("mode"));
        };
    return Map.of();
  }

  @SuppressWarnings("unchecked") // The keys of JSON objects are texts.
  private static Demands demands(Object value) {
    if (value == null) {
      return Demands.none();
    }
    Map<String, Object> members = (Map<String, Object>) value;
    Demands demands =
        Demands.none()
            .withAudience(text(members, "audience"))
            .withAcrValues(texts(members.get("acr_values")));
    for (String scope : texts(members.get("scopes"))) {
      demands = demands.withScope(scope);
    }
    if (members.get("max_authentication_age") instanceof Number age) {
      demands = demands.withMaxAuthenticationAge(Duration.ofSeconds(age.longValue()));
    }
    if (members.get("factors") instanceof List<?> factors) {
      for (Object each : factors) {
        Map<String, Object> factor = (Map<String, Object>) each;
        demands =
            factor.get("max_age") instanceof Number age
                ? demands.withRecentFactor(
                    text(factor, "method"), Duration.ofSeconds(age.longValue()))
                : demands.withFactor(text(factor, "method"));
      }
    }
    return demands;
  }

  private static Map<String, ?> describe(Answer answer) {
    if (answer instanceof Answer.Active active) {
      return Map.of("answer", "ACTIVE", "subject", active.session().subject());
    }
    if (answer instanceof Answer.Inactive inactive) {
      return Map.of("answer", "INACTIVE", "reason", inactive.reason().name());
    }
    return Map.of("answer", "UNKNOWN");
  }

  private Map<String, ?> guard(Map<String, Object> command) throws Exception {
    ProtectionFilter filter = new ProtectionFilter(verifier, demands(command.get("demands")));
    if (command.containsKey("cookie")) {
      filter = filter.withCookie(text(command, "cookie"));
    }
    if (command.containsKey("realm")) {
      filter = filter.withRealm(text(command, "realm"));
    }
    List<Map.Entry<String, String>> headers = new ArrayList<>();
    for (Object pair : (List<?>) command.get("headers")) {
      List<String> words = texts(pair);
      headers.add(Map.entry(words.get(0), words.get(1)));
    }
    try (GuardedServer server = new GuardedServer(filter)) {
      GuardedServer.Reply reply = server.send(headers);
      Map<String, Object> answer = new LinkedHashMap<>();
      answer.put("status", reply.status());
      if (reply.challenge() != null) {
        answer.put("challenge", reply.challenge());
      }
      if (reply.status() == 200) {
        answer.put("subject", reply.body());
      }
      return answer;
    }
  }

  private Map<String, ?> create(Map<String, Object> command) {
    CreateSessionRequest request =
        CreateSessionRequest.newBuilder()
            .setSubject(text(command, "subject"))
            .addAllScopes(texts(command.get("scopes")))
            .setTenant(text(command, "tenant"))
            .addAllAudience(texts(command.get("audience")))
            .build();
    CreateSessionResponse answer = client.createSession(request);
    return Map.of(
        "session_id", answer.getSession().getSessionId(),
        "access_token", answer.getTokens().getAccessToken(),
        "refresh_token", answer.getTokens().getRefreshToken());
  }

  private Map<String, ?> validate(Map<String, Object> command) {
    ValidateResponse answer =
        client.validate(
            ValidateRequest.newBuilder().setAccessToken(text(command, "token")).build());
    if (answer.getActive()) {
      return Map.of("answer", "ACTIVE", "subject", answer.getSubject());
    }
    String reason = answer.getInactiveReason().name().replace("INACTIVE_REASON_", "");
    return Map.of("answer", "INACTIVE", "reason", reason);
  }

  /** An application that works in the background, as fast as it can with one call at a time. */
  private static final class Load extends Thread {
    private static final int MAX_ERRORS = 10;

    private final Client client;
    private final Verifier verifier;
    private final String subject;
    private final List<String> errors = new ArrayList<>();
    private volatile boolean isEnding;
    private long rounds;
    private long failed;

    Load(Client client, Verifier verifier, String subject) {
      this.client = client;
      this.verifier = verifier;
      this.subject = subject;
      setDaemon(true);
    }

    @Override
    public void run() {
      while (!isEnding) {
        try {
          round();
        } catch (CountersignException e) {
          fail(e.getMessage());
        }
        rounds++;
      }
    }

    private void round() {
      CreateSessionResponse created =
          client.createSession(CreateSessionRequest.newBuilder().setSubject(subject).build());
      expect(created.getTokens().getAccessToken(), true);
      RefreshResponse refreshed =
          client.refresh(
              RefreshRequest.newBuilder()
                  .setRefreshToken(created.getTokens().getRefreshToken())
                  .build());
      String token = refreshed.getTokens().getAccessToken();
      expect(token, true);
      client.revoke(RevokeRequest.newBuilder().setToken(token).build());
      expect(token, false);
    }

    private void expect(String token, boolean isActive) {
      Answer answer = verifier.verify(token, Demands.none());
      boolean isExpected =
          isActive
              ? answer.activeSession().map(Session::subject).filter(subject::equals).isPresent()
              : answer.inactiveReason().isPresent();
      if (!isExpected) {
        fail("the answer is " + answer + ", and the token is " + (isActive ? "good" : "revoked"));
      }
    }

    private void fail(String error) {
      failed++;
      if (errors.size() < MAX_ERRORS) {
        errors.add(error);
      }
    }

    Map<String, ?> end() throws InterruptedException {
      isEnding = true;
      join();
      return Map.of("rounds", rounds, "failed", failed, "errors", errors);
    }
  }
}
