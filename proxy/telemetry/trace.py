"""The trace of one request: its spans, the durations of its steps, and the W3C context it continues.

A step that waits for something else becomes a span; the others are durations on the request's span. All durations are
in `Server-Timing`.
"""

import re
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.telemetry.otlp import is_wanted, make_exporter, resource
from proxy.telemetry.record import LONGEST_CHARS, RequestRecord
from proxy.telemetry.sampling import TraceIds, is_sampled
from proxy.wire.errors import BackendError
from proxy.wire.loggable import printable

WAITING_STEPS = frozenset({"cache", "history"})
# Attributes of the request's span, by field of the record ...
REQUEST_ATTRIBUTES = {
    "method": "http.request.method", "path": "url.path", "status": "http.response.status_code",
    "caller": "headgate.caller", "team": "headgate.team", "key_id": "headgate.key.id", "tags": "headgate.key.tags",
    "policy": "headgate.policy", "code": "error.type", "outcome": "headgate.policy.outcome", "route": "headgate.route",
    "backend": "headgate.backend", "cache": "headgate.cache", "cache_detail": "headgate.cache.detail",
    "attempts": "headgate.attempts", "hedged": "headgate.hedged", "repairs": "headgate.repairs",
    "saved_usd": "headgate.cache.saved_usd",
}  # fmt: skip
# ... and of the model call's. Source: https://github.com/open-telemetry/semantic-conventions-genai
MODEL_CALL_ATTRIBUTES = {
    "provider": "gen_ai.provider.name", "model": "gen_ai.request.model", "stream": "gen_ai.request.stream",
    "max_output_tokens": "gen_ai.request.max_tokens", "response_id": "gen_ai.response.id",
    "response_model": "gen_ai.response.model", "finish_reason": "gen_ai.response.finish_reasons",
    "input_tokens": "gen_ai.usage.input_tokens", "output_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_write.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens", "estimated": "headgate.usage.estimated",
    "cost_usd": "headgate.cost_usd", "unpriced": "headgate.unpriced",
    "code": "error.type",
    "first_event_s": "gen_ai.response.time_to_first_chunk",
}  # fmt: skip
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_PROPAGATOR = TraceContextTextMapPropagator()


class Trace:
    """The spans and durations of one request. Without a tracer it only measures durations."""

    __slots__ = (
        "_incoming", "_model_call", "_started", "_step", "_step_began", "_step_span", "_tracer", "durations",
        "inference_began", "is_recording", "span",
    )  # fmt: skip

    def __init__(
        self, tracer: Tracer | None = None, headers: Mapping[str, str] | None = None, linked: Span | None = None
    ) -> None:
        """`headers` are those of the request, `linked` is the span of the connection that it came on."""
        self.durations: list[tuple[str, float]] = []  # in seconds, in the order in which the steps ended
        self.span: Span | None = None
        self.is_recording = False
        self._tracer = tracer
        self._model_call: ModelCall | None = None
        self.inference_began: float | None = None  # when the first backend was called
        self._step: str | None = None
        self._step_began = 0.0
        self._step_span: Span | None = None
        self._started = time.perf_counter()
        self._incoming: dict[str, str] = {}
        if headers is not None and "traceparent" in headers:
            self._incoming = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        if tracer is not None:
            context = _PROPAGATOR.extract(self._incoming) if self._incoming else None
            links = [] if linked is None else [Link(linked.get_span_context())]
            if context is not None or linked is not None or is_sampled(tracer):
                self.span = tracer.start_span("request", context=context, kind=SpanKind.SERVER, links=links)
                self.is_recording = self.span.is_recording()

    @property
    def trace_id(self) -> str | None:
        """The id of the trace in hex, which the caller may have begun; None without one."""
        if self.span is not None:
            return f"{self.span.get_span_context().trace_id:032x}"
        found = TRACEPARENT.fullmatch(self._incoming["traceparent"]) if self._incoming else None
        return None if found is None else found[1]

    def elapsed_s(self) -> float:
        """Return the seconds since the request's head was read."""
        return time.perf_counter() - self._started

    def begin(self, step: str) -> None:
        """Begin a step of the path, which lasts until the next one begins, or until `end_step`."""
        now = time.perf_counter()
        if self._step_span is not None:
            self.end_step()
        elif self._step is not None:
            self.durations.append((self._step, now - self._step_began))
        self._step, self._step_began = step, now
        if self.is_recording and step in WAITING_STEPS:
            self._step_span = self.start_child(step, SpanKind.INTERNAL)

    def end_step(self) -> None:
        """End the step that has begun, if one has: what follows is none."""
        if self._step is None:
            return
        self.durations.append((self._step, time.perf_counter() - self._step_began))
        self._step = None
        if self._step_span is not None:
            self._step_span.end()
            self._step_span = None

    def fail_step(self, code: str | None) -> None:
        """End the step in which the request failed, if it was in one."""
        if self._step_span is not None:
            self._step_span.set_status(StatusCode.ERROR, code)
        self.end_step()

    def model_call(self, record: RequestRecord, *, relays: str | None = None) -> "ModelCall":
        """Measure the call of a backend, from opening it to the end of its reply; `relays` is a path that it relays."""
        self.end_step()
        self._model_call = ModelCall(self, record, relays)
        self.inference_began = self.inference_began or self._model_call.started
        return self._model_call

    def end_wait(self) -> None:
        """Note the first event of a reply: `Server-Timing` says how long the backend took to begin."""
        if self._model_call is not None:
            self.durations.append(("backend", time.perf_counter() - self._model_call.started))
            self._model_call = None

    def event(self, name: str, attributes: Mapping[str, str | None]) -> None:
        """Add an event to the request's span, if the span is recorded."""
        if self.span is not None and self.is_recording:
            self.span.add_event(name, {key: value for key, value in attributes.items() if value is not None})

    def propagation_headers(self) -> dict[str, str]:
        """Return the W3C context for an upstream: this trace's, or the caller's where nothing is recorded here."""
        span = self._model_call.span if self._model_call is not None else None
        span = span or self.span
        if span is None or not (self._incoming or span.is_recording()):
            return self._incoming
        headers: dict[str, str] = {}
        _PROPAGATOR.inject(headers, set_span_in_context(span))
        return headers

    def server_timing(self, *, has_steps: bool = True) -> str:
        """Return the value of `Server-Timing`: of each step, if any is measured, or of all together.

        Source: https://www.w3.org/TR/server-timing/
        """
        self.end_step()
        durations = (has_steps and self.durations) or [("total", self.elapsed_s())]
        return ", ".join([f"{name};dur={seconds * 1000:.2f}" for name, seconds in durations])

    def start_child(self, name: str, kind: SpanKind) -> Span | None:
        """Start a span under the request's, if that is recorded."""
        if self._tracer is None or self.span is None or not self.is_recording:
            return None
        return self._tracer.start_span(name, context=set_span_in_context(self.span), kind=kind)

    def of_turn(self) -> "Trace":
        """Return the trace of one turn on the connection that this is the trace of: their spans are linked."""
        return Trace(self._tracer, self._incoming, self.span)

    def fork(self, name: str) -> "Trace":
        """Return the trace of work that continues after this request: its span is a child of the request's."""
        fork = Trace()
        fork._tracer, fork._incoming = self._tracer, self.propagation_headers()
        fork.span = self.start_child(name, SpanKind.INTERNAL)
        fork.is_recording = fork.span is not None and fork.span.is_recording()
        return fork

    def end(self, record: RequestRecord) -> None:
        """End the request's span with the attributes of its record."""
        if record.code is not None:
            self.fail_step(record.code)
        self.end_step()
        if self.span is None or not self.is_recording:
            return
        if name := f"{record.method or ''} {record.path or ''}".strip():
            self.span.update_name(printable(name, LONGEST_CHARS))
        set_attributes(self.span, REQUEST_ATTRIBUTES, record)
        for step, seconds in self.durations:
            if step not in WAITING_STEPS and step != "backend":
                self.span.set_attribute(f"headgate.{step}_ms", round(seconds * 1000, 3))
        if record.status is None or record.status >= 500:
            self.span.set_status(StatusCode.ERROR)
        self.span.end()


