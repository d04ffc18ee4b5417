package dev.countersign.client.internal;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.countersign.client.testing.SettableClock;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.parallel.Isolated;

/** Tests of the parts of the decision that the vectors cannot reach. */
@Isolated("it measures memory")
final class CoreTest {
  private static final long NOW = Micros.ofSeconds(1_800_000_000);

  private static JsonReader reader(String text) throws JsonException {
    return new JsonReader(text.getBytes(StandardCharsets.UTF_8));
  }

  private static Claims claims(UUID session, String tenant, String subject, String client) {
    Claims.Builder claims = new Claims.Builder();
    claims.sessionId = session;
    claims.tokenId = UUID.randomUUID();
    claims.authenticationId = Ids.firstAuthentication(session);
    claims.tenant = tenant;
    claims.subject = subject;
    claims.clientId = client;
    claims.authenticatedAt = NOW;
    claims.expiresAt = NOW + Micros.ofSeconds(60);
    return claims.build();
  }

  @Test
  void valuesOfClaimsAreCheckedAtAnyDepth() throws JsonException {
    for (String good :
        List.of(
            "1e300",
            "-0",
            "{\"a\":{\"b\":[1,\"\\ud83d\\ude00\",null,true]}}",
            "[".repeat(127) + "]".repeat(127))) {
      JsonReader reader = reader(good);
      reader.check(0);
      reader.end();
    }
    for (String bad :
        List.of(
            "1e400",
            "{\"a\":1,\"\\u0061\":2}",
            "[{\"a\":1,\"a\":2}]",
            "\"\\ud83d\"",
            "\"\\ude00\\ud83d\"",
            "01",
            "1.",
            "tru",
            "\"\n\"",
            "[1,]",
            "{,}",
            "",
            "[".repeat(128) + "]".repeat(128))) {
      assertThrows(
          JsonException.class,
          () -> {
            JsonReader reader = reader(bad);
            reader.check(0);
            reader.end();
          },
          bad);
    }
    // Ignored values need only be JSON, at any depth.
    JsonReader deep = reader("[{\"a\":".repeat(20_000) + "\"\\ud83d\"" + "}]".repeat(20_000));
    deep.ignore();
    deep.end();
    byte[] notText = {'"', (byte) 0xff, '"'};
    assertThrows(JsonException.class, () -> new JsonReader(notText));
  }

  @Test
  void numbersKeepTheirValues() {
    assertEquals(
        Map.of("a", 1L, "b", 0.5, "c", new java.math.BigInteger("18446744073709551615")),
        Json.decode("{\"a\":1,\"b\":0.5,\"c\":18446744073709551615}"));
    Map<String, Object> members =
        Map.of("text", "é\"\\\n", "whole", 42L, "half", 0.5, "list", List.of(true));
    assertEquals(members, Json.fromStruct(Json.toStruct(members)));
    assertEquals(members, Json.decode(Json.encode(members)));
  }

  @Test
  void onlyTheCanonicalSpellingIsAnId() {
    String id = "0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22";
    assertEquals(UUID.fromString(id), Ids.parse(id));
    for (String wrong :
        List.of(
            id.toUpperCase(java.util.Locale.ROOT),
            id.replace("-", ""),
            "{" + id + "}",
            "",
            "0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b2",
            id + "0",
            "0190a5c87-f3e-7a51-9c44-2f6d0c8a1b22")) {
      assertNull(Ids.parse(wrong), wrong);
    }
    assertEquals(
        "0190a5c8-7f3e-8a51-9c44-2f6d0c8a1b22", Ids.firstAuthentication(Ids.parse(id)).toString());
    UUID session = Ids.newSession(NOW);
    assertEquals(7, session.version());
    assertEquals(2, session.variant());
    assertEquals(NOW / 1_000, Ids.createdMillis(session));
  }

  @Test
  void base64UrlHasOneSpelling() {
    assertEquals("a", new String(Base64Url.decode("YQ"), StandardCharsets.UTF_8));
    assertEquals("", new String(Base64Url.decode(""), StandardCharsets.UTF_8));
    for (String wrong : List.of("YQ==", "YR", "YWJ", "Y", "Y+", "Y/", "Y\n", "YQ\n", "é")) {
      assertNull(Base64Url.decode(wrong), wrong);
    }
  }

