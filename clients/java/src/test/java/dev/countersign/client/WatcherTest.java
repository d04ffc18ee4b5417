package dev.countersign.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.ByteString;
import com.google.protobuf.Timestamp;
import dev.countersign.client.WatchMessages.EndException;
import dev.countersign.client.internal.LocalCopy;
import dev.countersign.client.support.TestService;
import dev.countersign.v1.RevokedId;
import dev.countersign.v1.ValidateResponse;
import dev.countersign.v1.WatchKeys;
import dev.countersign.v1.WatchRequest;
import dev.countersign.v1.WatchReset;
import dev.countersign.v1.WatchResponse;
import dev.countersign.v1.WatchRevocations;
import dev.countersign.v1.WatchRules;
import io.grpc.Server;
import io.grpc.ServerServiceDefinition;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.stub.ServerCalls;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.time.Instant;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;

/** Tests of a watcher that is handed messages, and of one that calls a server in this process. */
final class WatcherTest {
  private static final long NOW = 1_800_000_000;
  private static final String NO_KEYS = "{\"keys\":[]}";

  private static WatcherSite site() {
    WatcherSite site = new WatcherSite(Instant.ofEpochSecond(NOW));
    site.hear(WatchResponse.newBuilder().setReset(WatchReset.getDefaultInstance()));
    site.prepare(WatcherSite.rules("https://auth.test", 3600, 0), NO_KEYS);
    return site;
  }

  @Test
  void aCopyWithEarlierKeysGetsNoLaterLease() {
    WatcherSite site = site();
    LocalCopy former = site.local.copy();
    site.hearKeys(NO_KEYS, "gone");
    LocalCopy copy = site.local.copy();
    assertTrue(copy.lease().remaining() > 0, "there is no lapse while keys change");
    assertSame(former.index(), copy.index());
    site.clock.advance(java.time.Duration.ofSeconds(1));
    site.renew();
    site.hear(WatcherSite.lease(2, NOW + 1));
    site.clock.advance(java.time.Duration.ofMillis(1500));
    assertEquals(0, former.lease().remaining());
    assertTrue(copy.lease().remaining() > 0);
  }

  @Test
  void afterAResetThereIsNoLeaseAndTheFormerCopyStaysAsItWas() {
    WatcherSite site = site();
    LocalCopy former = site.local.copy();
    site.hear(WatchResponse.newBuilder().setReset(WatchReset.getDefaultInstance()));
    assertEquals(0, site.local.copy().lease().remaining());
    assertTrue(former.lease().remaining() > 0);
    assertEquals(ByteString.EMPTY, site.open());
    assertEquals(2, site.local.resets());
  }

  @Test
  void aFirstLeaseNeedsTheRulesAndTheKeysOfItsStream() {
    for (boolean hasRules : List.of(false, true)) {
      WatcherSite site = site();
      site.open();
      if (hasRules) {
        site.hearRules(WatcherSite.rules("https://auth.test", 3600, 0));
      } else {
        site.hearKeys(NO_KEYS);
      }
      site.renew();
      assertThrows(EndException.class, () -> site.receive(WatcherSite.lease(1, NOW).build()));
      assertEquals(0, site.local.copy().lease().remaining());
    }
  }

  @Test
  void onlyTheRenewalsThatWaitAreAnswered() {
    WatcherSite site = site();
    for (int number = 2; number < 70; number++) {
      site.renew();
    }
    // Number 2 was forgotten, because 64 wait at most.
    assertThrows(EndException.class, () -> site.receive(WatcherSite.lease(2, NOW).build()));
    WatcherSite other = site();
    other.renew();
    other.renew();
    other.hear(WatcherSite.lease(3, NOW));
    for (int number : new int[] {2, 3, 4}) {
      WatcherSite again = site();
      again.renew();
      again.renew();
      again.hear(WatcherSite.lease(3, NOW));
      assertThrows(EndException.class, () -> again.receive(WatcherSite.lease(number, NOW).build()));
    }
  }

  @Test
  void expiredRevocationsAreDropped() {
    WatcherSite site = site();
    RevokedId.Builder revoked =
        RevokedId.newBuilder()
            .setId(ByteString.copyFrom(new byte[16]))
            .setExpiresAt(Timestamp.newBuilder().setSeconds(NOW + 10));
    site.hearRevocations("2", WatchRevocations.newBuilder().addIds(revoked));
    assertEquals(1, site.local.copy().index().size());
    site.renew();
    WatchResponse.Builder lease = WatcherSite.lease(2, NOW);
    lease.getLeaseBuilder().getExpiredUpToBuilder().setSeconds(NOW + 10);
    site.hear(lease);
    TestService.eventually("it is dropped", () -> site.local.copy().index().size() == 0);
  }

