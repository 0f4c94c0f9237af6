"""Encodes spans as OTLP. The exporters' own encoder takes ten times as long: each message of it is copied into the one
around it, and the resource is written as JSON to find that it is the same for all spans.

Source: https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/trace/v1/trace.proto
"""

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode

SCALARS = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}
"""The fields of a value by the type of what they hold."""

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
        _encode(span, scopes[made_by].spans.add())
    return request


def _add_resource(request: ExportTraceServiceRequest, resource: Resource) -> otlp.ResourceSpans:
    added: otlp.ResourceSpans = request.resource_spans.add(schema_url=resource.schema_url)
    added.resource.SetInParent()
    _encode_attributes(resource.attributes, added.resource.attributes)
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
        _encode_attributes(scope.attributes, added.scope.attributes)
    return added


def _encode(span: ReadableSpan, to: otlp.Span) -> None:
    context, parent, status = span.get_span_context(), span.parent, span.status
    if context is not None:
        to.trace_id, to.span_id = context.trace_id.to_bytes(16), context.span_id.to_bytes(8)
        to.trace_state = context.trace_state.to_header()
    if parent is not None:
        to.parent_span_id = parent.span_id.to_bytes(8)
    to.flags = _flags(parent)
    to.name, to.kind = span.name, KINDS[span.kind]
    to.start_time_unix_nano, to.end_time_unix_nano = span.start_time or 0, span.end_time or 0
    to.dropped_attributes_count = span.dropped_attributes
    to.dropped_events_count, to.dropped_links_count = span.dropped_events, span.dropped_links
    _encode_attributes(span.attributes, to.attributes)
    for event in span.events:
        added = to.events.add(name=event.name, time_unix_nano=event.timestamp)
        added.dropped_attributes_count = event.dropped_attributes
        _encode_attributes(event.attributes, added.attributes)
    for link in span.links:
        _encode_link(link, to.links.add())
    to.status.SetInParent()
    if status.status_code is not StatusCode.UNSET:
        to.status.code, to.status.message = status.status_code.value, status.description or ""


def _encode_link(link: Link, to: otlp.Span.Link) -> None:
    to.trace_id, to.span_id = link.context.trace_id.to_bytes(16), link.context.span_id.to_bytes(8)
    to.flags, to.dropped_attributes_count = _flags(link.context), link.dropped_attributes
    _encode_attributes(link.attributes, to.attributes)


def _flags(context: SpanContext | None) -> int:
    """Return whether a context came from another process, in the bits of OTLP."""
    known, remote = otlp.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK, otlp.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    return known | remote if context is not None and context.is_remote else known


def _encode_attributes(attributes: Mapping[str, Any] | None, to: Any) -> None:
    """Add attributes to a repeated KeyValue. A number of more than 64 bits, which OTLP cannot have, is left out."""
    for name, value in attributes.copy().items() if attributes else ():  # type: ignore[attr-defined]  # a dict, without locks
        added = to.add(key=name)
        try:
            _encode_value(value, added.value)
        except (ValueError, TypeError):
            del to[-1]


def _encode_value(value: Any, to: AnyValue) -> None:
    field = SCALARS.get(type(value))
    if field is not None:
        setattr(to, field, value)
        return
    to.array_value.SetInParent()
    for each in value:
        _encode_value(each, to.array_value.values.add())
