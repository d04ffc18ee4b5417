package dev.countersign.client.telemetry;

import dev.countersign.client.CallObserver;
import dev.countersign.client.CountersignException;
import dev.countersign.client.Verifier;
import io.grpc.Metadata;
import io.opentelemetry.api.OpenTelemetry;
import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.api.metrics.Meter;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanKind;
import io.opentelemetry.api.trace.StatusCode;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Context;
import io.opentelemetry.context.propagation.TextMapPropagator;
import java.lang.ref.WeakReference;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.function.ToDoubleFunction;
import java.util.function.ToLongFunction;

/**
 * Metrics of verifiers, and spans of calls, by the API of OpenTelemetry, which an application that
 * uses this class must depend on.
 */
public final class Telemetry {
  private static final String SCOPE = "dev.countersign.client";
  private static final AttributeKey<String> MODE = AttributeKey.stringKey("mode");
  private static final AttributeKey<String> RESULT = AttributeKey.stringKey("result");

  /** The value of the gauge for a lease that does not end, in seconds. */
  private static final double LONGEST = 86_400;

  private Telemetry() {}

  /**
   * Registers the metrics of a verifier.
   *
   * <table>
   *   <caption>Metrics</caption>
   *   <tr><th>metric</th><th>kind</th><th>unit</th><th>meaning</th></tr>
   *   <tr><td>{@code countersign.client.checks}</td><td>counter</td><td>{check}</td>
   *     <td>checks, by {@code mode} and {@code result}</td></tr>
   *   <tr><td>{@code countersign.client.lease}</td><td>gauge</td><td>s</td>
   *     <td>the time for which a local verifier can still answer</td></tr>
   *   <tr><td>{@code countersign.client.watch.lag}</td><td>gauge</td><td>s</td>
   *     <td>the time that the last renewal of the lease took</td></tr>
   *   <tr><td>{@code countersign.client.watch.revocations}</td><td>gauge</td>
   *     <td>{revocation}</td><td>revocations in the copy</td></tr>
   *   <tr><td>{@code countersign.client.watch.connections}</td><td>counter</td>
   *     <td>{connection}</td><td>streams that were begun</td></tr>
   *   <tr><td>{@code countersign.client.watch.resets}</td><td>counter</td><td>{reset}</td>
   *     <td>streams that began with everything anew</td></tr>
   * </table>
   *
   * @param telemetry the telemetry of the application
   * @param verifier the verifier
   * @return what ends the metrics; without it they end with the verifier
   */
  public static Registration observe(OpenTelemetry telemetry, Verifier verifier) {
    Meter meter = telemetry.getMeter(SCOPE);
    Observed observed = new Observed(meter, new WeakReference<>(verifier));
    observed.counter(
        "countersign.client.checks",
        "{check}",
        "Checks of tokens by their result",
        Observed::checks);
    observed.seconds(
        "countersign.client.lease",
        "The time for which the verifier can still answer by itself",
        status -> Math.min(seconds(status.lease()), LONGEST));
    observed.seconds(
        "countersign.client.watch.lag",
        "The time of the last renewal",
        status -> seconds(status.lag()));
    observed.revocations();
    observed.counter(
        "countersign.client.watch.connections",
        "{connection}",
        "Streams, or fetches of keys, that were begun",
        it -> List.of(it.value(status -> status.connections())));
    observed.counter(
        "countersign.client.watch.resets",
        "{reset}",
        "Streams that began with everything anew",
        it -> List.of(it.value(status -> status.resets())));
    return () -> observed.instruments.forEach(Registration::close);
  }

  private static double seconds(Duration span) {
    return span.toNanos() / 1e9;
  }

  /** Metrics that are registered. */
  @FunctionalInterface
  public interface Registration extends AutoCloseable {
    /** Ends the metrics. */
    @Override
    void close();
  }

  private record Value(long number, Attributes attributes) {}

