"""The first span of a request is what the SDK would have begun, and most requests have none."""

from itertools import pairwise

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Tracer

from proxy.telemetry.recorded_span import RecordedSpan
from proxy.telemetry.sampling import RequestSpans
from proxy.telemetry.trace import Trace


class OwnIds(IdGenerator):
    """Ids that are not random, as some services need."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()

    def generate_span_id(self) -> int:
        return self._random.generate_span_id()

    def generate_trace_id(self) -> int:
        return self._random.generate_trace_id() | 1 << 127


def tracer_of(sampler: Sampler, ids: IdGenerator | None = None) -> Tracer:
    provider = TracerProvider(sampler, Resource({"service.name": "a"}), shutdown_on_exit=False, id_generator=ids)
    return provider.get_tracer("headgate", "1.0")


def spans_of(spans: RequestSpans, count: int, linked: RecordedSpan | None = None) -> list[RecordedSpan]:
    """Return the spans of so many requests, as far as they are recorded."""
    traces = [Trace(spans, {}, linked) for _ in range(count)]
    found = [trace.span for trace in traces if trace.is_recording]
    assert all(isinstance(span, RecordedSpan) for span in found)
    return [span for span in found if isinstance(span, RecordedSpan)]


def facts(span: ReadableSpan) -> list[object]:
    context = span.get_span_context()
    assert context is not None
    assert context.is_valid
    return [
        span.name, span.kind, span.parent, span.resource, span.instrumentation_scope, dict(span.attributes or {}),
        [*span.links], [*span.events], context.is_remote, context.trace_flags, context.trace_state,
    ]  # fmt: skip


@pytest.mark.parametrize("sampler", [TraceIdRatioBased(1.0), ParentBased(TraceIdRatioBased(1.0))])
def test_the_first_span_is_that_of_the_sdk(sampler: Sampler):
    """Its flags, resource and scope included."""
    tracer = tracer_of(sampler)
    (own,), begun = spans_of(RequestSpans(tracer), 1), tracer.start_span("request", kind=SpanKind.SERVER)
    assert isinstance(begun, ReadableSpan)

    assert facts(own) == facts(begun)
    assert own.is_recording()
    assert own.get_span_context() != begun.get_span_context()


@pytest.mark.parametrize("ids", [RandomIdGenerator(), OwnIds()])
@pytest.mark.parametrize("is_linked", [False, True])
def test_a_share_of_requests_is_sampled(ids: IdGenerator, is_linked: bool):
    """As many as the sampler says, with the SDK or without it; the sampler of the next service says the same of them."""
    sampler = TraceIdRatioBased(0.25)
    always = spans_of(RequestSpans(tracer_of(TraceIdRatioBased(1.0))), 1)
    sampled = spans_of(RequestSpans(tracer_of(ParentBased(sampler), ids)), 4000, always[0] if is_linked else None)
    found = {span.get_span_context().trace_id for span in sampled}

    assert 800 < len(sampled) < 1200
    assert len(found) == len(sampled)
    assert all(trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < sampler.bound for trace_id in found)
    assert all(trace_id >> 127 for trace_id in found) == isinstance(ids, OwnIds)
    assert all(len(span.links) == is_linked for span in sampled)


def test_each_request_is_as_likely_to_be_sampled():
    """Whatever the ones before it were: after a sampled one, the next one is in one of four cases."""
    spans = RequestSpans(tracer_of(TraceIdRatioBased(0.25)))
    is_sampled = [Trace(spans).is_recording for _ in range(8000)]
    after = [following for one, following in pairwise(is_sampled) if one]

    assert 0.2 < sum(after) / len(after) < 0.3


def test_a_sampler_decides_about_all():
    """Also one that does not look at ids."""
    never, always = RequestSpans(tracer_of(ParentBased(ALWAYS_OFF))), RequestSpans(tracer_of(ALWAYS_ON))

    assert spans_of(never, 9) == []
    assert len(spans_of(always, 9)) == 9


def test_a_request_that_continues_a_trace_is_sampled_as_that_is():
    """However many others are passed over."""
    spans = RequestSpans(tracer_of(ParentBased(ALWAYS_OFF)))
    parents = [f"00-{7:032x}-{9:016x}-{flags}" for flags in ("01", "00")]
    traces = [Trace(spans, {"traceparent": parent}) for parent in parents]

    assert [trace.is_recording for trace in traces] == [True, False]
    assert {trace.trace_id for trace in traces} == {f"{7:032x}"}
