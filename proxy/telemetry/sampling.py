"""Whether a new trace will be recorded, found without starting a span."""

from functools import lru_cache
from random import getrandbits

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Tracer


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


def is_sampled(tracer: Tracer) -> bool:
    """Whether a new trace will be recorded: most are not, and starting a span to learn that costs as much as a check.

    A tracer with other ids than `TraceIds`, or with a sampler that does not decide by the id alone, is asked by
    starting a span.
    """
    ids, bound = _drawing_of(tracer)
    return ids is None or ids.is_next_below(bound)


@lru_cache(maxsize=4)
def _drawing_of(tracer: Tracer) -> tuple[TraceIds | None, int]:
    """Return what draws the ids of a tracer, and the bound of its sampler; None if these do not decide."""
    ids, bound = getattr(tracer, "id_generator", None), _bound_of(getattr(tracer, "sampler", None))
    return (ids, bound) if isinstance(ids, TraceIds) and bound is not None else (None, 0)


def _bound_of(sampler: object) -> int | None:
    """Return below which number the end of an id must be to be sampled; None for a sampler that decides otherwise.

    Asking the sampler costs as much as starting a span. Source: opentelemetry.sdk.trace.sampling.
    """
    root = getattr(sampler, "_root", None) if isinstance(sampler, ParentBased) else sampler
    if root is ALWAYS_OFF:
        return 0
    return root.bound if isinstance(root, TraceIdRatioBased) else None
