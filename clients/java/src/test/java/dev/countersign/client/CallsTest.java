package dev.countersign.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.DebugFormat;
import com.google.protobuf.Descriptors;
import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Struct;
import dev.countersign.client.support.TestService;
import dev.countersign.v1.AuditServiceOuterClass;
import dev.countersign.v1.CreateSessionRequest;
import dev.countersign.v1.GetSessionRequest;
import dev.countersign.v1.KeyServiceOuterClass;
import dev.countersign.v1.ReauthenticateRequest;
import dev.countersign.v1.RefreshRequest;
import dev.countersign.v1.SessionServiceOuterClass;
import io.grpc.Context;
import io.grpc.Metadata;
import io.grpc.Status;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.Test;

/** Calls to replicas in this process. */
final class CallsTest {
  private static final Duration PATIENCE = Duration.ofSeconds(30);
  private static final CreateSessionRequest CREATE =
      CreateSessionRequest.newBuilder().setSubject("alice").build();
  private static final RefreshRequest REFRESH = RefreshRequest.getDefaultInstance();
  private static final GetSessionRequest GET = GetSessionRequest.getDefaultInstance();

  private static Client patient(String... urls) {
    return builder(urls).deadline(PATIENCE).revocationDeadline(PATIENCE).build();
  }

  private static ClientBuilder builder(String... urls) {
    ClientBuilder builder = Client.builder(urls[0]);
    for (int index = 1; index < urls.length; index++) {
      builder.endpoint(urls[index]);
    }
    return builder;
  }

  private static CountersignException refused(Runnable call) {
    return assertThrows(CountersignException.class, call::run);
  }

  @Test
  void aRequestIdIsMadeOncePerLogicalCall() throws IOException {
    try (FakeReplica replica =
            new FakeReplica(
                number -> {
                  if (number < 3) {
                    throw FakeReplica.refusal(Status.Code.UNAVAILABLE, "STORE_UNAVAILABLE", 0);
                  }
                });
        Client client = patient(replica.url())) {
      client.createSession(CREATE);
      client.createSession(CREATE);
      client.createSession(CREATE.toBuilder().setRequestId("mine").build());
      client.reauthenticate(ReauthenticateRequest.getDefaultInstance());
      List<String> ids = replica.requestIds;
      assertEquals(6, ids.size());
      assertEquals(36, ids.get(0).length());
      assertEquals(1, new HashSet<>(ids.subList(0, 3)).size());
      assertNotEquals(ids.get(0), ids.get(3));
      assertEquals("mine", ids.get(4));
      assertEquals(36, ids.get(5).length());
    }
  }

  @Test
  void aRefreshIsRepeatedOnlyIfTheServiceHasDoneNothing() throws IOException {
    try (FakeReplica replica =
            new FakeReplica(
                number -> {
                  String reason = number == 1 ? "NOT_CURRENT" : "STORE_UNAVAILABLE";
                  throw FakeReplica.refusal(Status.Code.UNAVAILABLE, reason, 0);
                });
        Client client = patient(replica.url())) {
      CountersignException failed = refused(() -> client.refresh(REFRESH));
      assertEquals(Reason.STORE_UNAVAILABLE, failed.reason());
      assertTrue(failed.isTemporary());
      assertFalse(failed.isRefused());
      assertEquals(2, replica.calls.get());
    }
  }

  @Test
  void aConnectionThatIsLostDuringTheCallLeavesItsEffectOpen() throws IOException {
    try (ServerSocket dying = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        FakeReplica other = FakeReplica.good();
        Client client = patient("http://127.0.0.1:" + dying.getLocalPort(), other.url())) {
      Thread thread = new Thread(() -> dieDuringACall(dying));
      thread.start();
      CountersignException failed = refused(() -> client.refresh(REFRESH));
      assertEquals(Reason.UNREACHABLE, failed.reason());
      assertFalse(failed.isRefused());
      assertEquals(0, other.calls.get());
      // A call that has not left this process is repeated.
      try (Client another = patient("http://127.0.0.1:1", other.url())) {
        another.refresh(REFRESH);
      }
      try (Client nobody = builder("http://127.0.0.1:1").deadline(Duration.ofSeconds(2)).build()) {
        assertTrue(refused(() -> nobody.refresh(REFRESH)).isRefused());
      }
    }
  }

