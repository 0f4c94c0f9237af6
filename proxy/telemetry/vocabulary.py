"""The names of span attributes, by the fields of the record that have their values.

Source: https://github.com/open-telemetry/semantic-conventions-genai/blob/v0.1.0/docs/gen-ai/client-inference.md
Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
Source: https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md
"""

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, Literal

import orjson
from opentelemetry.trace import StatusCode
from pydantic import Field

from proxy.config.table import Table
from proxy.telemetry.http_methods import method_attributes, request_name
from proxy.telemetry.record import LONGEST_CHARS, RequestRecord, add_known, fit_for_log
from proxy.telemetry.recorded_span import RecordedSpan
from proxy.telemetry.request_metrics import outcome_of
from proxy.wire.loggable import printable

Semconv = Literal["genai-0.1.0", "openinference", "both"]
Capture = Literal["none", "metadata", "full"]
SPAN_KIND = "openinference.span.kind"
FAULTS = frozenset({"failed", "rejected", "client_closed", "cancelled"})
"""The outcomes with which the call of a model has failed."""
WAITING_STEPS = frozenset({"cache", "history"})
STEPS_WITH_SPANS = WAITING_STEPS | {"backend"}
DOUBLES = frozenset({"temperature", "top_p"})
"""Fields of the call whose attributes are numbers with a fraction; those of the others are texts."""
COUNTS = frozenset({
    "max_output_tokens", "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens",
})  # fmt: skip
"""Fields of the record whose attributes are integers, whatever callers and upstreams have sent."""
TEXTS = frozenset({"response_id", "response_model"})
"""Those whose attributes are texts."""
FINISH_REASONS = "gen_ai.response.finish_reasons"
CODES = frozenset({"headgate.upstream.code", "headgate.incomplete_reason"})
"""Attributes that are texts, whatever scalars upstreams have sent: all values of an attribute have one type."""

REQUEST = {
    "path": "url.path", "status": "http.response.status_code",
    "client_address": "client.address", "caller": "headgate.caller", "team": "headgate.team",
    "key_id": "headgate.key.id", "tags": "headgate.key.tags", "key_fingerprint": "headgate.key.fingerprint",
    "issuer": "headgate.issuer",
    "policy": "headgate.policy", "outcome": "headgate.policy.outcome", "route": "headgate.route",
    "backend": "headgate.backend", "cache": "headgate.cache", "cache_detail": "headgate.cache.detail",
    "attempts": "headgate.attempts", "hedged": "headgate.hedged", "repairs": "headgate.repairs",
    "saved_usd": "headgate.cache.saved_usd",
}  # fmt: skip
"""Of the span of a request."""
GENAI = {
    "provider": "gen_ai.provider.name", "model": "gen_ai.request.model",
    "max_output_tokens": "gen_ai.request.max_tokens", "response_id": "gen_ai.response.id",
    "response_model": "gen_ai.response.model", "finish_reason": FINISH_REASONS,
    "input_tokens": "gen_ai.usage.input_tokens", "output_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_write.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
}  # fmt: skip
"""Of the call of a model, in the words of OpenTelemetry."""
SENT = {
    "temperature": "gen_ai.request.temperature", "top_p": "gen_ai.request.top_p",
    "previous_response_id": "gen_ai.request.previous_response.id", "service_tier": "openai.request.service_tier",
}  # fmt: skip
"""The same, by fields of the call."""
SENT_WITHIN = {
    ("conversation", "id"): "gen_ai.conversation.id", ("reasoning", "effort"): "gen_ai.request.reasoning.level",
}  # fmt: skip
"""The same, by fields of objects in the call."""
_NAMES_OF_SENT = SENT | {outer: attribute for (outer, _), attribute in SENT_WITHIN.items()}
OUTPUT_TYPES = {"text": "text", "json_object": "json", "json_schema": "json"}
"""`gen_ai.output.type` by the type of `text.format`."""
OPENINFERENCE = {
    "provider": "llm.provider", "model": "llm.model_name", "input_tokens": "llm.token_count.prompt",
    "output_tokens": "llm.token_count.completion", "cached_tokens": "llm.token_count.prompt_details.cache_read",
    "cache_write_tokens": "llm.token_count.prompt_details.cache_write",
    "reasoning_tokens": "llm.token_count.completion_details.reasoning", "cost_usd": "llm.cost.total",
}  # fmt: skip
"""The same in the words of OpenInference."""
OWN = {
    "cost_usd": "headgate.cost_usd", "unpriced": "headgate.unpriced", "estimated": "headgate.usage.estimated",
    "upstream_code": "headgate.upstream.code", "incomplete_reason": "headgate.incomplete_reason",
}  # fmt: skip
"""What no convention has a name for."""


class TraceTable(Table):
    """How traces are written, if OpenTelemetry's variables ask for them."""

    semconv: Semconv = "genai-0.1.0"
    """The words for calls of models: those of OpenTelemetry's GenAI conventions, "openinference", or "both"."""
    capture: dict[str, Capture] = Field(default_factory=dict)
    """What traces have of the content of calls, by team: "none", "metadata" (roles and lengths) or "full"."""


