package dev.countersign.client;

import static dev.countersign.client.support.TestService.eventually;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.countersign.client.support.Certificates;
import dev.countersign.client.support.TestService;
import dev.countersign.client.testing.SettableClock;
import dev.countersign.v1.CreateSessionRequest;
import dev.countersign.v1.CreateSessionResponse;
import dev.countersign.v1.GetJwksRequest;
import dev.countersign.v1.ListAuditRequest;
import dev.countersign.v1.ListKeysRequest;
import dev.countersign.v1.ListRevocationsRequest;
import dev.countersign.v1.ListSessionsRequest;
import dev.countersign.v1.RefreshRequest;
import dev.countersign.v1.RefreshResponse;
import dev.countersign.v1.RevokeKeyRequest;
import dev.countersign.v1.RevokeRequest;
import dev.countersign.v1.RotateKeyRequest;
import dev.countersign.v1.SubjectTarget;
import dev.countersign.v1.ValidateRequest;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Tests against the real service, on SQLite. */
final class LiveTest {
  private static final Duration PATIENCE = Duration.ofSeconds(30);

  private static Client patient(TestService service) {
    return builder(service).build();
  }

  private static ClientBuilder builder(TestService service) {
    return Client.builder(service.url()).deadline(PATIENCE).revocationDeadline(PATIENCE);
  }

  private static Verifier watching(Client client, Verifier.OnLapse onLapse)
      throws InterruptedException {
    Verifier verifier = Verifier.local(client).onLapse(onLapse).start();
    assertTrue(verifier.awaitReady(PATIENCE));
    return verifier;
  }

  private static Verifier refusing(Client client) throws InterruptedException {
    return watching(client, Verifier.OnLapse.REFUSE);
  }

  private static CreateSessionResponse signIn(Client client, String subject) {
    return client.createSession(
        CreateSessionRequest.newBuilder()
            .setSubject(subject)
            .setTenant("acme")
            .setClientId("web")
            .addScopes("read")
            .addAmr("pwd")
            .setClaims(JsonStructs.toStruct(Map.of("plan", "gold", "seats", 7)))
            .build());
  }

  private static String token(CreateSessionResponse created) {
    return created.getTokens().getAccessToken();
  }

  private static void revoke(Client client, String token) {
    client.revoke(RevokeRequest.newBuilder().setToken(token).build());
  }

  /** Returns the answer that a verifier has once it has a lease. */
  private static String settled(Verifier verifier, String token) {
    eventually(
        "a lease",
        () -> !(verifier.verifyLocally(token, Demands.none()) instanceof Answer.Unknown));
    return Vectors.word(verifier.verifyLocally(token, Demands.none()));
  }

  @Test
  void aRevokedTokenIsInactiveBeforeRevokeReturns() throws Exception {
    try (TestService service = TestService.started();
        Client client = patient(service);
        Verifier local = refusing(client)) {
      Verifier remote = Verifier.remote(client);
      for (int round = 0; round < 20; round++) {
        CreateSessionResponse created = signIn(client, "alice");
        String first = token(created);
        RefreshResponse refreshed =
            client.refresh(
                RefreshRequest.newBuilder()
                    .setRefreshToken(created.getTokens().getRefreshToken())
                    .build());
        String second = refreshed.getTokens().getAccessToken();
        assertEquals("ACTIVE", settled(local, first));
        assertEquals("ACTIVE", settled(local, second));
        assertTrue(
            client
                .validate(ValidateRequest.newBuilder().setAccessToken(first).build())
                .getActive());
        assertTrue(remote.verify(second, Demands.none()).isActive());
        revoke(client, first);
        assertEquals("REVOKED", settled(local, first));
        assertEquals("REVOKED", settled(local, second));
        assertEquals("REVOKED", Vectors.word(remote.verify(second, Demands.none())));
      }
      Verifier.Status status = local.status();
      assertEquals(20, status.revocations());
      assertEquals(1, status.connections());
      assertEquals(1, status.resets());
      assertTrue(status.lag().toMillis() < 5_000);
      assertTrue(local.counts().get("revoked") >= 40);
    }
  }

