"""A span that is recorded: to set an attribute of the SDK's own span takes fifty times as long.

What the SDK checks of each value, and the lock that it takes for that, are not needed here: the gateway makes the
values, and one task sets them.
"""

import time
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, Tracer
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode

Attributes = Mapping[str, Any]

limits = lru_cache(maxsize=1)(SpanLimits)
"""What a span has at most: OpenTelemetry's variables say so."""


class RecordedSpan(ReadableSpan):
    """A span that has begun. Values of attributes are of the types of OpenTelemetry; nothing checks that."""

    def __init__(
        self, name: str, context: SpanContext | None, parent: SpanContext | None, kind: SpanKind, tracer: Tracer,
        start_time: int | None = None,
    ) -> None:  # fmt: skip
        """`tracer` gets the span when it ends; `start_time` is in nanoseconds since 1970, None: now."""
        self._noted: deque[Event] = deque(maxlen=limits().max_events)
        super().__init__(
            name, context, parent, tracer.resource, {}, self._noted, [], kind,
            start_time=start_time or time.time_ns(), instrumentation_scope=tracer._instrumentation_scope,  # noqa: SLF001  as its own spans have it
        )  # fmt: skip
        self._tracer = tracer
        self._event_count = self._link_count = 0
        self._own: dict[str, Any] = {}

    @staticmethod
    def of(begun: ReadableSpan, tracer: Tracer) -> "RecordedSpan":
        """Return what takes the place of a span that the SDK has begun."""
        span = RecordedSpan(begun.name, begun.get_span_context(), begun.parent, begun.kind, tracer, begun.start_time)
        span._links, span._link_count = begun.links, len(begun.links)
        span._own.update(begun.attributes or {})
        return span

    def child(self, name: str, kind: SpanKind, start_time: int | None = None) -> "RecordedSpan":
        """Return a span below this one, of the same trace."""
        own, span_id = self.get_span_context(), self._tracer.id_generator.generate_span_id()
        context = SpanContext(
            own.trace_id, span_id, is_remote=False, trace_flags=own.trace_flags, trace_state=own.trace_state
        )
        return RecordedSpan(name, context, own, kind, self._tracer, start_time)

    def get_span_context(self) -> SpanContext:
        context: Any = self._context
        own: SpanContext = context
        return own

    def is_recording(self) -> bool:
        return self._end_time is None

    def set_attribute(self, name: str, value: Any) -> None:
        self._own[name] = value

    def set_attributes(self, attributes: Attributes) -> None:
        self._own.update(attributes)

    def add_event(self, name: str, attributes: Attributes | None = None) -> None:
        """Add an event of now. The first ones are lost if there are too many."""
        self._event_count += 1
        self._noted.append(Event(name, attributes or {}, time.time_ns()))

    def add_link(self, context: SpanContext) -> None:
        """Link this span to another one, unless it has too many links."""
        self._link_count += 1
        most = limits().max_links
        if most is None or len(self._links) < most:
            self._links = [*self._links, Link(context)]

    def update_name(self, name: str) -> None:
        self._name = name

    def set_status(self, code: StatusCode) -> None:
        self._status = Status(code)

    def end(self, end_time: int | None = None) -> None:
        """End it now, or at a time in nanoseconds since 1970; a second time does nothing."""
        if self._end_time is not None:
            return
        most, longest = limits().max_span_attributes, limits().max_span_attribute_length
        attributes: Any = self._own
        if longest is not None or (most is not None and len(attributes) > most):
            attributes = BoundedAttributes(most, attributes, immutable=False, max_value_len=longest)
        self._attributes = attributes
        self._end_time = end_time or time.time_ns()
        self._tracer.span_processor.on_end(self)

    @property
    def dropped_events(self) -> int:
        return self._event_count - len(self._events)

    @property
    def dropped_links(self) -> int:
        return max(0, self._link_count - len(self._links))


def recorded(begun: Span, tracer: object) -> RecordedSpan | Span:
    """Return what takes the place of a span that one of the SDK's tracers has begun; that of another as it is."""
    if not isinstance(begun, ReadableSpan) or not isinstance(tracer, Tracer):
        return begun
    return RecordedSpan.of(begun, tracer)


def headers_of(context: SpanContext) -> dict[str, str]:
    """Return the W3C headers that name a span. Source: https://www.w3.org/TR/trace-context/"""
    headers = {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}
    return headers | {"tracestate": context.trace_state.to_header()} if context.trace_state else headers
