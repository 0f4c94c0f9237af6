"""Each end of a call, on each way in: which spans, log fields, metrics, tokens and usage come out.

The upstream's canonical response has 5 and 7 tokens; the estimates are those of "Hello there" and of "Think.".
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from proxy.app import running
from proxy.capture import captured_content
from proxy.config.build import build
from proxy.wire.transcript import Transcript
from tests.conftest import StartGateway, tables_for
from tests.examples import make_call
from tests.metrics import admin_of, changes, scrape
from tests.raw import until
from tests.sockets import calling
from tests.telemetry.test_otlp import Sink, http_collector
from tests.test_accounting import (
    ASKED,
    BEGUN,
    BODY,
    ESTIMATED,
    KEY,
    SAVED,
    SENT,
    Ways,
    answering,
    leave_stream,
    leave_waiting,
    leave_websocket,
    lines_of,
    refusing,
)
from tests.upstream import CANONICAL, FakeUpstream, hang, streaming
from tests.usage.asked import counted as usage_counted
from tests.usage.asked import usage_of

WAYS = {"json": Ways.json, "stream": Ways.stream, "websocket": Ways.websocket, "background": Ways.background}
ROOTS = {"background": "background", "websocket": "WEBSOCKET"}
KINDS = ("input", "output")
LEAVING = {"json": leave_waiting, "stream": leave_stream, "websocket": leave_websocket}
FAILED = (
    b'data: {"type":"response.failed","sequence_number":9,"response":{"id":"r","object":"response","status":"failed",'
    b'"output":[],"error":{"code":"server_error","message":"no"},"usage":null}}\n\n'
)
SEARCH = (
    b'data: {"type":"response.output_item.done","output_index":%d,"item":{"type":"web_search_call","id":"ws_%d",'
    b'"status":"completed","action":{"type":"search","query":"four"}}}\n\n'
)
INCOMPLETE = (Path(__file__).parent.parent / "data/incomplete.sse").read_bytes()
COUNTED = {
    "headgate_calls_total": ("call", "headgate_transport", "headgate_outcome", "error_type"),
    "gen_ai_client_inference_usage_input_tokens_total": ("input",),
    "gen_ai_client_inference_usage_output_tokens_total": ("output",),
    "headgate_cost_total": ("cost",),
}


async def refused_for_now(_: object) -> web.Response:
    headers = {"retry-after-ms": "1"}
    return web.json_response({"error": {"message": "no", "code": "c", "type": "t"}}, status=503, headers=headers)


async def failing(_: object) -> web.Response:
    return web.json_response({"error": {"message": "no", "code": "c", "type": "t"}}, status=500)


async def refusing_the_key(_: object) -> web.Response:
    return web.json_response({"error": {"message": "no", "code": "invalid_api_key", "type": "t"}}, status=401)


async def invalid(_: object) -> web.Response:
    return web.Response(text="<html>", content_type="text/html")


async def troubled_at_first(request: web.Request) -> web.StreamResponse:
    """Hang or fail at some addresses, and answer at the others."""
    answers = {"/slow/v1/responses": hang, "/busy/v1/responses": refused_for_now}
    return await answers.get(request.path, answering())(request)


@dataclass
class End:
    """What is expected of an end, however the call came."""

    tokens: dict[str, Any]
    outcome: str
    """In the metrics, with the code of the error."""
    root: str | None = None
    """The `error.type` of the request's span; "!" before it: its status is ERROR."""
    call: str | None = None
    """The same of the model's call."""
    attempts: list[tuple[int | None, str | None]] = field(default_factory=list)
    """Status and error of each attempt."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of the log line."""
    status: int = 200
    """The status of the answer, in the log line, the span and the metrics; that of a background response is 200."""
    decisions: tuple[str, ...] = ()
    """Policy, decision and code in the metrics."""
    has_begun: bool = False
    """Whether an event of the reply has arrived."""


