package telemetry_test

import (
	"context"
	"net"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/countersigntest"
	pb "countersign.example/client-go/proto/countersign/v1"
	"countersign.example/client-go/telemetry"
)

// read returns the values of the metrics of whole numbers by their names and results, and the names
// of all metrics.
func read(t *testing.T, reader metric.Reader) (map[string]int64, map[string]bool) {
	t.Helper()
	var collected metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &collected); err != nil {
		t.Fatal(err)
	}
	values, names := map[string]int64{}, map[string]bool{}
	add := func(name string, points []metricdata.DataPoint[int64]) {
		for _, point := range points {
			result, _ := point.Attributes.Value("result")
			mode, _ := point.Attributes.Value("mode")
			if mode.AsString() != "testing" {
				t.Errorf("%s has the mode %q", name, mode.AsString())
			}
			values[name+" "+result.AsString()] = point.Value
		}
	}
	for _, scope := range collected.ScopeMetrics {
		for _, metrics := range scope.Metrics {
			names[metrics.Name] = true
			switch data := metrics.Data.(type) {
			case metricdata.Sum[int64]:
				add(metrics.Name, data.DataPoints)
			case metricdata.Gauge[int64]:
				add(metrics.Name, data.DataPoints)
			}
		}
	}
	return values, names
}

func TestChecksAreCountedByModeAndResultAsLongAsTheVerifierLives(t *testing.T) {
	reader := metric.NewManualReader()
	meter := metric.NewMeterProvider(metric.WithReader(reader)).Meter("test")
	authority := countersigntest.New()
	verifier := authority.Verifier()
	if _, err := telemetry.Observe(meter, verifier); err != nil {
		t.Fatal(err)
	}
	token := authority.Issue("alice", countersigntest.Token{})
	check := func() { verifier.VerifyLocally(token, countersign.Demands{}) }
	check()
	check()
	authority.Revoke(token)
	check()
	authority.SetUnavailable(true)
	check()
	values, names := read(t, reader)
	for name, expected := range map[string]int64{
		"countersign.client.checks active":      2,
		"countersign.client.checks revoked":     1,
		"countersign.client.checks unknown":     1,
		"countersign.client.watch.revocations ": 1,
	} {
		if values[name] != expected {
			t.Errorf("%s is %d", name, values[name])
		}
	}
	if len(names) != 6 || !names["countersign.client.lease"] ||
		!names["countersign.client.watch.lag"] {
		t.Error(names)
	}
	verifier.Close()
	if values, _ := read(t, reader); len(values) != 0 {
		t.Error(values)
	}
}

type keys struct {
	pb.UnimplementedKeyServiceServer
	mu     sync.Mutex
	fields metadata.MD
}

func (k *keys) GetJwks(ctx context.Context, _ *pb.GetJwksRequest) (*pb.GetJwksResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fields, _ = metadata.FromIncomingContext(ctx)
	return &pb.GetJwksResponse{}, nil
}

func TestCallsHaveASpanAndCarryItsContext(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, service := grpc.NewServer(), &keys{}
	pb.RegisterKeyServiceServer(server, service)
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	spans := tracetest.NewSpanRecorder()
	provider := trace.NewTracerProvider(trace.WithSpanProcessor(spans))
	client, err := countersign.NewClient([]string{"http://" + listener.Addr().String()},
		countersign.WithAPIKey("cs_ck_secret"),
		telemetry.Calls(provider, propagation.TraceContext{}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if _, err := client.GetJwks(t.Context(), &pb.GetJwksRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.ListKeys(t.Context(), &pb.ListKeysRequest{}); countersign.ReasonOf(err) ==
		countersign.ReasonUnreachable {
		t.Fatal(err)
	}
	ended := spans.Ended()
	if len(ended) != 2 {
		t.Fatal(ended)
	}
	span := ended[0]
	attributes := attribute.NewSet(span.Attributes()...)
	for key, expected := range map[attribute.Key]string{
		"rpc.system": "grpc", "rpc.service": "KeyService", "rpc.method": "GetJwks",
	} {
		if value, _ := attributes.Value(key); value.AsString() != expected {
			t.Errorf("%s is %q", key, value.AsString())
		}
	}
	context := span.SpanContext()
	parent := "00-" + context.TraceID().String() + "-" + context.SpanID().String() + "-01"
	if seen := service.fields.Get("traceparent"); len(seen) != 1 || seen[0] != parent {
		t.Error(seen, parent)
	}
	seen := service.fields.Get("authorization")
	if len(seen) != 1 || seen[0] != "Bearer cs_ck_secret" {
		t.Error("the API key is sent once")
	}
	if ended[1].Status().Code.String() != "Error" {
		t.Error(ended[1].Status())
	}
}
