"""The telemetry of a call: one log line, a span tree, headers; and the data that they never contain."""

import asyncio
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from proxy.telemetry.record import FOREIGN, RequestRecord
from proxy.telemetry.recorded_span import RecordedSpan
from proxy.telemetry.sampling import RequestSpans
from proxy.telemetry.trace import Trace
from proxy.telemetry.vocabulary import OF_MODEL_CALL, RecordAttributes, sent_attributes
from tests.conftest import tables_for
from tests.upstream import CANONICAL, FakeUpstream, streaming

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REQUEST = {"model": "gpt-5.6", "input": "a secret prompt", "max_output_tokens": 64}


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(spans: InMemorySpanExporter) -> TracerProvider:
    """A tracer provider that exports to `spans`."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider


@pytest.fixture
async def traced_gateway(start_gateway, upstream: FakeUpstream, provider: TracerProvider) -> str:
    """The address of a gateway that traces all calls."""
    return await start_gateway(tables_for(upstream), tracer=provider.get_tracer("test"))


async def post(http, gateway: str, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, str], bytes]:
    async with http.post(f"{gateway}/v1/responses", json=body, headers=headers) as answer:
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, await answer.read()


async def test_the_span_tree_of_one_call(traced_gateway: str, http, spans: InMemorySpanExporter):
    """The attempt is below the call, the call below the request, and steps that waited for nothing have no span."""
    await post(http, traced_gateway, REQUEST, traceparent=PARENT)
    tree = {span.name: span for span in spans.get_finished_spans()}
    root, call, attempt = tree["POST /v1/responses"], tree["chat gpt-5.6"], tree["POST"]

    assert sorted(tree) == ["POST", "POST /v1/responses", "chat gpt-5.6"]
    assert (attempt.parent.span_id, call.parent.span_id) == (call.context.span_id, root.context.span_id)
    assert f"{root.context.trace_id:032x}" in PARENT
    assert f"{root.parent.span_id:016x}" in PARENT
    assert (root.kind, call.kind, attempt.kind) == (SpanKind.SERVER, SpanKind.CLIENT, SpanKind.CLIENT)
    assert {span.status.status_code for span in tree.values()} == {StatusCode.UNSET}
    assert dict(attempt.attributes) | {"server.port": 0, "url.full": ""} == {
        "http.request.method": "POST",
        "headgate.target": "fake",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": 0,
        "url.full": "",
    }
    assert attempt.attributes["url.full"].endswith("/v1/responses")
    assert [event.name for event in call.events] == ["headgate.first_event"]
    assert (root.attributes["client.address"], root.attributes["server.address"]) == ("127.0.0.1", "127.0.0.1")
    assert root.attributes["http.route"] == "/v1/responses"
    assert dict(call.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.model": "gpt-5.6",
        "gen_ai.response.finish_reasons": ("completed",),
        "gen_ai.response.id": "resp_0001",
        "gen_ai.response.model": "local-1",
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.cache_write.input_tokens": 0,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "headgate.unpriced": True,
        "openai.api.type": "responses",
        "server.address": "127.0.0.1",
        "server.port": attempt.attributes["server.port"],
    }
    assert {name for name in root.attributes if name.startswith("gen_ai")} == set()
    assert root.attributes["headgate.backend"] == "fake"
    assert root.attributes["http.response.status_code"] == 200


ASKED = {
    "temperature": 0.5, "top_p": 1, "service_tier": "auto", "previous_response_id": "resp_1" * 100,
    "conversation": {"id": "conv_1"}, "reasoning": {"effort": "low"}, "text": {"format": {"type": "json_schema"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "semconv", "expected"),
    [
        (ASKED, "both", {
            "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 1, "openai.request.service_tier": "auto",
            "gen_ai.request.previous_response.id": ("resp_1" * 100)[:256], "gen_ai.conversation.id": "conv_1",
            "gen_ai.request.reasoning.level": "low", "gen_ai.output.type": "json",
        }),
        ({"conversation": "conv_1"}, "genai-0.1.0", {"gen_ai.conversation.id": "conv_1"}),
        ({"top_p": 1, "reasoning": 7}, "openinference", {"llm.invocation_parameters": '{"top_p":1}'}),
        ({}, "openinference", {}),
        ({"top_p": [1], "conversation": {}, "reasoning": "low", "text": {"format": {"type": {}}}}, "both", {}),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_on_the_call_of_the_model(body: Any, semconv: Any, expected: dict[str, Any]):
    """Values of other types are the caller's mistake, and left out."""
    assert sent_attributes(body, semconv) == expected


