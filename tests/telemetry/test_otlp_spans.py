"""Spans in OTLP are what the exporters' own encoder makes of them."""

from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as reference
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.telemetry.otlp import make_exporter
from proxy.telemetry.otlp_spans import encode_spans

INCOMING = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1,b=2"}
ELSEWHERE = SpanContext(7, 9, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("c", "3")]))


def spans_of_two_resources() -> list[ReadableSpan]:
    """Return spans with everything that a span can have, of two providers, with and without a scope of its own."""
    exporter, limits = InMemorySpanExporter(), SpanLimits(max_span_attributes=8, max_events=2, max_links=1)
    for number, provider in enumerate((
        TracerProvider(
            resource=Resource({"service.name": "a", "port": 1}, "https://schema/1"), span_limits=limits,
            shutdown_on_exit=False,
        ),
        TracerProvider(resource=Resource({"service.name": "b"}), shutdown_on_exit=False),
    )):  # fmt: skip
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        for tracer in (provider.get_tracer("one"), provider.get_tracer("two", "1.2", attributes={"own": "yes"})):
            context = TraceContextTextMapPropagator().extract(INCOMING)
            outer = tracer.start_span("POST /ü", context, SpanKind.SERVER, {"text": "ä", "yes": True})
            inner = tracer.start_span(
                "chat", set_span_in_context(outer), SpanKind.CLIENT, links=[Link(ELSEWHERE, {"l": 1})]
            )
            inner.add_link(outer.get_span_context())
            inner.set_attributes({"number": -5, "part": 0.25, "list": ["a", "b"], "counts": (1, 2), "none": ()})
            inner.set_attributes({f"more.{each}": each for each in range(6 + number)})
            for event in ("first", "second", "third"):
                inner.add_event(event, {"policy": "p", "times": 3})
            inner.set_status(StatusCode.ERROR, "failed")
            inner.end()
            outer.set_status(StatusCode.OK)
            outer.end()
    return [*exporter.get_finished_spans()]


def test_all_of_a_span_is_encoded():
    """Ids, states, kinds, times, attributes of all types, events, links, what was dropped, resources and scopes."""
    spans = spans_of_two_resources()

    assert len(spans) == 8
    assert encode_spans(spans) == reference(spans)


def test_values_of_all_sizes_are_encoded():
    """Lengths of one byte and of two, of the name and the value together too; small and large numbers."""
    names = {length: "n" * length for length in (1, 60, 121, 125, 130)}
    texts = {f"{name}.{size}": "é" * (size // 2) + "t" * (size % 2) for name in names.values() for size in range(140)}
    numbers: list[Any] = [0, 1, 127, 128, -1, 2**63 - 1, -(2**63), True, False, 0.0, -1.5, "", [], ["a", 1]]
    attributes = texts | {f"{name}{each!r}": each for name in names.values() for each in numbers}
    span = ReadableSpan("a", SpanContext(1, 2, is_remote=False), resource=Resource({}), attributes=attributes)

    assert encode_spans([span]) == reference([span])


def test_spans_with_nothing_are_encoded():
    assert encode_spans([]) == reference([])
    bare = ReadableSpan("bare", SpanContext(1, 2, is_remote=False), resource=Resource({}))
    assert encode_spans([bare]) == reference([bare])


@pytest.mark.parametrize("odd", [2**63, -(2**63) - 1, "\ud800", [1, 2**64], object()])
def test_an_attribute_that_has_no_encoding_is_left_out(odd: Any):
    """An upstream's count of tokens may have more than 64 bits. The span and its other attributes are sent."""
    span = ReadableSpan(
        "a", SpanContext(1, 2, is_remote=False), resource=Resource({}), attributes={"odd": odd, "b": 2**63 - 1}
    )
    (encoded,) = encode_spans([span]).resource_spans[0].scope_spans[0].spans

    assert [(each.key, each.value.int_value) for each in encoded.attributes] == [("b", 2**63 - 1)]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_exporters_use_it(monkeypatch: pytest.MonkeyPatch, protocol: str):
    """Those of both protocols look for the function in their own module."""
    if protocol == "grpc":
        pytest.importorskip("grpc", reason="the extra headgate[grpc] is not installed")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    exporter = make_exporter("traces")
    used = type(exporter).export.__globals__["encode_spans"]
    exporter.shutdown()

    assert used is encode_spans
