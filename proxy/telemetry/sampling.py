"""Whether a new trace will be recorded, found without starting a span."""

from functools import lru_cache

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Tracer


class TraceIds(RandomIdGenerator):
    """Random ids of traces, the first of which can be known before its span is started."""

    def __init__(self) -> None:
        self._next: int | None = None

    def peek(self) -> int:
        """Return the id that the next trace will have."""
        if self._next is None:
            self._next = super().generate_trace_id()
        return self._next

    def generate_trace_id(self) -> int:
        trace_id, self._next = self.peek(), None
        return trace_id

    def drop(self) -> None:
        """Let the next trace have another id."""
        self._next = None


def is_sampled(tracer: Tracer) -> bool:
    """Whether a new trace will be recorded: most are not, and starting a span to learn that costs as much as a check.

    A tracer with other ids than `TraceIds`, or with a sampler that does not decide by the id alone, is asked by
    starting a span.
    """
    ids, bound = getattr(tracer, "id_generator", None), _bound_of(getattr(tracer, "sampler", None))
    if not isinstance(ids, TraceIds) or bound is None or ids.peek() & TraceIdRatioBased.TRACE_ID_LIMIT < bound:
        return True
    ids.drop()
    return False


@lru_cache(maxsize=4)
def _bound_of(sampler: object) -> int | None:
    """Return below which number the end of an id must be to be sampled; None for a sampler that decides otherwise.

    Asking the sampler costs as much as starting a span. Source: opentelemetry.sdk.trace.sampling.
    """
    root = getattr(sampler, "_root", None) if isinstance(sampler, ParentBased) else sampler
    if root is ALWAYS_OFF:
        return 0
    return root.bound if isinstance(root, TraceIdRatioBased) else None
