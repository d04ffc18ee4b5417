package dev.countersign.client;

import com.google.protobuf.ByteString;
import com.google.protobuf.Duration;
import com.google.protobuf.Timestamp;
import dev.countersign.client.WatchMessages.EndException;
import dev.countersign.client.internal.Local;
import dev.countersign.client.testing.SettableClock;
import dev.countersign.v1.WatchKeys;
import dev.countersign.v1.WatchLease;
import dev.countersign.v1.WatchRequest;
import dev.countersign.v1.WatchResponse;
import dev.countersign.v1.WatchRevocations;
import dev.countersign.v1.WatchRules;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;

/** A watcher that is handed the messages of a stream by a test. */
final class WatcherSite {
  final SettableClock clock;
  final Local local;
  final Verifier verifier;
  final Client client = Client.builder("http://127.0.0.1:1").build();
  private final Watcher watcher;
  private Watcher.StreamState state = new Watcher.StreamState();

  WatcherSite(Instant now) {
    clock = new SettableClock(now);
    local = new Local(clock, 1 << 20);
    watcher = new Watcher(client, local);
    verifier = Verifier.testing(local);
  }

  /** Begins another stream, and returns the cursor that it begins with. */
  ByteString open() {
    state = new Watcher.StreamState();
    return watcher.startMessage().getStart().getCursor();
  }

  boolean receive(WatchResponse response) throws EndException {
    return watcher.apply(state, response);
  }

  void hear(WatchResponse.Builder response) {
    try {
      receive(response.build());
    } catch (EndException e) {
      throw new AssertionError(e);
    }
  }

  /** Sends a renewal, and returns the cursor that it confirms. */
  ByteString renew() {
    List<WatchRequest> sent = new ArrayList<>();
    watcher.renew(state, sent::add);
    return sent.get(0).getRenewal().getApplied();
  }

  static Duration.Builder seconds(long seconds) {
    return Duration.newBuilder().setSeconds(seconds);
  }

  static WatchRules.Builder rules(String issuer, long maxLifetime, long leeway) {
    return WatchRules.newBuilder()
        .setIssuer(issuer)
        .setMaxLifetime(seconds(maxLifetime))
        .setLeeway(seconds(leeway))
        .setLeaseMargin(seconds(1));
  }

  void hearRules(WatchRules.Builder rules) {
    hear(WatchResponse.newBuilder().setRules(rules));
  }

  void hearKeys(String jwks, String... revoked) {
    WatchKeys.Builder keys = WatchKeys.newBuilder().setJwks(jwks).addAllRevoked(List.of(revoked));
    hear(WatchResponse.newBuilder().setKeys(keys));
  }

  void hearRevocations(String cursor, WatchRevocations.Builder revocations) {
    hear(
        WatchResponse.newBuilder()
            .setCursor(ByteString.copyFromUtf8(cursor))
            .setRevocations(revocations));
  }

  static WatchResponse.Builder lease(long number, long now) {
    return WatchResponse.newBuilder()
        .setLease(
            WatchLease.newBuilder()
                .setNumber(number)
                .setValidFor(seconds(2))
                .setExpiredUpTo(Timestamp.getDefaultInstance())
                .setNow(Timestamp.newBuilder().setSeconds(now)));
  }

  /** Gives the watcher rules and keys, no revocations, and a lease. */
  void prepare(WatchRules.Builder rules, String jwks) {
    hearRules(rules);
    hearKeys(jwks);
    hearRevocations("1", WatchRevocations.newBuilder());
    renew();
    hear(lease(1, clock.now().getEpochSecond()));
  }
}
