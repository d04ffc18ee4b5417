package dev.countersign.client.support;

import com.nimbusds.jose.util.JSONObjectUtils;
import java.io.BufferedReader;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.text.ParseException;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.BooleanSupplier;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * The service as a process, which has the same address each time that it is started. The variable
 * {@code COUNTERSIGN} has the path of its binary.
 */
public final class TestService implements AutoCloseable {
  public static final String ISSUER = "https://auth.test";
  public static final String AUDIENCE = "https://orders.test";
  private static final long HANGS_SECONDS = 60;

  private final Path folder;
  private final Path file;
  private final String address;
  private Process process;

  /** Creates a folder, with these settings in addition to the usual ones. */
  public TestService(String settings) throws IOException {
    folder = Files.createTempDirectory("countersign");
    file = folder.resolve("countersign.toml");
    try (ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      address = "127.0.0.1:" + socket.getLocalPort();
    }
    String text =
        String.format(
            "issuer = '%s'%ndata_dir = '%s'%n[tokens]%ndefault_audience = '%s'%n%s",
            ISSUER, folder.resolve("data"), AUDIENCE, settings);
    Files.writeString(file, text);
  }

  /** Starts a service with the usual settings. */
  public static TestService started() throws IOException {
    TestService service = new TestService("");
    service.start();
    return service;
  }

  private static String binary() {
    return Objects.requireNonNull(
        System.getenv("COUNTERSIGN"), "COUNTERSIGN must have the path of the service's binary");
  }

  /** Returns a command of the service, without the settings in the environment of the test. */
  private static ProcessBuilder command(String... arguments) {
    List<String> words = new ArrayList<>(List.of(binary()));
    words.addAll(List.of(arguments));
    ProcessBuilder builder = new ProcessBuilder(words);
    Map<String, String> environment = builder.environment();
    environment.keySet().removeIf(name -> name.startsWith("COUNTERSIGN_"));
    environment.put("COUNTERSIGN_HTTP_LISTEN", "127.0.0.1:0");
    environment.put("COUNTERSIGN_SHUTDOWN__GRACE", "0s");
    return builder;
  }

  public String address() {
    return address;
  }

  public String url() {
    return "http://" + address;
  }

  /** Starts the service, and waits until it serves. */
  public void start() throws IOException {
    process = command("serve", "--listen", address, "--config", file.toString()).start();
    Process started = process;
    CompletableFuture<String> serving = new CompletableFuture<>();
    Thread reader =
        new Thread(
            () -> {
              StringBuilder log = new StringBuilder();
              try (BufferedReader lines = started.errorReader(StandardCharsets.UTF_8)) {
                for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                  log.append(line).append('\n');
                  if ("serving".equals(message(line))) {
                    serving.complete("");
                  }
                }
              } catch (IOException e) {
                log.append(e);
              }
              serving.complete("the service has ended: " + log);
            });
    reader.setDaemon(true);
    reader.start();
    try {
      String problem = serving.get(HANGS_SECONDS, TimeUnit.SECONDS);
      if (!problem.isEmpty()) {
        throw new AssertionError(problem);
      }
    } catch (InterruptedException | ExecutionException | TimeoutException e) {
      throw new AssertionError("the service does not start", e);
    }
  }

  private static Object message(String line) {
    try {
      return JSONObjectUtils.parse(line).get("message");
    } catch (ParseException e) {
      return null;
    }
  }

  /** Ends the process at once. */
  public void kill() {
    if (process == null) {
      return;
    }
    process.destroyForcibly();
    try {
      process.waitFor();
    } catch (InterruptedException e) {
      throw new AssertionError(e);
    }
  }

  /** Suspends the process. */
  public void suspend() throws IOException, InterruptedException {
    signal("STOP");
  }

  /** Lets a process that was suspended go on. */
  public void resume() throws IOException, InterruptedException {
    signal("CONT");
  }

  private void signal(String name) throws IOException, InterruptedException {
    new ProcessBuilder("kill", "-" + name, String.valueOf(process.pid())).start().waitFor();
  }

  /** A caller: its table in the configuration, and its API key. */
  public record Caller(String table, String key) {}

  /** Makes an API key, and the table of its caller with these settings. */
  public static Caller caller(String name, String settings) throws IOException {
    Process run = command("caller", "new", name, "--role", "validator").start();
    String output = new String(run.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    String key = find(output, "cs_ck_\\S+");
    String hash = find(output, "sha256:[^\"']+");
    String table =
        String.format("[[callers]]%nname = '%s'%nkey_hashes = ['%s']%n%s%n", name, hash, settings);
    return new Caller(table, key);
  }

  private static String find(String text, String pattern) {
    Matcher matcher = Pattern.compile(pattern).matcher(text);
    if (!matcher.find()) {
      throw new AssertionError("there is no key in the output of `countersign caller new`");
    }
    return matcher.group();
  }

  /** Waits until a condition holds. */
  public static void eventually(String what, BooleanSupplier holds) {
    long began = System.nanoTime();
    while (!holds.getAsBoolean()) {
      if (System.nanoTime() - began > TimeUnit.SECONDS.toNanos(HANGS_SECONDS)) {
        throw new AssertionError("not within a minute: " + what);
      }
      try {
        Thread.sleep(2);
      } catch (InterruptedException e) {
        throw new AssertionError(e);
      }
    }
  }

  @Override
  public void close() throws IOException {
    kill();
    try (Stream<Path> paths = Files.walk(folder)) {
      for (Path path : paths.sorted(Comparator.reverseOrder()).toList()) {
        Files.delete(path);
      }
    }
  }
}
