"""Decides whether the trace of a request is recorded, and begins its first span."""

import sys
from math import log, log1p
from random import getrandbits, random

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, TraceFlags, Tracer

from proxy.telemetry.recorded_span import RecordedSpan, recorded


class RequestSpans:
    """Begins the spans of requests. Most of those that are not sampled cost no call of a function.

    A tracer takes as long to find that a request is not sampled as all checks of one. It is asked for a request that
    continues a trace or has links, and for all if its sampler does not decide by a random id alone.
    """

    __slots__ = ("_bound", "_flags", "_tracer", "passed_over")

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._bound = _bound_of(tracer)
        self._flags = _flags_of(tracer)
        self.passed_over = self._draw()
        """How many of the next requests that continue no trace and have no links are not sampled."""

    @staticmethod
    def of(tracer: Tracer | None) -> "RequestSpans | None":
        """Return what begins the spans of a tracer; None without one."""
        return None if tracer is None else RequestSpans(tracer)

    def begin(self, context: Context | None, linked: RecordedSpan | Span | None) -> RecordedSpan | Span:
        """Begin the span of a request that is not passed over. One of the SDK is not recorded."""
        tracer, bound = self._tracer, self._bound
        links = [] if linked is None else [Link(linked.get_span_context())]
        if context is not None or links or bound is None or not isinstance(tracer, SdkTracer):
            return recorded(tracer.start_span("request", context, SpanKind.SERVER, links=links), tracer)
        self.passed_over = self._draw()
        end = getrandbits(64) * bound >> 64  # below the bound: other services decide by it too
        trace_id = (getrandbits(64) or 1) << 64 | end
        drawn = SpanContext(trace_id, tracer.id_generator.generate_span_id(), is_remote=False, trace_flags=self._flags)
        return RecordedSpan("request", drawn, None, SpanKind.SERVER, tracer)

    def _draw(self) -> int:
        """Return how many requests are passed over until one is sampled, if each is with the sampler's probability."""
        share = 1.0 if self._bound is None else self._bound / (TraceIdRatioBased.TRACE_ID_LIMIT + 1)
        if not 0 < share < 1:
            return 0 if share else sys.maxsize
        return int(log(1 - random()) / log1p(-share))  # noqa: S311  a sample, not a secret


def _flags_of(tracer: Tracer) -> TraceFlags:
    """Return the flags of a sampled trace."""
    is_random = isinstance(tracer, SdkTracer) and tracer.id_generator.is_trace_id_random()
    return TraceFlags(TraceFlags.SAMPLED | (TraceFlags.RANDOM_TRACE_ID if is_random else 0))


def _bound_of(tracer: Tracer) -> int | None:
    """Return below which number the end of a random id must be to be sampled; None if that does not decide.

    Source: opentelemetry.sdk.trace.sampling.
    """
    if not isinstance(tracer, SdkTracer) or type(tracer.id_generator) is not RandomIdGenerator:
        return None
    sampler = tracer.sampler
    root = getattr(sampler, "_root", None) if isinstance(sampler, ParentBased) else sampler
    if root is ALWAYS_OFF:
        return 0
    return root.bound if isinstance(root, TraceIdRatioBased) else None