@pytest.mark.parametrize("attributes", OF_MODEL_CALL.values(), ids=OF_MODEL_CALL)
def test_all_values_of_an_attribute_have_one_type(attributes: RecordAttributes):
    """Whatever scalars callers and upstreams have sent: encodings are kept by value, and 1, 1.0 and True are equal."""
    sent = [field.name for field in fields(RequestRecord) if field.type is Any]
    kinds: dict[str, set[type]] = {}
    for value in (1, True, 1.0, "1"):
        for name, found in attributes.of(RequestRecord(**dict.fromkeys(sent, value))).items():
            kinds.setdefault(name, set()).add(type(found))

    assert "upstream_code" in sent
    assert "headgate.upstream.code" in kinds
    assert not {name: found for name, found in kinds.items() if len(found) > 1}


async def test_the_first_chunk_comes_within_the_call(traced_gateway: str, http, spans: InMemorySpanExporter):
    """Its time begins with the call's, not with the request's: it is at most as long as the call's span."""
    await post(http, traced_gateway, REQUEST | {"stream": True, "temperature": 0.5})
    call = next(span for span in spans.get_finished_spans() if span.name == "chat gpt-5.6")
    first_s, lasted_s = call.attributes["gen_ai.response.time_to_first_chunk"], (call.end_time - call.start_time) / 1e9

    assert 0 < first_s <= lasted_s
    assert (call.attributes["gen_ai.request.stream"], call.attributes["gen_ai.request.temperature"]) == (True, 0.5)


async def test_the_upstream_gets_the_context_of_the_attempt(traced_gateway: str, http, spans, upstream: FakeUpstream):
    """Spans of the upstream become its children."""
    await post(http, traced_gateway, REQUEST, traceparent=PARENT, tracestate="vendor=1")
    call = next(span for span in spans.get_finished_spans() if span.name == "POST")
    sent = upstream.requests[0].headers

    assert sent["traceparent"] == f"00-{call.context.trace_id:032x}-{call.context.span_id:016x}-01"
    assert sent["tracestate"] == "vendor=1"


async def test_without_traces_the_context_of_the_caller_is_forwarded(gateway: str, http, upstream: FakeUpstream):
    """A gateway without tracing does not break the caller's trace."""
    await post(http, gateway, REQUEST, traceparent=PARENT)

    assert upstream.requests[0].headers["traceparent"] == PARENT


async def test_an_unsampled_call_makes_no_spans(start_gateway, upstream, http, spans):
    """A caller's context is forwarded with its flag; without a context none is sent."""
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    gateway = await start_gateway(tables_for(upstream), tracer=provider.get_tracer("test"))
    await post(http, gateway, REQUEST)
    await post(http, gateway, REQUEST, traceparent=PARENT[:-2] + "00")

    assert spans.get_finished_spans() == ()
    assert "traceparent" not in upstream.requests[0].headers
    assert upstream.requests[1].headers["traceparent"].startswith(PARENT[:35])
    assert int(upstream.requests[1].headers["traceparent"][-2:], 16) & 1 == 0  # the "sampled" flag


async def test_a_refusal_has_the_policy_and_the_code(traced_gateway: str, http, spans):
    """Both are attributes of the request's span."""
    await post(http, traced_gateway, REQUEST | {"metadata": {"k": 1}})
    (root,) = [span for span in spans.get_finished_spans() if span.kind == SpanKind.SERVER]

    assert root.attributes["headgate.policy"] == "metadata_limits"
    assert root.attributes["error.type"] == "metadata_limits.value_not_a_string"


