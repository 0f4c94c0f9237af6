"""Conversations on every store: items, metadata, limits, and one writer at a time."""

import asyncio
from typing import Any

import pytest

from proxy.context import Caller
from proxy.state import conversations as module
from proxy.state.conversations import Conversations, new_items, read_metadata, with_items
from proxy.state.items import StoredItem
from proxy.stores import Store, StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import RequestError, Unavailable
from tests.examples import make_context
from tests.state.test_ownership import FaultyStore

BEN = Caller("ben", "ads")
HELLO = {"type": "message", "role": "user", "content": "Hello"}


class FaultyLocks(MemoryStore):
    """A store that neither gives nor ends leases."""

    async def claim(self, key: str, owner: str, *, lease_s: float) -> bool:
        raise StoreError("no connection")

    async def release(self, key: str, owner: str) -> None:
        raise StoreError("no connection")


class CountedLeases(MemoryStore):
    """A store that fails to renew a lease once, and tells when it was renewed after that."""

    def __init__(self) -> None:
        super().__init__()
        vars(self)["claims"] = 0
        vars(self)["renewed"] = asyncio.Event()

    async def claim(self, key: str, owner: str, *, lease_s: float) -> bool:
        vars(self)["claims"] += 1
        if vars(self)["claims"] == 2:
            raise StoreError("no connection")
        if vars(self)["claims"] == 3:
            vars(self)["renewed"].set()
        return await super().claim(key, owner, lease_s=lease_s)


async def test_a_conversation_is_returned_as_it_was_created(store: Store):
    """To its team only; items without an id get one."""
    conversations, context = Conversations(store, 60), make_context()
    created = await conversations.create([HELLO, HELLO | {"id": "msg_7"}], {"topic": "a"}, context)
    found = await conversations.get(created.id, context)

    assert found is not None
    assert (found.id, found.created_at, found.metadata) == (created.id, created.created_at, {"topic": "a"})
    assert found.items == created.items
    assert [item.id.startswith("msg_") for item in found.items] == [True, True]
    assert found.item("msg_7") == StoredItem("msg_7", HELLO | {"id": "msg_7"})
    assert found.shown["object"] == "conversation"
    assert await conversations.get(created.id, make_context(BEN)) is None


async def test_a_conversation_that_is_used_does_not_expire(store: Store, advance):
    """Each write extends its time; without any it expires."""
    conversations, context = Conversations(store, 60), make_context()
    conversation = await conversations.create([], {}, context)
    for _ in range(3):
        advance(40)
        found = await conversations.get(conversation.id, context)
        assert found is not None
        await conversations.save(with_items(found, new_items([HELLO])), context)
    advance(61)

    assert await conversations.get(conversation.id, context) is None


async def test_a_deleted_conversation_is_gone(store: Store):
    """With its items."""
    conversations, context = Conversations(store, 60), make_context()
    conversation = await conversations.create([HELLO], {}, context)
    await conversations.delete(conversation.id, context)

    assert await conversations.get(conversation.id, context) is None


async def test_one_writer_at_a_time_holds_the_lock(store: Store):
    """Another is refused in the words of OpenAI until it is released."""
    conversations, context = Conversations(store, 60), make_context()
    async with conversations.locked("conv_1", context):
        with pytest.raises(RequestError) as caught:
            await conversations.lock("conv_1", make_context())
        async with conversations.locked("conv_2", context), conversations.locked("conv_1", make_context(BEN)):
            pass
    lock = await conversations.lock("conv_1", context)
    await lock.release()
    await lock.release()

    assert caught.value.message == (
        "Another process is currently operating on this conversation. Please retry in a few seconds."
    )
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "conversation_locked", "conversation")


async def test_the_lock_of_a_process_that_died_ends(store: Store, advance):
    """It is not renewed any more; the one that lost it does not get it back, nor release that of the next."""
    conversations, context = Conversations(store, 60), make_context()
    lost = await conversations.lock("conv_1", context)
    advance(31)
    next_one = await conversations.lock("conv_1", context)

    assert await lost.claim() is False
    await lost.release()
    assert await next_one.claim() is True
    with pytest.raises(RequestError):
        await conversations.lock("conv_1", context)


async def test_a_lock_is_renewed_until_it_is_released(logged):
    """A fault in between is logged and does not end the renewals."""
    store = CountedLeases()
    lock = await Conversations(store, 60, lock_s=0.03).lock("conv_1", make_context())
    lock.keep_renewed()
    await vars(store)["renewed"].wait()
    await lock.release()

    assert [line["event"] for line in logged] == ["conversation.renewal_failed"]


async def test_a_fault_of_the_store_is_unavailable(logged):
    """A lock that cannot be released is logged: it ends by itself."""
    conversations, context = Conversations(FaultyStore(faults=("get", "put")), 60), make_context()
    with pytest.raises(Unavailable):
        await conversations.create([], {}, context)
    with pytest.raises(Unavailable):
        await conversations.get("conv_1", context)
    locks = FaultyLocks()
    with pytest.raises(Unavailable):
        await Conversations(locks, 60).lock("conv_1", context)
    lock = await Conversations(MemoryStore(), 60).lock("conv_1", context)
    vars(lock)["_store"] = locks
    await lock.release()

    assert [line["event"] for line in logged] == ["conversation.release_failed"]


async def test_items_must_have_different_ids(store: Store):
    """Also from those that a conversation has already."""
    conversation = await Conversations(store, 60).create([HELLO | {"id": "msg_1"}], {}, make_context())
    for added in ([HELLO | {"id": "msg_1"}], [HELLO | {"id": "msg_2"}, HELLO | {"id": "msg_2"}]):
        with pytest.raises(RequestError, match="Duplicate item found with id"):
            with_items(conversation, new_items(added))


async def test_a_conversation_has_limits(monkeypatch: pytest.MonkeyPatch):
    """In items and in bytes; and in the depth of an item."""
    conversation = await Conversations(MemoryStore(), 60).create([], {}, make_context())
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(RequestError, match="nested too deeply"):
        with_items(conversation, new_items([{"deep": deep}]))
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(RequestError) as too_large:
        with_items(conversation, new_items([HELLO, HELLO, HELLO]))
    monkeypatch.setattr(module, "MAX_ITEMS", 2)
    with pytest.raises(RequestError) as too_many:
        with_items(conversation, new_items([HELLO, HELLO, HELLO]))

    assert too_large.value.code == "context_length_exceeded"
    assert too_many.value.code == "array_above_max_length"


@pytest.mark.parametrize("value", [None, {}, {"a" * 64: "b" * 512}, {str(n): "" for n in range(16)}])
def test_metadata_within_the_limits_of_the_protocol_is_read(value: Any):
    """Null is none."""
    assert read_metadata(value) == (value or {})


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        ([], "invalid_type", "metadata"),
        ({"a": 7}, "invalid_type", "metadata.a"),
        ({str(n): "" for n in range(17)}, "object_above_max_properties", "metadata"),
        ({"a": "b" * 513}, "string_above_max_length", "metadata.a"),
        ({"a" * 65: "b"}, "string_above_max_length", "metadata." + "a" * 64),
    ],
)
def test_metadata_beyond_the_limits_of_the_protocol_is_refused(value: Any, code: str, param: str):
    """With the codes of OpenAI."""
    with pytest.raises(RequestError) as caught:
        read_metadata(value)

    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