  /** Accepts a connection, and resets it once a call has begun. */
  private static void dieDuringACall(ServerSocket server) {
    try (Socket socket = server.accept()) {
      // An empty frame of the type SETTINGS (RFC 9113, section 6.5).
      socket.getOutputStream().write(new byte[] {0, 0, 0, 4, 0, 0, 0, 0, 0});
      byte[] buffer = new byte[4096];
      boolean hasCall = false;
      while (!hasCall) {
        int count = socket.getInputStream().read(buffer);
        String text = new String(buffer, 0, Math.max(count, 0), StandardCharsets.ISO_8859_1);
        hasCall = count < 0 || text.contains("countersign-client-java");
      }
      FakeReplica.pause(50);
      socket.setSoLinger(true, 0);
    } catch (IOException e) {
      throw new AssertionError(e);
    }
  }

  @Test
  void anotherReplicaAnswersIfOneIsGoneOrNotCurrent() throws IOException {
    try (FakeReplica stopping =
            new FakeReplica(
                number -> {
                  throw FakeReplica.refusal(Status.Code.UNAVAILABLE, "NOT_CURRENT", 30_000);
                });
        FakeReplica working = FakeReplica.good();
        Client client = patient("http://127.0.0.1:1", stopping.url(), working.url())) {
      for (int call = 0; call < 6; call++) {
        client.refresh(REFRESH);
      }
      assertEquals(6, working.calls.get());
      assertTrue(stopping.calls.get() <= 2, "a replica that fails is avoided");
    }
  }

  @Test
  void callsGoAroundTheReplicas() throws IOException {
    try (FakeReplica first = FakeReplica.good();
        FakeReplica second = FakeReplica.good();
        FakeReplica third = FakeReplica.good();
        Client client = patient(first.url(), second.url(), third.url())) {
      for (int call = 0; call < 6; call++) {
        client.getSession(GET);
      }
      assertEquals(
          List.of(2, 2, 2), List.of(first.calls.get(), second.calls.get(), third.calls.get()));
    }
  }

  @Test
  void noCallFailsWhileAReplicaStopsInGoodOrder() throws Exception {
    List<Throwable> failures = new CopyOnWriteArrayList<>();
    AtomicBoolean isStopped = new AtomicBoolean();
    try (FakeReplica stopping = new FakeReplica(number -> FakeReplica.pause(1));
        FakeReplica staying = new FakeReplica(number -> FakeReplica.pause(1));
        Client client = patient(stopping.url(), staying.url())) {
      List<Thread> threads = new ArrayList<>();
      for (int index = 0; index < 4; index++) {
        Thread thread =
            new Thread(
                () -> {
                  while (!isStopped.get()) {
                    client.refresh(REFRESH);
                  }
                });
        thread.setUncaughtExceptionHandler((failed, error) -> failures.add(error));
        thread.start();
        threads.add(thread);
      }
      TestService.eventually("calls", () -> stopping.calls.get() > 10);
      // This sends GOAWAY, and waits for the calls under way.
      stopping.server.shutdown();
      int before = staying.calls.get();
      TestService.eventually("more calls", () -> staying.calls.get() > before + 50);
      isStopped.set(true);
      for (Thread thread : threads) {
        thread.join();
      }
    }
    assertEquals(List.of(), failures);
  }

  @Test
  void aReplicaThatComesBackIsCalledAgain() throws IOException {
    int port;
    try (ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      port = socket.getLocalPort();
    }
    Duration deadline = Duration.ofSeconds(2);
    try (Client client = builder("http://127.0.0.1:" + port).deadline(deadline).build()) {
      for (int call = 0; call < 3; call++) {
        assertEquals(Reason.UNREACHABLE, refused(() -> client.getSession(GET)).reason());
      }
      // It connects at once, and not after the long pauses of gRPC.
      try (FakeReplica replica = new FakeReplica(port, number -> {})) {
        client.withDeadline(Duration.ofSeconds(1)).getSession(GET);
        assertEquals(1, replica.calls.get());
      }
    }
  }

  @Test
  void theWaitThatAServiceAsksForIsKept() throws IOException {
    long began = System.nanoTime();
    try (FakeReplica replica =
            new FakeReplica(
                number -> {
                  if (number == 1) {
                    throw FakeReplica.refusal(Status.Code.RESOURCE_EXHAUSTED, "OVERLOADED", 120);
                  }
                });
        FakeReplica idle = FakeReplica.good();
        Client client = patient(replica.url(), idle.url())) {
      client.refresh(REFRESH);
      assertTrue(System.nanoTime() - began >= 120_000_000);
      assertEquals(1, replica.calls.get());
      assertEquals(1, idle.calls.get());
    }
    try (FakeReplica replica =
            new FakeReplica(
                number -> {
                  throw FakeReplica.refusal(Status.Code.RESOURCE_EXHAUSTED, "OVERLOADED", 60_000);
                });
        Client client = patient(replica.url())) {
      CountersignException failed = refused(() -> client.refresh(REFRESH));
      assertEquals(Reason.OVERLOADED, failed.reason());
      assertEquals(Duration.ofMinutes(1), failed.retryAfter().orElseThrow());
      assertEquals(1, replica.calls.get());
    }
  }

