"""A collector: receives OTLP over gRPC or HTTP, and prints a JSON object for each span and for each
export of metrics. The first line of the output is the port.
"""

import argparse
import json
import ssl
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("protocol", choices=["grpc", "http"])
parser.add_argument("behaviour", choices=["ok", "refuse", "reject"])
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--certificate")
parser.add_argument("--key")
arguments = parser.parse_args()


def attributes(of):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in of.attributes}


def show(line):
    # One call for the line with its end, because several threads print.
    print(json.dumps(line) + "\n", end="", flush=True)


def receive_spans(request):
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                show({
                    "service": attributes(resource_spans.resource)["service.name"],
                    "trace": span.trace_id.hex(),
                    "id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "name": span.name,
                    "kind": span.kind,
                    "attributes": attributes(span),
                    # All of it, for secrets that must not be there.
                    "whole": str(span),
                    "events": len(span.events),
                })
    return trace.ExportTraceServiceResponse()


def point(kind, point):
    shown = {
        "attributes": attributes(point),
        "start": point.start_time_unix_nano,
        "time": point.time_unix_nano,
    }
    if kind == "histogram":
        counts, bounds = list(point.bucket_counts), list(point.explicit_bounds)
        return shown | {"count": point.count, "sum": point.sum, "counts": counts, "bounds": bounds}
    return shown | {"value": getattr(point, point.WhichOneof("value"))}


def metric(metric):
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    return {
        "name": metric.name,
        "unit": metric.unit,
        "kind": kind,
        "is_monotonic": getattr(data, "is_monotonic", None),
        # 2 is cumulative.
        "temporality": getattr(data, "aggregation_temporality", None),
        "points": [point(kind, p) for p in data.data_points],
    }


def receive_metrics(request):
    response = metrics.ExportMetricsServiceResponse()
    for resource_metrics in request.resource_metrics:
        all_of_them = [m for scope in resource_metrics.scope_metrics for m in scope.metrics]
        if arguments.behaviour == "reject":
            response.partial_success.rejected_data_points = len(all_of_them)
            response.partial_success.error_message = "this collector has no room"
        show({
            "resource": attributes(resource_metrics.resource),
            "metrics": [metric(m) for m in all_of_them],
        })
    return response


class Servicer(trace_grpc.TraceServiceServicer, metrics_grpc.MetricsServiceServicer):
    def __init__(self, receive):
        self.receive = receive

    def Export(self, request, context):
        if arguments.behaviour == "refuse":
            context.abort(grpc.StatusCode.UNAVAILABLE, "this collector refuses everything")
        return self.receive(request)


class Handler(BaseHTTPRequestHandler):
    routes = {
        "/v1/traces": (trace.ExportTraceServiceRequest, receive_spans),
        "/v1/metrics": (metrics.ExportMetricsServiceRequest, receive_metrics),
    }

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = None
        if arguments.behaviour != "refuse":
            message, receive = self.routes[self.path]
            answer = receive(message.FromString(body)).SerializeToString()
        self.send_response(503 if answer is None else 200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer or b"")))
        self.end_headers()
        self.wfile.write(answer or b"")

    def log_message(self, *_):
        pass


def read(path):
    with open(path, "rb") as file:
        return file.read()


if arguments.protocol == "grpc":
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_grpc.add_TraceServiceServicer_to_server(Servicer(receive_spans), server)
    metrics_grpc.add_MetricsServiceServicer_to_server(Servicer(receive_metrics), server)
    address = f"127.0.0.1:{arguments.port}"
    if arguments.certificate:
        pair = (read(arguments.key), read(arguments.certificate))
        print(server.add_secure_port(address, grpc.ssl_server_credentials([pair])), flush=True)
    else:
        print(server.add_insecure_port(address), flush=True)
    server.start()
    server.wait_for_termination()
else:
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    if arguments.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.certificate, arguments.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_port, flush=True)
    server.serve_forever()