class ModelCall:
    """The call of a backend as a context manager: a CLIENT span in the terms of GenAI."""

    __slots__ = ("_record", "_relays", "_trace", "span", "started")

    def __init__(self, trace: Trace, record: RequestRecord, relays: str | None) -> None:
        self._trace = trace
        self._record = record
        self._relays = relays
        self.started = time.perf_counter()
        self.span = trace.start_child("chat" if relays is None else "relay", SpanKind.CLIENT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._trace.end_wait()
        self._record.inference_s = round(time.perf_counter() - (self._trace.inference_began or self.started), 4)
        if self.span is None:
            return
        if self._relays is None:
            self.span.update_name(f"chat {printable(self._record.model or '', LONGEST_CHARS)}")
            self.span.set_attribute("gen_ai.operation.name", "chat")
            self.span.set_attribute("openai.api.type", "responses")
        else:
            self.span.update_name(f"relay {printable(self._relays, LONGEST_CHARS)}")
        set_attributes(self.span, MODEL_CALL_ATTRIBUTES, self._record)
        _end_span(self.span, error)


def set_attributes(span: Span, names: Mapping[str, str], record: RequestRecord) -> None:
    """Set the attributes in the table whose fields are known."""
    for field, value in record.known().items():
        attribute = names.get(field)
        if attribute is not None:
            span.set_attribute(attribute, [str(value)] if field == "finish_reason" else value)


def tracer_provider(losses: dict[str, Callable[[], int]] | None = None) -> TracerProvider | None:
    """Return a provider that exports OTLP if the standard variables ask for it, else None.

    What counts the spans that are lost is added to `losses`. Raises ValueError for a protocol that is not available.
    Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """
    if not is_wanted("traces"):
        return None
    from proxy.telemetry.span_queue import SpanQueue

    queue = SpanQueue(make_exporter("traces"))
    provider = TracerProvider(resource=resource(), shutdown_on_exit=False, id_generator=TraceIds())
    provider.add_span_processor(queue)
    if losses is not None:
        losses["traces"] = queue.count_lost
    return provider


def _end_span(span: Span, error: BaseException | None) -> None:
    if isinstance(error, BackendError) and error.reason:
        span.set_attribute("headgate.reason", error.reason)
    if isinstance(error, BackendError) and error.code:
        span.set_attribute("error.type", printable(error.code))
    if isinstance(error, Exception):
        span.set_status(StatusCode.ERROR, type(error).__name__)
    span.end()
