"""The names of span attributes, by the fields of the record that have their values.

Source: https://github.com/open-telemetry/semantic-conventions-genai/blob/v0.1.0/docs/gen-ai/client-inference.md
Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
Source: https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md
"""

from collections.abc import Mapping
from typing import Literal

from opentelemetry.trace import Span
from pydantic import Field

from proxy.config.table import Table
from proxy.telemetry.record import RequestRecord

Semconv = Literal["genai-0.1.0", "openinference", "both"]
Capture = Literal["none", "metadata", "full"]

REQUEST = {
    "method": "http.request.method", "path": "url.path", "status": "http.response.status_code",
    "client_address": "client.address", "caller": "headgate.caller", "team": "headgate.team",
    "key_id": "headgate.key.id", "tags": "headgate.key.tags", "key_fingerprint": "headgate.key.fingerprint",
    "policy": "headgate.policy", "outcome": "headgate.policy.outcome", "route": "headgate.route",
    "backend": "headgate.backend", "cache": "headgate.cache", "cache_detail": "headgate.cache.detail",
    "attempts": "headgate.attempts", "hedged": "headgate.hedged", "repairs": "headgate.repairs",
    "saved_usd": "headgate.cache.saved_usd",
}  # fmt: skip
"""Of the span of a request."""
GENAI = {
    "provider": "gen_ai.provider.name", "model": "gen_ai.request.model", "stream": "gen_ai.request.stream",
    "max_output_tokens": "gen_ai.request.max_tokens", "response_id": "gen_ai.response.id",
    "response_model": "gen_ai.response.model", "finish_reason": "gen_ai.response.finish_reasons",
    "input_tokens": "gen_ai.usage.input_tokens", "output_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_write.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    "first_event_s": "gen_ai.response.time_to_first_chunk",
}  # fmt: skip
"""Of the call of a model, in the words of OpenTelemetry."""
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


def set_attributes(span: Span, names: Mapping[str, str], record: RequestRecord) -> None:
    """Set the attributes in the table whose fields are known."""
    for field, value in record.known().items():
        attribute = names.get(field)
        if attribute is not None:
            span.set_attribute(attribute, [str(value)] if field == "finish_reason" else value)


def describe_model_call(span: Span, operation: str, record: RequestRecord, semconv: Semconv) -> None:
    """Set the attributes of the call of a model."""
    if semconv != "openinference":
        span.set_attribute("gen_ai.operation.name", operation)
        span.set_attribute("openai.api.type", "responses")
        set_attributes(span, GENAI, record)
    if semconv != "genai-0.1.0":
        span.set_attribute("openinference.span.kind", "LLM")
        set_attributes(span, OPENINFERENCE, record)
        counts = record.input_tokens, record.output_tokens
        if all(type(count) is int for count in counts):
            span.set_attribute("llm.token_count.total", sum(counts))
    set_attributes(span, OWN, record)
