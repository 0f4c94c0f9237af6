"""The store inside the process: what it keeps is bounded."""

import pytest

from proxy.config import ConfigError, build
from proxy.stores.memory import Memory
from proxy.stores.redis import RedisStore


async def test_the_bytes_it_keeps_are_bounded():
    """The least recently used go first."""
    store = Memory(store_max_bytes=100)
    await store.put("a", b"a" * 40, ttl_s=60)
    await store.put("b", b"b" * 40, ttl_s=60)
    await store.get("a")
    await store.put("c", b"c" * 40, ttl_s=60)

    assert [await store.get(key) for key in "abc"] == [b"a" * 40, None, b"c" * 40]


async def test_the_entries_it_keeps_are_bounded():
    """However small they are."""
    store = Memory(store_max_entries=3)
    for key in "abcde":
        await store.put(key, b"", ttl_s=60)

    assert [await store.get(key) is not None for key in "abcde"] == [False, False, True, True, True]


async def test_an_entry_that_is_put_again_costs_nobody_its_place():
    """A full store replaces in place."""
    store = Memory(store_max_entries=2)
    for key in "abbb":
        await store.put(key, key.encode(), ttl_s=60)

    assert [await store.get(key) for key in "ab"] == [b"a", b"b"]


async def test_what_is_larger_than_the_store_is_not_kept():
    """And drives nobody out."""
    store = Memory(store_max_bytes=10)
    await store.put("a", b"a" * 10, ttl_s=60)

    assert await store.put("b", b"b" * 11, ttl_s=60) is False
    assert (await store.get("a"), await store.get("b")) == (b"a" * 10, None)


async def test_a_value_that_grows_makes_room_for_itself():
    """The place of the old one counts."""
    store = Memory(store_max_bytes=100)
    await store.put("a", b"a" * 60, ttl_s=60)
    await store.put("a", b"b" * 90, ttl_s=60)

    assert await store.get("a") == b"b" * 90


@pytest.mark.parametrize("key", ["store_max_bytes", "store_max_entries"])
def test_bounds_are_positive(key: str):
    """A store for nothing is left out instead."""
    route = [{"model": "*", "backend": "a"}]
    backend = [{"name": "a", "use": "replay", "path": "a.sse"}]
    with pytest.raises(ConfigError, match=rf"cache\.{key}"):
        build({"cache": {"use": "memory", key: 0}, "backend": backend, "route": route})


async def test_it_knows_which_keys_were_put():
    """So that who asks often need not ask; what others may put, nobody knows without asking."""
    store = Memory()
    keys = store.possible_keys
    told = [set(keys)]
    await store.put("a", b"1", ttl_s=60)
    told.append(set(keys))
    await store.delete("a")
    told.append(set(keys))

    assert told == [set(), {"a"}, set()]
    assert RedisStore().possible_keys is None


async def test_what_went_to_make_room_is_forgotten_in_the_end():
    """The keys that are remembered do not grow beyond twice those that may be kept."""
    store = Memory(store_max_entries=4)
    for number in range(100):
        await store.put(str(number), b"1", ttl_s=60)

    assert [await store.get(str(number)) for number in range(96, 100)] == [b"1"] * 4
    assert await store.get("95") is None
    assert len(store._put) <= 8