  @Test
  void aCallEndsAtItsDeadline() throws IOException {
    Duration deadline = Duration.ofMillis(200);
    try (ServerSocket silent = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        FakeReplica hanging = new FakeReplica(number -> FakeReplica.hang());
        FakeReplica good = FakeReplica.good()) {
      for (String url : List.of("http://127.0.0.1:" + silent.getLocalPort(), hanging.url())) {
        long began = System.nanoTime();
        try (Client client = builder(url).deadline(deadline).build()) {
          CountersignException failed = refused(() -> client.getSession(GET));
          assertEquals(Status.Code.DEADLINE_EXCEEDED, failed.code());
          assertEquals(Reason.DEADLINE_EXCEEDED, failed.reason());
          assertFalse(failed.isTemporary());
        }
        long took = System.nanoTime() - began;
        assertTrue(took >= deadline.toNanos() && took < 10 * deadline.toNanos(), url);
      }
      try (Client client = patient(hanging.url(), good.url())) {
        Client brief = client.withDeadline(deadline);
        assertEquals(Reason.DEADLINE_EXCEEDED, refused(() -> brief.getSession(GET)).reason());
        for (int call = 0; call < 3; call++) {
          client.getSession(GET);
        }
        assertEquals(3, good.calls.get(), "a replica that is slow is avoided");
      }
      try (Client client = patient(hanging.url());
          Context.CancellableContext context = Context.current().withCancellation()) {
        new Thread(
                () -> {
                  FakeReplica.pause(50);
                  context.cancel(null);
                })
            .start();
        context.run(
            () -> {
              CountersignException failed = refused(() -> client.getSession(GET));
              assertEquals(Status.Code.CANCELLED, failed.code());
              assertFalse(failed.isTemporary());
            });
      }
    }
  }

  @Test
  void errorsHaveTheirReasonAndTheirDetails() throws IOException {
    try (FakeReplica replica =
            new FakeReplica(
                number -> {
                  if (number == 1) {
                    throw FakeReplica.refusal(Status.Code.INVALID_ARGUMENT, "INVALID_FIELD", 0);
                  }
                  if (number == 2) {
                    throw FakeReplica.refusal(Status.Code.ABORTED, "SOMETHING_NEW", 0);
                  }
                  throw Status.INTERNAL.withDescription("broken").asRuntimeException();
                });
        Client client = patient(replica.url())) {
      CountersignException failed = refused(() -> client.refresh(REFRESH));
      assertEquals("INVALID_FIELD (INVALID_ARGUMENT): refused by a test", failed.getMessage());
      assertEquals(
          List.of(new CountersignException.FieldViolation("subject", "is empty")), failed.fields());
      failed = refused(() -> client.refresh(REFRESH));
      assertEquals(Reason.OTHER, failed.reason());
      assertEquals("SOMETHING_NEW", failed.reasonName());
      failed = refused(() -> client.refresh(REFRESH));
      assertEquals("INTERNAL: broken", failed.getMessage());
    }
  }

  @Test
  void anObserverIsToldOfEachLogicalCall() throws IOException {
    List<String> seen = new CopyOnWriteArrayList<>();
    Metadata.Key<String> key = Metadata.Key.of("x-test", Metadata.ASCII_STRING_MARSHALLER);
    CallObserver observer =
        (service, method) -> {
          seen.add(service + " " + method);
          return new CallObserver.Call() {
            @Override
            public void addMetadata(Metadata metadata) {
              metadata.put(key, "observed");
            }

            @Override
            public void end(CountersignException error) {
              seen.add(error == null ? "good" : error.reasonName());
            }
          };
        };
    try (FakeReplica replica =
            new FakeReplica(
                number -> {
                  if (number == 1) {
                    throw FakeReplica.refusal(Status.Code.UNAVAILABLE, "NOT_CURRENT", 0);
                  }
                  if (number == 3) {
                    throw FakeReplica.refusal(Status.Code.NOT_FOUND, "SESSION_NOT_FOUND", 0);
                  }
                });
        Client client =
            builder(replica.url())
                .deadline(PATIENCE)
                .apiKey("cs_ck_1")
                .observer(observer)
                .build()) {
      client.getSession(GET);
      assertThrows(CountersignException.class, () -> client.getSession(GET));
      String service = "countersign.v1.SessionService GetSession";
      assertEquals(List.of(service, "good", service, "SESSION_NOT_FOUND"), seen);
      for (Metadata metadata : replica.metadata) {
        assertEquals("observed", metadata.get(key));
        Metadata.Key<String> authorization =
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
        assertEquals("Bearer cs_ck_1", metadata.get(authorization));
      }
      assertEquals(3, replica.metadata.size());
    }
  }