ENDS: dict[str, tuple[Any, dict[str, Any], str, End]] = {
    "success": (
        answering(), {}, "json stream websocket background", End(SENT, "success", attempts=[(200, None)], has_begun=True),
    ),
    "success with a key of the cache": (
        answering(), KEY, "json stream websocket background", End(SENT, "success", attempts=[(200, None)], has_begun=True),
    ),
    "incomplete": (
        answering(INCOMPLETE), {}, "json stream websocket background",
        End(SENT, "success", attempts=[(200, None)], has_begun=True,
            fields={"finish_reason": "incomplete", "incomplete_reason": "max_output_tokens"}),
    ),
    "stalled": (
        answering(BEGUN, hang), {"model": "own-stalling"}, "stream websocket background",
        End(ESTIMATED, "failed upstream_stalled", root="!upstream_stalled", call="!upstream_stalled", has_begun=True,
            attempts=[(200, "upstream_stalled")], fields={"code": "upstream_stalled"}),
    ),
    "hedged": (
        troubled_at_first, {"model": "own-hedged"}, "json stream websocket background",
        End(SENT | {"input_tokens": 10, "estimated": True}, "success", attempts=[(None, "cancelled"), (200, None)],
            fields={"hedged": "slow", "backend": "own"}, has_begun=True),
    ),
    "answered by another backend": (
        troubled_at_first, {"model": "own-retried"}, "json stream websocket background",
        End(SENT, "success", attempts=[(503, "503"), (200, None)], fields={"attempts": 2, "backend": "own"},
            has_begun=True),
    ),
    "refused by a policy": (
        None, {"metadata": {"k": 1}}, "json stream websocket",
        End({}, "refused metadata_limits.value_not_a_string", root="metadata_limits.value_not_a_string",
            fields={"policy": "metadata_limits", "outcome": "refused"}, status=400,
            decisions=("metadata_limits refused metadata_limits.value_not_a_string",)),
    ),
    "refused by the upstream": (
        refusing, {}, "json stream websocket",
        End({}, "rejected 400", root="400", call="!400", attempts=[(400, "400")], fields={"upstream_code": "c"},
            status=400),
    ),
    "failed because the upstream refused it": (  # its code stands for the status, which was that of the queued response
        refusing, {}, "background",
        End({}, "failed c", root="!c", call="!c", attempts=[(400, "400")], fields={"upstream_code": "c"}),
    ),
    "failed because the upstream failed": (
        failing, {}, "background",
        End({}, "failed c", root="!c", call="!c", attempts=[(500, "500"), (500, "500")], fields={"upstream_code": "c"}),
    ),
    "failed with 500": (
        failing, {}, "json stream websocket",
        End({}, "failed 500", root="!500", call="!500", attempts=[(500, "500"), (500, "500")],
            fields={"upstream_code": "c"}, status=500),
    ),
    "refused key": (
        refusing_the_key, {}, "json stream websocket background",
        End({}, "failed upstream_auth", root="!upstream_auth", call="!upstream_auth", attempts=[(None, "upstream_auth")],
            fields={"code": "upstream_auth"}, status=502),
    ),
    "unreachable": (
        answering(), {"model": "own-gone"}, "json stream websocket background",
        End({}, "failed upstream_unreachable", root="!upstream_unreachable", call="!upstream_unreachable",
            attempts=[(None, "upstream_unreachable")] * 2, fields={"code": "upstream_unreachable"}, status=502),
    ),
    "invalid answer": (
        invalid, {}, "json stream websocket background",
        End(ASKED, "failed upstream_invalid_response", root="!upstream_invalid_response", call="!upstream_invalid_response",
            attempts=[(None, "upstream_invalid_response")], fields={"code": "upstream_invalid_response"}, status=502),
    ),
    "cut": (
        answering(BEGUN), {}, "stream websocket background",
        End(ESTIMATED, "failed upstream_cut", root="!upstream_cut", call="!upstream_cut",
            attempts=[(200, "upstream_cut")], fields={"code": "upstream_cut"}, has_begun=True),
    ),
    "failed in a 200": (
        streaming(BEGUN, FAILED), {}, "stream websocket background",
        End(ESTIMATED, "failed response_failed", root="!response_failed", call="!response_failed",
            attempts=[(200, None)], fields={"finish_reason": "failed", "upstream_code": "server_error"}, has_begun=True),
    ),
    "timeout": (
        hang, {"model": "own-late"}, "json stream websocket background",
        End(ASKED, "failed upstream_timeout", root="!upstream_timeout", call="!upstream_timeout",
            attempts=[(None, "upstream_timeout")], fields={"code": "upstream_timeout"}, status=504),
    ),
    "stopped": (
        answering(BEGUN + SEARCH % (2, 1) + SEARCH % (3, 2), hang),
        {"model": "own-stopped", "tools": [{"type": "web_search"}]}, "stream websocket background",
        End(ESTIMATED | {"output_tokens": 3}, "stopped", attempts=[(200, None)],
            fields={"policy": "max_tool_calls", "outcome": "stopped", "incomplete_reason": "max_tool_calls"},
            decisions=("max_tool_calls changed", "max_tool_calls stopped max_tool_calls.exceeded"), has_begun=True),
    ),
}  # fmt: skip
CASES = [pytest.param(name, way, id=f"{name}-{way}") for name, end in ENDS.items() for way in end[2].split()]