async def test_a_failure_of_the_upstream_is_an_error_of_both_spans(
    traced_gateway: str, http, spans, upstream: FakeUpstream
):
    """A search for errors finds the call and the failed upstream."""
    upstream.answer = streaming()
    status, _, _ = await post(http, traced_gateway, REQUEST)
    by_kind = {span.kind: span.status.status_code for span in spans.get_finished_spans() if span.name != "cache"}

    assert status == 502
    assert (by_kind[SpanKind.SERVER], by_kind[SpanKind.CLIENT]) == (StatusCode.ERROR, StatusCode.ERROR)


async def test_a_request_is_one_log_line(gateway: str, http, logged: list[dict[str, Any]]):
    """`request.finished` has the fields that an operator needs first."""
    status, headers, _ = await post(http, gateway, REQUEST)
    (line,) = logged

    assert line.pop("timestamp") < datetime.now(UTC)
    assert line.pop("duration_ms") > 0
    assert line.pop("first_event_s") > 0
    assert line.pop("inference_s") > 0
    assert (status, line) == (
        200,
        {
            "event": "request.finished",
            "log_level": "info",
            "request_id": headers["x-request-id"],
            "method": "POST",
            "path": "/v1/responses",
            "client_address": "127.0.0.1",
            "caller": "anybody",
            "team": "anybody",
            "model": "gpt-5.6",
            "stream": False,
            "max_output_tokens": 64,
            "cache": "bypass",
            "cache_detail": "no-prompt-cache-key",
            "route": "fake",
            "backend": "fake",
            "provider": "openai",
            "response_id": "resp_0001",
            "response_model": "local-1",
            "finish_reason": "completed",
            "input_tokens": 5,
            "output_tokens": 7,
            "cached_tokens": 0,
            "cache_write_tokens": 0,
            "reasoning_tokens": 2,
            "unpriced": True,
            "status": 200,
        },
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_neither_prompt_nor_answer_is_logged_or_traced(traced_gateway: str, http, spans, logged, stream: bool):
    """Logs and spans contain timings but no content."""
    await post(http, traced_gateway, REQUEST | {"stream": stream, "instructions": "a secret prompt"})
    telemetry = repr([dict(span.attributes) for span in spans.get_finished_spans()]) + repr(logged)

    assert ("secret" in telemetry, "Hello." in telemetry) == (False, False)
    assert "request.finished" in telemetry


STEPS = ["identify", "parse", "policies", "ownership", "route", "cache"]


def timed_steps(headers: dict[str, str]) -> list[str]:
    return [part.split(";")[0] for part in headers["server-timing"].split(", ")]


@pytest.mark.parametrize("stream", [True, False])
async def test_every_answer_has_an_id_and_a_server_timing(gateway: str, http, stream: bool):
    """The last step is the backend's time to its first event, for streams and bodies."""
    _, headers, _ = await post(http, gateway, REQUEST | {"stream": stream})

    assert headers["x-request-id"].startswith("req_")
    assert timed_steps(headers) == [*STEPS, "backend"]
    assert all(float(part.split(";dur=")[1]) >= 0 for part in headers["server-timing"].split(", "))


async def test_the_backends_time_ends_with_its_first_event(gateway: str, http, upstream: FakeUpstream):
    """It is in the head of the answer, which is sent while the rest of the stream is awaited."""
    release = asyncio.Event()
    first = CANONICAL.index(b"\n\n") + 2

    async def rest(response: Any) -> None:
        await release.wait()
        await response.write(CANONICAL[first:])

    upstream.answer = streaming(CANONICAL[:first], then=rest)
    async with http.post(f"{gateway}/v1/responses", json=REQUEST | {"stream": True}) as answer:
        timing = answer.headers["server-timing"]
        release.set()
        await answer.read()

    assert timed_steps({"server-timing": timing}) == [*STEPS, "backend"]


async def test_a_cache_hit_names_no_backend(gateway: str, http):
    """A cache hit calls no backend."""
    request = REQUEST | {"prompt_cache_key": "k"}
    _, first, _ = await post(http, gateway, request)
    _, second, _ = await post(http, gateway, request)

    assert timed_steps(first) == [*STEPS, "backend"]
    assert timed_steps(second) == STEPS


async def test_a_refused_call_times_the_steps_that_ran(gateway: str, http):
    """The last step is the one that refused it."""
    _, headers, _ = await post(http, gateway, REQUEST | {"metadata": 7})

    assert timed_steps(headers) == ["identify", "parse", "policies"]


async def test_a_failed_backend_is_timed_too(gateway: str, http, upstream: FakeUpstream):
    """The answer has the time spent waiting for it."""
    upstream.answer = streaming()
    status, headers, _ = await post(http, gateway, REQUEST)

    assert (status, timed_steps(headers)) == (502, [*STEPS, "backend"])


@pytest.mark.parametrize("stream", [True, False])
async def test_no_span_has_more_than_256_characters_of_a_name(
    traced_gateway: str, http, spans: InMemorySpanExporter, stream: bool
):
    """This includes the name of the model call's span."""
    await post(http, traced_gateway, REQUEST | {"model": "m" * 256, "stream": stream})
    finished = spans.get_finished_spans()
    texts = [value for span in finished for value in span.attributes.values() if isinstance(value, str)]

    assert sorted(span.name for span in finished)[2:] == ["chat " + "m" * 251]
    assert max(map(len, texts)) <= 256


def test_a_trace_without_a_tracer_only_measures():
    """It has no span and forwards the caller's context."""
    trace = Trace(None, {"traceparent": PARENT, "tracestate": "vendor=1", "authorization": "Bearer key"})
    record = RequestRecord(model="m")
    trace.begin_step("cache")
    trace.event("noun.happened", {"key": "value"})
    with trace.model_call(record, "create", "http://up.example/v1") as call:
        headers = trace.propagation_headers()
        trace.end_wait()
        trace.end_wait()
    trace.end(record)

    assert (trace.span, trace.is_recording, call.span) == (None, False, None)
    assert headers == {"traceparent": PARENT, "tracestate": "vendor=1"}
    assert [name for name, _ in trace.durations] == ["cache", "backend"]


def test_an_invalid_context_of_a_caller_starts_a_new_trace(provider: TracerProvider, spans: InMemorySpanExporter):
    """The invalid context is neither continued nor sent to the upstream."""
    trace = Trace(RequestSpans(provider.get_tracer("test")), {"traceparent": "00-nothing"})
    sent = trace.propagation_headers()["traceparent"]
    trace.end(RequestRecord(method="POST", path="/v1/responses", status=200))
    (root,) = spans.get_finished_spans()

    assert root.parent is None
    assert sent.startswith(f"00-{root.context.trace_id:032x}-")


def test_a_step_in_which_a_request_fails_is_measured_and_marked(provider: TracerProvider, spans: InMemorySpanExporter):
    """The span has the code of the error; the steps before it ended well, and one without work has no span."""
    trace = Trace(RequestSpans(provider.get_tracer("test")))
    trace.begin_step("cache")
    trace.note_work()
    trace.begin_step("policies")
    trace.begin_step("history")
    trace.end(RequestRecord(method="POST", path="/v1/responses", status=400, code="unknown_id"))
    before, failed, _ = spans.get_finished_spans()

    assert [name for name, _ in trace.durations] == ["cache", "policies", "history"]
    assert (before.name, before.status.status_code) == ("cache", StatusCode.UNSET)
    assert before.start_time < before.end_time
    assert (failed.name, failed.status.status_code, failed.attributes["error.type"]) == (
        "history", StatusCode.ERROR, "unknown_id",
    )  # fmt: skip


async def test_a_relayed_request_has_a_span_of_its_own_kind(start_gateway, upstream, http, spans, provider):
    """It is no call of a model in the terms of GenAI, but the upstream continues its trace."""
    tables = tables_for(upstream, relay=[{"path": "/v1/embeddings", "backend": "fake"}])
    gateway = await start_gateway(tables, tracer=provider.get_tracer("test"))
    async with http.post(f"{gateway}/v1/embeddings", json={"model": "m"}, headers={"traceparent": PARENT}):
        pass
    tree = {span.name: span for span in spans.get_finished_spans()}
    relay = tree["POST"]

    assert sorted(tree) == ["POST", "POST /v1/embeddings"]
    assert relay.kind == SpanKind.CLIENT
    assert relay.attributes["url.full"].endswith("/v1/embeddings")
    assert "gen_ai.operation.name" not in relay.attributes
    assert f"{relay.context.span_id:016x}" in upstream.requests[0].headers["traceparent"]


NAMES = {
    "an id": ("GET", "/v1/responses/resp_0123456789", "GET /v1/responses/{id}"),
    "no such path": ("GET", "/nope/ab12", "GET"),
    "no such method": ("POST", "/v1/models", "POST /v1/models"),
    "a method of no standard": ("PURGE", "/v1/models", "HTTP /v1/models"),
    "a relayed path": ("DELETE", "/v1/files/file-0123", "DELETE /v1/files/{rest*}"),
}


@pytest.mark.parametrize(("method", "path", "name"), NAMES.values(), ids=NAMES)
async def test_spans_are_named_by_method_and_template(  # noqa: PLR0913, PLR0917  fixtures
    start_gateway, upstream, http, spans, provider, method, path, name
):
    """Names have no ids: viewers group by them."""
    tables = tables_for(upstream, relay=[{"path": "/v1/files/*", "backend": "fake"}])
    gateway = await start_gateway(tables, tracer=provider.get_tracer("test"))
    async with http.request(method, f"{gateway}{path}", headers={"traceparent": PARENT}):
        pass
    *attempts, root = spans.get_finished_spans()
    is_known = method != "PURGE"

    assert root.name == name
    assert root.attributes["http.request.method"] == (method if is_known else "_OTHER")
    assert root.attributes.get("http.request.method_original") == (None if is_known else method)
    assert root.attributes["url.scheme"] == "http"
    assert root.attributes["url.path"] == path
    assert [(each.name, each.attributes["http.request.method"]) for each in attempts if each.kind == SpanKind.CLIENT] in (
        [], [(method, method)],
    )  # fmt: skip


async def test_a_background_response_has_a_span_of_its_own(start_gateway, upstream, http, spans, provider, logged):
    """It is a child of its request's, ends with the response, and has the call of the model below it."""
    tables = tables_for(upstream)
    tables["backend"][0]["keeps_state"] = False
    gateway = await start_gateway(tables, tracer=provider.get_tracer("test"))
    body = REQUEST | {"background": True}
    _, headers, answer = await post(http, gateway, body, traceparent=PARENT)
    name = orjson.loads(answer)["id"]
    async with asyncio.timeout(20), http.get(f"{gateway}/v1/responses/{name}?stream=true") as stream:
        await stream.read()
    while "background.finished" not in [line["event"] for line in logged]:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    tree = {span.name: span for span in spans.get_finished_spans()}
    request, job, call = tree["POST /v1/responses"], tree["background"], tree["chat gpt-5.6"]

    assert job.parent.span_id == request.context.span_id
    assert call.parent.span_id == job.context.span_id
    assert job.attributes["headgate.backend"] == "fake"
    assert call.attributes["gen_ai.usage.output_tokens"] == 7
    assert "backend" not in headers["server-timing"]
    assert upstream.requests[0].headers["traceparent"].split("-")[1] == PARENT.split("-")[1]


@pytest.mark.parametrize("value", ["r" * 257, ["r"], {"a": "r"}])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_span_is_described_at_once_if_what_others_have_sent_is_large(name: str, value: Any):
    """An upstream may send an id of 64 MB, which is not kept while thousands of spans wait for a collector."""
    provider = TracerProvider(shutdown_on_exit=False)
    for sent in ("r", value):
        trace = Trace(RequestSpans(provider.get_tracer("test")))
        record = RequestRecord(route="a", **{name: sent})
        trace.end(record)
        record.route, record.code = "b", "c"  # as an attempt may that goes on for others
        span = trace.span

        assert isinstance(span, RecordedSpan)
        assert (span._describe is None) == (sent == value)
        assert span.attributes["headgate.route"] == "a"
        assert "error.type" not in span.attributes