  @Test
  void instantsSaturate() {
    assertEquals(Long.MAX_VALUE, Micros.ofSeconds(Long.MAX_VALUE));
    assertEquals(Long.MIN_VALUE, Micros.ofSeconds(Long.MIN_VALUE));
    assertEquals(Long.MAX_VALUE, Micros.plus(Long.MAX_VALUE, 1));
    assertEquals(Long.MIN_VALUE, Micros.plus(Long.MIN_VALUE, -1));
    assertEquals(Long.MAX_VALUE, Micros.since(Long.MAX_VALUE, -1));
    assertEquals(0, Micros.since(1, 2));
    assertEquals(-1, Micros.seconds(-1));
    assertEquals(Micros.FOREVER, Micros.of(Duration.ofSeconds(Long.MAX_VALUE)));
  }

  @Test
  void onlyKeysWithAKnownAlgorithmAreUsed() throws Inactive {
    String x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    String set =
        "{\"keys\":[{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"alg\":\"EdDSA\",\"kid\":\"good\","
            + "\"x\":\""
            + x
            + "\"},{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"no-alg\",\"x\":\""
            + x
            + "\"},{\"kty\":\"oct\",\"alg\":\"HS256\",\"kid\":\"shared\",\"k\":\"c2VjcmV0\"},"
            + "{\"kty\":\"RSA\",\"alg\":\"RS256\",\"kid\":\"small\",\"n\":\"AQAB\",\"e\":\"AQAB\"},"
            + "{\"kty\":\"EC\",\"crv\":\"P-256\",\"alg\":\"ES256\",\"kid\":\"off\",\"x\":\""
            + x
            + "\",\"y\":\""
            + x
            + "\"},{\"kty\":\"AKP\",\"alg\":\"ML-DSA-44\",\"kid\":\"future\"}]}";
    KeySet keys = KeySet.read(set, List.of("bad"));
    assertEquals(5, keys.unusable());
    assertEquals("EdDSA", keys.find("good").algorithm());
    for (String name : List.of("bad", "no-alg", "shared", "small", "off", "future", "")) {
      assertThrows(Inactive.class, () -> keys.find(name), name);
    }
    KeySet revoked = KeySet.read(set, List.of("good"));
    assertThrows(Inactive.class, () -> revoked.find("good"));
    assertTrue(keys.includes(KeySet.NONE) && keys.includes(revoked));
    assertFalse(KeySet.NONE.includes(keys));
    assertFalse(KeySet.read(set.replace("11qY", "22qY"), List.of()).includes(keys));
    assertNull(KeySet.read("{}", List.of()));
    assertNull(KeySet.read("", List.of()));
    assertNull(KeySet.read("{\"keys\":1}", List.of()));
  }

  @Test
  void theCacheIsBoundedAndKeepsWhatIsUsed() {
    VerifiedCache cache = new VerifiedCache(1 << 20);
    Claims claims = claims(Ids.newSession(NOW), "", "alice", "");
    VerifiedCache.Key used = VerifiedCache.Key.of("used".getBytes(StandardCharsets.UTF_8));
    cache.add(used, new VerifiedToken("key", claims));
    for (int number = 0; number < 20_000; number++) {
      byte[] token = String.valueOf(number).getBytes(StandardCharsets.UTF_8);
      cache.add(VerifiedCache.Key.of(token), new VerifiedToken("key", claims));
      assertTrue(cache.get(used) != null, "it was used");
    }
    int bytes = 176 + claims.memory();
    assertTrue(cache.size() <= (1 << 20) / bytes && cache.size() > 500, "" + cache.size());
    VerifiedCache none = new VerifiedCache(0);
    none.add(used, new VerifiedToken("key", claims));
    assertEquals(0, none.size());
  }

  @Test
  void eachRevocationTakesAtMost64Bytes() {
    int count = 1_000_000;
    Random random = new Random(1);
    UUID[] ids = new UUID[count];
    for (int index = 0; index < count; index++) {
      ids[index] = new UUID(random.nextLong(), random.nextLong());
    }
    long before = usedMemory();
    Index index = new Index();
    for (UUID id : ids) {
      index.revoke(id, NOW);
      index.revoke(id, NOW);
    }
    long bytes = (usedMemory() - before) / count;
    assertEquals(count, index.size());
    assertTrue(bytes <= 64 && bytes >= 20, bytes + " bytes");
    for (UUID id : ids) {
      assertTrue(index.stops(claims(id, "", "", "")));
    }
    assertFalse(index.stops(claims(new UUID(1, 2), "", "", "")));
  }

  private static long usedMemory() {
    long least = Long.MAX_VALUE;
    for (int round = 0; round < 3; round++) {
      System.gc();
      Runtime runtime = Runtime.getRuntime();
      least = Math.min(least, runtime.totalMemory() - runtime.freeMemory());
    }
    return least;
  }

