"""A collector: takes OTLP over HTTP, decodes it with OpenTelemetry's own types, shows what came.

``python tests/otlp/receiver.py --bind 127.0.0.1 --port 0`` prints its port on one line and ends
with its standard input. Beside ``POST /v1/traces`` and ``/v1/metrics``:

- ``GET /spans`` and ``GET /metrics`` show what has come so far, as JSON in OTLP's own form;
- ``GET /requests`` counts the requests, also those that were refused;
- ``PUT /behave/<how>`` changes what becomes of the next ones: ``well``, ``hang`` (no answer),
  ``refuse`` (503, which asks for another try), ``drop`` (the connection ends).
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

HANG_SECONDS = 120.0
_UNPACK = {"gzip": gzip.decompress, "deflate": zlib.decompress}


class Received:
    """What has come; `how` is what becomes of the next request."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.how = "well"
        self.requests = 0
        self.spans: list[dict[str, Any]] = []
        self.metrics: list[dict[str, Any]] = []

    def take_spans(self, content: bytes) -> bytes:
        """Decode and keep; the answer."""
        request = ExportTraceServiceRequest.FromString(content)
        with self.lock:
            for resource in request.resource_spans:
                sender = _attributes(resource.resource.attributes)
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        self.spans.append(_span(span) | {"resource": sender})
        return ExportTraceServiceResponse().SerializeToString()

    def take_metrics(self, content: bytes) -> bytes:
        """Decode and keep; the answer."""
        request = ExportMetricsServiceRequest.FromString(content)
        with self.lock:
            for resource in request.resource_metrics:
                sender = _attributes(resource.resource.attributes)
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        self.metrics.append(MessageToDict(metric) | {"resource": sender})
        return ExportMetricsServiceResponse().SerializeToString()


def _span(span: Any) -> dict[str, Any]:
    return {
        "name": span.name,
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "start": span.start_time_unix_nano / 1e9,
        "end": span.end_time_unix_nano / 1e9,
        "attributes": _attributes(span.attributes),
        "status": span.status.code,
        "message": span.status.message,
    }


def _attributes(pairs: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in pairs}


def serve(bind: str, port: int) -> tuple[ThreadingHTTPServer, Received]:
    """A server that is listening; run its ``serve_forever``."""
    received = Received()
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with received.lock:
                received.requests += 1
                how = received.how
            if how == "hang":
                released.wait(HANG_SECONDS)
            if how == "refuse":
                return self.answer(503, b"", "text/plain")
            if how != "well":
                self.close_connection = True
                return self.connection.close()
            content = _UNPACK.get(self.headers.get("Content-Encoding", ""), bytes)(content)
            take = {"/v1/traces": received.take_spans, "/v1/metrics": received.take_metrics}
            if self.path not in take:
                return self.answer(404, b"", "text/plain")
            return self.answer(200, take[self.path](content), "application/x-protobuf")

        def do_GET(self) -> None:
            with received.lock:
                found = {
                    "/spans": received.spans,
                    "/metrics": received.metrics,
                    "/requests": received.requests,
                }.get(self.path)
                content = json.dumps(found).encode()
            self.answer(404 if found is None else 200, content, "application/json")

        def do_PUT(self) -> None:
            how = self.path.rpartition("/")[2]
            with received.lock:
                received.how = how
            if how != "hang":
                released.set()
            self.answer(204, b"", "text/plain")

        def answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Not on standard error."""

    server = ThreadingHTTPServer((bind, port), Handler)
    server.daemon_threads = True
    return server, received


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    server, _ = serve(given.bind, given.port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
