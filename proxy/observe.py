"""What an operator sees: one line per request, a trace with its hops, and what the headers say of both.

A request carries one Trace; `hop` times a part of its path, `note` adds to what is told at its end. Everything else
that is told has its name in the tables below.
"""

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from backends import Backend
from proxy.wire.call import Call
from proxy.wire.event import TERMINALS, Event, Once, Reply

log = structlog.get_logger()

# Hops that wait for somebody else are spans; the others are durations on the root span and in Server-Timing.
WAITING = {"cache": SpanKind.INTERNAL, "history": SpanKind.INTERNAL, "backend": SpanKind.CLIENT}
# Of what is noted, what the request's own span says ...
ON_REQUEST = {
    "method": "http.request.method", "path": "url.path", "status": "http.response.status_code",
    "caller": "headgate.caller", "team": "headgate.team", "policy": "headgate.policy", "code": "error.type",
    "outcome": "headgate.policy.outcome", "backend": "headgate.backend", "cache": "headgate.cache",
}  # fmt: skip
# ... and what the model call's span says. Source: https://github.com/open-telemetry/semantic-conventions-genai
ON_MODEL_CALL = {
    "provider": "gen_ai.provider.name", "model": "gen_ai.request.model", "stream": "gen_ai.request.stream",
    "max_output_tokens": "gen_ai.request.max_tokens", "response_id": "gen_ai.response.id",
    "response_model": "gen_ai.response.model", "finish_reason": "gen_ai.response.finish_reasons",
    "input_tokens": "gen_ai.usage.input_tokens", "output_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens", "code": "error.type",
    "first_event_s": "gen_ai.response.time_to_first_chunk",
}  # fmt: skip
_PROPAGATOR = TraceContextTextMapPropagator()


class Trace:
    """What is known of one request while it runs. Made by `begun`, found by `hop` and `note`, told by `finish`."""

    __slots__ = ("_began", "fields", "headers", "parent", "request_id", "span", "timings", "tracer")

    def __init__(self, request_id: str, *, tracer: Tracer | None, headers: Mapping[str, str]) -> None:
        self.request_id = request_id
        self.tracer = tracer
        self.fields: dict[str, Any] = {}
        self.headers: dict[str, str] = {}  # of the answer
        self.timings: list[tuple[str, float]] = []
        self.parent = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        self.span: Span | None = None
        self._began = time.perf_counter()
        if tracer is not None:
            context = _PROPAGATOR.extract(self.parent) if self.parent else None
            self.span = tracer.start_span("request", context=context, kind=SpanKind.SERVER)

    def elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    def server_timing(self) -> str:
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in self.timings)

    def finish(self) -> None:
        """Write the request's one line and end its span. Call it once, whatever happened."""
        fields = self.fields
        duration_ms = round(self.elapsed_s() * 1e3, 2)
        with suppress(OSError, ValueError):  # a full disk, a closed stderr: the answer goes out all the same
            log.info("request.finished", request_id=self.request_id, **fields, duration_ms=duration_ms)
        if self.span is None or not self.span.is_recording():
            return
        self.span.update_name(f"{fields.get('method', '')} {fields.get('path', '')}".strip())
        _describe(self.span, ON_REQUEST, fields)
        for name, seconds in self.timings:
            if name not in WAITING:
                self.span.set_attribute(f"headgate.{name}_ms", round(seconds * 1000, 3))
        if fields.get("status", 500) >= 500:
            self.span.set_status(StatusCode.ERROR)
        self.span.end()


_current: ContextVar[Trace] = ContextVar("headgate.trace")


def begun(request_id: str, *, tracer: Tracer | None, headers: Mapping[str, str]) -> Trace:
    """Begin the trace of one request and make it what `hop` and `note` of this task speak to."""
    trace = Trace(request_id, tracer=tracer, headers=headers)
    _current.set(trace)
    return trace


def note(**fields: Any) -> None:
    """Remember something to tell at the request's end. No prompt, no output, no key."""
    trace = _current.get(None)
    if trace is not None:
        trace.fields.update(fields)


def add_header(header: str, value: str) -> None:
    """Add a header to the request's answer; a second value of the same header stands behind the first."""
    trace = _current.get(None)
    if trace is not None:
        before = trace.headers.get(header)
        trace.headers[header] = value if before is None else f"{before}, {value}"


def request_id() -> str | None:
    """The id of the request that this task answers."""
    trace = _current.get(None)
    return None if trace is None else trace.request_id


