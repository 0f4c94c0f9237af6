"""Background responses are cancelled by any process, and the work behind them stops."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from proxy.state import background
from proxy.stores import Store
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import HeadgateError, RequestError
from tests.state.gateways import FlakyStore, GatewayProcess


@pytest.fixture
async def gateway(store: Store) -> AsyncIterator[GatewayProcess]:
    """The process that works on a response."""
    gateway = GatewayProcess(store, settings={"background_at_once": 1})
    yield gateway
    await gateway.pipeline.background.close(0)


@pytest.fixture
def elsewhere(store: Store) -> GatewayProcess:
    """Another process with the same store."""
    return GatewayProcess(store)


async def test_a_running_response_is_cancelled(gateway: GatewayProcess):
    """Its stream ends without another event, and cancelling again changes nothing."""
    name = (await gateway.create())["id"]
    await gateway.started()
    following = asyncio.create_task(gateway.events(name))
    cancelled = await gateway.cancel(name)
    await gateway.closed()

    assert cancelled["status"] == "cancelled"
    assert cancelled == await gateway.cancel(name) == await gateway.get(name)
    assert [event["type"] for event in await following][-1] == "response.output_text.delta"
    assert await gateway.events(name) == await following


async def test_a_waiting_response_is_cancelled(gateway: GatewayProcess):
    """The backend never hears of it."""
    first, second = [(await gateway.create())["id"] for _ in range(2)]
    await gateway.started()
    cancelled = await gateway.cancel(second)
    gateway.open_gate()

    assert (cancelled["status"], cancelled["output"]) == ("cancelled", [])
    assert (await gateway.end(first))["status"] == "completed"
    assert len(gateway.backend._calls) == 1  # type: ignore[attr-defined]


async def test_any_process_cancels(gateway: GatewayProcess, elsewhere: GatewayProcess):
    """The one that works on the response stops."""
    name = (await gateway.create())["id"]
    await gateway.started()
    statuses = [(await process.get(name))["status"] for process in (gateway, elsewhere)]
    cancelled = await elsewhere.cancel(name)
    await gateway.closed()

    assert statuses == ["in_progress", "in_progress"]
    assert cancelled["status"] == "cancelled"
    assert cancelled == await gateway.get(name)


async def test_an_ended_response_stays_as_it_is(gateway: GatewayProcess, elsewhere: GatewayProcess):
    """A cancellation that comes too late gets it."""
    gateway.open_gate()
    name = (await gateway.create())["id"]
    completed = await gateway.end(name)

    assert completed == await gateway.cancel(name) == await elsewhere.cancel(name)
    assert completed["status"] == "completed"


async def test_several_cancel_at_once(gateway: GatewayProcess, elsewhere: GatewayProcess):
    """All get the same response."""
    name = (await gateway.create())["id"]
    await gateway.started()
    first, *others = await asyncio.gather(*(process.cancel(name) for process in (gateway, elsewhere) * 3))

    assert first["status"] == "cancelled"
    assert others == [first] * 5


async def test_a_cancelled_response_leaves_its_conversation(gateway: GatewayProcess):
    """Nothing is added to it, and the next call can use it."""
    first = await gateway.create(conversation={})
    await gateway.started()
    await gateway.cancel(first["id"])
    gateway.open_gate()
    second = await gateway.create(conversation=first["conversation"]["id"])

    assert (await gateway.end(second["id"]))["status"] == "completed"
    assert len(gateway.backend._calls[-1].body["input"]) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_local", [True, False])
async def test_a_deleted_response_is_cancelled(gateway: GatewayProcess, elsewhere: GatewayProcess, *, is_local: bool):
    """It and its events are gone for every process."""
    name = (await gateway.create())["id"]
    await gateway.started()
    deleted = await (gateway if is_local else elsewhere).ask("DELETE", name)
    await gateway.closed()

    assert orjson.loads(deleted.body or b"") == {"id": name, "object": "response", "deleted": True}
    for process in (gateway, elsewhere):
        for query in ("", "stream=true"):
            with pytest.raises(RequestError) as caught:
                await process.ask("GET", name, query=query)
            assert caught.value.status == 404


async def test_a_process_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """No request waits for it for long; it cancels when it can."""
    monkeypatch.setattr(background, "CANCEL_S", 0.01)
    store = MemoryStore()
    gateway, elsewhere = GatewayProcess(store), GatewayProcess(store)
    name = (await gateway.create())["id"]
    await gateway.started()
    with pytest.raises(HeadgateError) as caught:
        await elsewhere.cancel(name)
    await gateway.events(name)

    assert (caught.value.status, caught.value.code) == (503, "cancel_timeout")
    assert (await gateway.get(name))["status"] == "cancelled"


async def test_a_request_to_cancel_is_not_lost_to_the_store(monkeypatch: pytest.MonkeyPatch):
    """A process that cannot read it looks again."""
    monkeypatch.setattr(background, "CANCEL_S", 0.01)
    store = FlakyStore()
    gateway, elsewhere = GatewayProcess(store), GatewayProcess(store)
    name = (await gateway.create())["id"]
    await gateway.started()
    with pytest.raises(HeadgateError):
        await elsewhere.cancel(name)
    vars(store)["is_unreadable"] = True
    with pytest.raises(HeadgateError) as caught:
        await elsewhere.get(name)
    await asyncio.sleep(0)
    vars(store)["is_unreadable"] = False
    await gateway.events(name)

    assert caught.value.code == "state_unavailable"
    assert (await gateway.get(name))["status"] == "cancelled"
