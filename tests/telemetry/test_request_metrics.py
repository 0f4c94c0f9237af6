"""What each end of a call adds to the metrics, as a scraper sees it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from proxy.telemetry import metrics
from proxy.telemetry.instruments import MAX_NAMES, Instruments
from proxy.telemetry.record import RequestRecord
from proxy.telemetry.request_metrics import RequestMetrics
from tests.conftest import tables_for
from tests.metrics import admin_of, changes, scrape
from tests.sockets import calling
from tests.timeouts import TIMEOUT_S, pause
from tests.upstream import CANONICAL, FakeUpstream, canonical, final_body, hang, streaming

MANY = 2000
SHOWN = {
    "headgate_calls_total": ("call", "headgate_transport", "headgate_outcome", "error_type"),
    "http_server_request_duration_seconds_count": ("http", "http_response_status_code"),
    "gen_ai_client_inference_duration_seconds_count": ("inference", "error_type"),
    "gen_ai_client_inference_time_to_first_chunk_seconds_count": ("first chunk",),
    "gen_ai_server_time_per_output_token_seconds_count": ("per token",),
    "gen_ai_client_inference_usage_input_tokens_total": ("input",),
    "gen_ai_client_inference_usage_output_tokens_total": ("output",),
    "gen_ai_client_inference_usage_reasoning_output_tokens_total": ("reasoning",),
    "headgate_cache_lookups_total": ("cache", "headgate_cache_outcome"),
    "headgate_cache_saved_tokens_total": ("saved", "gen_ai_token_type"),
    "headgate_cache_served_bytes_total": ("bytes",),
    "headgate_retries_total": ("retries",),
    "headgate_target_queue_duration_seconds_count": ("queue",),
    "headgate_target_attempts_total": ("attempt", "http_response_status_code", "error_type"),
    "headgate_policy_decisions_total": ("policy", "headgate_policy", "headgate_policy_decision"),
}
USED = {"input": 5, "output": 7, "reasoning": 2}
JSON = USED | {"http 200": 1, "inference": 1, "attempt 200": 1, "cache bypass": 1}
STREAM = JSON | {"first chunk": 1, "per token": 1}
ESTIMATED = {"input": 1, "output": 2}
"""Of the texts of a call, and of what has passed: "Think."."""
BROKEN = ESTIMATED | {"http 200": 1, "attempt 200": 1, "cache bypass": 1, "first chunk": 1}
SIZE = len(final_body())
FAILED = b'event: response.failed\ndata: {"type":"response.failed","sequence_number":1,"response":{"id":"r","object":"response","status":"failed","output":[],"error":{"code":"server_error","message":"no"},"usage":null}}\n\n'
BEGUN = CANONICAL[: CANONICAL.index(b"response.output_text.delta")].rpartition(b"\n\n")[0] + b"\n\n"


SEARCHES = b"".join(
    b'event: response.output_item.added\ndata: {"type":"response.output_item.added","sequence_number":%d,"output_index":%d,"item":{"id":"ws_%d","type":"web_search_call","status":"in_progress"}}\n\n'
    % (number, number, number)
    for number in range(4, 6)
)
BODY = {"model": "m", "input": "x"}


def refusing(status: int) -> Callable[[web.Request], Any]:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "no", "code": "own", "type": "t", "param": None}}, status=status)

    return answer


@dataclass
class Scene:
    """A gateway whose metrics are read."""

    http: aiohttp.ClientSession
    upstream: FakeUpstream
    gateway: str
    admin: str

    async def post(self, body: dict[str, Any]) -> None:
        async with self.http.post(f"{self.gateway}/v1/responses", json=BODY | body) as answer:
            await answer.read()

    async def post_twice(self, body: dict[str, Any]) -> None:
        """The second one is answered by the cache."""
        await self.post(body)
        await self.post(body)

    async def post_both(self, body: dict[str, Any]) -> None:
        """Send two calls at a time."""
        await asyncio.gather(self.post(body), self.post(body))

    async def post_shared(self, body: dict[str, Any]) -> None:
        """Send two identical calls; the upstream answers when both are there."""
        are_there = asyncio.Event()

        async def wait(request: web.Request) -> web.StreamResponse:
            await are_there.wait()
            return await canonical(request)

        self.upstream.answer = wait
        sending = asyncio.create_task(self.post_both(body))
        active = ("http_server_active_requests", frozenset({("http_request_method", "POST"), ("url_scheme", "http")}))
        async with asyncio.timeout(TIMEOUT_S):
            while (await scrape(self.http, self.admin)).get(active) != 2:
                await pause()
        are_there.set()
        await sending

    async def leave(self, body: dict[str, Any]) -> None:
        """Disconnect when the upstream has the call."""
        sending = asyncio.create_task(self.post(body))
        await self.upstream.arrived.wait()
        sending.cancel()

    async def talk(self, body: dict[str, Any]) -> None:
        """Send a message on a WebSocket."""
        async with calling(self.gateway) as caller:
            await caller.turn_of(**body)

    async def get(self, _: dict[str, Any]) -> None:
        """Send what is no call."""
        async with self.http.get(f"{self.gateway}/v1/responses"):
            pass


@pytest.fixture
async def scene(http, start_gateway, upstream: FakeUpstream, logged) -> Scene:
    """For the model "late" the upstream times out when it says nothing for 0.2 s."""
    backend = {"use": "upstream", "base_url": f"{upstream.address}/v1"}
    own = {
        "fake": {"keeps_state": True},
        "own": {},
        "narrow": {"max_concurrent": 1},
        "late": {"first_event_timeout_s": 0.2},
    }
    backends = [{"name": name, **backend, **more} for name, more in own.items()]
    routes = [{"model": "*" if name == "fake" else name, "backend": name} for name in [*own][::-1]]
    policies = [{"use": "metadata_limits"}, {"use": "max_tool_calls", "max": 1, "models": ["clamped"]}]
    tables = tables_for(upstream, admin={"port": 0}, policy=policies, backend=backends, route=routes)
    gateway = await start_gateway(tables)
    return Scene(http, upstream, gateway, admin_of(logged))


@pytest.mark.parametrize(
    ("send", "answer", "body", "expected"),
    [
        (Scene.post, None, {}, JSON | {"call json success": 1}),
        (Scene.post, None, {"stream": True}, STREAM | {"call stream success": 1}),
        (Scene.talk, None, {}, STREAM | {"http 200": 0, "call websocket success": 1}),
        (
            Scene.post, None, {"model": "own", "background": True, "store": True},
            JSON | {"call background success": 1},
        ),
        (
            Scene.post_twice, None, {"prompt_cache_key": "k"},
            JSON | {"http 200": 2, "call json success": 2, "cache bypass": 0, "cache miss": 1, "cache hit": 1, "saved input": 5,
                    "saved output": 7, "bytes": SIZE},
        ),
        (
            Scene.post_twice, None, {"prompt_cache_key": "k", "stream": True},
            STREAM | {"http 200": 2, "call stream success": 2, "cache bypass": 0, "cache miss": 1, "cache hit": 1,
                      "saved input": 5, "saved output": 7, "bytes": len(CANONICAL.removesuffix(b"data: [DONE]\n\n"))},
        ),
        (
            Scene.post_shared, None, {"prompt_cache_key": "k"},
            JSON | {"http 200": 2, "call json success": 2, "cache bypass": 0, "cache miss": 1, "cache collapsed": 1,
                    "saved input": 5, "saved output": 7},
        ),
        (
            Scene.post_both, None, {"model": "narrow"},
            {key: 2 * value for key, value in JSON.items()} | {"call json success": 2, "queue": 1},
        ),
        (
            Scene.post, None, {"metadata": {"k": 1}},
            {"http 400": 1, "policy metadata_limits refused": 1,
             "call json refused metadata_limits.value_not_a_string": 1},
        ),
        (Scene.post, None, {"model": "clamped"}, JSON | {"call json success": 1, "policy max_tool_calls changed": 1}),
        (
            Scene.post, streaming(BEGUN, SEARCHES), {"model": "clamped", "stream": True},
            BROKEN | {"inference": 1, "call stream stopped": 1, "policy max_tool_calls changed": 1,
                      "policy max_tool_calls stopped": 1},
        ),
        (Scene.post, None, {"model": 7}, {"http 400": 1, "call json rejected invalid_type": 1}),
        (
            Scene.talk, None, {"metadata": {"k": 1}},
            {"policy metadata_limits refused": 1, "call websocket refused metadata_limits.value_not_a_string": 1},
        ),
        (
            Scene.post, refusing(400), {},
            {"http 400": 1, "inference 400": 1, "attempt 400": 1, "cache bypass": 1, "call json rejected 400": 1},
        ),
        (
            Scene.post, refusing(500), {},
            {"http 500": 1, "inference 500": 1, "attempt 500": 2, "retries": 1, "cache bypass": 1,
             "call json failed 500": 1},
        ),
        (
            Scene.post, streaming(BEGUN, FAILED), {"stream": True},
            BROKEN | {"inference response_failed": 1, "call stream failed response_failed": 1},
        ),
        (
            Scene.post, streaming(BEGUN), {"stream": True},
            BROKEN | {"inference upstream_cut": 1, "call stream failed upstream_cut": 1},
        ),
        (
            Scene.talk, streaming(BEGUN), {},
            BROKEN | {"http 200": 0, "inference upstream_cut": 1, "call websocket failed upstream_cut": 1},
        ),
        (
            Scene.post, hang, {"model": "late"},
            {"input": 1, "http 504": 1, "inference upstream_timeout": 1, "attempt 504 upstream_timeout": 1, "cache bypass": 1,
             "call json failed upstream_timeout": 1},
        ),
        (
            Scene.leave, hang, {},
            {"input": 1, "http 499": 1, "inference 499": 1, "cache bypass": 1, "call json client_closed 499": 1},
        ),
        (Scene.get, None, {}, {"http 405": 1}),
    ],
    ids=[
        "JSON", "stream", "WebSocket", "background", "hit", "hit as a stream", "collapsed", "queued", "refused", "changed", "stopped", "invalid",
        "refused on a WebSocket", "400", "500", "failed in a 200", "cut", "cut on a WebSocket", "timeout", "caller left",
        "no call",
    ],
)  # fmt: skip
async def test_what_the_end_of_a_call_changes(
    scene: Scene, send, answer, body: dict[str, Any], expected: dict[str, float]
):
    """Nothing is missing and nothing is counted twice; tokens are the same on each way."""
    scene.upstream.answer = answer
    expected = {key: value for key, value in expected.items() if value}
    before = await scrape(scene.http, scene.admin)
    await send(scene, body)
    async with asyncio.timeout(TIMEOUT_S):
        while (found := changes(before, await scrape(scene.http, scene.admin), SHOWN)).keys() != expected.keys():
            assert found.keys() <= expected.keys(), found

    assert found == expected


def test_names_from_outside_are_bounded():
    """A model that no backend has answered for is `other`, as are those beyond the limit and odd values."""
    instruments = Instruments()
    own = RequestMetrics(instruments)

    def call(model: str, status: int = 200, **more: Any) -> None:
        own.record(RequestRecord(method=None, status=status, model=model, route="r", **more), 0.1, ())

    call("early", 404)
    for number in range(MANY + 2):
        call(f"m{number}")
    call("m0", 404)
    call("m1", finish_reason={}, input_tokens="5", output_tokens=-1)
    counted = instruments.snapshot()[metrics.CALLS]
    by_model = {labels[1]: value for labels, value in counted.items() if "success" in labels}

    assert len(by_model) == MAX_NAMES + 1
    assert (by_model["m0"], by_model["m1"], by_model["other"]) == (1, 2, MANY + 2 - MAX_NAMES)
    assert [labels[1] for labels in counted if "rejected" in labels] == ["other", "m0"]
    assert sum(instruments.snapshot()[metrics.USED_TOKENS["input_tokens"]].values()) == 0


def test_lookups_last_as_long_as_the_record_says():
    """By what the cache did; a call that was not looked up is not measured."""
    instruments = Instruments()
    own = RequestMetrics(instruments)
    for outcome, lookup_s in [("miss", 0.25), ("miss", 0.5), ("hit", 0.125), ("bypass", None), ("miss", None)]:
        own.record(RequestRecord(status=200, route="r", cache=outcome, cache_lookup_s=lookup_s), 0.1, [("cache", 9.0)])
    measured = instruments.snapshot()[metrics.CACHE_DURATION]

    assert {labels: (sum(found.counts), found.sum) for labels, found in measured.items()} == {
        ("miss",): (2, 0.75),
        ("hit",): (1, 0.125),
    }


def test_repairs_of_streams_are_counted_by_what_was_at_fault():
    """The record has them as a text."""
    instruments = Instruments()
    own = RequestMetrics(instruments)
    for repairs in ("output=1 sequence_number=24", None, "output=2"):
        own.record(RequestRecord(method="POST", backend="b", repairs=repairs), 0.1, (), "/v1/responses")

    assert instruments.snapshot()[metrics.REPAIRS] == {("b", "output"): 3, ("b", "sequence_number"): 24}


def test_a_call_without_a_price_does_not_cost_0():
    """It is counted on its own, and has no series among the costs."""
    instruments = Instruments()
    own = RequestMetrics(instruments)
    prices: list[dict[str, Any]] = [{"cost_usd": 0.5}, {"cost_usd": 0.25}, {"unpriced": True}, {"unpriced": True}, {}]
    for more in [{"input_tokens": 5, **price} for price in prices] + [
        {"cache": "hit", "saved_usd": 2.0},
        {"cache": "hit"},
    ]:
        model = "m" if "cost_usd" in more or "saved_usd" in more else "unknown"
        own.record(RequestRecord(status=200, model=model, route="r", backend="b", **more), 0.1, ())
    sums = {metric: [*series.values()] for metric, series in instruments.snapshot().items()}

    assert (sums[metrics.COST], sums[metrics.UNPRICED], sums[metrics.SAVED_COST]) == ([0.75], [2], [2.0])


async def test_what_is_being_answered_is_counted_by_method(http, start_gateway, upstream: FakeUpstream, logged):
    """Also where it is nothing: what scales by it needs a number. A method that was seen once keeps its count."""
    go_on = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return await canonical(request)

    async def count() -> dict[str, float]:
        found = await scrape(http, admin)
        return {
            dict(labels)["http_request_method"]: value
            for (name, labels), value in found.items()
            if name == "http_server_active_requests"
        }

    upstream.answer = wait
    gateway = await start_gateway(tables_for(upstream, admin={"port": 0}))
    admin = admin_of(logged)
    before = await count()
    sending = [asyncio.create_task(post_to(http, gateway)) for _ in range(2)]
    async with asyncio.timeout(TIMEOUT_S):
        while len(upstream.requests) < 2:
            await pause()
    meanwhile = await count()
    go_on.set()
    await asyncio.gather(*sending)
    async with asyncio.timeout(TIMEOUT_S):
        while (after := await count()) != before:
            await pause()

    assert before == after == {"GET": 0, "POST": 0}
    assert meanwhile == {"GET": 0, "POST": 2}


async def post_to(http, gateway: str) -> None:
    async with http.post(f"{gateway}/v1/responses", json=BODY) as answer:
        await answer.read()