  @Test
  void expiredRevocationsAreDroppedAndNoOthers() {
    Index index = new Index();
    UUID[] ids = new UUID[2000];
    for (int number = 0; number < ids.length; number++) {
      ids[number] = Ids.newSession(NOW);
      index.revoke(ids[number], NOW + Micros.ofSeconds(number) + 1);
    }
    CutOff.Key tenant = CutOff.Key.of(false, "acme", "", "", false);
    index.revoke(tenant, new CutOff(NOW, null), NOW + Micros.ofSeconds(999));
    index.revoke(
        CutOff.Key.of(true, "", "", "", false), new CutOff(0, null), NOW + Micros.ofSeconds(1001));
    assertTrue(index.expire(NOW + Micros.ofSeconds(1000)));
    assertFalse(index.expire(NOW));
    index.purge();
    assertEquals(1000 + 1, index.size());
    for (int number = 0; number < ids.length; number++) {
      assertEquals(number >= 1000, index.stops(claims(ids[number], "", "", "")), "" + number);
    }
    assertTrue(index.isExpired(NOW + Micros.ofSeconds(1000)));
    assertFalse(index.isExpired(NOW + Micros.ofSeconds(1000) + 1));
    // The later of two expiries is kept.
    UUID again = Ids.newSession(NOW);
    index.revoke(again, NOW + Micros.ofSeconds(5000));
    index.revoke(again, NOW + Micros.ofSeconds(2000));
    index.expire(NOW + Micros.ofSeconds(3000));
    index.purge();
    assertTrue(index.stops(claims(again, "", "", "")));
    assertEquals(1, index.size());
  }

  @Test
  void eachKindOfCutOffCoversItsSessions() {
    UUID early = Ids.newSession(NOW - Micros.ofSeconds(10));
    Claims covered = claims(early, "acme", "alice", "web");
    record Case(boolean all, String tenant, String subject, String client, boolean covers) {}
    for (Case it :
        List.of(
            new Case(false, "acme", "", "", true),
            new Case(false, "other", "", "", false),
            new Case(false, "acme", "alice", "", true),
            new Case(false, "acme", "bob", "", false),
            new Case(false, "acme", "", "web", true),
            new Case(false, "acme", "", "app", false),
            new Case(true, "", "", "", true),
            new Case(true, "", "", "web", true),
            new Case(true, "", "", "app", false))) {
      for (boolean isByAuthentication : List.of(false, true)) {
        CutOff.Key key =
            CutOff.Key.of(it.all, it.tenant, it.subject, it.client, isByAuthentication);
        if (isByAuthentication && !it.subject.isEmpty()) {
          assertNull(key);
          continue;
        }
        Index index = new Index();
        long upTo = isByAuthentication ? NOW : NOW - Micros.ofSeconds(10);
        index.revoke(key, new CutOff(upTo, null), NOW);
        assertEquals(it.covers, index.stops(covered), it + " " + isByAuthentication);
        Index before = new Index();
        before.revoke(key, new CutOff(upTo - 1_000, null), NOW);
        assertFalse(before.stops(covered), it + " " + isByAuthentication);
      }
    }
    assertNull(CutOff.Key.of(false, "acme", "alice", "web", false));
    assertNull(CutOff.Key.of(true, "", "alice", "", false));
    assertNull(CutOff.Key.of(false, "a\nb", "", "", false));
    assertNull(CutOff.Key.of(false, "é".repeat(65), "", "", false));
  }

  @Test
  void revocationsAreUnited() {
    UUID spared = Ids.newSession(NOW);
    CutOff.Key key = CutOff.Key.of(false, "", "alice", "", false);
    Claims claims = claims(spared, "", "alice", "");
    Index index = new Index();
    index.revoke(key, new CutOff(NOW, spared), NOW);
    assertFalse(index.stops(claims));
    // An earlier revocation that does not reach the session changes nothing.
    index.revoke(key, new CutOff(NOW - Micros.ofSeconds(1), null), NOW);
    assertFalse(index.stops(claims));
    index.revoke(key, new CutOff(NOW, null), NOW);
    assertTrue(index.stops(claims));
    index.revoke(key, new CutOff(NOW + Micros.ofSeconds(1), spared), NOW);
    assertTrue(index.stops(claims), "it was covered before");
    assertEquals(1, index.size());
  }

