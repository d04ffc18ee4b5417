package dev.countersign.client;

import dev.countersign.v1.WatchRequest;
import dev.countersign.v1.WatchResponse;
import io.grpc.CallOptions;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.ClientResponseObserver;
import io.grpc.stub.MetadataUtils;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * A call of Watch. It has a connection of its own, so that one that has died is given up with the
 * stream. One thread uses it.
 */
final class WatchStream implements AutoCloseable {
  /** The most responses that wait to be applied. */
  private static final int WINDOW = 16;

  private final Client client;
  private final Endpoints.Replica replica;
  private final ManagedChannel channel;
  private final LinkedBlockingQueue<Event> events = new LinkedBlockingQueue<>();
  private final CountDownLatch connected = new CountDownLatch(1);
  private ClientCallStreamObserver<WatchRequest> requests;
  private boolean hasEnded;

  /** A response, or the end of the stream, perhaps with an error. */
  private record Event(WatchResponse response, Throwable error) {}

  private final class Responses implements ClientResponseObserver<WatchRequest, WatchResponse> {
    @Override
    public void beforeStart(ClientCallStreamObserver<WatchRequest> observer) {
      requests = observer;
      observer.disableAutoRequestWithInitial(WINDOW);
      observer.setOnReadyHandler(connected::countDown);
    }

    @Override
    public void onNext(WatchResponse response) {
      events.add(new Event(response, null));
    }

    @Override
    public void onError(Throwable error) {
      events.add(new Event(null, error));
      connected.countDown();
    }

    @Override
    public void onCompleted() {
      events.add(new Event(null, null));
      connected.countDown();
    }
  }

  private WatchStream(Client client) {
    this.client = client;
    replica = client.endpoints().next(null);
    channel = replica.connect();
    ClientCalls.asyncBidiStreamingCall(
        ClientInterceptors.intercept(
                channel, MetadataUtils.newAttachHeadersInterceptor(client.metadata()))
            .newCall(Methods.WATCH, CallOptions.DEFAULT),
        new Responses());
  }

  /** Calls Watch at the next replica. */
  static WatchStream open(Client client) {
    return new WatchStream(client);
  }

  /** Waits for the connection. */
  void awaitConnection(long nanos) throws InterruptedException {
    if (!connected.await(nanos, TimeUnit.NANOSECONDS)) {
      throw CountersignException.deadlineExceeded(false);
    }
  }

  /** Sends a message. Returns false if the connection takes no more at the moment. */
  boolean send(WatchRequest request) {
    // The first message waits for the connection.
    if (connected.getCount() == 0 && !requests.isReady()) {
      return false;
    }
    requests.onNext(request);
    return true;
  }

  /**
   * Waits for the next response, at most for this time.
   *
   * @return the response; null if there is none, or if the stream has ended in good order
   * @throws CountersignException if the call has failed
   */
  WatchResponse next(long nanos) throws InterruptedException {
    Event event = events.poll(nanos, TimeUnit.NANOSECONDS);
    if (event == null) {
      return null;
    }
    if (event.error != null) {
      StatusRuntimeException failed =
          event.error instanceof StatusRuntimeException status
              ? status
              : Status.fromThrowable(event.error).asRuntimeException();
      throw CountersignException.of(failed, true);
    }
    if (event.response == null) {
      hasEnded = true;
      return null;
    }
    requests.request(1);
    return event.response;
  }

  /** Returns whether the stream has ended in good order. */
  boolean hasEnded() {
    return hasEnded;
  }

  /** Ends the call and its connection. Other replicas are preferred for a while. */
  @Override
  public void close() {
    client.endpoints().avoid(replica);
    requests.cancel("the watcher has ended the stream", null);
    channel.shutdownNow();
  }
}
