"""A span that the gateway records is what the SDK's own span would be, its limits included."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from proxy.telemetry import recorded_span
from proxy.telemetry.recorded_span import RecordedSpan, headers_of, recorded

ELSEWHERE = SpanContext(7, 9, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("c", "3")]))


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    """The variables are read anew."""
    recorded_span.limits.cache_clear()
    yield
    recorded_span.limits.cache_clear()


def both_spans() -> tuple[ReadableSpan, ReadableSpan]:
    """Return the SDK's span and the gateway's, to which the same was done."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("headgate")
    for makes_own in (False, True):
        begun = tracer.start_span("request", kind=SpanKind.SERVER, attributes={"a": "b"}, links=[Link(ELSEWHERE)])
        span = recorded(begun, tracer) if makes_own else begun
        assert isinstance(span, RecordedSpan) is makes_own
        span.set_attribute("long", "x" * 50)
        span.set_attributes({f"n{number}": number for number in range(9)})
        for number in range(9):
            span.add_event(f"event {number}", {"policy": "p"})
            span.add_link(ELSEWHERE)
        span.update_name("POST /v1/responses")
        span.set_status(StatusCode.ERROR)
        span.end()
        span.end()
    own, ours = exporter.get_finished_spans()
    return own, ours


def facts(span: ReadableSpan) -> list[object]:
    return [
        span.name, span.kind, span.parent, dict(span.attributes or {}), span.dropped_attributes, span.dropped_events,
        span.dropped_links, [(event.name, dict(event.attributes or {})) for event in span.events],
        [link.context for link in span.links], span.status.status_code, span.resource, span.instrumentation_scope,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "5", "OTEL_SPAN_EVENT_COUNT_LIMIT": "3", "OTEL_SPAN_LINK_COUNT_LIMIT": "4"},
        {"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "8"},
    ],
)
def test_it_is_what_the_sdk_would_have_recorded(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]):
    """Of the events that are too many the first are lost, in both."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    own, ours = both_spans()

    assert facts(ours)[3:8] == facts(own)[3:8]
    assert facts(ours) == facts(own)


def test_a_child_is_of_the_same_trace():
    """With the state that the caller has sent."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("headgate")
    root = recorded(tracer.start_span("request"), tracer)
    assert isinstance(root, RecordedSpan)
    child = root.child("chat", SpanKind.CLIENT, 17)
    above, below = root.get_span_context(), child.get_span_context()

    assert (below.trace_id, below.trace_flags, child.parent) == (above.trace_id, above.trace_flags, above)
    assert below.span_id != above.span_id
    assert (child.start_time, child.is_recording()) == (17, True)


def test_a_span_of_something_else_stays_as_it_is():
    """A request that is not sampled has one that records nothing."""
    span = NonRecordingSpan(ELSEWHERE)

    assert recorded(span, TracerProvider(shutdown_on_exit=False).get_tracer("a")) is span


def test_headers_name_a_span():
    """As upstreams read them."""
    assert headers_of(ELSEWHERE) == {"traceparent": f"00-{'0' * 31}7-{'0' * 15}9-01", "tracestate": "c=3"}
    assert headers_of(SpanContext(7, 9, is_remote=False)) == {"traceparent": f"00-{'0' * 31}7-{'0' * 15}9-00"}


def test_it_is_described_once_when_it_is_read(monkeypatch: pytest.MonkeyPatch):
    """Not when it ends; what is set so counts as attributes do that were set before."""
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1")
    described: list[RecordedSpan] = []

    def describe(span: RecordedSpan) -> None:
        described.append(span)
        span.update_name("b")
        span.set_attributes({"first": 1, "last": 2})
        span.set_status(StatusCode.ERROR)

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("headgate")
    span = RecordedSpan("a", SpanContext(7, 9, is_remote=False), None, SpanKind.SERVER, tracer)
    running = span.name, dict(span.attributes)
    span.end(describe=describe)
    before = [*described]
    found = span.name, dict(span.attributes), span.dropped_attributes, span.status.status_code
    encoded = span.encode()

    assert (running, before, described) == (("a", {}), [], [span])
    assert found == ("b", {"last": 2}, 1, StatusCode.ERROR)
    assert b"last" in encoded
    assert b"first" not in encoded