  @Test
  void eachKindOfRevocationReachesTheVerifier() throws Exception {
    try (TestService service = TestService.started();
        Client client = patient(service);
        Verifier local = refusing(client)) {
      String alice = token(signIn(client, "alice"));
      String bob = token(signIn(client, "bob"));
      assertEquals("ACTIVE", settled(local, alice));
      SubjectTarget subject =
          SubjectTarget.newBuilder().setTenant("acme").setSubject("alice").build();
      client.revoke(RevokeRequest.newBuilder().setSubject(subject).build());
      assertEquals("REVOKED", settled(local, alice));
      assertEquals("ACTIVE", settled(local, bob));
      FakeReplica.pause(2);
      String later = token(signIn(client, "alice"));
      assertEquals("ACTIVE", settled(local, later));
      client.revoke(RevokeRequest.newBuilder().setTenant("acme").build());
      assertEquals("REVOKED", settled(local, bob));
      assertEquals("REVOKED", settled(local, later));
      FakeReplica.pause(2);
      String next = token(signIn(client, "bob"));
      assertEquals("ACTIVE", settled(local, next));
      String header = next.substring(0, next.indexOf('.'));
      String text = new String(Base64.getUrlDecoder().decode(header), StandardCharsets.UTF_8);
      String keyId = (String) Vectors.parse(text).get("kid");
      client.revokeKey(RevokeKeyRequest.newBuilder().setKid(keyId).build());
      assertEquals("REVOKED", settled(local, next));
      assertEquals("ACTIVE", settled(local, token(signIn(client, "bob"))));
      assertFalse(client.getJwks(GetJwksRequest.getDefaultInstance()).getJwks().contains(keyId));
    }
  }

  @Test
  void theSessionIsTheSameInAllModes() throws Exception {
    try (TestService service = TestService.started();
        Client client = patient(service);
        Verifier local = refusing(client);
        Verifier unwatched = Verifier.localUnwatched(client, TestService.ISSUER).start()) {
      assertTrue(unwatched.awaitReady(PATIENCE));
      String token = token(signIn(client, "alice"));
      assertEquals("ACTIVE", settled(local, token));
      Demands demands = Demands.none().withAudience(TestService.AUDIENCE).withScope("read");
      Session session = local.verify(token, demands).activeSession().orElseThrow();
      Object expected = Vectors.comparable(Vectors.describe(session));
      for (Verifier verifier : List.of(Verifier.remote(client), unwatched)) {
        Session other = verifier.verify(token, demands).activeSession().orElseThrow();
        assertEquals(expected, Vectors.comparable(Vectors.describe(other)));
      }
      assertEquals("alice", session.subject());
      assertEquals("alice", session.getName());
      assertEquals("acme", session.tenant());
      assertEquals("gold", session.claim("plan").orElseThrow());
      assertEquals(7L, session.claim("seats").orElseThrow());
      assertFalse(session.claim("other").isPresent());
      assertEquals("Session[" + session.id() + "]", session.toString());
      Demands wrong = demands.withScope("write");
      for (Verifier verifier : List.of(Verifier.remote(client), local, unwatched)) {
        assertEquals("INSUFFICIENT_SCOPE", Vectors.word(verifier.verify(token, wrong)));
        for (String bad : List.of("", "a.b", "\ud800", "x".repeat(8193))) {
          assertEquals("MALFORMED", Vectors.word(verifier.verify(bad, demands)));
        }
      }
    }
  }

