"""What still works while the store of [state] is away, and what /readyz says of it and of issuers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from proxy.http import health
from tests.conftest import tables_for
from tests.metrics import admin_of, scrape
from tests.oidc import Provider
from tests.raw import ask, no_tasks_left, post  # noqa: F401
from tests.redis_server import RedisServer
from tests.sockets import calling
from tests.timeouts import pause
from tests.upstream import FakeUpstream

CHAIN = {"use": "max_tool_calls", "max": 8, "scope": "chain"}
TOOLS = [{"type": "web_search"}]


@pytest.fixture
async def state(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, Any]]:
    """A [state] in a Redis that the test may stop."""
    monkeypatch.setattr(health, "REPORT_TTL_S", 0)
    yield {"use": "redis", "url": redis_server.url, "timeout_ms": 200}
    redis_server.stop()
    redis_server.start()


async def ready(address: str) -> tuple[int, dict[str, Any]]:
    answer = await ask(address, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return answer.status, orjson.loads(answer.body)


async def outcome(http: aiohttp.ClientSession, gateway: str, **fields: Any) -> Any:
    """Return the status of an answer and its last event, or the code of its error."""
    async with http.post(f"{gateway}/v1/responses", json={"model": "m", "input": "Hi", **fields}) as answer:
        body = await answer.text()
    if fields.get("stream") and answer.status == 200:
        return [line for line in body.splitlines() if line.startswith("event: ")][-1].removeprefix("event: ")
    found = orjson.loads(body)
    return found["error"]["code"] if answer.status != 200 else found["status"]


async def test_a_chain_budget_fails_no_call_without_tools(
    start_gateway, upstream: FakeUpstream, redis_server: RedisServer, state: dict, http
):
    """As one body, as a stream, by WebSocket and in the background; what spends of a chain, or continues one, fails."""
    gateway = await start_gateway(tables_for(upstream, policy=[CHAIN], cache=None, state=state))
    before = await ready(gateway)
    redis_server.stop()
    found = [
        await outcome(http, gateway, **fields)
        for fields in ({}, {"stream": True}, {"background": True}, {"store": False})
    ]
    refused = [
        await outcome(http, gateway, tools=TOOLS),
        await outcome(http, gateway, previous_response_id="resp_1"),
        await outcome(http, gateway, conversation="conv_1"),
    ]
    async with calling(gateway) as caller:
        found.append((await caller.ask())["type"])
        refused.append((await caller.ask(tools=TOOLS))["error"]["code"])

    assert found == ["completed", "response.completed", "completed", "completed", "response.completed"]
    assert refused == ["budget_unavailable", "budget_unavailable", "budget_unavailable", "budget_unavailable"]
    assert [before, await ready(gateway)] == [
        (200, {"status": "ready", "backends": {"fake": "up"}, "state": "up"}),
        (200, {"status": "degraded", "backends": {"fake": "up"}, "state": "down"}),
    ]


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        ({}, 503),
        ({"mode": "report"}, 200),
        ({"mode": "off"}, 200),
        ({"models": ["gpt-*"]}, 200),
        ({"rollout": 0.5}, 200),
    ],
)
async def test_a_gateway_is_unready_if_a_budget_refuses_every_call(
    start_gateway, upstream: FakeUpstream, redis_server: RedisServer, state: dict, policy: dict, status: int
):
    """The store is away, and without it nothing is left to spend."""
    budget = {"use": "budget", "limit": 1000, **policy}
    gateway = await start_gateway(tables_for(upstream, policy=[budget], cache=None, state=state))
    redis_server.stop()

    assert (await ready(gateway))[0] == status
    assert (await ask(gateway, post(b'{"model":"gpt-1"}'))).status == (
        503 if status == 503 or policy.get("models") else 200
    )


async def test_keys_and_issuers_are_reported(
    start_gateway, upstream: FakeUpstream, redis_server: RedisServer, state: dict, http, logged
):
    """503 only if no caller can be known any more: a process that has the keys, or one issuer, still answers."""
    async with Provider() as provider:
        issuer = provider.table(refresh_s=1, stale_s=0.01, timeout_s=2)
        tables = tables_for(
            upstream, cache=None, state=state, keys={"refresh_s": 0.05}, issuer=[issuer], admin={"port": 0}
        )
        gateway = await start_gateway(tables)
        accepted = (await ask(gateway, post(api_key=provider.token()))).status
        words, measured = [await ready(gateway)], [await scrape(http, admin_of(logged))]
        redis_server.stop()
        while (report := await ready(gateway))[1]["keys"] == "up":
            await pause()
        words.append(report)
        await provider.stop()
        async with asyncio.timeout(10):
            while (report := await ready(gateway))[1]["issuers"] != {"corp": "down"}:
                await pause()
        words.append(report)
        refused = await ask(gateway, post(api_key=provider.token()))
        measured.append(await scrape(http, admin_of(logged)))

    def expected(status: str, state: str, keys: str, issuer: str) -> dict[str, Any]:
        return {"status": status, "backends": {"fake": "up"}, "state": state, "keys": keys, "issuers": {"corp": issuer}}

    age, refreshes = "headgate_issuer_keys_age_seconds", "headgate_issuer_refreshes_total"
    corp, failed = ("headgate_issuer", "corp"), ("headgate_outcome", "failed")
    assert [(age, frozenset({corp})) in each for each in measured] == [True, False]
    assert [each[refreshes, frozenset({corp, failed})] > 0 for each in measured] == [False, True]
    assert (accepted, refused.status, refused.error["code"]) == (200, 503, "issuer_unavailable")
    assert words == [
        (200, expected("ready", "up", "up", "up")),
        (200, expected("degraded", "down", "down", "up")),
        (503, expected("unready", "down", "down", "down")),
    ]