def is_traced() -> bool:
    """Whether the request that this task answers is recorded in a trace."""
    trace = _current.get(None)
    return trace is not None and trace.span is not None and trace.span.is_recording()


def span_event(name: str, attributes: Mapping[str, str | None]) -> None:
    """Add an event to the request's span, if it is recorded."""
    trace = _current.get(None)
    if trace is not None and trace.span is not None and trace.span.is_recording():
        trace.span.add_event(name, {key: value for key, value in attributes.items() if value is not None})


class hop:  # noqa: N801  reads as a word of the path
    """`with hop("cache"): ...` times one hop of the path; one that waits becomes a span."""

    __slots__ = ("_begun", "_name", "_span", "_trace")

    def __init__(self, name: str) -> None:
        self._name = name
        self._trace = _current.get(None)
        self._span: Span | None = None

    def __enter__(self) -> Self:
        self._begun = time.perf_counter()
        trace = self._trace
        if self._name in WAITING and trace and trace.tracer and trace.span and trace.span.is_recording():
            context = set_span_in_context(trace.span)
            self._span = trace.tracer.start_span(self._name, context=context, kind=WAITING[self._name])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._trace is None:
            return
        self._trace.timings.append((self._name, time.perf_counter() - self._begun))
        if self._span is not None:
            if self._name == "backend":
                self._span.update_name(f"chat {self._trace.fields.get('model', '')}")
                self._span.set_attribute("gen_ai.operation.name", "chat")
                self._span.set_attribute("openai.api.type", "responses")
                _describe(self._span, ON_MODEL_CALL, self._trace.fields)
            if isinstance(error, Exception):
                self._span.set_status(StatusCode.ERROR, type(error).__name__)
            self._span.end()

    def traced(self, call: Call, backend: Backend) -> Call:
        """The call as a backend gets it: with the W3C context of this span, or the caller's when nothing is traced."""
        note(backend=backend.name, provider=backend.provider)
        if self._trace is None:
            return call
        context = self._trace.parent
        span = self._span or self._trace.span
        if span is not None and (self._trace.parent or span.is_recording()):
            context = {}
            _PROPAGATOR.inject(context, set_span_in_context(span))
        return replace(call, headers={**call.headers, **context}) if context else call


def observed(call: Call, reply: Reply) -> Reply:
    """The same reply; what its terminal event tells of tokens and ids is noted as it passes."""
    trace = _current.get(None)
    if trace is None:
        return reply
    trace.fields["model"] = call.model  # an alias may have changed it
    if "max_output_tokens" in call.body:
        trace.fields["max_output_tokens"] = call.body["max_output_tokens"]
    if isinstance(reply.batches, Once):
        _note_batch(trace, reply.batches.batch, first=True)
        return reply
    return replace(reply, batches=_observed(trace, reply.batches))


async def _observed(trace: Trace, batches: AsyncIterator[Sequence[Event]]) -> AsyncIterator[Sequence[Event]]:
    first = True
    async for batch in batches:
        _note_batch(trace, batch, first=first)
        first = False
        yield batch


def _note_batch(trace: Trace, batch: Sequence[Event], *, first: bool) -> None:
    if first:
        trace.fields["first_event_s"] = round(trace.elapsed_s(), 4)
    if batch and batch[-1].type in TERMINALS:  # nothing comes after it
        _note_response(trace.fields, batch[-1].response)


def _note_response(fields: dict[str, Any], response: Mapping[str, Any]) -> None:
    usage = response.get("usage")
    used: Mapping[str, Any] = usage if isinstance(usage, dict) else {}
    details = used.get("input_tokens_details")
    told = {
        "response_id": response.get("id"),
        "response_model": response.get("model"),
        "finish_reason": response.get("status"),
        "input_tokens": used.get("input_tokens"),
        "output_tokens": used.get("output_tokens"),
        "cached_tokens": details.get("cached_tokens") if isinstance(details, dict) else None,
    }
    fields.update((name, value) for name, value in told.items() if value is not None)


def _describe(span: Span, table: Mapping[str, str], fields: Mapping[str, Any]) -> None:
    for field, attribute in table.items():
        value = fields.get(field)
        if value is not None:
            span.set_attribute(attribute, [value] if field == "finish_reason" else value)


def traces_from_environment() -> TracerProvider | None:
    """A provider that exports by OTLP over HTTP when the standard variables ask for it, else None.

    Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """
    endpoint = any(
        os.environ.get(name) for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or not endpoint or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # The environment's own OTEL_SERVICE_NAME wins over ours.
    name = os.environ.get("OTEL_SERVICE_NAME", "headgate")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