  @Test
  void theIndexCanBeUsedByManyThreads() throws InterruptedException {
    Index index = new Index();
    List<UUID> revoked = new ArrayList<>();
    for (int number = 0; number < 500; number++) {
      UUID id = Ids.newSession(NOW);
      revoked.add(id);
      index.revoke(id, NOW + Micros.ofSeconds(100_000));
    }
    AtomicBoolean isMissing = new AtomicBoolean();
    AtomicBoolean isEnding = new AtomicBoolean();
    List<Thread> readers = new ArrayList<>();
    for (int number = 0; number < 3; number++) {
      Thread reader =
          new Thread(
              () -> {
                while (!isEnding.get()) {
                  for (UUID id : revoked) {
                    if (!index.stops(claims(id, "", "", ""))) {
                      isMissing.set(true);
                    }
                  }
                }
              });
      reader.start();
      readers.add(reader);
    }
    for (int number = 0; number < 200_000; number++) {
      index.revoke(Ids.newSession(NOW), NOW + number);
      if (number % 50_000 == 0) {
        index.expire(NOW + number);
        index.purge();
      }
    }
    isEnding.set(true);
    for (Thread reader : readers) {
      reader.join();
    }
    assertFalse(isMissing.get());
  }

  @Test
  void aLeaseThatIsTakenDuringTheLookUpDoesNotCoverIt() {
    SettableClock clock = new SettableClock(Instant.ofEpochSecond(1_800_000_000));
    Lease lease = new Lease(clock, 250_000);
    long second = 1_000_000_000;
    Lease.Held before = lease.load();
    lease.take(Lease.Start.read(clock), 2 * second);
    assertEquals(Lease.NOT_VALID, lease.check(before));
    assertEquals(clock.wallMicros(), lease.check(lease.load()));
    clock.advance(Duration.ofMillis(1999));
    assertTrue(lease.remaining() > 0);
    clock.advance(Duration.ofMillis(1));
    assertEquals(0, lease.remaining());
    for (int direction : new int[] {1, -1}) {
      lease.take(Lease.Start.read(clock), 2 * second);
      Instant now = clock.now();
      clock.jumpTo(now.plusMillis(250L * direction));
      assertTrue(lease.remaining() > 0, "within the margin");
      clock.jumpTo(now.plusMillis(251L * direction));
      assertEquals(0, lease.remaining());
    }
    lease.take(Lease.Start.read(clock), Lease.FOREVER);
    clock.jumpTo(Instant.EPOCH);
    assertEquals(Lease.FOREVER, lease.remaining());
  }

  private static String found(List<String> authorization, List<String> cookies) {
    Credential credential = Credential.find(authorization, cookies, "session");
    return credential.kind() + credential.token();
  }

  @Test
  void aTokenIsFoundInAHeaderOrACookie() {
    for (String good : List.of("Bearer t", "bearer t", "BEARER  t ", " Bearer t", "Bearer   t\t")) {
      assertEquals("TOKENt", found(List.of(good), List.of()), good);
    }
    for (String token : List.of("a.b-c_d~e+f/0", "t=", "t==")) {
      assertEquals("TOKEN" + token, found(List.of("Bearer " + token), List.of()));
    }
    for (String other :
        List.of("", "t", "Basic dDp0", "Bearert", "Beare", "Token t", "ſBearer t")) {
      assertEquals("NONE", found(List.of(other), List.of()), other);
    }
    for (String bad :
        List.of(
            "Bearer",
            "Bearer\tt",
            "Bearer \tt",
            "Bearer t u",
            "Bearer t,u",
            "Bearer =",
            "Bearer t=t",
            "Bearer é")) {
      assertEquals("TOKEN", found(List.of(bad), List.of()), bad);
      assertEquals("SEVERAL", found(List.of(bad), List.of("session=t")), bad);
    }
    for (String good :
        List.of(
            "session=t",
            " session = t ",
            "a=b; session=t; c=d",
            "session=\"t\"",
            "sessio=x;session=t;=;;",
            "session=; session=t")) {
      assertEquals("TOKENt", found(List.of(), List.of(good)), good);
      assertEquals("TOKENt", found(List.of("Bearer t"), List.of(good)), good);
      assertEquals("SEVERAL", found(List.of("Bearer u"), List.of(good)), good);
    }
    for (String none :
        List.of("", "Session=t", "xsession=t", "session", "a=session=t", "session=")) {
      assertEquals("NONE", found(List.of(), List.of(none)), none);
    }
    assertEquals("CONFLICTING_COOKIES", found(List.of(), List.of("session=t", "session=u")));
    assertEquals("SEVERAL", found(List.of("Bearer t", "Bearer t"), List.of()));
    assertEquals("SEVERAL", found(List.of("Basic x", "Bearer t"), List.of()));
    assertEquals("TOKEN", found(List.of(), List.of("session=a\u00ff")), "no text");
    assertEquals("TOKENé", found(List.of(), List.of("session=\u00c3\u00a9")), "UTF-8");
  }
}
