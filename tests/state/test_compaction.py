"""What the gateway seals of a conversation, and how it reads it again."""

from typing import Any

import orjson
import pytest

from backends.replay import Replay
from proxy.context import Caller
from proxy.routing.routes import Route
from proxy.state.compaction import INTRODUCTION, PURPOSE, Compaction
from proxy.state.sealing import Sealing
from proxy.stores import StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from proxy.wire.errors import Unavailable
from proxy.workers import Workers
from tests.conftest import DATA
from tests.examples import ANNA, make_call, make_context

ROUTE = Route("r", "*", (Replay(name="b", path=DATA / "canonical.sse"),))


class BrokenStore(MemoryStore):
    """A store that cannot be reached."""

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        raise StoreError("no connection")


@pytest.fixture
def compaction() -> Compaction:
    return Compaction(Sealing(None, MemoryStore()))


async def item_of(compaction: Compaction, *items: Any, caller: Caller = ANNA) -> dict[str, Any]:
    """Return the compaction item that a trigger after these items returns."""
    call = make_call(input=[*items, {"type": "compaction_trigger"}])
    async with compaction.reply(call, ROUTE, make_context(caller)) as reply:
        (item,) = reply.response["output"]
        return item


@pytest.mark.parametrize(
    ("fields", "operation", "due"),
    [
        ({"input": "Hi"}, "compact", True),
        ({"input": "Hi"}, "create", False),
        ({"input": ["a", {"type": "compaction_trigger"}]}, "create", True),
        ({"input": [{"type": "compaction_trigger"}, "a"]}, "create", False),
        ({"input": []}, "create", False),
        ({"input": [{"type": "compaction_trigger"}]}, "input_tokens", False),
    ],
)
def test_which_calls_the_gateway_answers_itself(compaction: Compaction, fields: dict, operation, due: bool):
    """Compactions, by the endpoint or by a trigger as last item."""
    assert compaction.is_due(Call({"model": "m", **fields}, operation=operation), ROUTE) == due


async def test_a_call_without_compaction_items_is_the_same_call(compaction: Compaction):
    """Its body is not searched unless the word is in it."""
    for given in ("compaction", [{"role": "user", "content": '"compaction"'}], None, [{"type": "compaction"}], [7]):
        call = make_call(input=given)
        assert await compaction.open(call, make_context()) is call


async def test_opened_words_stand_where_the_item_stood(compaction: Compaction):
    """Instructions of the developer come before everything; an empty conversation leaves nothing."""
    item = await item_of(
        compaction, {"role": "system", "content": "Be kind."}, {"role": "assistant", "content": "Yes."}
    )
    empty = await item_of(compaction)
    call = make_call(input=[{"role": "user", "content": "a"}, item, empty, {"role": "user", "content": "b"}])
    opened = await compaction.open(call, make_context())

    assert [(each["role"], each["content"]) for each in opened.body["input"]] == [
        ("developer", "Be kind."),
        ("user", "a"),
        ("assistant", [{"type": "output_text", "text": f"{INTRODUCTION}Assistant: Yes.", "annotations": []}]),
        ("user", "b"),
    ]


@pytest.mark.parametrize("content", [None, 7, "", "gAAAAABforeign", {"a": 1}])
async def test_an_item_of_another_origin_stays_as_it_is(compaction: Compaction, content: Any):
    """Whether the backend can read it is not the gateway's matter."""
    item = {"type": "compaction", "encrypted_content": content}
    call = make_call(input=[item])

    assert await compaction.open_item(item, "search") is None
    assert await compaction.open(call, make_context()) is call


async def test_a_compacted_conversation_can_be_compacted_again(compaction: Compaction):
    """The summary is summarized; it grows by what is new, not by what it had."""
    item = await item_of(compaction, {"role": "user", "content": "first"})
    opened = await compaction.open(make_call(input=[item]), make_context())
    again = await item_of(compaction, *opened.body["input"], {"role": "user", "content": "second"})
    (message,) = await compaction.open_item(again, ANNA.team)

    assert message["content"][0]["text"].splitlines()[-1] == "User: second"
    assert message["content"][0]["text"].count("first") == 1


async def test_a_large_conversation_is_summarized_in_a_thread(compaction: Compaction):
    """And the item is short."""
    workers = Workers()
    call = make_call(input=[{"role": "assistant", "content": "x" * 10_000}] * 100)
    async with compaction.reply(Call(call.body, operation="compact"), ROUTE, make_context(workers=workers)) as reply:
        assert len(reply.body) < 40_000
    workers.close()


async def test_a_summary_fits_into_the_context_of_its_model(compaction: Compaction):
    """A quarter of it, at about four characters a token."""

    class Small(Replay):
        async def describe(self, _model: str) -> dict[str, Any]:
            return {"context_length": 300}

    route = Route("r", "*", (Small(name="b", path=DATA / "canonical.sse"),))
    call = make_call(input=[{"role": "assistant", "content": "word " * 1000}, {"type": "compaction_trigger"}])
    async with compaction.reply(call, route, make_context()) as reply:
        (item,) = reply.response["output"]
    (message,) = await compaction.open_item(item, ANNA.team)

    assert len(message["content"][0]["text"]) <= 300 + len(INTRODUCTION)


async def test_without_the_key_nothing_is_sealed_or_opened():
    """The caller can try again."""
    broken = Compaction(Sealing(None, BrokenStore()))
    sealed = await Sealing(None, MemoryStore()).seal(orjson.dumps({}), purpose=PURPOSE, team=ANNA.team)
    with pytest.raises(Unavailable):
        await item_of(broken)
    with pytest.raises(Unavailable):
        await broken.open(make_call(input=[{"type": "compaction", "encrypted_content": sealed}]), make_context())
