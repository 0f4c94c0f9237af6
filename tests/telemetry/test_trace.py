"""What an operator sees of a call: one line, a span tree, headers; and what nobody sees."""

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from proxy.telemetry.trace import tracer_provider
from tests.conftest import tables_for
from tests.upstream import FakeUpstream, streaming

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ASKED = {"model": "gpt-5.6", "input": "a secret prompt", "max_output_tokens": 64}


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(spans: InMemorySpanExporter) -> TracerProvider:
    """A provider whose spans land in `spans`."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider


@pytest.fixture
async def traced(start_gate, upstream: FakeUpstream, provider: TracerProvider) -> str:
    """The address of a gate whose calls are all traced."""
    return await start_gate(tables_for(upstream), tracer=provider.get_tracer("test"))


async def post(http, gate: str, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, str], bytes]:
    async with http.post(f"{gate}/v1/responses", json=body, headers=headers) as answer:
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, await answer.read()


async def test_the_span_tree_of_one_call(traced: str, http, spans: InMemorySpanExporter):
    """The request's span has the hops that wait as children; only the model call speaks GenAI."""
    await post(http, traced, ASKED, traceparent=PARENT)
    tree = {span.name: span for span in spans.get_finished_spans()}
    root, call = tree["POST /v1/responses"], tree["chat gpt-5.6"]

    assert sorted(tree) == ["POST /v1/responses", "cache", "chat gpt-5.6", "history"]
    assert {span.parent.span_id for name, span in tree.items() if span is not root} == {root.context.span_id}
    assert f"{root.context.trace_id:032x}" in PARENT
    assert f"{root.parent.span_id:016x}" in PARENT
    assert (root.kind, call.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert dict(call.attributes) | {"gen_ai.response.time_to_first_chunk": 0} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.model": "gpt-5.6",
        "gen_ai.request.stream": False,
        "gen_ai.response.finish_reasons": ("completed",),
        "gen_ai.response.id": "resp_0001",
        "gen_ai.response.model": "local-1",
        "gen_ai.response.time_to_first_chunk": 0,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 7,
        "openai.api.type": "responses",
    }
    assert {name for name in root.attributes if name.startswith("gen_ai")} == set()
    assert root.attributes["headgate.backend"] == "fake"
    assert root.attributes["http.response.status_code"] == 200


async def test_the_upstream_gets_the_context_of_the_model_call(traced: str, http, spans, upstream: FakeUpstream):
    """The provider's spans become children of our CLIENT span, not its siblings."""
    await post(http, traced, ASKED, traceparent=PARENT, tracestate="vendor=1")
    call = next(span for span in spans.get_finished_spans() if span.name == "chat gpt-5.6")
    sent = upstream.requests[0].headers

    assert sent["traceparent"] == f"00-{call.context.trace_id:032x}-{call.context.span_id:016x}-01"
    assert sent["tracestate"] == "vendor=1"


async def test_without_traces_the_callers_context_passes(gate: str, http, upstream: FakeUpstream):
    """A gate that traces nothing does not break the caller's trace."""
    await post(http, gate, ASKED, traceparent=PARENT)

    assert upstream.requests[0].headers["traceparent"] == PARENT


async def test_an_unsampled_call_makes_no_spans(start_gate, upstream, http, spans):
    """Sampling by the standard variables decides; a caller's own context passes on with its flag, none is made up."""
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    gate = await start_gate(tables_for(upstream), tracer=provider.get_tracer("test"))
    await post(http, gate, ASKED)
    await post(http, gate, ASKED, traceparent=PARENT[:-2] + "00")

    assert spans.get_finished_spans() == ()
    assert "traceparent" not in upstream.requests[0].headers
    assert upstream.requests[1].headers["traceparent"].startswith(PARENT[:35])
    assert int(upstream.requests[1].headers["traceparent"][-2:], 16) & 1 == 0  # the flag that says "sampled"


async def test_a_refusal_shows_where_it_came_from(traced: str, http, spans):
    """The refused call's span names the policy and the code."""
    await post(http, traced, ASKED | {"metadata": {"k": 1}})
    (root,) = [span for span in spans.get_finished_spans() if span.kind == SpanKind.SERVER]

    assert root.attributes["headgate.policy"] == "metadata_limits"
    assert root.attributes["error.type"] == "metadata_limits.value_not_a_string"


async def test_a_failure_of_the_upstream_is_an_error_of_both_spans(traced: str, http, spans, upstream: FakeUpstream):
    """An operator who looks for errors finds the call and what it waited for."""
    upstream.answer = streaming()
    status, _, _ = await post(http, traced, ASKED)
    by_kind = {span.kind: span.status.status_code for span in spans.get_finished_spans() if span.name != "cache"}

    assert status == 502
    assert (by_kind[SpanKind.SERVER], by_kind[SpanKind.CLIENT]) == (StatusCode.ERROR, StatusCode.ERROR)


async def test_one_line_tells_of_a_request(gate: str, http, logged: list[dict[str, Any]]):
    """`request.finished` has what an operator asks for first."""
    status, headers, _ = await post(http, gate, ASKED)
    (line,) = logged

    assert line.pop("duration_ms") > 0
    assert line.pop("first_event_s") > 0
    assert (status, line) == (
        200,
        {
            "event": "request.finished",
            "log_level": "info",
            "request_id": headers["x-request-id"],
            "method": "POST",
            "path": "/v1/responses",
            "caller": "anybody",
            "team": "anybody",
            "model": "gpt-5.6",
            "stream": False,
            "max_output_tokens": 64,
            "cache": "bypass",
            "backend": "fake",
            "provider": "openai",
            "response_id": "resp_0001",
            "response_model": "local-1",
            "finish_reason": "completed",
            "input_tokens": 5,
            "output_tokens": 7,
            "cached_tokens": 0,
            "status": 200,
        },
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_neither_prompt_nor_answer_is_logged_or_traced(traced: str, http, spans, logged, stream: bool):
    """Logs and spans tell where the time went, not what was said."""
    await post(http, traced, ASKED | {"stream": stream, "instructions": "a secret prompt"})
    told = repr([dict(span.attributes) for span in spans.get_finished_spans()]) + repr(logged)

    assert ("secret" in told, "Hello." in told) == (False, False)


async def test_every_answer_has_an_id_and_a_server_timing(gate: str, http):
    """Headers tell the same as the log."""
    _, headers, _ = await post(http, gate, ASKED)

    assert headers["x-request-id"].startswith("req_")
    assert [part.split(";")[0] for part in headers["server-timing"].split(", ")] == [
        "identify",
        "parse",
        "policies",
        "route",
        "cache",
        "history",
    ]


@pytest.mark.parametrize(
    ("variables", "exports"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_decide_whether_traces_are_exported(monkeypatch, variables, exports):
    """No variable of our own: what the OpenTelemetry SDK documents is what holds."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    provider = traces_from_environment()
    if provider is not None:
        provider.shutdown()

    assert (provider is not None) == exports