@dataclass
class Scene:
    """A gateway whose spans, lines and metrics are read."""

    ways: Ways
    spans: InMemorySpanExporter
    logged: list[dict[str, Any]]

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans.get_finished_spans() if span.name.startswith(name)]

    async def counted(self) -> Any:
        return await scrape(self.ways.http, admin_of(self.logged))

    def line(self) -> dict[str, Any]:
        """Return the line of the last call."""
        ends = ("request.finished", "background.finished")
        return next(
            line for line in reversed(self.logged)
            if line["event"] in ends and "model" in line and line.get("finish_reason") != "queued"
        )  # fmt: skip


def tables_of(upstream: FakeUpstream) -> dict[str, Any]:
    """Return a config that keeps the state of models called "own"."""
    backend = {"use": "upstream", "base_url": f"{upstream.address}/v1"}
    return tables_for(
        upstream,
        admin={"port": 0},
        backend=[
            backend | {"name": "own"},
            backend | {"name": "slow", "base_url": f"{upstream.address}/slow/v1"},
            backend | {"name": "late", "first_event_timeout_s": 0.2},
            backend | {"name": "stalling", "between_events_timeout_s": 0.2},
            backend | {"name": "busy", "base_url": f"{upstream.address}/busy/v1"},
            backend | {"name": "gone", "base_url": "http://127.0.0.1:1/v1"},
            backend | {"name": "fake", "keeps_state": True},
        ],
        route=[
            {"model": "own-hedged", "backends": ["slow", "own"], "hedge_after_ms": 10},
            {"model": "own-retried", "backends": ["busy", "own"]},
            {"model": "own-gone", "backend": "gone"},
            {"model": "own-late", "backend": "late"},
            {"model": "own-stalling", "backend": "stalling"},
            {"model": "own*", "backend": "own"},
            {"model": "*", "backend": "fake"},
        ],
        policy=[{"use": "metadata_limits"}, {"use": "max_tool_calls", "max": 1, "models": ["*stopped"]}],
        price=[{"model": "*", "input": 1, "output": 2}],
        trace={"semconv": "both"},
        usage={"flush_s": 0.05},
    )


def tracing() -> tuple[InMemorySpanExporter, Tracer]:
    """Return where spans are kept, and a tracer that sends them there."""
    spans, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return spans, provider.get_tracer("test")


@pytest.fixture
async def scene(http, start_gateway: StartGateway, upstream: FakeUpstream, logged) -> Scene:
    spans, tracer = tracing()
    return Scene(Ways(http, await start_gateway(tables_of(upstream), tracer=tracer), upstream), spans, logged)


def error_of(span: ReadableSpan) -> str | None:
    """Return the `error.type` of a span, after "!" if its status is ERROR."""
    found = (span.attributes or {}).get("error.type")
    return f"!{found}" if span.status.status_code is StatusCode.ERROR else found and str(found)


def cost_of(tokens: dict[str, Any]) -> float:
    return (tokens.get("input_tokens", 0) + 2 * tokens.get("output_tokens", 0)) / 1e6


USAGE_COLUMNS = {"refused": "refused", "rejected": "failed", "failed": "failed", "stopped": "interrupted"}


UNSENT = ("upstream_auth", "upstream_unreachable")
"""What an attempt ends with on which no backend has worked."""