  @Test
  void theLeaseLapsesWhenTheServiceIsKilledAndAfterARestartNoRevokedTokenIsActive()
      throws Exception {
    try (TestService service = TestService.started();
        Client client = patient(service);
        Verifier refusing = refusing(client);
        Verifier asking =
            watching(client.withDeadline(Duration.ofMillis(500)), Verifier.OnLapse.VALIDATE)) {
      String good = token(signIn(client, "alice"));
      String gone = token(signIn(client, "bob"));
      assertEquals("ACTIVE", settled(refusing, good));
      revoke(client, gone);
      service.kill();
      assertEquals("REVOKED", Vectors.word(refusing.verify(gone, Demands.none())));
      eventually("the lease ends", () -> refusing.status().lease().isZero());
      Answer.Unknown unknown =
          assertInstanceOf(Answer.Unknown.class, refusing.verify(good, Demands.none()));
      assertEquals(Answer.Unknown.Cause.NO_LEASE, unknown.cause());
      eventually("the lease ends", () -> asking.status().lease().isZero());
      unknown = assertInstanceOf(Answer.Unknown.class, asking.verify(good, Demands.none()));
      assertEquals(Answer.Unknown.Cause.NOT_ANSWERED, unknown.cause());
      assertEquals(Reason.UNREACHABLE, unknown.error().reason());
      service.start();
      assertEquals("ACTIVE", settled(refusing, good));
      assertEquals("REVOKED", settled(refusing, gone));
      assertTrue(refusing.status().connections() >= 2);
      assertTrue(refusing.status().resets() >= 2);
      // Without a lease the service answers.
      service.suspend();
      eventually("the lease ends", () -> asking.status().lease().isZero());
      unknown = assertInstanceOf(Answer.Unknown.class, asking.verify(good, Demands.none()));
      assertEquals(Reason.DEADLINE_EXCEEDED, unknown.error().reason());
      service.resume();
      assertEquals("ACTIVE", settled(asking, good));
    }
  }

  @Test
  void aClockThatJumpsVoidsTheLeaseAndAWrongClockNeverGetsOne() throws Exception {
    try (TestService service = TestService.started();
        Client client = patient(service)) {
      SettableClock clock = new SettableClock(Instant.now());
      SettableClock wrong = new SettableClock(Instant.now().minusSeconds(60));
      try (Verifier verifier =
              Verifier.local(client).clock(clock).onLapse(Verifier.OnLapse.REFUSE).start();
          Verifier never =
              Verifier.local(client).clock(wrong).onLapse(Verifier.OnLapse.REFUSE).start();
          Verifier asking = Verifier.local(client).clock(wrong).start()) {
        assertTrue(verifier.awaitReady(PATIENCE));
        String token = token(signIn(client, "alice"));
        assertEquals("ACTIVE", settled(verifier, token));
        clock.jumpTo(clock.now().plusSeconds(2));
        assertEquals("ACTIVE", settled(verifier, token), "it renews");
        assertFalse(never.awaitReady(Duration.ofSeconds(2)));
        assertEquals("UNKNOWN", Vectors.word(never.verify(token, Demands.none())));
        // A verifier that may ask has the answer of the service.
        assertEquals("ACTIVE", Vectors.word(asking.verify(token, Demands.none())));
        revoke(client, token);
        assertEquals("REVOKED", Vectors.word(asking.verify(token, Demands.none())));
      }
    }
  }

  @Test
  void aVerifierThatStartsBeforeTheServiceWaitsForIt() throws Exception {
    try (TestService service = new TestService("");
        Client client = Client.builder(service.url()).build();
        Verifier verifier = Verifier.local(client).onLapse(Verifier.OnLapse.REFUSE).start();
        Verifier closed = Verifier.local(client).onLapse(Verifier.OnLapse.REFUSE).start()) {
      assertFalse(verifier.awaitReady(Duration.ofMillis(100)));
      assertEquals("UNKNOWN", Vectors.word(verifier.verify("a.b.c", Demands.none())));
      service.start();
      assertTrue(verifier.awaitReady(PATIENCE));
      String token = token(signIn(client.withDeadline(PATIENCE), "alice"));
      assertEquals("ACTIVE", settled(verifier, token));
      assertEquals("ACTIVE", settled(closed, token));
      end(closed);
      assertEquals("UNKNOWN", Vectors.word(closed.verify(token, Demands.none())));
    }
  }

