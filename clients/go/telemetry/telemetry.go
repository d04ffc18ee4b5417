// Package telemetry has metrics and spans by the API of OpenTelemetry. An application that does not
// import it does not depend on OpenTelemetry by this module.
package telemetry

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	countersign "countersign.example/client-go"
)

// longest is the value of the gauge for a lease that does not end.
const longest = 24 * time.Hour

// Observe registers the metrics of a verifier with a meter, such as otel.Meter("shop"). They end
// when the verifier is closed, or when the registration is.
//
//	countersign.client.checks             counter  {check}       checks, by mode and result
//	countersign.client.lease              gauge    s             the time for which a local verifier
//	                                                             can still answer
//	countersign.client.watch.lag          gauge    s             the time that the last renewal of
//	                                                             the lease took
//	countersign.client.watch.revocations  gauge    {revocation}  revocations in the copy
//	countersign.client.watch.connections  counter  {connection}  streams that were begun
//	countersign.client.watch.resets       counter  {reset}       streams that began with everything
//	                                                             anew
func Observe(meter metric.Meter, verifier *countersign.Verifier) (metric.Registration, error) {
	checks, err := meter.Int64ObservableCounter("countersign.client.checks",
		metric.WithUnit("{check}"), metric.WithDescription("Checks of tokens by their result"))
	if err != nil {
		return nil, err
	}
	lease, err := meter.Float64ObservableGauge("countersign.client.lease", metric.WithUnit("s"),
		metric.WithDescription("The time for which the verifier can still answer by itself"))
	if err != nil {
		return nil, err
	}
	lag, err := meter.Float64ObservableGauge("countersign.client.watch.lag", metric.WithUnit("s"),
		metric.WithDescription("The time of the last renewal"))
	if err != nil {
		return nil, err
	}
	revocations, err := meter.Int64ObservableGauge("countersign.client.watch.revocations",
		metric.WithUnit("{revocation}"),
		metric.WithDescription("Revocations in the copy of the verifier"))
	if err != nil {
		return nil, err
	}
	connections, err := meter.Int64ObservableCounter("countersign.client.watch.connections",
		metric.WithUnit("{connection}"),
		metric.WithDescription("Streams, or fetches of keys, that were begun"))
	if err != nil {
		return nil, err
	}
	resets, err := meter.Int64ObservableCounter("countersign.client.watch.resets",
		metric.WithUnit("{reset}"),
		metric.WithDescription("Streams that began with everything anew"))
	if err != nil {
		return nil, err
	}
	mode := attribute.String("mode", string(verifier.Mode()))
	ofMode := metric.WithAttributes(mode)
	return meter.RegisterCallback(func(_ context.Context, observer metric.Observer) error {
		if verifier.IsClosed() {
			return nil
		}
		for result, count := range verifier.Counts() {
			if count > 0 {
				observer.ObserveInt64(checks, int64(count),
					metric.WithAttributes(mode, attribute.String("result", result)))
			}
		}
		status := verifier.Status()
		observer.ObserveFloat64(lease, min(status.Lease, longest).Seconds(), ofMode)
		observer.ObserveFloat64(lag, status.Lag.Seconds(), ofMode)
		observer.ObserveInt64(revocations, int64(status.Revocations), ofMode)
		observer.ObserveInt64(connections, int64(status.Connections), ofMode)
		observer.ObserveInt64(resets, int64(status.Resets), ofMode)
		return nil
	}, checks, lease, lag, revocations, connections, resets)
}

// Calls makes a span of each call, with the attributes that OpenTelemetry gives to RPCs, and sends
// the context of the trace in the metadata of the call.
func Calls(provider trace.TracerProvider, propagator propagation.TextMapPropagator,
) countersign.Option {
	tracer := provider.Tracer("countersign.example/client-go",
		trace.WithInstrumentationVersion(countersign.Version))
	observe := func(ctx context.Context, service, method string) (context.Context, func(error)) {
		ctx, span := tracer.Start(ctx, "countersign", trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(
				attribute.String("rpc.system", "grpc"),
				attribute.String("rpc.service", service),
				attribute.String("rpc.method", method),
			))
		fields, _ := metadata.FromOutgoingContext(ctx)
		carrier := carrier(fields.Copy())
		if carrier == nil {
			carrier = map[string][]string{}
		}
		propagator.Inject(ctx, carrier)
		ctx = metadata.NewOutgoingContext(ctx, metadata.MD(carrier))
		return ctx, func(err error) {
			if err != nil {
				span.SetStatus(codes.Error, string(countersign.ReasonOf(err)))
			}
			span.End()
		}
	}
	return countersign.WithCallObserver(observe)
}

// carrier puts the context of a trace into metadata.
type carrier metadata.MD

// Get returns the first value of a key.
func (c carrier) Get(key string) string {
	if values := metadata.MD(c).Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}

// Set sets a value. Keys and values that cannot be sent are left out.
func (c carrier) Set(key, value string) {
	for _, char := range []byte(key) {
		isAllowed := char >= 'a' && char <= 'z' || char >= 'A' && char <= 'Z' ||
			char >= '0' && char <= '9' || char == '-' || char == '_' || char == '.'
		if !isAllowed {
			return
		}
	}
	for _, char := range []byte(value) {
		if char < ' ' || char > '~' {
			return
		}
	}
	metadata.MD(c).Set(key, value)
}

// Keys returns the keys.
func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for key := range c {
		keys = append(keys, key)
	}
	return keys
}
