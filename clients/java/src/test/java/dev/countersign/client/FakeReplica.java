package dev.countersign.client;

import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.countersign.v1.CreateSessionRequest;
import dev.countersign.v1.CreateSessionResponse;
import dev.countersign.v1.GetSessionResponse;
import dev.countersign.v1.ReauthenticateRequest;
import dev.countersign.v1.ReauthenticateResponse;
import dev.countersign.v1.RefreshResponse;
import io.grpc.Context;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.ServerInterceptors;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ServerCalls;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.IntConsumer;

/** A replica in this process, whose answers a test gives. */
final class FakeReplica implements AutoCloseable {
  final AtomicInteger calls = new AtomicInteger();
  final List<String> requestIds = new CopyOnWriteArrayList<>();
  final List<Metadata> metadata = new CopyOnWriteArrayList<>();
  final Server server;

  /** Starts a replica. It calls {@code answer} with the number of the call, from 1 on. */
  FakeReplica(IntConsumer answer) throws IOException {
    this(0, answer);
  }

  /** Starts a replica on this port. */
  FakeReplica(int port, IntConsumer answer) throws IOException {
    ServerServiceDefinition.Builder service =
        ServerServiceDefinition.builder("countersign.v1.SessionService");
    add(service, Methods.CREATE_SESSION, CreateSessionResponse.getDefaultInstance(), answer);
    add(service, Methods.REAUTHENTICATE, ReauthenticateResponse.getDefaultInstance(), answer);
    add(service, Methods.REFRESH, RefreshResponse.getDefaultInstance(), answer);
    add(service, Methods.GET_SESSION, GetSessionResponse.getDefaultInstance(), answer);
    ServerInterceptor keep =
        new ServerInterceptor() {
          @Override
          public <Q, R> ServerCall.Listener<Q> interceptCall(
              ServerCall<Q, R> call, Metadata headers, ServerCallHandler<Q, R> next) {
            metadata.add(headers);
            return next.startCall(call, headers);
          }
        };
    server =
        NettyServerBuilder.forAddress(new InetSocketAddress(InetAddress.getLoopbackAddress(), port))
            .addService(ServerInterceptors.intercept(service.build(), keep))
            .build()
            .start();
  }

  static FakeReplica good() throws IOException {
    return new FakeReplica(number -> {});
  }

  private <Q extends Message, R extends Message> void add(
      ServerServiceDefinition.Builder service,
      Methods.Call<Q, R> call,
      R response,
      IntConsumer answer) {
    service.addMethod(
        call.descriptor(),
        ServerCalls.asyncUnaryCall(
            (request, observer) -> {
              if (request instanceof CreateSessionRequest create) {
                requestIds.add(create.getRequestId());
              } else if (request instanceof ReauthenticateRequest again) {
                requestIds.add(again.getRequestId());
              }
              try {
                answer.accept(calls.incrementAndGet());
                observer.onNext(response);
                observer.onCompleted();
              } catch (StatusRuntimeException e) {
                observer.onError(e);
              }
            }));
  }

  /** Waits until the caller gives up. */
  static void hang() {
    Context context = Context.current();
    while (!context.isCancelled()) {
      pause(2);
    }
    throw Status.CANCELLED.asRuntimeException();
  }

  static void pause(long millis) {
    try {
      Thread.sleep(millis);
    } catch (InterruptedException e) {
      throw new AssertionError(e);
    }
  }

  static StatusRuntimeException refusal(Status.Code code, String reason, long retryMillis) {
    com.google.rpc.Status.Builder status =
        com.google.rpc.Status.newBuilder()
            .setCode(code.value())
            .setMessage("refused by a test")
            .addDetails(
                Any.pack(
                    ErrorInfo.newBuilder().setDomain("countersign").setReason(reason).build()));
    if (retryMillis > 0) {
      Duration delay =
          Duration.newBuilder()
              .setSeconds(retryMillis / 1_000)
              .setNanos((int) (retryMillis % 1_000) * 1_000_000)
              .build();
      status.addDetails(Any.pack(RetryInfo.newBuilder().setRetryDelay(delay).build()));
    }
    BadRequest.Builder bad = BadRequest.newBuilder();
    bad.addFieldViolationsBuilder().setField("subject").setDescription("is empty");
    return StatusProto.toStatusRuntimeException(status.addDetails(Any.pack(bad.build())).build());
  }

  String url() {
    return "http://127.0.0.1:" + server.getPort();
  }

  @Override
  public void close() {
    server.shutdownNow();
  }
}