  @Test
  void anUnwatchedVerifierAcceptsARevokedTokenUntilItExpires() throws Exception {
    try (TestService service = TestService.started();
        Client client = patient(service)) {
      SettableClock clock = new SettableClock(Instant.now());
      try (Verifier verifier =
              Verifier.localUnwatched(client, TestService.ISSUER).clock(clock).start();
          Verifier brief =
              Verifier.localUnwatched(client, TestService.ISSUER)
                  .keysValidFor(Duration.ofSeconds(30))
                  .clock(clock)
                  .start();
          Verifier other =
              Verifier.localUnwatched(client, "https://other.test").clock(clock).start()) {
        for (Verifier each : List.of(verifier, brief, other)) {
          assertTrue(each.awaitReady(PATIENCE));
        }
        String token = token(signIn(client, "alice"));
        revoke(client, token);
        assertEquals("ACTIVE", Vectors.word(verifier.verify(token, Demands.none())));
        assertEquals("WRONG_ISSUER", Vectors.word(other.verify(token, Demands.none())));
        // After two rotations a token has a key that did not exist before.
        for (int rotation = 0; rotation < 2; rotation++) {
          client.rotateKey(RotateKeyRequest.newBuilder().setForce(true).build());
        }
        String later = token(signIn(client, "alice"));
        eventually("the keys are fetched", () -> verifier.verify(later, Demands.none()).isActive());
        service.kill();
        clock.advance(Duration.ofSeconds(29));
        assertEquals("ACTIVE", Vectors.word(brief.verify(token, Demands.none())));
        clock.advance(Duration.ofSeconds(2));
        assertEquals("UNKNOWN", Vectors.word(brief.verify(token, Demands.none())));
        clock.advance(Duration.ofMinutes(50));
        assertEquals("EXPIRED", Vectors.word(verifier.verify(token, Demands.none())));
      }
    }
  }

  @Test
  void callersIdentifyByAnApiKeyOrAClientCertificate(@TempDir Path folder) throws Exception {
    Certificates certificates = new Certificates(folder);
    certificates.issue("server", "dns:localhost,ip:127.0.0.1");
    certificates.issue("shop", "dns:shop.test");
    TestService.Caller login = TestService.caller("login", "roles = ['issuer', 'validator']");
    String settings =
        login.table()
            + "[[callers]]\nname = 'shop'\ncertificate_names = ['dns:shop.test']\n"
            + "roles = ['validator']\n[tls]\ncertificate_file = '"
            + certificates.path("server.pem")
            + "'\nprivate_key_file = '"
            + certificates.path("server.key")
            + "'\nclient_ca_file = '"
            + certificates.path("ca.pem")
            + "'\n";
    try (TestService service = new TestService(settings)) {
      service.start();
      String url = "https://" + service.address();
      byte[] authority = certificates.read("ca.pem");
      CreateSessionRequest request = CreateSessionRequest.newBuilder().setSubject("alice").build();
      try (Client nobody = Client.builder(url).deadline(PATIENCE).caCertificate(authority).build();
          Client issuer =
              Client.builder(url)
                  .deadline(PATIENCE)
                  .caCertificate(authority)
                  .apiKey(login.key())
                  .build();
          Client shop =
              Client.builder(url)
                  .deadline(PATIENCE)
                  .caCertificate(authority)
                  .clientCertificate(certificates.read("shop.pem"), certificates.read("shop.key"))
                  .build();
          Client untrusting = Client.builder(url).deadline(Duration.ofMillis(300)).build();
          Client named =
              Client.builder(url)
                  .deadline(Duration.ofMillis(300))
                  .caCertificate(authority)
                  .serverName("other.test")
                  .build();
          Client local =
              Client.builder(url)
                  .deadline(PATIENCE)
                  .caCertificate(authority)
                  .serverName("localhost")
                  .apiKey(login.key())
                  .build();
          Verifier verifier = refusing(shop)) {
        assertEquals(Reason.CALLER_UNKNOWN, reason(nobody, request));
        assertEquals(Reason.CALLER_NOT_ALLOWED, reason(shop, request));
        assertEquals(Reason.UNREACHABLE, reason(untrusting, request));
        assertEquals(Reason.UNREACHABLE, reason(named, request));
        String token = token(issuer.createSession(request));
        local.createSession(request);
        assertEquals("ACTIVE", settled(verifier, token));
        assertTrue(Verifier.remote(shop).verify(token, Demands.none()).isActive());
      }
    }
  }

