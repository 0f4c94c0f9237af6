"""Background responses while Redis is paused, restarted or replaced by another one."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis

from proxy.state import job_runner, journal, leases
from proxy.stores.redis import RedisStore
from proxy.wire.errors import HeadgateError
from tests.redis_server import RedisServer
from tests.state.gateways import TIMEOUT_S, BrokenStore, GatewayProcess
from tests.stores.test_redis_failover import MovingAddress
from tests.wire.streams import events_in


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
    await gateway.events_seen(name, 4)
    reply = await gateway.ask("GET", name, query="stream=true")
    assert reply.batches is not None
    batches = aiter(reply.batches)
    read = [await anext(batches)]  # the reader has begun
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
        read += [batch async for batch in batches]
    events = events_in(b"".join([unit.sse for batch in read for unit in batch]))

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


@pytest.fixture
async def broken() -> AsyncIterator[tuple[BrokenStore, GatewayProcess, GatewayProcess]]:
    """A store, the process that works on a response, and another one."""
    store = BrokenStore()
    working, elsewhere = GatewayProcess(store), GatewayProcess(store)
    yield store, working, elsewhere
    store.break_verbs()
    await working.pipeline.background.close(0)


@pytest.mark.parametrize("verb", ["claim", "put", "get"])
async def test_a_response_is_not_begun_without_its_state(broken: Any, verb: str):
    """No request could find it. Its place is free again."""
    store, working, _ = broken
    options = {"conversation": {}} if verb == "get" else {}
    store.break_verbs(verb)
    with pytest.raises(HeadgateError) as refused:
        await working.create(**options)
    store.break_verbs()

    assert (refused.value.status, refused.value.code) == (503, "state_unavailable")
    assert (await working.create())["status"] == "queued"
    assert working.pipeline.background._turns._held.total() == 1


@pytest.mark.parametrize(
    ("verb", "method", "rest", "query"),
    [
        ("claim", "GET", (), ""),
        ("get", "GET", (), ""),
        ("tail", "GET", (), "stream=true"),
        ("claim", "POST", ("cancel",), ""),
        ("put", "POST", ("cancel",), ""),
        ("claim", "DELETE", (), ""),
    ],
)
async def test_a_request_that_cannot_be_answered_is_an_error(
    broken: Any, verb: str, method: str, rest: Any, query: str
):
    """It can be sent again when the store answers."""
    store, working, elsewhere = broken
    name = (await working.create())["id"]
    await working.started()
    store.break_verbs(verb)
    with pytest.raises(HeadgateError) as refused:
        await elsewhere.ask(method, name, *rest, query=query)
    store.break_verbs()

    assert (refused.value.status, refused.value.code) == (503, "state_unavailable")
    assert (await elsewhere.ask(method, name, *rest, query=query)).status == 200


async def test_events_that_cannot_be_deleted_are_an_error(broken: Any):
    """The response is cancelled by then."""
    store, working, _ = broken
    name = (await working.create())["id"]
    await working.started()
    await working.cancel(name)
    store.break_verbs("delete")
    with pytest.raises(HeadgateError) as refused:
        await working.ask("DELETE", name)
    store.break_verbs()

    assert refused.value.code == "state_unavailable"
    assert (await working.ask("DELETE", name)).status == 200


@pytest.mark.parametrize("verb", ["put", "append", "tail"])
async def test_the_end_of_a_dead_process_is_written_later(broken: Any, verb: str):
    """A process that could not write it leaves the lease to the next."""
    store, working, elsewhere = broken
    name = (await working.create())["id"]
    await working.started()
    for job in working.pipeline.background._jobs.values():
        await store.delete(job.keys.lease)  # as if it had expired
    store.break_verbs(verb)
    with pytest.raises(HeadgateError) as refused:
        await elsewhere.get(name)
    store.break_verbs()

    assert refused.value.code == "state_unavailable"
    assert (await elsewhere.get(name))["status"] == "failed"
    assert [event["type"] for event in await elsewhere.events(name)][-2:] == ["error", "response.failed"]


async def test_a_job_goes_on_without_the_store(broken: Any, monkeypatch: pytest.MonkeyPatch, logged: list[Any]):
    """What it could not note or read is not needed for the answer."""
    monkeypatch.setattr(job_runner, "SAVE_PAUSES_S", (0.001,) * 10_000)
    store, working, elsewhere = broken
    first = (await working.create())["id"]
    store.break_verbs("get")
    working.open_gate()
    await working.closed()
    store.break_verbs()

    assert (await elsewhere.end(first))["status"] == "completed"


async def test_a_failover_in_the_middle_is_survived(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The primary becomes a replica, whose writes are refused with READONLY, and another one has its data."""
    monkeypatch.setattr(journal, "RETRY_INTERVAL_S", 0.02)
    monkeypatch.setattr(job_runner, "SAVE_PAUSES_S", (0.02,) * 1_000)
    replacement = RedisServer(tmp_path)
    replacement.start()
    old, new = redis.Redis.from_url(redis_server.url), redis.Redis.from_url(replacement.url)
    moving = MovingAddress(redis_server)
    server = await asyncio.start_server(moving.forward, "127.0.0.1", 0)
    store = RedisStore(url=f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", timeout_ms=5_000)
    await store.start()
    process = GatewayProcess(store)
    try:
        name = (await process.create())["id"]
        await process.started()
        following = asyncio.create_task(process.events(name))
        await process.events_seen(name, 4)
        new.execute_command("REPLICAOF", "127.0.0.1", str(redis_server.port))
        await asyncio.to_thread(_wait_for_replica, old)
        new.execute_command("REPLICAOF", "NO", "ONE")
        old.execute_command("REPLICAOF", "127.0.0.1", str(replacement.port))
        moving.server = replacement
        process.open_gate()
        async with asyncio.timeout(TIMEOUT_S):
            events = await following
        found, kept = await process.get(name), new.keys("headgate:response:*")
    finally:
        await process.pipeline.background.close(0)
        await store.close()
        server.close()
        old.execute_command("REPLICAOF", "NO", "ONE")
        replacement.stop()

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert found["output"][0]["content"][0]["text"] == "Hello"
    assert len(kept) >= 1


def _wait_for_replica(primary: Any) -> None:
    """Return when a replica has received everything."""
    while not primary.info("replication").get("connected_slaves"):
        time.sleep(0.01)
    primary.set("headgate:test", "1")
    assert primary.wait(1, TIMEOUT_S * 1000) == 1
