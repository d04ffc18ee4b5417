package dev.countersign.client;

import io.grpc.ManagedChannel;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.LongSupplier;
import java.util.function.Predicate;
import java.util.function.Supplier;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/**
 * The replicas. Calls go to one after the other.
 *
 * <p>gRPC can balance calls by itself, but then a repetition may go to the replica that has just
 * failed.
 */
final class Endpoints {
  /**
   * The time for which a replica that could not be reached gets no calls if another one can get
   * them.
   */
  private static final long AVOIDED_NANOS = TimeUnit.SECONDS.toNanos(2);

  private final List<Replica> replicas;
  private final AtomicInteger next = new AtomicInteger();
  private final LongSupplier clock;

  /** A replica. */
  static final class Replica {
    private final Supplier<ManagedChannel> connect;
    private final ManagedChannel channel;
    private volatile boolean isAvoided;
    private volatile long avoidedUntil;

    Replica(Supplier<ManagedChannel> connect) {
      this.connect = connect;
      this.channel = connect.get();
    }

    /** Returns the connection that calls share. It is opened by the first call. */
    ManagedChannel channel() {
      return channel;
    }

    /** Opens a connection of its own. */
    ManagedChannel connect() {
      return connect.get();
    }
  }

  /** Creates the replicas, of which there must be at least one. */
  Endpoints(List<Replica> replicas, LongSupplier clock) {
    this.replicas = List.copyOf(replicas);
    this.clock = clock;
  }

  List<Replica> all() {
    return replicas;
  }

  int size() {
    return replicas.size();
  }

  /**
   * Returns the replica that gets the next call: if possible one that has not failed recently, and
   * in any case another one than {@code failed}, if there is another one.
   *
   * @param failed the replica that has just failed to answer the same call; null for none
   */
  Replica next(Replica failed) {
    int first = Math.floorMod(next.getAndIncrement(), replicas.size());
    Predicate<Replica> isOther = replica -> replica != failed;
    return rotated(first)
        .filter(isOther.and(replica -> !isAvoided(replica)))
        .findFirst()
        .or(() -> rotated(first).filter(isOther).findFirst())
        .orElseGet(() -> replicas.get(first));
  }

  private Stream<Replica> rotated(int first) {
    return IntStream.range(first, first + replicas.size())
        .mapToObj(index -> replicas.get(index % replicas.size()));
  }

  private boolean isAvoided(Replica replica) {
    return replica.isAvoided && replica.avoidedUntil - clock.getAsLong() > 0;
  }

  /** Prefers other replicas for a while, because this one has failed. */
  void avoid(Replica replica) {
    replica.avoidedUntil = clock.getAsLong() + AVOIDED_NANOS;
    replica.isAvoided = true;
  }

  /** Prefers a replica no less than others, because it has answered. */
  void trust(Replica replica) {
    if (replica.isAvoided) {
      replica.isAvoided = false;
    }
  }
}
