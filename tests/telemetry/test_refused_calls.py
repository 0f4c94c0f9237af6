"""Calls that the gateway refuses itself, for their key or for a limit, on each way in: what is reported of each.

The other ends of a call are in `test_call_ends.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import aiohttp
import pytest
from opentelemetry.trace import SpanKind

from tests.conftest import StartGateway, tables_for
from tests.metrics import changes
from tests.raw import until
from tests.sockets import calling
from tests.telemetry.test_call_ends import COUNTED, SERIES, Scene, error_of, tracing
from tests.test_accounting import BODY, Ways, answering
from tests.upstream import FakeUpstream, hang

KEY, OTHER_KEY = "the-key-of-anna", "the-key-of-nobody"
WAYS = ("json", "stream", "websocket", "background")


@dataclass
class Caller:
    """One who calls on each way, with a key."""

    http: aiohttp.ClientSession
    gateway: str
    upstream: FakeUpstream

    async def call(self, way: str, model: str, key: str | None = KEY) -> tuple[int, Any]:
        """Return the status and the error of a call."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        body = BODY | {"model": model} | {"stream": {"stream": True}, "background": {"background": True}}.get(way, {})
        if way != "websocket":
            async with self.http.post(f"{self.gateway}/v1/responses", json=body, headers=headers) as answer:
                found = await answer.read() if answer.status == 200 else (await answer.json())["error"]
                return answer.status, found
        try:
            async with calling(self.gateway, **headers) as caller:
                (event,) = [each for each in await caller.turn_of(**body) if each["type"] == "error"]
        except aiohttp.WSServerHandshakeError as refused:
            return refused.status, {"code": (await self.reason_of_handshake(headers))["code"]}
        return event["status"], event["error"]

    async def reason_of_handshake(self, headers: dict[str, str]) -> Any:
        """Return the error with which the same request is refused without an upgrade."""
        async with self.http.post(f"{self.gateway}/v1/responses", json=BODY, headers=headers) as answer:
            return (await answer.json())["error"]


@asynccontextmanager
async def one_before(caller: Caller, model: str) -> AsyncIterator[None]:
    assert (await caller.call("json", model))[0] == 200
    yield


@asynccontextmanager
async def one_in_flight(caller: Caller, model: str) -> AsyncIterator[None]:
    answer, caller.upstream.answer = caller.upstream.answer, hang
    waiting = asyncio.create_task(caller.call("json", model))
    await caller.upstream.arrived.wait()
    caller.upstream.answer = answer
    yield
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting


@dataclass
class Refusal:
    """A refusal, and what comes before it."""

    model: str
    code: str
    before: Callable[[Caller, str], AbstractAsyncContextManager[None]]

    @property
    def policy(self) -> str:
        return self.code.partition(".")[0]


LIMITS = {
    "rate": Refusal("own-rated", "rate.requests", one_before),
    "concurrency": Refusal("own-narrow", "concurrency.too_many", one_in_flight),
    "budget": Refusal("own-poor", "budget.exhausted", one_before),
}
KEYS = {"no key": None, "a key that is not known": OTHER_KEY}


@pytest.fixture
async def scene(http, start_gateway: StartGateway, upstream: FakeUpstream, logged, monkeypatch) -> Scene:
    monkeypatch.setenv("ANNA_KEY", KEY)
    spans, tracer = tracing()
    upstream.answer = answering()
    tables = tables_for(
        upstream,
        admin={"port": 0},
        caller=[{"name": "anna", "team": "search", "key": "env:ANNA_KEY"}],
        state={"use": "memory"},
        policy=[
            {"use": "rate", "requests": 1, "per": "team", "models": ["own-rated"]},
            {"use": "concurrency", "max": 1, "models": ["own-narrow"]},
            {"use": "budget", "limit": 1, "models": ["own-poor"]},
        ],
        usage={"flush_s": 0.05},
    )
    return Scene(Ways(http, await start_gateway(tables, tracer=tracer), upstream), spans, logged)


