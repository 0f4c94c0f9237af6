"""Background responses while Redis is paused or restarted."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.state import job_runner, journal, leases
from proxy.stores.redis import RedisStore
from proxy.wire.errors import HeadgateError
from tests.redis_server import RedisServer
from tests.state.gateways import TIMEOUT_S, GatewayProcess


@pytest.fixture
async def gateway(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GatewayProcess]:
    """A process whose store gives up soon, and is asked again soon."""
    monkeypatch.setattr(journal, "RETRY_INTERVAL_S", 0.02)
    monkeypatch.setattr(leases, "RETRY_S", 0.02)
    monkeypatch.setattr(job_runner, "SAVE_PAUSES_S", (0.02,) * 1_000)
    store = RedisStore(url=redis_server.url, timeout_ms=200)
    await store.start()
    gateway = GatewayProcess(store)
    yield gateway
    await gateway.pipeline.background.close(0)
    await store.close()


async def test_a_pause_delays_events_and_loses_none(
    gateway: GatewayProcess, redis_server: RedisServer, logged: list[Any]
):
    """Those who follow the response get them when the store answers again; what comes new is refused meanwhile."""
    name = (await gateway.create())["id"]
    await gateway.started()
    following = asyncio.create_task(gateway.events(name))
    await gateway.events_seen(name, 4)
    redis_server.pause()
    try:
        gateway.open_gate()
        await gateway.closed()
        with pytest.raises(HeadgateError) as refused:
            await gateway.create()
        while "state.write_failed" not in (seen := [line["event"] for line in logged]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    finally:
        redis_server.resume()
    async with asyncio.timeout(TIMEOUT_S):
        events = await following

    assert refused.value.code == "state_unavailable"
    assert seen.count("journal.write_failed") <= 1
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert await gateway.events(name) == events
    assert (await gateway.get(name))["status"] == "completed"


async def test_a_response_is_kept_by_a_store_that_lost_everything(gateway: GatewayProcess, redis_server: RedisServer):
    """Redis was killed, and started again empty."""
    name = (await gateway.create())["id"]
    await gateway.started()
    redis_server.stop()
    gateway.open_gate()
    await gateway.closed()
    redis_server.start()
    async with asyncio.timeout(TIMEOUT_S):
        while gateway.pipeline.background._jobs:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    found = await gateway.get(name)

    assert found["status"] == "completed"
    assert found["output"][0]["content"][0]["text"] == "Hello"