class RecordAttributes:
    """The attributes of a span that are fields of the record."""

    def __init__(self, *tables: Mapping[str, str]) -> None:
        pairs = [pair for table in tables for pair in table.items()]
        self._names = tuple(name for _, name in pairs)
        self._values_of = attrgetter(*(field for field, _ in pairs))
        kinds = dict.fromkeys(COUNTS, int) | dict.fromkeys(TEXTS, str)
        self._kinds = {name: kinds[field] for field, name in pairs if field in kinds}

    def of(self, record: RequestRecord) -> dict[str, Any]:
        """Return the attributes that are known."""
        known: dict[str, Any] = {}
        if not add_known(known, self._names, self._values_of(record)):
            known = fit_for_log(known)
        for name, kind in self._kinds.items():
            if name in known and type(known[name]) is not kind:
                del known[name]
        for name in CODES & known.keys():
            known[name] = str(known[name])
        if FINISH_REASONS in known:
            known[FINISH_REASONS] = (str(known[FINISH_REASONS]),)
        return known


OF_REQUEST = RecordAttributes(REQUEST)
OF_MODEL_CALL: Mapping[Semconv, RecordAttributes] = {
    "genai-0.1.0": RecordAttributes(GENAI, OWN),
    "openinference": RecordAttributes(OPENINFERENCE, OWN),
    "both": RecordAttributes(GENAI, OPENINFERENCE, OWN),
}


def describe_request(
    span: RecordedSpan, record: RequestRecord, route: str | None, steps: Iterable[tuple[str, float]]
) -> None:
    """Set the name, the attributes and the status of a request. `route` is the template of its path."""
    outcome, error = outcome_of(record)
    if record.method is not None:
        span.update_name(request_name(record.method, route))
        span.set_attributes(method_attributes(record.method))
    span.set_attributes(OF_REQUEST.of(record))
    span.set_attributes({
        f"headgate.{step}_ms": int(seconds * 1e6 + 0.5) / 1e3
        for step, seconds in steps if step not in STEPS_WITH_SPANS
    })  # fmt: skip
    if error:
        span.set_attribute("error.type", printable(error, LONGEST_CHARS))
    if outcome == "failed" or record.status is None:
        span.set_status(StatusCode.ERROR)


def describe_model_call(
    span: RecordedSpan, operation: str, record: RequestRecord, semconv: Semconv, begun_s: float
) -> None:
    """Set the same of the call of a model, which began `begun_s` seconds after its request."""
    outcome, error = outcome_of(record)
    has_failed = outcome in FAULTS
    span.update_name(printable(f"{operation} {record.model or ''}".strip(), LONGEST_CHARS))
    span.set_attributes(OF_MODEL_CALL[semconv].of(record))
    if semconv != "openinference":
        span.set_attributes({"gen_ai.operation.name": operation, "openai.api.type": "responses"})
        if record.stream:
            span.set_attribute("gen_ai.request.stream", True)
            if record.first_event_s is not None:
                first_s = round(max(0.0, record.first_event_s - begun_s), 4)
                span.set_attribute("gen_ai.response.time_to_first_chunk", first_s)
        if has_failed and record.finish_reason is None:
            span.set_attribute(FINISH_REASONS, ("error",))
    if semconv != "genai-0.1.0":
        span.set_attribute(SPAN_KIND, "LLM")
        counts = record.input_tokens, record.output_tokens
        if all(type(count) is int for count in counts):
            span.set_attribute("llm.token_count.total", sum(counts))
    if has_failed:
        span.set_attribute("error.type", printable(error or outcome, LONGEST_CHARS))
        span.set_status(StatusCode.ERROR)


def sent_attributes(body: Mapping[str, Any], semconv: Semconv) -> dict[str, str | float]:
    """Return the attributes of the call of a model that say what was asked for. Values of other types are left out."""
    sent = {name: _bounded(body[name]) for name in SENT if name in body and _is_sent(name, body[name])}
    for name, inner in SENT_WITHIN:
        if (holder := body.get(name)) is not None:
            value = holder.get(inner) if isinstance(holder, dict) else holder if name == "conversation" else None
            sent |= {name: _bounded(value)} if isinstance(value, str) else {}
    if semconv == "openinference":
        return {"llm.invocation_parameters": orjson.dumps(sent).decode()} if sent else {}
    attributes = {_NAMES_OF_SENT[name]: float(value) if name in DOUBLES else value for name, value in sent.items()}
    text = body.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    kind = OUTPUT_TYPES.get(str(form.get("type"))) if isinstance(form, dict) else None
    return attributes if kind is None else attributes | {"gen_ai.output.type": kind}


def _is_sent(name: str, value: Any) -> bool:
    """Whether a field of the call has a value of the type that its attribute has."""
    return type(value) in (int, float) if name in DOUBLES else isinstance(value, str)


def _bounded(value: Any) -> Any:
    return printable(value, LONGEST_CHARS) if isinstance(value, str) else value
