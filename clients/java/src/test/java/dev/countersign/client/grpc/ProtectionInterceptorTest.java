package dev.countersign.client.grpc;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.protobuf.Any;
import com.google.protobuf.StringValue;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.countersign.client.Demands;
import dev.countersign.client.testing.Authority;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Server;
import io.grpc.ServerServiceDefinition;
import io.grpc.StatusRuntimeException;
import io.grpc.inprocess.InProcessChannelBuilder;
import io.grpc.inprocess.InProcessServerBuilder;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.ServerCalls;
import java.time.Duration;
import java.util.Map;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** Calls to a server that the interceptor protects. */
final class ProtectionInterceptorTest {
  private final Authority authority = new Authority();
  private Server server;
  private ManagedChannel channel;

  private static MethodDescriptor<StringValue, StringValue> method(String name) {
    return MethodDescriptor.newBuilder(
            ProtoUtils.marshaller(StringValue.getDefaultInstance()),
            ProtoUtils.marshaller(StringValue.getDefaultInstance()))
        .setType(MethodDescriptor.MethodType.UNARY)
        .setFullMethodName("shop.v1.Orders/" + name)
        .build();
  }

  @BeforeEach
  void start() throws Exception {
    ServerServiceDefinition.Builder service = ServerServiceDefinition.builder("shop.v1.Orders");
    for (String name : new String[] {"List", "Cancel", "Pay", "Ping"}) {
      service.addMethod(
          method(name),
          ServerCalls.asyncUnaryCall(
              (request, observer) -> {
                String subject =
                    ProtectionInterceptor.session().map(it -> it.subject()).orElse("nobody");
                observer.onNext(StringValue.of(subject));
                observer.onCompleted();
              }));
    }
    Demands ours = Demands.none().withAudience(Authority.AUDIENCE);
    ProtectionInterceptor protection =
        new ProtectionInterceptor(authority.verifier(), ours)
            .withMethod("shop.v1.Orders/Cancel", ours.withScope("orders:write"))
            .withMethod(
                "/shop.v1.Orders/Pay",
                ours.withAcrValues("gold").withMaxAuthenticationAge(Duration.ofMinutes(5)))
            .withPublic("shop.v1.Orders/Ping");
    server =
        InProcessServerBuilder.forName("orders")
            .addService(service.build())
            .intercept(protection)
            .build()
            .start();
    channel = InProcessChannelBuilder.forName("orders").build();
  }

  @AfterEach
  void stop() {
    channel.shutdownNow();
    server.shutdownNow();
  }

  private String call(String name, String... authorization) {
    Metadata metadata = new Metadata();
    for (String value : authorization) {
      metadata.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), value);
    }
    Channel intercepted =
        ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(metadata));
    return ClientCalls.blockingUnaryCall(
            intercepted, method(name), CallOptions.DEFAULT, StringValue.of("x"))
        .getValue();
  }

  private void expect(
      String code, String reason, Map<String, String> metadata, String name, String... values)
      throws Exception {
    StatusRuntimeException denied =
        assertThrows(StatusRuntimeException.class, () -> call(name, values));
    assertEquals(code, denied.getStatus().getCode().name());
    com.google.rpc.Status status = StatusProto.fromThrowable(denied);
    ErrorInfo info = status.getDetails(0).unpack(ErrorInfo.class);
    assertEquals("countersign", info.getDomain());
    assertEquals(reason, info.getReason());
    assertEquals(metadata, info.getMetadataMap());
    if (code.equals("UNAVAILABLE")) {
      Any retry = status.getDetails(1);
      assertEquals(
          com.google.protobuf.Duration.newBuilder().setNanos(500_000_000).build(),
          retry.unpack(RetryInfo.class).getRetryDelay());
    }
  }

  @Test
  void callsAreCheckedByTheDemandsOfTheirMethod() throws Exception {
    String plain = "Bearer " + authority.token("alice").issue();
    String writing = "Bearer " + authority.token("alice").scope("orders:write").issue();
    String gold = "Bearer " + authority.token("alice").acr("gold").issue();
    assertEquals("alice", call("List", plain));
    assertEquals("alice", call("Cancel", writing));
    assertEquals("alice", call("Pay", gold));
    assertEquals("nobody", call("Ping"));
    assertEquals("nobody", call("Ping", "Bearer bad"));
    expect("UNAUTHENTICATED", "NO_TOKEN", Map.of(), "List");
    expect("UNAUTHENTICATED", "NO_TOKEN", Map.of(), "List", "Basic x");
    expect("UNAUTHENTICATED", "SEVERAL_TOKENS", Map.of(), "List", plain, plain);
    expect("UNAUTHENTICATED", "MALFORMED", Map.of(), "List", "Bearer bad");
    expect(
        "PERMISSION_DENIED",
        "INSUFFICIENT_SCOPE",
        Map.of("scope", "orders:write"),
        "Cancel",
        plain);
    expect(
        "UNAUTHENTICATED",
        "STEP_UP_REQUIRED",
        Map.of("acr_values", "gold", "max_age", "300"),
        "Pay",
        plain);
    authority.revoke(plain.substring(7));
    expect("UNAUTHENTICATED", "REVOKED", Map.of(), "List", plain);
    authority.setUnavailable(true);
    expect("UNAVAILABLE", "TOKEN_NOT_CHECKED", Map.of(), "List", writing);
  }
}
