package dev.countersign.client.telemetry;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.countersign.client.CallObserver;
import dev.countersign.client.Client;
import dev.countersign.client.CountersignException;
import dev.countersign.client.Demands;
import dev.countersign.client.testing.Authority;
import dev.countersign.v1.GetSessionRequest;
import io.grpc.Metadata;
import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.trace.SpanKind;
import io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator;
import io.opentelemetry.context.propagation.ContextPropagators;
import io.opentelemetry.sdk.OpenTelemetrySdk;
import io.opentelemetry.sdk.metrics.SdkMeterProvider;
import io.opentelemetry.sdk.metrics.data.MetricData;
import io.opentelemetry.sdk.testing.exporter.InMemoryMetricReader;
import io.opentelemetry.sdk.testing.exporter.InMemorySpanExporter;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.data.SpanData;
import io.opentelemetry.sdk.trace.export.SimpleSpanProcessor;
import java.time.Duration;
import java.util.Map;
import java.util.TreeMap;
import org.junit.jupiter.api.Test;

/** Tests of metrics and spans. */
final class TelemetryTest {
  private static final AttributeKey<String> RESULT = AttributeKey.stringKey("result");

  private static Map<String, String> read(InMemoryMetricReader reader) {
    Map<String, String> seen = new TreeMap<>();
    for (MetricData metric : reader.collectAllMetrics()) {
      metric
          .getLongSumData()
          .getPoints()
          .forEach(
              point ->
                  seen.put(
                      metric.getName() + " " + point.getAttributes().get(RESULT),
                      "" + point.getValue()));
      metric
          .getLongGaugeData()
          .getPoints()
          .forEach(point -> seen.put(metric.getName(), "" + point.getValue()));
      metric
          .getDoubleGaugeData()
          .getPoints()
          .forEach(point -> seen.put(metric.getName(), "" + point.getValue()));
    }
    return seen;
  }

  @Test
  void checksAreCountedByModeAndResult() {
    InMemoryMetricReader reader = InMemoryMetricReader.create();
    SdkMeterProvider meters = SdkMeterProvider.builder().registerMetricReader(reader).build();
    OpenTelemetrySdk telemetry = OpenTelemetrySdk.builder().setMeterProvider(meters).build();
    Authority authority = new Authority();
    Telemetry.Registration registration = Telemetry.observe(telemetry, authority.verifier());
    String token = authority.token("alice").issue();
    authority.verifier().verify(token, Demands.none());
    authority.verifier().verify(token, Demands.none());
    authority.revoke(token);
    authority.verifier().verify(token, Demands.none());
    Map<String, String> seen = read(reader);
    assertEquals("2", seen.get("countersign.client.checks active"));
    assertEquals("1", seen.get("countersign.client.checks revoked"));
    assertEquals("1", seen.get("countersign.client.watch.revocations"));
    assertEquals("86400.0", seen.get("countersign.client.lease"));
    assertEquals("0.0", seen.get("countersign.client.watch.lag"));
    assertEquals("0", seen.get("countersign.client.watch.connections null"));
    assertEquals("0", seen.get("countersign.client.watch.resets null"));
    assertEquals(7, seen.size());
    registration.close();
    assertEquals(Map.of(), read(reader));
  }

  @Test
  void callsHaveASpanAndCarryItsContext() {
    InMemorySpanExporter exporter = InMemorySpanExporter.create();
    SdkTracerProvider tracers =
        SdkTracerProvider.builder().addSpanProcessor(SimpleSpanProcessor.create(exporter)).build();
    OpenTelemetrySdk telemetry =
        OpenTelemetrySdk.builder()
            .setTracerProvider(tracers)
            .setPropagators(ContextPropagators.create(W3CTraceContextPropagator.getInstance()))
            .build();
    CallObserver observer = Telemetry.tracing(telemetry);
    Metadata metadata = new Metadata();
    CallObserver.Call call = observer.begin("countersign.v1.KeyService", "GetJwks");
    call.addMetadata(metadata);
    call.end(null);
    try (Client client =
        Client.builder("http://127.0.0.1:1")
            .deadline(Duration.ofSeconds(2))
            .observer(observer)
            .build()) {
      assertThrows(
          CountersignException.class,
          () -> client.getSession(GetSessionRequest.getDefaultInstance()));
    }
    SpanData good = exporter.getFinishedSpanItems().get(0);
    assertEquals("countersign.v1.KeyService/GetJwks", good.getName());
    assertEquals(SpanKind.CLIENT, good.getKind());
    String parent = metadata.get(Metadata.Key.of("traceparent", Metadata.ASCII_STRING_MARSHALLER));
    assertTrue(parent != null && parent.contains(good.getSpanId()), parent);
    SpanData failed = exporter.getFinishedSpanItems().get(1);
    assertEquals("countersign.v1.SessionService/GetSession", failed.getName());
    assertEquals("UNREACHABLE", failed.getStatus().getDescription());
    assertEquals(14L, failed.getAttributes().get(AttributeKey.longKey("rpc.grpc.status_code")));
    assertEquals(
        "countersign.v1.SessionService",
        failed.getAttributes().get(AttributeKey.stringKey("rpc.service")));
  }
}
