"""Spans in OTLP are what the exporters' own encoder makes of them, and that is what collectors receive."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import cast

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as reference
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.telemetry import recorded_span
from proxy.telemetry.otlp import make_exporter
from proxy.telemetry.otlp_spans import make_message
from proxy.telemetry.recorded_span import RecordedSpan, recorded

INCOMING = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1,b=2"}
ELSEWHERE = SpanContext(7, 9, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("c", "3")]))
LIMITS = {
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "8", "OTEL_SPAN_EVENT_COUNT_LIMIT": "2", "OTEL_SPAN_LINK_COUNT_LIMIT": "1",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    """The variables are read anew."""
    recorded_span.limits.cache_clear()
    yield
    recorded_span.limits.cache_clear()


def spans_of_two_resources() -> list[RecordedSpan]:
    """Return spans with everything that one can have, of two providers, with and without a scope of its own."""
    exporter = InMemorySpanExporter()
    for number, resource in enumerate((
        Resource({"service.name": "a", "port": 1}, "https://schema/1"), Resource({"service.name": "b"}),
    )):  # fmt: skip
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        context = TraceContextTextMapPropagator().extract(INCOMING) if number else None
        for tracer in (provider.get_tracer("one"), provider.get_tracer("two", "1.2", attributes={"own": "yes"})):
            links = [Link(ELSEWHERE, {"l": 1})]
            begun = tracer.start_span("POST /ü", context, SpanKind.SERVER, {"text": "ä", "yes": True}, links)
            outer = cast("RecordedSpan", recorded(begun, tracer))
            inner = outer.child("chat", SpanKind.CLIENT)
            for _ in range(2):
                inner.add_link(outer.get_span_context())
            inner.set_attributes({"number": -5, "part": 0.25, "list": ["a", "b"], "counts": (1, 2), "none": ()})
            inner.set_attributes({f"more.{each}": each for each in range(6 + number)})
            for event in ("first", "second", "third"):
                inner.add_event(event, {"policy": "p", "times": 3})
            inner.set_status(StatusCode.ERROR)
            inner.child("bare", SpanKind.INTERNAL).end()
            inner.end()
            outer.set_status(StatusCode.OK)
            outer.add_event("e" * 200)
            outer.end()
    return [span for span in exporter.get_finished_spans() if isinstance(span, RecordedSpan)]


@pytest.mark.parametrize("variables", [{}, LIMITS])
def test_all_of_a_span_is_encoded(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]):
    """Ids, states, kinds, times, attributes of all types, events, links, what was dropped, resources and scopes."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    spans = spans_of_two_resources()

    assert len(spans) == 12
    assert any(span.dropped_attributes and span.dropped_events and span.dropped_links for span in spans) is bool(
        variables
    )
    assert make_message(spans) == reference(spans)


def test_no_spans_are_encoded():
    assert make_message([]) == reference([])


@contextmanager
def http_collector(received: list[ExportTraceServiceRequest]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def grpc_collector(received: list[ExportTraceServiceRequest]) -> Iterator[int]:
    grpc = pytest.importorskip("grpc", reason="the extra headgate[grpc] is not installed")
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

    class Servicer(service.TraceServiceServicer):
        def Export(self, request, context):  # noqa: N802  the name of the method in the protocol
            received.append(request)
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    service.add_TraceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


@pytest.mark.parametrize(
    ("protocol", "collector"), [("http/protobuf", http_collector), ("grpc", grpc_collector)], ids=["HTTP", "gRPC"]
)
def test_a_collector_receives_them(monkeypatch: pytest.MonkeyPatch, protocol: str, collector):
    """The exporters of both protocols look for their encoder in their own module."""
    received: list[ExportTraceServiceRequest] = []
    spans: Sequence[RecordedSpan] = spans_of_two_resources()
    with collector(received) as port:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        exporter = make_exporter("traces")
        result = exporter.export(spans)
        exporter.shutdown()

    assert result is SpanExportResult.SUCCESS
    assert received == [reference(spans)]