def used(tokens: dict[str, Any], outcome: str, sent: int) -> dict[str, Any]:
    """Return what is counted as usage of a call with this end."""
    prefix = "estimated_" if tokens.get("estimated") else ""
    counts = {prefix + name: tokens.get(name, 0) for name in ("input_tokens", "output_tokens")}
    counts |= {"calls": 1, "sent": sent, "reasoning_tokens": tokens.get("reasoning_tokens", 0)}
    counts["cost_usd"] = cost_of(tokens)
    return usage_counted(counts | {column: 1 for word, column in USAGE_COLUMNS.items() if outcome.startswith(word)})


@pytest.mark.parametrize(("name", "way"), CASES)
async def test_every_end_is_reported_on_every_way(scene: Scene, name: str, way: str):
    """Spans, log line and metrics agree, to the token."""
    answer, body, _, end = ENDS[name]
    scene.ways.upstream.answer = answer
    before = await scene.counted()
    await WAYS[way](scene.ways, ({"model": "own"} if way == "background" else {}) | body)
    await until(lambda: lines_of(scene.logged) != [])
    line, counted = scene.line(), changes(before, await scene.counted(), COUNTED)
    usage = (await usage_of(scene.ways.http, scene.ways.gateway))["total"]
    root = scene.named(ROOTS.get(way, "POST /v1"))[0]
    calls, attempts = scene.named("chat "), [span for span in scene.spans.get_finished_spans() if span.name == "POST"]
    found = [(span.attributes.get("http.response.status_code"), span.attributes.get("error.type")) for span in attempts]
    tokens = {name: count for name, count in end.tokens.items() if name in ("input_tokens", "output_tokens") and count}

    assert lines_of(scene.logged) == [end.tokens]
    assert {name: line.get(name) for name in end.fields} == end.fields
    assert error_of(root) == end.root
    assert [error_of(span) for span in calls] == ([] if name == "refused by a policy" else [end.call])
    assert found == end.attempts
    assert usage_counted(usage) == used(end.tokens, end.outcome, sum(error not in UNSENT for _, error in end.attempts))
    assert counted == pytest.approx(
        {f"call {way} {end.outcome}": 1}
        | {name.removesuffix("_tokens"): count for name, count in tokens.items()}
        | ({"cost": cost_of(end.tokens)} if tokens else {})
    )
    assert line.get("cost_usd") == (pytest.approx(cost_of(end.tokens)) if tokens else None)
    assert {span.attributes["openinference.span.kind"] for span in (root, *attempts)} == {"CHAIN"}
    if line.get("finish_reason") is None and end.call is not None:
        assert [span.attributes["gen_ai.response.finish_reasons"] for span in calls] == [("error",)]
    for span in calls if tokens else []:
        counts = [span.attributes.get(f"{kind}") for kind in ("gen_ai.usage.input_tokens", "llm.token_count.prompt")]
        assert counts == [end.tokens["input_tokens"]] * 2


SERIES = {
    "http_server_request_duration_seconds_count": (
        "http", "http_request_method", "http_route", "http_response_status_code", "error_type",
    ),
    "headgate_policy_decisions_total": ("policy", "headgate_policy", "headgate_policy_decision", "error_type"),
    "gen_ai_client_inference_duration_seconds_count": ("inference", "error_type"),
    "gen_ai_client_inference_time_to_first_chunk_seconds_count": ("first chunk",),
    "gen_ai_server_time_per_output_token_seconds_count": ("per token",),
    "headgate_target_attempts_total": ("attempt", "http_response_status_code", "error_type"),
    "headgate_retries_total": ("retries",),
    "headgate_unpriced_total": ("unpriced",),
}  # fmt: skip
"""The counts of other metrics, with the labels that the table says something of."""
STATUSES = {"upstream_timeout": 504}
"""Of an attempt that ended with an error of the gateway, where it is not 502."""


