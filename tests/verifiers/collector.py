"""A collector of traces: receives OTLP over gRPC or HTTP, and prints a JSON object for each span.

Usage: collector.py grpc|http ok|refuse. The first line of the output is the port.
"""

import json
import sys
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

protocol, behaviour = sys.argv[1:]


def value(any_value):
    return getattr(any_value, any_value.WhichOneof("value"))


def show(request):
    for resource_spans in request.resource_spans:
        service = {a.key: value(a.value) for a in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                line = {
                    "service": service["service.name"],
                    "trace": span.trace_id.hex(),
                    "id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "name": span.name,
                    "kind": span.kind,
                    "attributes": {a.key: value(a.value) for a in span.attributes},
                    # All of it, for secrets that must not be there.
                    "whole": str(span),
                    "events": len(span.events),
                }
                print(json.dumps(line), flush=True)


class Servicer(TraceServiceServicer):
    def Export(self, request, context):
        if behaviour == "refuse":
            context.abort(grpc.StatusCode.UNAVAILABLE, "this collector refuses everything")
        show(request)
        return ExportTraceServiceResponse()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        found = self.path == "/v1/traces" and behaviour == "ok"
        if found:
            show(ExportTraceServiceRequest.FromString(body))
        self.send_response(200 if found else 503)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


if protocol == "grpc":
    server = grpc.server(futures.ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(Servicer(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()
else:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
