"""OTLP exporters, as OpenTelemetry's standard variables ask for them.

Source: https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

import os
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from typing import Any, Literal

from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider

Signal = Literal["traces", "metrics"]
HTTP, GRPC = "http/protobuf", "grpc"
MODULES: Mapping[tuple[str, Signal], tuple[str, str]] = {
    (HTTP, "traces"): ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "OTLPSpanExporter"),
    (HTTP, "metrics"): ("opentelemetry.exporter.otlp.proto.http.metric_exporter", "OTLPMetricExporter"),
    (GRPC, "traces"): ("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "OTLPSpanExporter"),
    (GRPC, "metrics"): ("opentelemetry.exporter.otlp.proto.grpc.metric_exporter", "OTLPMetricExporter"),
}


def is_wanted(signal: Signal) -> bool:
    """Whether a signal is to be exported: there is an endpoint for it, and nothing that turns it off."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    is_off = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER") == "none"
    return any(os.environ.get(name) for name in names) and not is_disabled and not is_off


def make_exporter(signal: Signal) -> Any:
    """Return the exporter of a signal: a SpanExporter, or a MetricExporter. Importing one takes a tenth of a second.

    Raises ValueError for a protocol that is not available.
    """
    variable, value = _protocol(signal)
    if (value, signal) not in MODULES:
        raise ValueError(f"{variable} is '{value}'; allowed: {HTTP}, {GRPC}.")
    path, name = MODULES[value, signal]
    try:
        module = import_module(path)
    except ImportError as error:
        message = f"{variable} is '{value}', which needs the package's extra headgate[grpc]; or set it to {HTTP}."
        raise ValueError(message) from error
    if signal == "traces":
        from proxy.telemetry.otlp_spans import EncodedSpans, make_message

        encode = make_message if value == GRPC else EncodedSpans
        setattr(module, "encode_spans", encode)  # noqa: B010  the exporters have no parameter for it
    return getattr(module, name)()


@lru_cache(maxsize=1)
def resource() -> Resource:
    """Return what this process is. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have precedence."""
    name = os.environ.get("OTEL_SERVICE_NAME", "headgate")
    own = {SERVICE_NAME: name, SERVICE_VERSION: version("headgate"), SERVICE_INSTANCE_ID: str(uuid.uuid4())}
    return Resource.create(own)


def tracer_provider(losses: dict[str, Callable[[], int]] | None = None) -> TracerProvider | None:
    """Return a provider that exports OTLP if the standard variables ask for it, else None.

    What counts the spans that are lost is added to `losses`. Raises ValueError for a protocol that is not available.
    Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """
    if not is_wanted("traces"):
        return None
    from proxy.telemetry.span_queue import SpanQueue

    queue = SpanQueue(make_exporter("traces"))
    provider = TracerProvider(resource=resource(), shutdown_on_exit=False)
    provider.add_span_processor(queue)
    if losses is not None:
        losses["traces"] = queue.count_lost
    return provider


def _protocol(signal: Signal) -> tuple[str, str]:
    """Return the variable that names the protocol of a signal, and its value."""
    own, common = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
    variable = own if os.environ.get(own) else common
    return variable, os.environ.get(variable) or HTTP