def series_of(end: End, way: str) -> Counter[str]:
    """Return what else is counted of an end."""
    is_streamed, error = way in ("stream", "websocket"), end.outcome.partition(" ")[2]
    status, http_error = (200, "") if way == "background" else (end.status, error)
    counted = Counter([f"policy {decision}" for decision in end.decisions])
    if way != "websocket":
        counted[f"http POST /v1/responses {status} {http_error}".strip()] += 1
    if end.attempts:
        counted[f"inference {error}".strip()] += 1
    if is_streamed and end.has_begun:
        counted["first chunk"] += 1
        counted["per token"] += end.outcome == "success"
    for answered, failed in end.attempts:
        if failed != "cancelled":  # another one was faster
            counted[f"attempt {answered or f'{STATUSES.get(str(failed), 502)} {failed}'}"] += 1
    counted["retries"] += len(end.attempts) - 1 if end.attempts and "hedged" not in end.fields else 0
    return +counted


@pytest.mark.parametrize(("name", "way"), CASES)
async def test_every_end_has_its_statuses_and_series(scene: Scene, name: str, way: str):
    """Line, span and metrics have one status; a first event is measured where there was one, each attempt once."""
    answer, body, _, end = ENDS[name]
    scene.ways.upstream.answer = answer
    before = await scene.counted()
    await WAYS[way](scene.ways, ({"model": "own"} if way == "background" else {}) | body)
    await until(lambda: lines_of(scene.logged) != [])
    line, counted = scene.line(), changes(before, await scene.counted(), SERIES)
    root, calls = scene.named(ROOTS.get(way, "POST /v1"))[0], scene.named("chat ")
    attempts = [span for span in scene.spans.get_finished_spans() if span.name == "POST"]
    status, is_streamed = 200 if way == "background" else end.status, way in ("stream", "websocket")
    names = [{*call.attributes} & {"gen_ai.request.stream", "gen_ai.response.time_to_first_chunk"} for call in calls]
    first = {"gen_ai.response.time_to_first_chunk"} if end.has_begun else set()

    assert counted == series_of(end, way)
    assert (line["status"], root.attributes["http.response.status_code"]) == (status, status)
    assert root.kind is (SpanKind.INTERNAL if way == "background" else SpanKind.SERVER)
    assert {span.kind for span in (*calls, *attempts)} <= {SpanKind.CLIENT}
    assert {span.parent.span_id for span in attempts} <= {call.context.span_id for call in calls}
    assert [[event.name for event in call.events] for call in calls] == [
        ["headgate.first_event"] * end.has_begun
    ] * len(calls)
    assert names == [{"gen_ai.request.stream"} | first if is_streamed else set()] * len(calls)
    assert ("first_event_s" in line) == end.has_begun
    assert {call.attributes["server.port"] for call in calls} <= {
        attempt.attributes["server.port"] for attempt in attempts
    }


@pytest.mark.parametrize("way", LEAVING)
async def test_a_client_that_leaves_is_no_success(scene: Scene, way: str):
    """The call of the model has failed for it; the request's span has the status 499, which is no fault of ours."""
    scene.ways.upstream.answer = answering(BEGUN, hang)
    await LEAVING[way](scene.ways)
    await until(lambda: lines_of(scene.logged) != [] and scene.named("chat ") != [])
    (call,) = scene.named("chat ")
    usage = (await usage_of(scene.ways.http, scene.ways.gateway))["total"]

    assert usage_counted(usage) == used(ASKED if way == "json" else ESTIMATED, "", 1) | {"interrupted": 1}
    assert scene.line()["status"] == 499
    assert error_of(call) == "!499"
    assert lines_of(scene.logged) == [ASKED if way == "json" else ESTIMATED]


@pytest.mark.parametrize("way", WAYS)
async def test_a_shutdown_ends_calls_as_failed(http, upstream: FakeUpstream, logged, monkeypatch, way: str):
    """What was used until then is known, and in the metrics that are sent last."""
    upstream.answer = hang if way == "json" else answering(BEGUN, hang)
    (spans, tracer), sink = tracing(), Sink()
    tables = tables_of(upstream) | {"server": {"port": 0, "drain_s": 0.1}}
    async with http_collector(sink) as port:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"http://127.0.0.1:{port}/v1/metrics")
        async with running(build(tables), tracer) as gateway:
            scene = Scene(Ways(http, gateway, upstream), spans, logged)
            call = asyncio.create_task(WAYS[way](scene.ways, {"model": "own"}))
            await upstream.arrived.wait()
        await asyncio.gather(call, return_exceptions=True)
    ended = {name: value for name, value in sink.values("headgate.calls") if "failed" in name}
    expected = ASKED if way == "json" else ESTIMATED
    used = [sum(value for _, value in sink.values(f"gen_ai.client.inference.usage.{kind}_tokens")) for kind in KINDS]
    (chat,), (root, *_) = scene.named("chat "), scene.named(ROOTS.get(way, "POST /v1"))

    assert lines_of(logged) == [expected]
    assert scene.line()["cost_usd"] == pytest.approx(cost_of(expected))
    assert (error_of(root), error_of(chat)) == ("!server_shutdown", "!server_shutdown")
    assert [*ended.values()] == [1]
    assert {way, "server_shutdown"} <= set(*ended)
    assert used == [expected["input_tokens"], expected["output_tokens"]]


