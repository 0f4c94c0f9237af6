"""The trace of one request: its spans, the durations of its steps, and the W3C context it continues.

    SERVER    POST /v1/responses     the request: its method and the template of its path
    INTERNAL  cache, history         a step that has waited for a store; other steps are durations on the request's span
    CLIENT    chat gpt-5             the call of the model, all attempts included; INTERNAL for a model on this machine
    CLIENT    POST                   each attempt, below the call

All durations are in `Server-Timing`. A request that is not sampled has no span at all.
"""

import re
from collections.abc import Mapping
from functools import partial
from time import perf_counter, time_ns

from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.telemetry.attempt_span import PATHS, ModelCall, server_attributes
from proxy.telemetry.recent import CallHistory, ListedRequest, PackedAttempt
from proxy.telemetry.record import RequestRecord
from proxy.telemetry.recorded_span import Describe, RecordedSpan, headers_of
from proxy.telemetry.sampling import RequestSpans
from proxy.telemetry.server_timing import server_timing
from proxy.telemetry.vocabulary import SPAN_KIND, WAITING_STEPS, TraceTable, describe_model_call, describe_request

OPERATIONS = {"create": "chat", "input_tokens": "count_tokens"}
"""The names of operations in the conventions, which allow names of one's own."""
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
DEFAULTS = TraceTable()
_PROPAGATOR = TraceContextTextMapPropagator()