  /** A verifier that is observed as long as it is used. */
  private record Observed(
      Meter meter, WeakReference<Verifier> verifier, List<Registration> instruments) {
    Observed(Meter meter, WeakReference<Verifier> verifier) {
      this(meter, verifier, new ArrayList<>());
    }

    private void ifUsed(Consumer<Verifier> observe) {
      Verifier used = verifier.get();
      if (used != null) {
        observe.accept(used);
      }
    }

    private List<Value> checks() {
      List<Value> values = new ArrayList<>();
      ifUsed(
          used ->
              used.counts()
                  .forEach(
                      (result, count) -> {
                        if (count > 0) {
                          Attributes attributes =
                              Attributes.of(MODE, used.mode().metricName(), RESULT, result);
                          values.add(new Value(count, attributes));
                        }
                      }));
      return values;
    }

    private Value value(ToLongFunction<Verifier.Status> read) {
      Verifier used = verifier.get();
      return used == null
          ? null
          : new Value(
              read.applyAsLong(used.status()), Attributes.of(MODE, used.mode().metricName()));
    }

    void counter(
        String name, String unit, String description, Function<Observed, List<Value>> read) {
      instruments.add(
          meter
                  .counterBuilder(name)
                  .setUnit(unit)
                  .setDescription(description)
                  .buildWithCallback(
                      measurement ->
                          ifUsed(
                              used ->
                                  read.apply(this)
                                      .forEach(
                                          value ->
                                              measurement.record(value.number, value.attributes))))
              ::close);
    }

    void revocations() {
      instruments.add(
          meter
                  .gaugeBuilder("countersign.client.watch.revocations")
                  .ofLongs()
                  .setUnit("{revocation}")
                  .setDescription("Revocations in the copy of the verifier")
                  .buildWithCallback(
                      measurement ->
                          ifUsed(
                              used ->
                                  measurement.record(
                                      used.status().revocations(),
                                      Attributes.of(MODE, used.mode().metricName()))))
              ::close);
    }

    void seconds(String name, String description, ToDoubleFunction<Verifier.Status> read) {
      instruments.add(
          meter
                  .gaugeBuilder(name)
                  .setUnit("s")
                  .setDescription(description)
                  .buildWithCallback(
                      measurement ->
                          ifUsed(
                              used ->
                                  measurement.record(
                                      read.applyAsDouble(used.status()),
                                      Attributes.of(MODE, used.mode().metricName()))))
              ::close);
    }
  }

  /**
   * Returns an observer that makes a span of each call, and sends the context of the trace to the
   * service. Give it to {@link dev.countersign.client.ClientBuilder#observer}.
   *
   * @param telemetry the telemetry of the application
   * @return the observer
   */
  public static CallObserver tracing(OpenTelemetry telemetry) {
    Tracer tracer = telemetry.getTracer(SCOPE);
    TextMapPropagator propagator = telemetry.getPropagators().getTextMapPropagator();
    return (service, method) -> {
      Span span =
          tracer
              .spanBuilder(service + "/" + method)
              .setSpanKind(SpanKind.CLIENT)
              .setAttribute("rpc.system", "grpc")
              .setAttribute("rpc.service", service)
              .setAttribute("rpc.method", method)
              .startSpan();
      return new TracedCall(span, propagator);
    };
  }

  private record TracedCall(Span span, TextMapPropagator propagator) implements CallObserver.Call {
    @Override
    public void addMetadata(Metadata metadata) {
      propagator.inject(Context.current().with(span), metadata, TracedCall::set);
    }

    private static void set(Metadata metadata, String name, String value) {
      boolean isSendable = value.chars().allMatch(next -> next >= ' ' && next <= '~');
      if (metadata == null || !isSendable) {
        return;
      }
      try {
        metadata.put(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER), value);
      } catch (IllegalArgumentException e) {
        // A propagator of the application may use a name that gRPC cannot send.
        return;
      }
    }

    @Override
    public void end(CountersignException error) {
      span.setAttribute("rpc.grpc.status_code", error == null ? 0 : error.code().value());
      if (error != null) {
        span.setStatus(StatusCode.ERROR, error.reasonName());
      }
      span.end();
    }
  }
}