async def test_a_response_that_is_cancelled_in_the_background_has_used_tokens(scene: Scene):
    """It is no failure: its client wanted that."""
    scene.ways.upstream.answer = answering(BEGUN, hang)
    before = await scene.counted()
    body = BODY | {"model": "own", "background": True, "store": True}
    async with scene.ways.http.post(f"{scene.ways.gateway}/v1/responses", json=body) as queued:
        name = (await queued.json())["id"]
    events = f"{scene.ways.gateway}/v1/responses/{name}?stream=true"
    async with scene.ways.http.get(events) as stream:
        while b"content_part.added" not in await stream.content.readline():
            pass
    async with scene.ways.http.post(f"{scene.ways.gateway}/v1/responses/{name}/cancel") as answer:
        assert answer.status == 200
    await until(lambda: lines_of(scene.logged) != [])
    counted = changes(before, await scene.counted(), COUNTED)

    assert lines_of(scene.logged) == [ESTIMATED]
    assert counted == pytest.approx(
        {"call background cancelled": 1, "input": 3, "output": 2, "cost": cost_of(ESTIMATED)}
    )
    assert [error_of(span) for span in (*scene.named("background"), *scene.named("chat "))] == [None, "!cancelled"]


async def test_what_the_cache_answers_has_no_call(scene: Scene):
    """Its lookup is a span, and what it did an event; the answer's cost is saved."""
    for _ in range(2):
        await scene.ways.json(KEY)
    await until(lambda: len(lines_of(scene.logged)) == 2)
    roots = scene.named("POST /v1")
    events = [
        [(event.name, event.attributes["headgate.cache.outcome"]) for event in span.events if "cache" in event.name]
        for span in roots
    ]

    assert lines_of(scene.logged) == [SENT, SAVED]
    assert scene.line()["saved_usd"] == pytest.approx(cost_of(SENT))
    assert len(scene.named("chat ")) == 1
    assert len(scene.named("cache")) == 2
    assert events == [[("headgate.cache", "miss")], [("headgate.cache", "hit")]]


@pytest.mark.parametrize("trusts", [True, False])
async def test_a_callers_trace_can_be_refused(start_gateway, upstream: FakeUpstream, http, trusts: bool):
    """Then it is not passed on either."""
    gateway = await start_gateway(tables_for(upstream, server={"trust_traceparent": trusts}))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with http.post(f"{gateway}/v1/responses", json={"model": "m"}, headers={"traceparent": parent}) as answer:
        await answer.read()

    assert upstream.requests[0].headers.get("traceparent") == (parent if trusts else None)


SECRET = "sk-proj-abcdefghijklmnop1234"
CONTENT = ("gen_ai.system_instructions", "gen_ai.input.messages", "gen_ai.output.messages")
CAPTURED = {
    "none": [None, None, None],
    "metadata": [
        '[{"type":"text","chars":9}]',
        '[{"role":"user","parts":[{"type":"text","chars":38}]}]',
        '[{"role":"assistant","parts":[{"type":"text","chars":6}]}]',
    ],
    "full": [
        '[{"type":"text","content":"Be brief."}]',
        '[{"role":"user","parts":[{"type":"text","content":"my key [redacted] is"}]}]',
        '[{"role":"assistant","parts":[{"type":"text","content":"Think."}]}]',
    ],
}