class Trace:
    """The spans and durations of one request. Without `spans` it only measures durations."""

    __slots__ = (
        "_call", "_has_worked", "_history", "_incoming", "_operation", "_resends", "_route", "_spans", "_step",
        "_step_began", "_step_error", "attempts", "durations", "inference_began", "is_listed", "is_recording",
        "settings", "span", "started", "timing", "waiting",
    )  # fmt: skip

    def __init__(
        self, spans: RequestSpans | None = None, headers: Mapping[str, str] | None = None,
        linked: RecordedSpan | Span | None = None, settings: TraceTable = DEFAULTS,
    ) -> None:  # fmt: skip
        """`headers` are those of the request, `linked` is the span of the connection that it came on."""
        self.durations: list[tuple[str, float]] = []  # in seconds, in the order in which the steps ended
        self.span: RecordedSpan | Span | None = None  # one of the SDK is not recorded
        self.is_recording = False
        self._spans = spans
        self.waiting: ModelCall | None = None  # the attempt whose reply has not begun
        self.inference_began: float | None = None  # when the first backend was called
        self._step: str | None = None
        self._step_began = 0.0
        self._step_error: str | None = None
        self._has_worked = False
        self.settings = settings
        self._call: RecordedSpan | None = None  # of all attempts
        self._operation = ""
        self._resends = -1
        self._route: str | None = None  # the template of the path
        self.is_listed = False  # whether the admin API shows the request
        self.attempts: list[PackedAttempt] | None = None  # if it is listed
        self._history: CallHistory | None = None
        self.timing = "", 0  # the value of `Server-Timing` that was sent, and of how many durations
        self.started = perf_counter()  # when the head of the request had been read
        self._incoming: dict[str, str] = {}
        if headers is not None and "traceparent" in headers:
            self._incoming = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        if spans is not None and spans.passed_over and not self._incoming and linked is None:
            spans.passed_over -= 1
        elif spans is not None:
            context = _PROPAGATOR.extract(self._incoming) if self._incoming else None
            self.span = spans.begin(context, linked)
            self.is_recording = self.span.is_recording()

    @property
    def trace_id(self) -> str | None:
        """The id of the trace in hex, which the caller may have begun; None without one."""
        if self.span is not None:
            return f"{self.span.get_span_context().trace_id:032x}"
        found = TRACEPARENT.fullmatch(self._incoming["traceparent"]) if self._incoming else None
        return None if found is None else found[1]

    @property
    def history(self) -> CallHistory | None:
        """What is to be listed of decisions and content; None: the request is not listed."""
        if self._history is None and self.is_listed:
            self._history = CallHistory()
        return self._history

    def listed(self) -> ListedRequest:
        """Return what the request's log line does not have."""
        text, count = self.timing
        if count != len(self.durations):
            text = server_timing(self.durations)
        return text, self.attempts or (), self._history

    def elapsed_s(self) -> float:
        """Return the seconds since the request's head was read."""
        return perf_counter() - self.started

    def begin_step(self, step: str) -> None:
        """Begin a step of the path, which lasts until the next one begins, or until `end_step`."""
        now = perf_counter()
        if self._step is not None:
            self.durations.append((self._step, now - self._step_began))
            if self.is_recording:
                self._show_step(self._step, now - self._step_began)
        self._step, self._step_began = step, now

    def end_step(self) -> float:
        """End the step that has begun, if one has: what follows is none. Return how long it took, in seconds."""
        if self._step is None:
            return 0.0
        lasted_s = perf_counter() - self._step_began
        self.durations.append((self._step, lasted_s))
        if self.is_recording:
            self._show_step(self._step, lasted_s)
        self._step = None
        return lasted_s

    def fail_step(self, code: str | None) -> None:
        """End the step in which the request failed, if it was in one."""
        self._step_error = code
        self.end_step()
        self._step_error = None

    def note_work(self) -> None:
        """Note that the step has something to wait for: it becomes a span."""
        self._has_worked = True

    def _show_step(self, step: str, lasted_s: float) -> None:
        """Make a span of a step that has waited, or has failed."""
        if step in WAITING_STEPS and (self._has_worked or self._step_error is not None):
            ended = time_ns()
            span = self.start_child(step, SpanKind.INTERNAL, ended - int(lasted_s * 1e9))
            if span is not None and self._step_error is not None:
                span.set_attribute("error.type", self._step_error)
                span.set_status(StatusCode.ERROR)
            if span is not None:
                span.end(ended)
        self._has_worked = False

    def model_call(
        self, record: RequestRecord, operation: str, address: str | None, *, relays: str | None = None
    ) -> ModelCall:
        """Measure one attempt at a backend, from opening it to the end of its reply.

        `address` is that of the backend's API; None: it runs on this machine. `relays` is a path that is relayed.
        """
        if self._step is not None:
            self.end_step()
        self._resends += 1
        call = self.waiting = ModelCall(self, record, record.backend, perf_counter())
        if self.inference_began is None:
            self.inference_began = call.started
        if not self.is_recording:
            return call
        if self._call is None and relays is None:
            kind = SpanKind.INTERNAL if address is None else SpanKind.CLIENT
            self._call, self._operation = self.start_child("chat", kind), OPERATIONS.get(operation, operation)
        if self._call is not None and address is not None:
            self._call.set_attributes(server_attributes(address))
        if address is not None:
            path = f"/{relays}" if relays else PATHS.get(operation, "")
            method = "POST" if relays is None else record.method or ""
            call.request = method, f"{address}{path}", self._resends
        return call

    def end_wait(self) -> None:
        """Note the first event of a reply: `Server-Timing` says how long the backend took to begin."""
        if self.waiting is not None:
            self.durations.append(("backend", perf_counter() - self.waiting.started))
            self.waiting = None

    def event(self, name: str, attributes: Mapping[str, str]) -> None:
        """Add an event to the request's span, if the span is recorded."""
        if isinstance(self.span, RecordedSpan):
            self.span.add_event(name, attributes)

    def describe_call(self, attributes: Mapping[str, str | int | float]) -> None:
        """Set attributes of the span of the model's call, if there is one."""
        if self._call is not None:
            self._call.set_attributes(attributes)

    def note_first_event(self) -> float:
        """Note that the reply has begun, also on the call's span; return the seconds since the head was read."""
        if self._call is not None:
            self._call.add_event("headgate.first_event")
        now = perf_counter()
        if self.waiting is not None:  # as `end_wait`, without a call of it
            self.durations.append(("backend", now - self.waiting.started))
            self.waiting = None
        return now - self.started

    def link(self, other: "Trace") -> None:
        """Link the request's span to that of the request whose reply it shares."""
        if isinstance(self.span, RecordedSpan) and other.span is not None:
            self.span.add_link(other.span.get_span_context())

    def describe_server(self, scheme: str, host: str, route: str | None) -> None:
        """Say under which address the server was asked, and the template that the path has matched."""
        if self.span is not None:
            self.span.set_attributes({**server_attributes(f"{scheme}://{host}"), "url.scheme": scheme})
            if route is not None:
                self.span.set_attribute("http.route", route)
            self._route = route

    def propagation_headers(self) -> dict[str, str]:
        """Return the W3C context for an upstream: this trace's, or the caller's where nothing is recorded here."""
        attempt = self.waiting.span if self.waiting is not None else None
        span = attempt or self._call or self.span
        if span is None or not (self._incoming or span.is_recording()):
            return self._incoming
        return headers_of(span.get_span_context())

    def server_timing(self, *, has_steps: bool = True) -> str:
        """Return the value of `Server-Timing`: of each step, if any is measured, or of all together."""
        self.end_step()
        if not has_steps or not self.durations:
            return server_timing([("total", self.elapsed_s())])
        self.timing = server_timing(self.durations), len(self.durations)
        return self.timing[0]

    def start_child(self, name: str, kind: SpanKind, start_time: int | None = None) -> RecordedSpan | None:
        """Start a span under the model's call, else under the request, if that is recorded."""
        parent = self._call or self.span
        if not isinstance(parent, RecordedSpan):
            return None
        span = parent.child(name, kind, start_time)
        return self._name_kind(span)

    def _name_kind(self, span: RecordedSpan) -> RecordedSpan:
        """Say what kind of span it is in the words of OpenInference; that of the model's call is another one."""
        if self.settings.semconv != "genai-0.1.0":
            span.set_attribute(SPAN_KIND, "CHAIN")
        return span

    def of_turn(self) -> "Trace":
        """Return the trace of one turn on the connection that this is the trace of: their spans are linked."""
        turn = Trace(self._spans, self._incoming, self.span, self.settings)
        turn._route = self._route
        turn.is_listed = self.is_listed
        return turn

    def fork(self, name: str) -> "Trace":
        """Return the trace of work that continues after this request: its span is a child of the request's."""
        fork = Trace(settings=self.settings)
        fork._spans, fork._incoming = self._spans, self.propagation_headers()
        fork.span = self.start_child(name, SpanKind.INTERNAL)
        fork.is_listed = self.is_listed
        if self._history is not None and fork.history is not None:
            fork.history.decisions = self._history.decisions
        fork.is_recording = fork.span is not None and fork.span.is_recording()
        return fork

    def end(self, record: RequestRecord) -> None:
        """End the spans of the request and of its call of a model with the attributes of its record."""
        if record.code is not None:
            self.fail_step(record.code)
        self.end_step()
        if not isinstance(span := self.span, RecordedSpan):
            return
        is_small = record.is_small()
        described = record.copy() if is_small else record  # an attempt that others share goes on with its record
        if self._call is not None:
            call, self._call = self._call, None
            begun_s, semconv = (self.inference_began or self.started) - self.started, self.settings.semconv
            of_call = partial(
                describe_model_call, operation=self._operation, record=described, semconv=semconv, begun_s=begun_s
            )
            _end_span(call, of_call, is_later=is_small)
        of_request = partial(describe_request, record=described, route=self._route, steps=[*self.durations])
        _end_span(self._name_kind(span), of_request, is_later=is_small)


def _end_span(span: RecordedSpan, describe: Describe, *, is_later: bool) -> None:
    """End a span, which is described when it is read, or at once: a large record is not kept until then."""
    if not is_later:
        describe(span)
    span.end(describe=describe if is_later else None)
