"""Entries in a store: readable for those who share them only, and only where they were written."""

import gc
import random
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.vault import Vault
from proxy.cache.vault_keys import ENTRIES, PREFIX, Partition, VaultKeys
from proxy.stores import StoreError
from proxy.stores.memory import MemoryStore
from tests.cache.test_entry import stored
from tests.examples import NO_DEADLINE

SECRET, OLD = b"a secret of at least 32 characters", b"an older secret of at least 32 chars"
SEARCH, SALES = Partition("team", "search"), Partition("team", "sales")
PARTITIONS = st.builds(Partition, st.sampled_from(["team", "caller", "all"]), st.text(max_size=3), st.text(max_size=3))
ENTRY = stored()


async def is_found(vault: Vault, call: bytes, partition: Partition) -> bool:
    return await vault.read(vault.address_of(call, partition)) is not None


async def write(vault: Vault, call: bytes = b"call", partition: Partition = SEARCH) -> None:
    address = vault.address_of(call, partition)
    await vault.read(address)
    await vault.write(address, ENTRY, ttl_s=60)


@pytest.mark.parametrize("secrets", [(), (SECRET,)])
@NO_DEADLINE
@given(one=st.tuples(st.binary(max_size=4), PARTITIONS), other=st.tuples(st.binary(max_size=4), PARTITIONS))
def test_keys_are_equal_only_for_the_same_call_of_the_same_partition(secrets: Any, one: Any, other: Any):
    """However texts are divided between them."""
    vault = Vault(MemoryStore(), secrets)

    assert (vault.address_of(*one).keys == vault.address_of(*other).keys) == (one == other)


@pytest.mark.parametrize("secrets", [(), (SECRET,)])
async def test_an_entry_under_another_key_or_of_another_partition_is_not_read(secrets: Any):
    """A store that mixes up two values, or an attacker who can write to it, causes a miss."""
    store = MemoryStore()
    vault = Vault(store, secrets)
    await write(vault)
    value = await store.get(ENTRIES + vault.address_of(b"call", SEARCH).keys[0]) or b""
    for call, partition in ((b"other", SEARCH), (b"call", SALES)):
        await write(vault, call, partition)
        assert await is_found(vault, call, partition)
        await store.put(ENTRIES + vault.address_of(call, partition).keys[0], value, ttl_s=60)

        assert not await is_found(vault, call, partition)
    assert await is_found(vault, b"call", SEARCH)


@pytest.mark.parametrize("secrets", [(), (SECRET,)])
async def test_a_changed_value_is_not_read(secrets: Any):
    """Cut, extended, or with another byte where it is sealed."""
    store = MemoryStore()
    vault = Vault(store, secrets)
    await write(vault)
    name = ENTRIES + vault.address_of(b"call", SEARCH).keys[0]
    value = await store.get(name) or b""
    changed = [b"", value[:1], value[:40], b"\x09" + value[1:]]
    if secrets:
        changed += [
            value + b"x",
            *(value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :] for at in range(0, len(value), 97)),
        ]
    for other in changed:
        await store.put(name, other, ttl_s=60)

        assert not await is_found(vault, b"call", SEARCH)


async def test_an_entry_of_another_secret_is_not_read():
    """Nor one that was sealed before or after the secret was set."""
    store = MemoryStore()
    for secrets in ((), (SECRET,), (OLD,)):
        await write(Vault(store, secrets))
    for secrets in ((), (SECRET,), (OLD,)):
        await store.put(f"{PREFIX}x", b"", ttl_s=60)

        assert await is_found(Vault(store, secrets), b"call", SEARCH)
    values = [await store.get(name) async for name in store.scan(ENTRIES)]
    for secrets in ((), (SECRET,), (OLD,)):
        vault = Vault(store, secrets)
        name = ENTRIES + vault.address_of(b"call", SEARCH).keys[0]
        own = await store.get(name)
        for value in values:
            await store.put(name, value or b"", ttl_s=60)

            assert await is_found(vault, b"call", SEARCH) == (value == own)


async def test_an_entry_written_before_its_partition_was_forgotten_is_not_read():
    """Also if its writer had read the partition's generation before."""
    vault = Vault(MemoryStore(), (SECRET,))
    await write(vault)
    address = vault.address_of(b"call", SEARCH)
    await vault.read(address)
    await vault.forget(SEARCH)
    await vault.write(address, ENTRY, ttl_s=60)

    assert not await is_found(vault, b"call", SEARCH)


async def test_a_generation_that_is_none_is_replaced():
    """It does not matter who wrote it."""
    store = MemoryStore()
    vault = Vault(store)
    await store.put(VaultKeys(b"").generation_of(SEARCH), b"garbage", ttl_s=60)
    await write(vault)

    assert await is_found(vault, b"call", SEARCH)


async def test_a_key_that_holds_something_else_is_a_fault():
    """Which the cache treats as a miss."""
    store = MemoryStore()
    vault = Vault(store)
    await store.append(ENTRIES + vault.address_of(b"call", SEARCH).keys[0], b"x", ttl_s=60)

    with pytest.raises(StoreError):
        await is_found(vault, b"call", SEARCH)


async def test_a_deleted_entry_is_gone():
    """Under every secret."""
    store = MemoryStore()
    for secrets in ((OLD,), (SECRET, OLD)):
        await write(Vault(store, secrets))
    vault = Vault(store, (SECRET, OLD))
    await vault.delete(vault.address_of(b"call", SEARCH))

    assert [name async for name in store.scan(ENTRIES)] == []


async def test_a_response_is_forgotten_under_an_old_secret():
    """And no other response."""
    store = MemoryStore()
    vault = Vault(store, (OLD,))
    await vault.write(vault.address_of(b"call", SEARCH), ENTRY, ttl_s=60, response=("search", "resp_1"))
    newer = Vault(store, (SECRET, OLD))
    await newer.forget_response("sales", "resp_1")
    await newer.forget_response("search", "resp_2")
    before = await is_found(newer, b"call", SEARCH)
    await newer.forget_response("search", "resp_1")

    assert (before, await is_found(newer, b"call", SEARCH)) == (True, False)


async def test_two_teams_never_read_each_other_s_entries():
    """20,000 random pairs of calls against a model: a team finds exactly what it has written itself."""
    dice, written = random.Random(4), set()
    for secrets in ((), (SECRET,)):
        vault = Vault(MemoryStore(), secrets)
        written.clear()
        for _ in range(10_000):
            call = orjson.dumps({"input": dice.randrange(2_000)})
            for partition in dice.sample([SEARCH, SALES], 2):
                found = await is_found(vault, call, partition)
                assert found == ((call, partition) in written)
                if not found and dice.random() < 0.5:
                    await write(vault, call, partition)
                    written.add((call, partition))


async def test_a_small_entry_in_memory_takes_little_beside_itself():
    """One value of bytes under one key: a few hundred bytes, and one object for the garbage collector to visit."""
    store = MemoryStore()
    vault, count = Vault(store), 2_000
    await write(vault)
    calls = [b"%d" % number for number in range(count)]
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        for call in calls:
            address = vault.address_of(call, SEARCH)
            await vault.write(address, ENTRY, ttl_s=60)
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    gc.collect()

    assert kept_bytes / count - len(ENTRY) < 1_000
    assert (len(gc.get_objects()) - objects) / count < 2
