"""What a connection keeps of responses that are kept nowhere else."""

from typing import Any

import orjson
import pytest

from proxy.lane import LANE_CALL, CallerConnection, LaneCall, is_warm_up
from proxy.state import held_responses as module
from proxy.state.held_responses import (
    LANE_MEMORY,
    HeldResponse,
    HeldResponses,
    LaneMemory,
    held_response,
    replayable,
)
from proxy.state.items import StoredItem
from proxy.wire.errors import Unavailable
from proxy.workers import BodyMemory
from tests.examples import make_context


def response(name: str, **fields: Any) -> HeldResponse:
    return HeldResponse.of({"id": name, **fields}, (), [{"role": "user", "content": "Hi"}], None)


async def test_all_items_of_a_response_are_kept_with_their_ids():
    past = [StoredItem("msg_0", {"role": "user", "content": "a"})]
    output = [{"id": "msg_2", "type": "message", "role": "assistant", "content": []}]
    held = HeldResponse.of({"id": "resp_1", "output": output}, past, [{"role": "user", "content": "b"}], "resp_0")
    items = await held.read(make_context())

    assert (held.id, held.base) == ("resp_1", "resp_0")
    assert items[0] == past[0]
    assert [item.item for item in items] == [past[0].item, {"role": "user", "content": "b"}, output[0]]
    assert items[2].id == "msg_2"


async def test_what_is_read_is_counted_with_its_wide_characters():
    """One of them makes each character of its string take four bytes in memory."""
    needed = []
    for end in ("", "\U0001f600"):
        context = make_context()
        held = HeldResponse.of({"id": "resp_1"}, (), [{"role": "user", "content": "x" * 100_000 + end}], None)
        await held.read(context)
        needed.append(context.memory.needed_bytes)

    assert needed[1] - needed[0] > 300_000


def test_each_lane_keeps_its_last_response():
    held = HeldResponses(BodyMemory(1_000_000))
    held.keep(None, response("resp_1"))
    held.keep("a", response("resp_2"))
    held.keep("a", response("resp_3"))

    assert [held.find(name) is not None for name in ("resp_1", "resp_2", "resp_3", None, 7)] == [
        True, False, True, False, False,
    ]  # fmt: skip


def test_a_failure_drops_a_response_in_its_own_lane_only():
    held = HeldResponses(BodyMemory(1_000_000))
    held.keep("a", response("resp_1"))
    held.evict("b", "resp_1")
    held.evict("a", "resp_2")
    assert held.find("resp_1") is not None
    held.evict("a", "resp_1")
    assert held.find("resp_1") is None


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """The response that was kept first is dropped; one that is too large by itself is not kept."""
    size = len(response("resp_1").items)
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 2 * size)
    held = HeldResponses(BodyMemory(1_000_000))
    for lane, name in ((None, "resp_1"), ("a", "resp_2"), ("b", "resp_3")):
        held.keep(lane, response(name))
    assert [held.find(f"resp_{number}") is not None for number in (1, 2, 3)] == [False, True, True]
    held.keep("c", response("resp_4", output=[{"type": "message", "text": "a" * 2 * size}]))
    assert [held.find(f"resp_{number}") for number in (1, 2, 3, 4)] == [None] * 4


def test_all_connections_share_a_limit():
    """It is given back when it is dropped."""
    large = HeldResponse.of({"id": "resp_1"}, (), [{"role": "user", "content": "a" * 120_000}], None)
    budget = BodyMemory(len(large.items) + 10)
    first, second = HeldResponses(budget), HeldResponses(budget)
    first.keep(None, large)
    with pytest.raises(Unavailable, match="as much as they may"):
        second.keep("a", response("resp_2"))
    used = budget.used_bytes
    first.clear()
    second.keep("a", response("resp_2"))

    assert used == len(large.items)
    assert (first.find("resp_1"), budget.used_bytes) == (None, len(response("resp_2").items))


def test_a_call_finds_what_its_connection_keeps():
    held, context, other = HeldResponses(BodyMemory(1_000_000)), make_context(), make_context()
    context.set(LANE_MEMORY, LaneMemory(held, "a"))
    context.set(LANE_CALL, LaneCall(CallerConnection({}, print, print), "a", generates=False))
    LaneMemory(held, "a").keep(response("resp_1"))

    assert held_response("resp_1", context) is held.find("resp_1") is not None
    assert held_response("resp_1", other) is None
    assert (is_warm_up(context), is_warm_up(other)) == (True, False)


def test_items_that_a_backend_would_look_up_are_left_out():
    message = {"id": "msg_1", "type": "message"}
    sealed = {"id": "rs_1", "type": "reasoning", "encrypted_content": "x"}
    plain = {"id": "rs_2", "type": "reasoning", "summary": []}

    assert replayable([StoredItem("rs_1", sealed), StoredItem("msg_1", message)]) == [sealed, message]
    assert replayable([StoredItem("rs_2", plain), StoredItem("msg_1", message)]) == [{"type": "message"}]
    assert orjson.loads(response("resp_1").items)[0][1] == {"role": "user", "content": "Hi"}