@pytest.mark.parametrize("mode", CAPTURED)
@pytest.mark.parametrize("way", ["stream", "background"])
async def test_content_is_captured_only_for_teams_that_want_it(
    start_gateway, upstream: FakeUpstream, http, logged, mode: Any, way: str
):
    """What looks like a key is replaced, files are left out, and the log has nothing of it."""
    spans, tracer = tracing()
    tables = tables_for(upstream, trace={"capture": {"anybody": mode, "other": "full"}}, policy=[])
    tables["backend"][0]["keeps_state"] = False
    gateway = await start_gateway(tables, tracer=tracer)
    upstream.answer = answering(BEGUN.rpartition(b"event: response.output_item.added")[0] or BEGUN)
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    content = [{"type": "input_text", "text": f"my key {SECRET} is"}, image]
    body = {"instructions": "Be brief.", "input": [{"role": "user", "content": content}]}
    await WAYS[way](Ways(http, gateway, upstream), body)
    await until(lambda: lines_of(logged) != [])
    (call,) = [span for span in spans.get_finished_spans() if span.name == "chat m"]

    assert [call.attributes.get(name) for name in CONTENT] == CAPTURED[mode]
    assert SECRET not in repr(logged) + repr([dict(span.attributes) for span in spans.get_finished_spans()])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([{"role": "user", "content": text * 5000} for text in "ABC"], {"A": 0, "B": 3192, "C": 5000}),
        ([{"role": "user", "content": ["A" * 5000, "B" * 5000]}], {"A": 5000, "B": 3192}),
        ("A" * 50_000, {"A": 8192}),
        ("\ud800A", {"?A": 1}),
        ("A" * 8190 + f" {SECRET} B", {"A": 8190, "sk-proj": 0}),
        ("." * 8177 + f" {SECRET} B", {SECRET[:12]: 0, "[redacted]": 1}),
        (7, {}),
    ],
)
def test_captured_texts_are_bounded(given: Any, kept: dict[str, int]):
    """The end of a long conversation is what is new."""
    content = captured_content(make_call(input=given), Transcript(), "full").get("gen_ai.input.messages", "")

    assert {text: content.count(text) for text in kept} == kept


async def test_a_shared_call_is_linked_to_its_first(scene: Scene):
    """Its own span has no call of a model; a turn is linked to its connection."""
    released = asyncio.Event()

    async def rest(response: Any) -> None:
        await released.wait()
        await response.write(CANONICAL[len(BEGUN) :])

    scene.ways.upstream.answer = answering(BEGUN, rest)
    first = asyncio.create_task(scene.ways.stream(KEY))
    await scene.ways.upstream.arrived.wait()
    async with calling(scene.ways.gateway) as caller:
        await caller.create(**BODY | KEY)
        while (await caller.read())["type"] != "response.content_part.added":
            pass
        released.set()
        await caller.turn()
    await first
    await until(lambda: len(lines_of(scene.logged)) == 2 and scene.named("GET /v1") != [])
    (leader,), (turn,), (connection,) = (scene.named(name) for name in ("POST /v1", "WEBSOCKET", "GET /v1"))
    linked = {link.context.span_id for link in turn.links}

    assert linked == {connection.context.span_id, leader.context.span_id}
    assert len(scene.named("chat ")) == 1


async def test_a_retry_is_an_event_and_an_attempt_of_the_same_call(scene: Scene):
    """The call of the model has not failed."""
    answers = iter([refused_for_now, answering()])

    async def answer(request: Any) -> Any:
        return await next(answers)(request)

    scene.ways.upstream.answer = answer
    await scene.ways.json({})
    await until(lambda: scene.named("POST /v1") != [])
    (root,), (call,) = scene.named("POST /v1"), scene.named("chat ")
    attempts = [span for span in scene.spans.get_finished_spans() if span.name == "POST"]

    assert [dict(event.attributes) for event in root.events if event.name == "headgate.retry"] == [
        {"headgate.target": "fake", "error.type": "503", "headgate.next_target": "fake"}
    ]
    assert [error_of(span) for span in (root, call, *attempts)] == [None, None, "!503", None]
    assert {span.parent.span_id for span in attempts} == {call.context.span_id}
    assert attempts[1].attributes["http.request.resend_count"] == 1
