"""The messages that export spans. The exporters' own encoder takes fifty times as long: each message of it is copied
into the one around it, and the resource is written as JSON to find that it is the same for all spans.

Source: https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/trace/v1/trace.proto
"""

from collections.abc import Sequence

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp
from opentelemetry.sdk.trace import Tracer

from proxy.telemetry.otlp_fields import encode_attributes, encode_field
from proxy.telemetry.recorded_span import RecordedSpan


class EncodedSpans:
    """Stands for the message in the exporter by HTTP, which asks for nothing but its encoding."""

    def __init__(self, spans: Sequence[RecordedSpan]) -> None:
        self._encoding = encode_spans(spans)

    def SerializePartialToString(self) -> bytes:  # noqa: N802  the name that messages have for it
        return self._encoding


def make_message(spans: Sequence[RecordedSpan]) -> ExportTraceServiceRequest:
    """Return the message itself, which the exporter by gRPC needs."""
    message: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(encode_spans(spans))
    return message


def encode_spans(spans: Sequence[RecordedSpan]) -> bytes:
    """Return the encoding of the message, whose spans are grouped by resource, and then by scope."""
    by_tracer: dict[Tracer, list[RecordedSpan]] = {}
    for span in spans:
        by_tracer.setdefault(span.tracer, []).append(span)
    by_resource: dict[int, list[list[RecordedSpan]]] = {}
    for tracer, group in by_tracer.items():
        by_resource.setdefault(id(tracer.resource), []).append(group)
    return b"".join([encode_field(b"\x0a", _encode_resource(groups)) for groups in by_resource.values()])


def _encode_resource(groups: Sequence[Sequence[RecordedSpan]]) -> bytes:
    """Return the spans of one resource, which are grouped by scope."""
    resource = groups[0][0].resource
    own = otlp.ResourceSpans(schema_url=resource.schema_url)
    own.resource.SetInParent()
    own.resource.MergeFromString(encode_attributes(b"\x0a", resource.attributes))
    return b"".join([own.SerializeToString(), *[encode_field(b"\x12", _encode_scope(group)) for group in groups]])


def _encode_scope(spans: Sequence[RecordedSpan]) -> bytes:
    """Return the spans of one scope."""
    scope, own = spans[0].instrumentation_scope, otlp.ScopeSpans()
    own.scope.SetInParent()
    if scope is not None:
        own.schema_url, own.scope.name, own.scope.version = scope.schema_url or "", scope.name, scope.version or ""
        own.scope.MergeFromString(encode_attributes(b"\x1a", scope.attributes))
    return b"".join([own.SerializeToString(), *[encode_field(b"\x12", span.encode()) for span in spans]])
