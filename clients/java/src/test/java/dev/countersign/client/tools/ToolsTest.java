package dev.countersign.client.tools;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.nimbusds.jose.util.JSONObjectUtils;
import dev.countersign.client.internal.Json;
import dev.countersign.client.support.TestService;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

/** Starts the driver and the watcher as processes, with the real service. */
final class ToolsTest {
  private static final String AUDIENCE = TestService.AUDIENCE;

  /** A program that answers a line by a line. */
  private static final class Program implements AutoCloseable {
    private final Process process;
    private final OutputStream input;
    private final BufferedReader output;

    Program(Class<?> main, String... arguments) throws IOException {
      List<String> words =
          new ArrayList<>(
              List.of(
                  Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                  "-cp",
                  System.getProperty("java.class.path"),
                  main.getName()));
      words.addAll(List.of(arguments));
      process = new ProcessBuilder(words).redirectError(ProcessBuilder.Redirect.DISCARD).start();
      input = process.getOutputStream();
      output = process.inputReader(StandardCharsets.UTF_8);
    }

    void write(String line) throws IOException {
      input.write((line + "\n").getBytes(StandardCharsets.UTF_8));
      input.flush();
    }

    String ask(String line) throws IOException {
      write(line);
      return output.readLine();
    }

    Map<String, Object> tell(String command, Object... members) throws Exception {
      Map<String, Object> all = new LinkedHashMap<>();
      all.put("do", command);
      for (int index = 0; index < members.length; index += 2) {
        all.put((String) members[index], members[index + 1]);
      }
      return JSONObjectUtils.parse(ask(Json.encode(all)));
    }

    int end() throws IOException, InterruptedException {
      input.close();
      return process.waitFor();
    }

    @Override
    public void close() {
      process.destroyForcibly();
    }
  }

  private static List<List<String>> bearer(Object token) {
    return List.of(List.of("Authorization", "Bearer " + token));
  }

  @Test
  void theDriverCarriesOutEachCommand() throws Exception {
    try (TestService service = TestService.started();
        Program driver = new Program(Driver.class)) {
      assertEquals(Map.of("refused", true), driver.tell("connect", "endpoints", List.of("no url")));
      assertEquals(
          Map.of(),
          driver.tell("connect", "endpoints", List.of(service.url()), "deadline_ms", 9000));
      assertEquals(Map.of(), driver.tell("verifier", "mode", "local", "refuse", true));
      assertEquals(Map.of("ready", true), driver.tell("ready", "within_ms", 30_000));
      Map<String, Object> created =
          driver.tell("create", "subject", "alice", "scopes", List.of("read"), "tenant", "acme");
      Object token = created.get("access_token");
      Map<String, Object> active = Map.of("answer", "ACTIVE", "subject", "alice");
      Map<String, Object> demands = Map.of("audience", AUDIENCE, "scopes", List.of("read"));
      assertEquals(active, driver.tell("verify", "token", token, "demands", demands));
      assertEquals(active, driver.tell("validate", "token", token));
      Map<String, Object> passed =
          driver.tell("guard", "headers", bearer(token), "demands", demands);
      assertEquals(200L, passed.get("status"));
      assertEquals("alice", passed.get("subject"));
      assertNull(passed.get("challenge"));
      Map<String, Object> denied = driver.tell("guard", "headers", List.of(), "realm", "shop");
      assertEquals(401L, denied.get("status"));
      assertEquals("Bearer realm=\"shop\"", denied.get("challenge"));
      List<List<String>> cookie = List.of(List.of("Cookie", "session=" + token));
      assertEquals(
          "alice", driver.tell("guard", "headers", cookie, "cookie", "session").get("subject"));
      Map<String, Object> refreshed =
          driver.tell("refresh", "refresh_token", created.get("refresh_token"));
      assertNotEquals(token, refreshed.get("access_token"));
      assertEquals(
          Map.of("error", "REFRESH_TOKEN_INVALID"),
          driver.tell("refresh", "refresh_token", "cs_rt_bad"));
      assertEquals(Map.of(), driver.tell("revoke", "token", token));
      Map<String, Object> revoked = Map.of("answer", "INACTIVE", "reason", "REVOKED");
      assertEquals(revoked, driver.tell("verify", "token", refreshed.get("access_token")));
      assertEquals(revoked, driver.tell("validate", "token", token));
      assertEquals("INVALID_FIELD", driver.tell("create", "subject", "").get("error"));
      assertEquals(Map.of(), driver.tell("load", "subject", "bob"));
      Thread.sleep(500);
      Map<String, Object> load = driver.tell("load_end");
      assertEquals(0L, load.get("failed"), load.toString());
      assertTrue((Long) load.get("rounds") > 0, load.toString());
      // The lease is void, and the wall clock differs too much for another one.
      assertEquals(Map.of(), driver.tell("clock", "wall_ms", -60_000, "uptime_ms", 0));
      assertEquals(Map.of("answer", "UNKNOWN"), driver.tell("verify", "token", token));
      assertEquals(Map.of("ready", false), driver.tell("ready", "within_ms", 10));
      assertEquals(503L, driver.tell("guard", "headers", bearer(token)).get("status"));
      assertEquals(Map.of(), driver.tell("verifier", "mode", "remote"));
      assertEquals(revoked, driver.tell("verify", "token", token));
      assertEquals(0, driver.end());
    }
    try (Program driver = new Program(Driver.class)) {
      driver.write("{\"do\":\"something else\"}");
      assertEquals(1, driver.end());
    }
  }

  @Test
  void theWatcherAnswersEachLine() throws Exception {
    try (TestService service = TestService.started();
        Program driver = new Program(Driver.class);
        Program watcher = new Program(TortureWatcher.class, service.address())) {
      driver.tell("connect", "endpoints", List.of(service.url()), "deadline_ms", 9000);
      String token = (String) driver.tell("create", "subject", "alice").get("access_token");
      String answer = watcher.ask("1 " + token);
      for (int tries = 0; !answer.endsWith(" active") && tries < 1000; tries++) {
        Thread.sleep(10);
        answer = watcher.ask("1 " + token);
      }
      assertTrue(answer.matches("1 1 (\\d+) (\\d+) \\1 \\2 active"), answer);
      driver.tell("revoke", "token", token);
      answer = watcher.ask("2 " + token);
      assertTrue(answer.matches("2 1 (\\d+ ){4}inactive REVOKED"), answer);
      watcher.write("clock 60000000000 0");
      answer = watcher.ask("3 " + token);
      assertTrue(answer.matches("3 1 (\\d+ ){4}unknown NO_LEASE"), answer);
      assertEquals(0, watcher.end());
    }
  }
}