  @Test
  void wrongSettingsAreRefused() {
    byte[] text = "text".getBytes(StandardCharsets.UTF_8);
    for (String url : List.of("", "127.0.0.1:50051", "ftp://a", "http://", "http:///", "no url")) {
      assertThrows(BuildException.class, () -> Client.builder(url).build(), url);
    }
    assertThrows(
        BuildException.class, () -> Client.builder("https://a").caCertificate(text).build());
    byte[] damaged =
        "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"
            .getBytes(StandardCharsets.UTF_8);
    assertThrows(
        BuildException.class, () -> Client.builder("https://a").caCertificate(damaged).build());
    assertThrows(
        BuildException.class,
        () -> Client.builder("https://a").clientCertificate(text, text).build());
    assertThrows(
        BuildException.class, () -> Client.builder("http://a").caCertificate(damaged).build());
    assertThrows(BuildException.class, () -> Client.builder("http://a").apiKey("a\nb").build());
    assertThrows(
        IllegalArgumentException.class, () -> Client.builder("http://a").deadline(Duration.ZERO));
  }

  @Test
  void everyCallOfTheServicesIsThere() {
    Set<String> expected = new HashSet<>();
    for (Descriptors.FileDescriptor file :
        List.of(
            SessionServiceOuterClass.getDescriptor(),
            KeyServiceOuterClass.getDescriptor(),
            AuditServiceOuterClass.getDescriptor())) {
      for (Descriptors.ServiceDescriptor service : file.getServices()) {
        service
            .getMethods()
            .forEach(method -> expected.add(service.getFullName() + "/" + method.getName()));
      }
    }
    Set<String> actual = new HashSet<>();
    Methods.ALL.forEach(call -> actual.add(call.descriptor().getFullMethodName()));
    assertEquals(expected, actual);
  }

  @Test
  void everyFieldWithATokenOrClaimsIsRedacted() {
    int secrets = 0;
    for (Descriptors.FileDescriptor file :
        List.of(
            SessionServiceOuterClass.getDescriptor(),
            SessionServiceOuterClass.getDescriptor().getDependencies().get(0))) {
      for (Descriptors.Descriptor message : file.getMessageTypes()) {
        for (FieldDescriptor field : message.getFields()) {
          boolean isStruct =
              field.getJavaType() == FieldDescriptor.JavaType.MESSAGE
                  && field.getMessageType().getFullName().equals("google.protobuf.Struct");
          boolean isToken =
              Set.of("token", "access_token", "refresh_token").contains(field.getName());
          if (isStruct || isToken) {
            secrets++;
            assertTrue(field.getOptions().getDebugRedact(), field.getFullName());
          }
        }
      }
    }
    assertTrue(secrets >= 15, "fields with secrets: " + secrets);
    RefreshRequest request = RefreshRequest.newBuilder().setRefreshToken("topsecret").build();
    assertFalse(DebugFormat.singleLine().toString(request).contains("topsecret"));
    Struct claims = JsonStructs.toStruct(java.util.Map.of("plan", "topsecret"));
    CreateSessionRequest create = CreateSessionRequest.newBuilder().setClaims(claims).build();
    assertFalse(DebugFormat.singleLine().toString(create).contains("topsecret"));
  }

  @Test
  void nothingThatIsPrintedHoldsASecret() {
    ClientBuilder builder =
        Client.builder("http://127.0.0.1:1").apiKey("topsecret").deadline(Duration.ofSeconds(3));
    try (Client client = builder.build();
        Verifier verifier = Verifier.local(client).start()) {
      for (Object printed : List.of(builder, client, verifier, Verifier.remote(client))) {
        assertFalse(printed.toString().contains("topsecret"), printed.toString());
      }
      CountersignException failed =
          refused(
              () ->
                  client.refresh(RefreshRequest.newBuilder().setRefreshToken("topsecret").build()));
      assertFalse(failed.toString().contains("topsecret"), failed.toString());
      assertTrue(failed.getMessage().contains("UNREACHABLE"), failed.getMessage());
    }
  }
}
