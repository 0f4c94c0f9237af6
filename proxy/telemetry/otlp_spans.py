"""Encodes spans as OTLP. The exporters' own encoder takes ten times as long: each message of it is copied into the one
around it, and the resource is written as JSON to find that it is the same for all spans.

Source: https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/trace/v1/trace.proto
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode

SMALL = [bytes([number]) for number in range(128)]
SHORT = 128 - 4
"""How long the name and the value of an attribute are together that has no length of more than one byte."""
_TIME, _TIMES, _DOUBLE = Struct("<BQ"), Struct("<BQBQ"), Struct("<d")
KINDS = {kind: otlp.Span.SpanKind.Value(f"SPAN_KIND_{kind.name}") for kind in SpanKind}


def encode_spans(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    """Return the message that exports spans, grouped by what has made them: resource and scope."""
    request = ExportTraceServiceRequest()
    resources: dict[int, otlp.ResourceSpans] = {}
    scopes: dict[tuple[int, int], otlp.ScopeSpans] = {}
    for span in spans:
        resource, made_by = id(span.resource), (id(span.resource), id(span.instrumentation_scope))
        if resource not in resources:
            resources[resource] = _add_resource(request, span.resource)
        if made_by not in scopes:
            scopes[made_by] = _add_scope(resources[resource], span.instrumentation_scope)
        scopes[made_by].spans.add().MergeFromString(_encode(span))
    return request


def _add_resource(request: ExportTraceServiceRequest, resource: Resource) -> otlp.ResourceSpans:
    added: otlp.ResourceSpans = request.resource_spans.add(schema_url=resource.schema_url)
    added.resource.SetInParent()
    added.resource.MergeFromString(b"".join(_attributes(b"\x0a", resource.attributes)))
    return added


def _add_scope(to: otlp.ResourceSpans, scope: InstrumentationScope | None) -> otlp.ScopeSpans:
    added: otlp.ScopeSpans = to.scope_spans.add()
    added.scope.SetInParent()
    if scope is not None:
        added.schema_url, added.scope.name, added.scope.version = (
            scope.schema_url or "",
            scope.name,
            scope.version or "",
        )
        added.scope.MergeFromString(b"".join(_attributes(b"\x1a", scope.attributes)))
    return added


def _encode(span: ReadableSpan) -> bytes:
    """Return a span as protobuf has it: to set one field of a message takes as long as ten bytes of this."""
    context, parent, status = span.get_span_context(), span.parent, span.status
    parts: list[bytes] = []
    if context is not None:
        parts += [b"\x0a\x10", context.trace_id.to_bytes(16), b"\x12\x08", context.span_id.to_bytes(8)]
        parts.append(_field(b"\x1a", context.trace_state.to_header().encode()))
    if parent is not None:
        parts += [b"\x22\x08", parent.span_id.to_bytes(8)]
    parts += [_field(b"\x2a", span.name.encode(errors="replace")), b"\x30", _varint(KINDS[span.kind])]
    parts.append(_TIMES.pack(0x39, span.start_time or 0, 0x41, span.end_time or 0))
    parts += _attributes(b"\x4a", span.attributes)
    parts += [b"\x50", _varint(span.dropped_attributes)]
    for event in span.events:
        own = [_TIME.pack(0x09, event.timestamp), _field(b"\x12", event.name.encode(errors="replace"))]
        own += [*_attributes(b"\x1a", event.attributes), b"\x20", _varint(event.dropped_attributes)]
        parts.append(_field(b"\x5a", b"".join(own)))
    parts += [b"\x60", _varint(span.dropped_events)]
    parts += [_field(b"\x6a", _link(link)) for link in span.links]
    parts += [b"\x70", _varint(span.dropped_links)]
    code = b""
    if status.status_code is not StatusCode.UNSET:
        text = (status.description or "").encode(errors="replace")
        code = _field(b"\x12", text) + b"\x18" + _varint(status.status_code.value)
    parts += [_field(b"\x7a", code), b"\x85\x01", _flags(parent)]
    return b"".join(parts)


def _link(link: Link) -> bytes:
    ids = b"\x0a\x10" + link.context.trace_id.to_bytes(16) + b"\x12\x08" + link.context.span_id.to_bytes(8)
    rest = b"\x28" + _varint(link.dropped_attributes) + b"\x35" + _flags(link.context)
    return ids + b"".join(_attributes(b"\x22", link.attributes)) + rest


def _flags(context: SpanContext | None) -> bytes:
    """Return whether a context came from another process, in the bits of OTLP."""
    known, remote = otlp.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK, otlp.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    flags = known | remote if context is not None and context.is_remote else known
    return flags.to_bytes(4, "little")


def _attributes(tag: bytes, attributes: Mapping[str, Any] | None) -> list[bytes]:
    """Return the parts of attributes as fields. A number of more than 64 bits, which OTLP cannot have, is left out.

    Most are short texts and small numbers: those are put together here, because a call of a function takes as long.
    """
    parts: list[bytes] = []
    for name, value in attributes.copy().items() if attributes else ():  # type: ignore[attr-defined]  # a dict, without locks
        try:
            key = _key(name)
            if type(value) is str and len(data := value.encode()) + len(key) < SHORT:
                size = len(data)
                parts += tag, SMALL[len(key) + size + 4], key, b"\x12", SMALL[size + 2], b"\x0a", SMALL[size], data
            elif type(value) is int and 0 <= value < 128 and len(key) < SHORT:
                parts += tag, SMALL[len(key) + 4], key, b"\x12\x02\x18", SMALL[value]
            else:
                parts.append(_field(tag, key + _field(b"\x12", _value(value))))
        except (ValueError, TypeError, OverflowError):
            continue
    return parts


@lru_cache(maxsize=1024)
def _key(name: str) -> bytes:
    """Return the name of an attribute as a field. Names are the gateway's own, and few."""
    return _field(b"\x0a", name.encode())


def _value(value: Any) -> bytes:
    """Return an AnyValue. Raises ValueError, TypeError and OverflowError for one that it cannot have."""
    kind = type(value)
    if kind is str:
        return _field(b"\x0a", value.encode())
    if kind is bool:
        return b"\x10\x01" if value else b"\x10\x00"
    if kind is int:
        return b"\x18" + _varint(int.from_bytes(value.to_bytes(8, signed=True)))
    if kind is float:
        return b"\x21" + _DOUBLE.pack(value)
    return _field(b"\x2a", b"".join([_field(b"\x0a", _value(each)) for each in value]))


def _field(tag: bytes, data: bytes) -> bytes:
    """Return a field with its length before it."""
    size = len(data)
    return tag + (SMALL[size] if size < 128 else _varint(size)) + data


def _varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first."""
    if number < 128:
        return SMALL[number]
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)
