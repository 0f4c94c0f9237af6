"""JSON objects of teams in every store."""

import orjson
import pytest
from pydantic import SecretStr

from proxy.context import Caller
from proxy.state.records import TeamRecords, record_key
from proxy.state.sealing import Sealing
from proxy.stores import Store, StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.errors import Unavailable
from proxy.workers import BodyMemory, MemoryLease
from tests.examples import make_context

BEN = Caller("ben", "ads")
CAROL = Caller("carol", "search")


async def test_a_record_is_read_by_its_team_only(store: Store):
    """Callers of the same team read it, another team finds nothing."""
    records = TeamRecords(store, 60)
    await records.put("kind", "name", {"a": ["é", 1.5, None]}, make_context())
    found = await records.get("kind", "name", make_context(CAROL))

    assert found is not None
    assert found.value == {"a": ["é", 1.5, None]}
    assert await records.get("kind", "name", make_context(BEN)) is None
    assert await records.get("other", "name", make_context()) is None


async def test_a_record_expires_and_is_deleted(store: Store, advance):
    """Nothing is left of it."""
    records, context = TeamRecords(store, 60), make_context()
    for name in ("deleted", "kept"):
        await records.put("kind", name, {}, context)
    await records.delete("kind", "deleted", context)

    assert await records.get("kind", "deleted", context) is None
    assert await records.get("kind", "kept", context) is not None
    advance(61)
    assert await records.get("kind", "kept", context) is None


@pytest.mark.parametrize("value", [b"not JSON", b"[]", b'{"key":"other","value":{}}', b'{"value":{}}'])
async def test_a_value_of_another_program_is_no_record(value: bytes):
    """Nor is one that is stored under another key."""
    store = MemoryStore()
    await store.put(record_key("kind", make_context(), "name"), value, ttl_s=60)

    assert await TeamRecords(store, 60).get("kind", "name", make_context()) is None


async def test_a_record_that_is_no_object_is_none():
    """Its key is right, and its value is not."""
    key = record_key("kind", make_context(), "name")
    store = MemoryStore()
    await store.put(key, orjson.dumps({"key": key, "value": []}), ttl_s=60)

    assert await TeamRecords(store, 60).get("kind", "name", make_context()) is None


async def test_a_record_that_is_too_large_for_the_store_is_an_error():
    """It is not lost in silence."""
    records = TeamRecords(MemoryStore(store_max_bytes=100), 60)
    with pytest.raises(StoreError, match="exceeds what the store keeps"):
        await records.put("kind", "name", {"a": "x" * 200}, make_context())


async def test_a_record_counts_as_memory_of_the_call():
    """Without room the call is refused."""
    store, little = MemoryStore(), MemoryLease(BodyMemory(1_000))
    await TeamRecords(store, 60).put("kind", "name", {"a": "x" * 2_000_000}, make_context(), size_bytes=2_000_000)
    with pytest.raises(Unavailable) as caught:
        await TeamRecords(store, 60).get("kind", "name", make_context(memory=little))

    assert caught.value.code == "memory_exhausted"


async def test_keys_have_no_text_of_callers():
    """They are hashes."""
    assert record_key("kind", make_context(Caller("a", "team:é\ud800")), "na\nme").startswith("headgate:kind:")
    assert record_key("kind", make_context(Caller("a", "b")), "c") != record_key(
        "kind", make_context(Caller("a", "bc")), ""
    )


async def test_a_record_is_sealed_for_its_team_and_kind(store: Store):
    """Nothing of it can be read in the store, and only the same secret opens it."""
    secret = SecretStr("a-secret-of-at-least-thirty-two-characters")
    sealed, context = TeamRecords(store, 60, Sealing(secret, store)), make_context()
    await sealed.put("kind", "name", {"a": "a word"}, context)
    found = await sealed.get("kind", "name", context)
    stored = await store.get(record_key("kind", context, "name"))
    others = [
        TeamRecords(store, 60),
        TeamRecords(store, 60, Sealing(SecretStr("another-secret-of-thirty-two-characters"), store)),
    ]

    assert found is not None
    assert found.value == {"a": "a word"}
    assert stored is not None
    assert b"a word" not in stored
    assert [await records.get("kind", "name", context) for records in others] == [None, None]
    for key in (record_key("other", context, "name"), record_key("kind", make_context(BEN), "name")):
        await store.put(key, stored, ttl_s=60)
    assert await sealed.get("other", "name", context) is None
    assert await sealed.get("kind", "name", make_context(BEN)) is None


async def test_with_a_secret_a_plain_record_is_none():
    """Write access to the store does not suffice to write a record."""
    store, context = MemoryStore(), make_context()
    await TeamRecords(store, 60).put("kind", "name", {}, context)
    secret = SecretStr("a-secret-of-at-least-thirty-two-characters")

    assert await TeamRecords(store, 60, Sealing(secret, store)).get("kind", "name", context) is None


async def test_a_record_that_cannot_be_deleted_is_unavailable():
    """The caller learns that it is still there."""

    class NoDeletions(MemoryStore):
        async def delete(self, key: str) -> None:
            raise StoreError("no connection")

    with pytest.raises(Unavailable) as caught:
        await TeamRecords(NoDeletions(), 60).delete("kind", "name", make_context())

    assert caught.value.code == "state_unavailable"
