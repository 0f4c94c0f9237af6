"""The first span of a request is what the SDK would have begun, and most requests have none."""

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, SpanContext, SpanKind, Tracer

from proxy.telemetry.recorded_span import RecordedSpan
from proxy.telemetry.sampling import TraceIds, begin_span

ELSEWHERE = SpanContext(7, 9, is_remote=True)


def tracer_of(sampler: Sampler, ids: RandomIdGenerator) -> Tracer:
    provider = TracerProvider(sampler, Resource({"service.name": "a"}), shutdown_on_exit=False, id_generator=ids)
    return provider.get_tracer("headgate", "1.0")


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
    tracer = tracer_of(sampler, TraceIds())
    own, begun = begin_span(tracer, None, []), tracer.start_span("request", kind=SpanKind.SERVER)
    assert isinstance(own, RecordedSpan)
    assert isinstance(begun, ReadableSpan)

    assert facts(own) == facts(begun)
    assert own.is_recording()
    assert own.get_span_context() != begun.get_span_context()


@pytest.mark.parametrize("ids", [TraceIds(), RandomIdGenerator()])
@pytest.mark.parametrize("links", [[], [Link(ELSEWHERE)]])
def test_a_share_of_requests_is_sampled(ids: RandomIdGenerator, links: list[Link]):
    """As many as the sampler says, with the SDK or without it."""
    tracer = tracer_of(ParentBased(TraceIdRatioBased(0.25)), ids)
    spans = [begin_span(tracer, None, links) for _ in range(4000)]
    sampled = [span for span in spans if span is not None and span.is_recording()]

    assert 800 < len(sampled) < 1200
    assert len({span.get_span_context().trace_id for span in sampled}) == len(sampled)
    assert all(isinstance(span, RecordedSpan) for span in sampled)


def test_a_sampler_decides_about_all():
    """Also one that does not look at ids."""
    never, always = tracer_of(ParentBased(ALWAYS_OFF), TraceIds()), tracer_of(ALWAYS_ON, TraceIds())

    assert [begin_span(never, None, []) for _ in range(9)] == [None] * 9
    assert all(isinstance(begin_span(always, None, []), RecordedSpan) for _ in range(9))
