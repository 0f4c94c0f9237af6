"""Whether the trace of a request is recorded, found without starting a span of the SDK, and its first span."""

from collections.abc import Sequence
from functools import lru_cache
from random import getrandbits

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, TraceFlags, Tracer

from proxy.telemetry.recorded_span import RecordedSpan, recorded


class TraceIds(RandomIdGenerator):
    """Random ids of traces, the first of which can be known before its span is started."""

    def __init__(self) -> None:
        self._next = 0
        """The id of the next trace; 0, which none may have: not known yet."""

    def is_next_below(self, bound: int) -> bool:
        """Draw the id of the next trace, and return whether its end is below a number: else it is drawn again."""
        self._next = self._next or getrandbits(128)
        if self._next & TraceIdRatioBased.TRACE_ID_LIMIT < bound:
            return True
        self._next = 0
        return False

    def generate_trace_id(self) -> int:
        trace_id, self._next = self._next or super().generate_trace_id(), 0
        return trace_id


def begin_span(tracer: Tracer, context: Context | None, links: Sequence[Link]) -> RecordedSpan | Span | None:
    """Begin the span of a request, if that is sampled; None without one.

    Most are not, and a tracer takes as long to find that as all checks of one. It is asked for a request that continues
    a trace or has links, and if it has other ids than `TraceIds`, or a sampler that does not decide by the id alone.
    """
    drawing = _drawing_of(tracer) if context is None and not links else None
    if drawing is None:
        return recorded(tracer.start_span("request", context, SpanKind.SERVER, links=links), tracer)
    own, ids, bound = drawing
    if not ids.is_next_below(bound):
        return None
    flags = TraceFlags(TraceFlags.SAMPLED | (TraceFlags.RANDOM_TRACE_ID if ids.is_trace_id_random() else 0))
    drawn = SpanContext(ids.generate_trace_id(), ids.generate_span_id(), is_remote=False, trace_flags=flags)
    return RecordedSpan("request", drawn, None, SpanKind.SERVER, own)


@lru_cache(maxsize=4)
def _drawing_of(tracer: Tracer) -> tuple[SdkTracer, TraceIds, int] | None:
    """Return a tracer with what draws its ids and the bound of its sampler; None if these do not decide."""
    if not isinstance(tracer, SdkTracer):
        return None
    ids, bound = tracer.id_generator, _bound_of(tracer.sampler)
    return (tracer, ids, bound) if isinstance(ids, TraceIds) and bound is not None else None


def _bound_of(sampler: object) -> int | None:
    """Return below which number the end of an id must be to be sampled; None for a sampler that decides otherwise.

    Asking the sampler costs as much as starting a span. Source: opentelemetry.sdk.trace.sampling.
    """
    root = getattr(sampler, "_root", None) if isinstance(sampler, ParentBased) else sampler
    if root is ALWAYS_OFF:
        return 0
    return root.bound if isinstance(root, TraceIdRatioBased) else None