  private static void end(AutoCloseable resource) throws Exception {
    resource.close();
  }

  private static Reason reason(Client client, CreateSessionRequest request) {
    return assertThrows(CountersignException.class, () -> client.createSession(request)).reason();
  }

  @Test
  void aCallerThatIsLimitedToATenantAcceptsNoTokenOfOthers() throws Exception {
    TestService.Caller shop =
        TestService.caller("shop", "roles = ['validator']\ntenants = ['globex']");
    TestService.Caller admin = TestService.caller("admin", "roles = ['admin']");
    try (TestService service = new TestService(shop.table() + admin.table())) {
      service.start();
      try (Client all = builder(service).apiKey(admin.key()).build();
          Client limited = builder(service).apiKey(shop.key()).build();
          Verifier verifier = refusing(limited)) {
        CreateSessionRequest ofGlobex =
            CreateSessionRequest.newBuilder().setSubject("alice").setTenant("globex").build();
        String ours = token(all.createSession(ofGlobex));
        String gone = token(all.createSession(ofGlobex));
        String theirs = token(signIn(all, "alice"));
        revoke(all, gone);
        revoke(all, theirs);
        assertEquals("ACTIVE", settled(verifier, ours));
        assertEquals("REVOKED", settled(verifier, gone));
        assertEquals("FOREIGN_TENANT", settled(verifier, theirs));
        assertEquals(1, verifier.status().revocations());
        // The other services answer, too.
        assertFalse(all.listKeys(ListKeysRequest.getDefaultInstance()).getKeysList().isEmpty());
        all.listAudit(ListAuditRequest.getDefaultInstance());
        all.listRevocations(ListRevocationsRequest.getDefaultInstance());
        assertEquals(
            2,
            all.listSessions(ListSessionsRequest.newBuilder().setTenant("globex").build())
                .getSessionsCount());
      }
    }
  }

  @Test
  void theLogHoldsNoToken() throws Exception {
    List<String> lines = new CopyOnWriteArrayList<>();
    Handler handler =
        new Handler() {
          @Override
          public void publish(LogRecord record) {
            lines.add(record.getMessage() + List.of(record.getParameters()));
          }

          @Override
          public void flush() {}

          @Override
          public void close() {}
        };
    Logger logger = Logger.getLogger("dev.countersign.client");
    logger.addHandler(handler);
    logger.setLevel(Level.ALL);
    try (TestService service = TestService.started();
        Client client = builder(service).apiKey("cs_ck_topsecret0123456789").build();
        Verifier verifier =
            watching(client.withDeadline(Duration.ofMillis(300)), Verifier.OnLapse.VALIDATE)) {
      String token = token(signIn(client, "alice"));
      service.kill();
      eventually("the lease ends", () -> verifier.status().lease().isZero());
      assertEquals("UNKNOWN", Vectors.word(verifier.verify(token, Demands.none())));
      eventually("a line", () -> lines.toString().contains("the watch stream has ended"));
      String log = lines.toString();
      assertTrue(log.contains("could not be validated"), log);
      for (String part : List.of(token.split("\\.", -1))) {
        assertFalse(log.contains(part));
      }
      assertFalse(log.contains("topsecret"));
    } finally {
      logger.removeHandler(handler);
      logger.setLevel(null);
    }
  }
}