  @Test
  void anAnswerThatCannotBeUnderstoodIsNeverActive() {
    ValidateResponse active = ValidateResponse.newBuilder().setActive(true).build();
    ValidateResponse other = ValidateResponse.newBuilder().setInactiveReasonValue(99).build();
    for (ValidateResponse answer : List.of(active, other, ValidateResponse.getDefaultInstance())) {
      Answer.Unknown unknown = (Answer.Unknown) Verifier.read(answer);
      assertEquals(Answer.Unknown.Cause.NOT_UNDERSTOOD, unknown.cause());
    }
    for (InactiveReason reason : InactiveReason.values()) {
      ValidateResponse answer =
          ValidateResponse.newBuilder()
              .setInactiveReason(
                  dev.countersign.v1.InactiveReason.valueOf("INACTIVE_REASON_" + reason))
              .build();
      assertEquals(reason.name(), Vectors.word(Verifier.read(answer)));
    }
  }

  @Test
  void eachResultHasACounterOfItsOwn() {
    WatcherSite site = site();
    site.verifier.verify("a.b.c", Demands.none());
    site.verifier.verify("cs_rt_x", Demands.none());
    site.clock.advance(java.time.Duration.ofSeconds(3));
    site.verifier.verify("a.b.c", Demands.none());
    assertEquals(1, site.verifier.counts().get("malformed"));
    assertEquals(1, site.verifier.counts().get("wrong_type"));
    assertEquals(1, site.verifier.counts().get("unknown"));
    assertEquals(14, site.verifier.counts().size());
  }

  /** A server that sends a snapshot, then maybe leases, and keeps what it receives. */
  private static Server serve(List<WatchRequest> received, AtomicInteger streams, boolean leases)
      throws IOException {
    ServerServiceDefinition service =
        ServerServiceDefinition.builder("countersign.v1.RevocationService")
            .addMethod(
                Methods.WATCH,
                ServerCalls.asyncBidiStreamingCall(
                    (StreamObserver<WatchResponse> responses) -> {
                      streams.incrementAndGet();
                      return new StreamObserver<WatchRequest>() {
                        @Override
                        public void onNext(WatchRequest request) {
                          received.add(request);
                          if (request.hasStart()) {
                            snapshot(responses);
                          } else if (leases && !request.getRenewal().getApplied().isEmpty()) {
                            long now = Instant.now().getEpochSecond();
                            responses.onNext(
                                WatcherSite.lease(request.getRenewal().getNumber(), now).build());
                          }
                        }

                        @Override
                        public void onError(Throwable error) {}

                        @Override
                        public void onCompleted() {}
                      };
                    }))
            .build();
    return NettyServerBuilder.forAddress(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0))
        .addService(service)
        .build()
        .start();
  }

  private static void snapshot(StreamObserver<WatchResponse> responses) {
    WatchRules.Builder rules = WatcherSite.rules("https://auth.test", 3600, 0);
    responses.onNext(WatchResponse.newBuilder().setReset(WatchReset.getDefaultInstance()).build());
    responses.onNext(WatchResponse.newBuilder().setRules(rules).build());
    responses.onNext(
        WatchResponse.newBuilder().setKeys(WatchKeys.newBuilder().setJwks(NO_KEYS)).build());
    responses.onNext(
        WatchResponse.newBuilder()
            .setCursor(ByteString.copyFromUtf8("7"))
            .setRevocations(WatchRevocations.getDefaultInstance())
            .build());
  }

  @Test
  void aMessageIsConfirmedAtOnce() throws Exception {
    List<WatchRequest> received = new CopyOnWriteArrayList<>();
    Server server = serve(received, new AtomicInteger(), true);
    try (Client client = Client.builder("http://127.0.0.1:" + server.getPort()).build();
        Verifier verifier = Verifier.local(client).start()) {
      long began = System.nanoTime();
      assertTrue(verifier.awaitReady(java.time.Duration.ofSeconds(30)));
      assertTrue(System.nanoTime() - began < 20_000_000_000L);
      assertTrue(received.get(0).hasStart());
      assertEquals("7", received.get(1).getRenewal().getApplied().toStringUtf8());
      assertEquals(1, received.get(1).getRenewal().getNumber());
      int before = received.size();
      TestService.eventually("renewals", () -> received.size() >= before + 4);
      assertFalse(verifier.status().lease().isZero());
    } finally {
      server.shutdownNow();
    }
  }

  @Test
  void aStreamWithoutALeaseIsGivenUp() throws Exception {
    AtomicInteger first = new AtomicInteger();
    AtomicInteger second = new AtomicInteger();
    List<WatchRequest> received = new CopyOnWriteArrayList<>();
    Server silent = serve(received, first, false);
    Server working = serve(new CopyOnWriteArrayList<>(), second, true);
    try (Client client =
            Client.builder("http://127.0.0.1:" + silent.getPort())
                .endpoint("http://127.0.0.1:" + working.getPort())
                .build();
        Verifier verifier = Verifier.local(client).start()) {
      assertTrue(verifier.awaitReady(java.time.Duration.ofSeconds(30)));
      assertEquals(List.of(1, 1), List.of(first.get(), second.get()));
    } finally {
      silent.shutdownNow();
      working.shutdownNow();
    }
  }
}
