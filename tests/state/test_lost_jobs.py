"""Background responses whose process died are ended by the next request for them, on every store."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from proxy.state import journal
from proxy.state.jobs import JobKeys
from proxy.state.journal_entries import JournalEntry
from proxy.stores import Store
from tests.examples import make_context
from tests.state.gateways import GatewayProcess
from tests.wire.contract import event_faults, order_faults, response_faults
from tests.wire.streams import CANONICAL, data_of

Advance = Callable[[float], None]
LEASE_S = 30.0


@pytest.fixture
async def gateway(store: Store) -> AsyncIterator[GatewayProcess]:
    """The process that dies: it does not renew its lease in time."""
    gateway = GatewayProcess(store, settings={"background_lease_s": LEASE_S})
    yield gateway
    await gateway.pipeline.background.close(0)


@pytest.fixture
def elsewhere(store: Store) -> GatewayProcess:
    """A process that is alive."""
    return GatewayProcess(store)


async def start(gateway: GatewayProcess) -> str:
    """Start a response, and return its id when its first events are in the journal."""
    name = (await gateway.create())["id"]
    await gateway.started()
    await gateway.events_seen(name, 5)
    return name


async def test_a_live_process_keeps_its_responses(gateway: GatewayProcess, elsewhere: GatewayProcess, advance: Advance):
    """Until the lease ends."""
    name = await start(gateway)
    advance(LEASE_S - 1)

    assert (await elsewhere.get(name))["status"] == "in_progress"


async def test_the_response_of_a_dead_process_fails(
    gateway: GatewayProcess, elsewhere: GatewayProcess, advance: Advance, logged: list[Any]
):
    """Its stream ends as the protocol requires, with what there was of its open item."""
    name = await start(gateway)
    advance(LEASE_S + 1)
    failed = await elsewhere.get(name)
    events = await elsewhere.events(name)

    first = events[0] | {"response": events[0]["response"] | {"status": "in_progress"}}
    assert order_faults([first, *events[1:]], cut=True) == []
    assert [fault for event in events for fault in event_faults(event)] == response_faults(failed) == []
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["code"] == "process_lost"
    assert failed == events[-1]["response"]
    assert (failed["status"], failed["output"][0]["status"]) == ("failed", "incomplete")
    assert "ended before" in failed["error"]["message"]
    assert [line["response_id"] for line in logged if line["event"] == "background.lost"] == [name]


async def test_a_process_that_was_taken_for_dead_gives_up(
    gateway: GatewayProcess, elsewhere: GatewayProcess, advance: Advance, logged: list[Any]
):
    """What it finishes afterwards changes nothing."""
    name = await start(gateway)
    advance(LEASE_S + 1)
    failed = await elsewhere.get(name)
    gateway.open_gate()
    await gateway.closed()
    await gateway.pipeline.background.close(1)

    assert failed["status"] == "failed"
    assert await gateway.get(name) == await elsewhere.get(name) == failed
    assert (await gateway.events(name))[-1]["response"] == failed
    assert [line["finish_reason"] for line in logged if line["event"] == "background.finished"] == ["lost"]


async def test_a_process_that_was_taken_for_dead_is_shut_down(
    gateway: GatewayProcess, elsewhere: GatewayProcess, advance: Advance
):
    """It does not end the response a second time."""
    name = await start(gateway)
    advance(LEASE_S + 1)
    failed = await elsewhere.get(name)
    await gateway.pipeline.background.close(0)

    assert await elsewhere.get(name) == failed
    assert "ended before" in failed["error"]["message"]
    assert (await elsewhere.events(name))[-1]["response"] == failed


async def test_a_process_that_only_was_slow_goes_on(
    gateway: GatewayProcess, elsewhere: GatewayProcess, advance: Advance
):
    """If there was no request meanwhile."""
    name = await start(gateway)
    advance(LEASE_S + 1)
    gateway.open_gate()

    assert (await gateway.end(name))["status"] == "completed"
    assert (await elsewhere.get(name))["status"] == "completed"


async def test_a_finished_event_is_not_lost(
    gateway: GatewayProcess, elsewhere: GatewayProcess, store: Store, advance: Advance
):
    """A process that died after it had sent the last event did complete the response."""
    name = await start(gateway)
    completed = data_of(CANONICAL[-1])
    completed["response"] |= {"id": name, "background": True}
    frame = b"event: response.completed\ndata: " + orjson.dumps(completed) + b"\n\n"
    entry = JournalEntry(
        len((await gateway.pipeline.background._journals.transcript(keys(name).journal)).items) + 100, frame
    )
    await store.append(keys(name).journal.name, entry.encode(), ttl_s=60)
    advance(LEASE_S + 1)
    found = await elsewhere.get(name)

    assert found["status"] == "completed"
    assert found["output"] == completed["response"]["output"]
    assert (await elsewhere.events(name))[-1]["type"] == "response.completed"


def keys(name: str) -> JobKeys:
    return JobKeys.of(name, make_context())


async def test_a_response_without_a_journal_fails_too(
    gateway: GatewayProcess, elsewhere: GatewayProcess, store: Store, advance: Advance
):
    """It has every field of a response."""
    name = await start(gateway)
    await store.delete(keys(name).journal.name)
    advance(LEASE_S + 1)
    failed = await elsewhere.get(name)

    assert response_faults(failed) == []
    assert (failed["status"], failed["id"], failed["background"]) == ("failed", name, True)


@pytest.mark.parametrize("action", ["cancel", "delete"])
async def test_the_response_of_a_dead_process_can_be_ended(
    gateway: GatewayProcess, elsewhere: GatewayProcess, advance: Advance, action: str
):
    """Nothing waits for that process."""
    name = await start(gateway)
    advance(LEASE_S + 1)
    if action == "cancel":
        assert (await elsewhere.cancel(name))["status"] == "failed"
    else:
        assert (await elsewhere.ask("DELETE", name)).status == 200


async def test_whoever_follows_a_response_finds_its_process_dead(
    gateway: GatewayProcess, elsewhere: GatewayProcess, advance: Advance, monkeypatch: pytest.MonkeyPatch
):
    """The stream ends with the failure."""
    monkeypatch.setattr(journal, "POLL_S", 0.01)
    name = await start(gateway)
    following = [asyncio.create_task(elsewhere.events(name, after)) for after in (0, 3, 4)]
    await asyncio.sleep(0)
    advance(LEASE_S + 1)
    streams = await asyncio.gather(*following)

    assert [stream[-1]["type"] for stream in streams] == ["response.failed"] * 3
    assert [stream[0]["sequence_number"] for stream in streams] == [1, 4, 5]


async def test_those_who_look_at_once_find_one_end(gateway: GatewayProcess, store: Store, advance: Advance):
    """One of them ends the response."""
    name = await start(gateway)
    advance(LEASE_S + 1)
    processes = [GatewayProcess(store) for _ in range(5)]
    found = await asyncio.gather(*(process.get(name) for process in processes))
    ends = [response for response in found if response["status"] == "failed"]

    assert ends
    assert [await process.get(name) for process in processes] == [ends[0]] * 5
    assert [event["type"] for event in await processes[0].events(name)].count("response.failed") == 1
