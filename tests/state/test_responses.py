"""Stored responses on every store: their items, what they continue, and what is left after a deletion."""

from typing import Any

import pytest

from proxy.context import Caller
from proxy.state.responses import StoredResponse, StoredResponses
from proxy.stores import Store
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import Unavailable
from tests.examples import make_context
from tests.state.test_ownership import FaultyStore

BEN = Caller("ben", "ads")


def message(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}], **fields}


def turn(number: int, *, chain: tuple[str, ...] = (), output: Any = None) -> StoredResponse:
    """Return a response with the id resp_<number> whose output is msg_<number>."""
    items = [message("Hi", id=f"msg_{number}")] if output is None else output
    response = {"id": f"resp_{number}", "status": "completed", "output": items}
    return StoredResponse(response, [{"role": "user", "content": "Hello"}], chain)


async def test_a_response_is_returned_as_it_was_saved(store: Store):
    """To its team only."""
    responses, context = StoredResponses(store, 60), make_context()
    await responses.save(turn(1, chain=("resp_0",)), context)
    found = await responses.get("resp_1", context)

    assert found is not None
    assert (found.response, found.input, found.chain) == (turn(1).response, turn(1).input, ("resp_0",))
    assert await responses.get("resp_1", make_context(BEN)) is None


async def test_a_deleted_response_and_its_items_are_gone(store: Store):
    """At once, and nothing of them is found by a reference."""
    responses, context = StoredResponses(store, 60), make_context()
    await responses.save(turn(1), context)

    assert await responses.find_item("msg_1", context) is not None
    await responses.delete("resp_1", context)
    assert await responses.get("resp_1", context) is None
    assert await responses.find_item("msg_1", context) is None


async def test_an_item_is_found_by_its_team_only(store: Store):
    """By its own id, or by the one that lists show."""
    responses, context = StoredResponses(store, 60), make_context()
    await responses.save(turn(1, output=[message("a", id="msg_1"), message("b")]), context)
    found = await responses.get("resp_1", context)
    assert found is not None
    derived = found.output_items[1].id

    assert [item.id for item in found.output_items] == ["msg_1", derived]
    assert (await responses.find_item(derived, context)) == found.output_items[1]
    assert await responses.find_item("msg_1", make_context(BEN)) is None
    assert await responses.find_item("msg_2", context) is None


async def test_the_responses_before_one_are_read_oldest_first(store: Store):
    """More than are read at the same time; one that is gone is None."""
    responses, context = StoredResponses(store, 60), make_context()
    chain = tuple(f"resp_{number}" for number in range(20))
    for number in range(20):
        await responses.save(turn(number, chain=chain[:number]), context)
    await responses.delete("resp_7", context)
    earlier = await responses.earlier(turn(20, chain=chain), context, max_bytes=1_000_000)

    assert [name for name, _ in earlier] == list(chain)
    assert [name for name, found in earlier if found is None] == ["resp_7"]


async def test_a_long_chain_is_read_no_further_than_needed(store: Store):
    """A chain beyond the limit takes no more memory than the limit and a few responses."""
    responses, context = StoredResponses(store, 60), make_context()
    chain = tuple(f"resp_{number}" for number in range(20))
    for name in range(20):
        await responses.save(turn(name), context)
    earlier = await responses.earlier(turn(20, chain=chain), context, max_bytes=100)

    assert len(earlier) == 8


@pytest.mark.parametrize("output", [None, "text", [1, None], [[]]])
async def test_a_response_with_another_output_has_no_items(output: Any):
    """Upstreams send what they like."""
    stored = StoredResponse({"id": "resp_1", "output": output}, ["Hi", {"role": "user"}])

    assert stored.output_items == []
    assert len(stored.input_items) == 1


async def test_a_fault_of_the_store_is_unavailable():
    """Reading and deleting say so; the words are the same for every response."""
    store = FaultyStore(faults=("get",))
    with pytest.raises(Unavailable) as caught:
        await StoredResponses(store, 60).get("resp_1", make_context())

    assert (caught.value.status, caught.value.code) == (503, "state_unavailable")


async def test_a_response_with_the_same_id_replaces_the_earlier_one():
    """Some servers use one id again and again: a caller continues the last one."""
    responses, context = StoredResponses(MemoryStore(), 60), make_context()
    await responses.save(turn(1), context)
    await responses.save(turn(1, output=[]), context)
    found = await responses.get("resp_1", context)

    assert found is not None
    assert found.output_items == []


@pytest.mark.parametrize("tools", [None, "none", [], [7, {"type": "function", "headers": 1}]])
async def test_credentials_of_mcp_servers_are_not_kept(tools: Any):
    """Some servers repeat them in their responses; everything else is kept."""
    responses, context = StoredResponses(MemoryStore(), 60), make_context()
    server = {"type": "mcp", "server_label": "a", "authorization": "secret", "headers": {"x": "secret"}}
    given = [*tools, server] if isinstance(tools, list) else tools
    await responses.save(StoredResponse({"id": "resp_1", "tools": given}, []), context)
    found = await responses.get("resp_1", context)

    assert found is not None
    assert found.response["tools"] == (
        [*tools, {"type": "mcp", "server_label": "a"}] if isinstance(tools, list) else tools
    )
