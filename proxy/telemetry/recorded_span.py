"""A span that is recorded: to set an attribute of the SDK's own span takes fifty times as long.

What the SDK checks of each value, and the lock that it takes for that, are not needed here: the gateway makes the
values, and one task sets them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, Tracer
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import DEFAULT_TRACE_STATE, Link, Span, SpanContext, SpanKind, Status, StatusCode

from proxy.telemetry.otlp_fields import encode_attributes, encode_field, encode_text, encode_varint

Attributes = Mapping[str, Any]
_TIME, _TIMES = Struct("<BQ"), Struct("<BQBQ")
_KINDS = {kind: bytes([0x30, kind.value + 1]) for kind in SpanKind}
_LOCAL, _REMOTE = b"\x00\x01\x00\x00", b"\x00\x03\x00\x00"
"""Whether a context came from another process, in the bits of OTLP's flags: that it is known, and that it did."""

Describe = Callable[["RecordedSpan"], None]
"""Sets what a span has not yet when it ends."""
limits = lru_cache(maxsize=1)(SpanLimits)
"""What a span has at most: OpenTelemetry's variables say so."""


class RecordedSpan(ReadableSpan):
    """A span that has begun. Values of attributes are of the types of OpenTelemetry; nothing checks that."""

    # What most spans have is not set for each of them.
    _instrumentation_info = None
    _end_time: int | None = None
    _links: Sequence[Link] = ()
    _code = StatusCode.UNSET
    _status = Status(_code)
    _lost_attributes = _lost_events = _lost_links = 0
    _describe: Describe | None = None
    _is_complete = False

    def __init__(
        self, name: str, context: SpanContext | None, parent: SpanContext | None, kind: SpanKind, tracer: Tracer,
        start_time: int | None = None,
    ) -> None:  # fmt: skip
        """`tracer` gets the span when it ends; `start_time` is in nanoseconds since 1970, None: now."""
        self._name, self._context, self._parent, self._kind = name, context, parent, kind
        self._start_time = start_time or time.time_ns()
        self._attributes: dict[str, Any] = {}
        self._noted: list[tuple[str, Attributes, int]] = []
        self.tracer = tracer

    @staticmethod
    def of(begun: ReadableSpan, tracer: Tracer) -> "RecordedSpan":
        """Return what takes the place of a span that the SDK has begun."""
        span = RecordedSpan(begun.name, begun.get_span_context(), begun.parent, begun.kind, tracer, begun.start_time)
        span._links = begun.links
        span._attributes.update(begun.attributes or {})
        return span

    def child(self, name: str, kind: SpanKind, start_time: int | None = None) -> "RecordedSpan":
        """Return a span below this one, of the same trace."""
        own = self.get_span_context()
        trace_id, _, _, flags, state, _ = own
        context = SpanContext(trace_id, self.tracer.id_generator.generate_span_id(), False, flags, state)
        return RecordedSpan(name, context, own, kind, self.tracer, start_time)

    def get_span_context(self) -> SpanContext:
        context: Any = self._context
        own: SpanContext = context
        return own

    def is_recording(self) -> bool:
        return self._end_time is None

    def set_attribute(self, name: str, value: Any) -> None:
        self._attributes[name] = value

    def set_attributes(self, attributes: Attributes) -> None:
        self._attributes.update(attributes)

    def add_event(self, name: str, attributes: Attributes | None = None) -> None:
        """Add an event of now. The first ones are lost if there are too many."""
        self._noted.append((name, attributes or {}, time.time_ns()))
        most = limits().max_events
        if most is not None and len(self._noted) > most:
            del self._noted[0]
            self._lost_events += 1

    def add_link(self, context: SpanContext) -> None:
        """Link this span to another one, unless it has too many links."""
        most = limits().max_links
        if most is None or len(self._links) < most:
            self._links = [*self._links, Link(context)]
        else:
            self._lost_links += 1

    def update_name(self, name: str) -> None:
        self._name = name

    def set_status(self, code: StatusCode) -> None:
        self._code, self._status = code, Status(code)

    def end(self, end_time: int | None = None, describe: Describe | None = None) -> None:
        """End it now, or at a time in nanoseconds since 1970; a second time does nothing.

        `describe` sets what is not set yet, once it is read: by the thread that exports, for many spans together.
        """
        if self._end_time is not None:
            return
        self._end_time, self._describe = end_time or time.time_ns(), describe
        self.tracer.span_processor.on_end(self)

    def complete(self) -> None:
        """Set what is not set yet of a span that has ended, and remove attributes that are too many."""
        if self._end_time is None or self._is_complete:
            return
        self._is_complete, describe, self._describe = True, self._describe, None
        if describe is not None:
            describe(self)
        allowed = limits()
        most, longest = allowed.max_span_attributes, allowed.max_span_attribute_length
        if longest is not None or (most is not None and len(self._attributes) > most):
            bounded = BoundedAttributes(most, self._attributes, immutable=False, max_value_len=longest)
            self._attributes = dict(bounded)
            self._lost_attributes = bounded.dropped

    def encode(self) -> bytes:
        """Return the encoding in OTLP of a span that has ended.

        Source: https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/trace/v1/trace.proto
        """
        self.complete()
        parent, (trace_id, span_id, _, _, state, _) = self._parent, self.get_span_context()
        parts = [
            b"\x0a\x10", trace_id.to_bytes(16), b"\x12\x08", span_id.to_bytes(8),
            encode_text(b"\x2a", self._name), _KINDS[self._kind],
            _TIMES.pack(0x39, self._start_time, 0x41, self._end_time), b"\x85\x01", _flags(parent),
            encode_attributes(b"\x4a", self._attributes.copy()),
        ]  # fmt: skip
        if state is not DEFAULT_TRACE_STATE:
            parts.append(encode_text(b"\x1a", state.to_header()))
        if parent is not None:
            parts += b"\x22\x08", parent.span_id.to_bytes(8)
        for name, attributes, at in self._noted:
            noted = _TIME.pack(0x09, at) + encode_text(b"\x12", name) + encode_attributes(b"\x1a", attributes)
            parts.append(encode_field(b"\x5a", noted))
        parts += [encode_field(b"\x6a", _link(link)) for link in self._links]
        parts.append(b"\x7a\x00" if self._code is StatusCode.UNSET else b"\x7a\x02\x18%c" % self._code.value)
        if self._lost_attributes or self._lost_events or self._lost_links:
            lost = self._lost_attributes, self._lost_events, self._lost_links
            parts += [b"\x50%b\x60%b\x70%b" % tuple(map(encode_varint, lost))]
        return b"".join(parts)

    @property
    def name(self) -> str:
        self.complete()
        return self._name

    @property
    def attributes(self) -> Mapping[str, Any]:
        self.complete()
        return self._attributes.copy()

    @property
    def status(self) -> Status:
        self.complete()
        return self._status

    @property
    def resource(self) -> Resource:
        return self.tracer.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope | None:
        return self.tracer._instrumentation_scope  # noqa: SLF001  as its own spans have it

    @property
    def events(self) -> Sequence[Event]:
        return [Event(*noted) for noted in self._noted]

    @property
    def dropped_attributes(self) -> int:
        self.complete()
        return self._lost_attributes

    @property
    def dropped_events(self) -> int:
        return self._lost_events

    @property
    def dropped_links(self) -> int:
        return self._lost_links


def _link(link: Link) -> bytes:
    """Return a link to a span."""
    trace_id, span_id, *_ = link.context
    ids = b"\x0a\x10%b\x12\x08%b" % (trace_id.to_bytes(16), span_id.to_bytes(8))
    return ids + encode_attributes(b"\x22", link.attributes) + b"\x35" + _flags(link.context)


def _flags(context: SpanContext | None) -> bytes:
    """Return whether a context came from another process."""
    return _REMOTE if context is not None and context.is_remote else _LOCAL


def recorded(begun: Span, tracer: object) -> RecordedSpan | Span:
    """Return what takes the place of a span that one of the SDK's tracers has begun; that of another as it is."""
    if not isinstance(begun, ReadableSpan) or not isinstance(tracer, Tracer):
        return begun
    return RecordedSpan.of(begun, tracer)


def headers_of(context: SpanContext) -> dict[str, str]:
    """Return the W3C headers that name a span. Source: https://www.w3.org/TR/trace-context/"""
    trace_id, span_id, _, flags, state, _ = context
    headers = {"traceparent": f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"}
    return headers | {"tracestate": state.to_header()} if state else headers