def refused_of(scene: Scene, code: str) -> list[dict[str, Any]]:
    """Return the lines of the requests that were refused with this code."""
    return [line for line in scene.logged if line["event"] == "request.finished" and line.get("code") == code]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LIMITS)
async def test_a_call_beyond_a_limit_is_reported_as_refused(scene: Scene, name: str, way: str):
    """With 429, the policy and its code, in the answer, the line, the span and the metrics; no backend is called."""
    refusal, caller = LIMITS[name], Caller(scene.ways.http, scene.ways.gateway, scene.ways.upstream)
    async with refusal.before(caller, refusal.model):
        scene.spans.clear()
        sent, before = len(scene.ways.upstream.requests), await scene.counted()
        status, error = await caller.call(way, refusal.model)
        await until(lambda: refused_of(scene, refusal.code) != [])
        (line,), counted = refused_of(scene, refusal.code), changes(before, await scene.counted(), COUNTED | SERIES)
        roots = [span for span in scene.spans.get_finished_spans() if error_of(span) is not None]
        passed = len(scene.ways.upstream.requests) - sent
    transport = {"background": "json"}.get(way, way)
    shown = {
        field: line.get(field)
        for field in ("status", "policy", "outcome", "caller", "team", "model", "key_fingerprint")
    }

    assert (status, error["code"], passed) == (429, refusal.code, 0)
    assert shown == {
        "status": 429, "policy": refusal.policy, "outcome": "refused", "caller": "anna", "team": "search",
        "model": refusal.model, "key_fingerprint": sha256(KEY.encode()).hexdigest()[:12],
    }  # fmt: skip
    assert {*line} & {"input_tokens", "output_tokens", "cost_usd", "inference_s", "estimated"} == set()
    assert [(span.kind, error_of(span), span.attributes["http.response.status_code"]) for span in roots] == [
        (SpanKind.SERVER, refusal.code, 429)
    ]
    assert [span for span in scene.named("chat ") if span.context.trace_id == roots[0].context.trace_id] == []
    assert counted == {
        f"call {transport} refused {refusal.code}": 1, f"policy {refusal.policy} refused {refusal.code}": 1,
        **({} if way == "websocket" else {f"http POST /v1/responses 429 {refusal.code}": 1}),
    }  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", KEYS)
async def test_a_call_without_a_valid_key_is_reported_as_rejected(scene: Scene, name: str, way: str):
    """With 401 and no caller, before anything of it is read; a WebSocket is not opened."""
    before = await scene.counted()
    status, error = await Caller(scene.ways.http, scene.ways.gateway, scene.ways.upstream).call(way, "own", KEYS[name])
    await until(lambda: refused_of(scene, "invalid_api_key") != [])
    line, counted = refused_of(scene, "invalid_api_key")[0], changes(before, await scene.counted(), COUNTED | SERIES)
    root = scene.spans.get_finished_spans()[0]
    method, asked = ("GET", 2) if way == "websocket" else ("POST", 1)  # its reason is asked for once more
    posted = {"call json rejected invalid_api_key": 1, "http POST /v1/responses 401 invalid_api_key": 1}

    assert (status, error["code"], scene.ways.upstream.requests) == (401, "invalid_api_key", [])
    assert (line["status"], line["method"], line["path"]) == (401, method, "/v1/responses")
    assert {*line} & {"caller", "team", "model", "key_fingerprint", "input_tokens", "cost_usd", "policy"} == set()
    assert (root.kind, error_of(root), root.attributes["http.response.status_code"]) == (
        SpanKind.SERVER,
        "invalid_api_key",
        401,
    )
    assert len(scene.spans.get_finished_spans()) == asked
    assert counted == posted | ({"http GET /v1/responses 401 invalid_api_key": 1} if way == "websocket" else {})
    async with scene.ways.http.get(f"{scene.ways.gateway}/v1/usage") as answer:
        assert answer.status == 401
