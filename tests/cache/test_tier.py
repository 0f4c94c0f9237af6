"""Entries held in a process in front of its store: not beyond what changes there, nor beyond their life."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis
from pydantic import SecretStr

from proxy.cache.entry import Entry
from proxy.cache.tier import CHARGE, OVERHEAD_BYTES, LocalTier, StoredAs
from proxy.cache.vault import Vault
from proxy.cache.vault_keys import ENTRIES, Partition
from proxy.stores.memory import MemoryStore
from proxy.stores.redis import RedisStore
from tests.cache.test_entry import stored
from tests.redis_server import RedisServer

SEARCH = Partition("team", "search")
ENTRY = Entry.decode(stored())
assert ENTRY is not None
STORED = StoredAs(stored(), b"g")
SIZE = OVERHEAD_BYTES + CHARGE * (len(ENTRY.body) + len(ENTRY.frames))


@pytest.fixture
async def stores(redis_server: RedisServer) -> AsyncIterator[list[RedisStore]]:
    """Two processes with one Redis."""
    redis.Redis(port=redis_server.port).flushdb()
    found = [RedisStore(url=redis_server.url, timeout_ms=10_000) for _ in range(2)]
    for store in found:
        await store.start()
    yield found
    for store in found:
        await store.close()


async def keep(vault: Vault, call: bytes = b"call") -> None:
    address = vault.address_of(call, SEARCH)
    await vault.read(address)
    await vault.write(address, stored(), ttl_s=60, response=("search", "resp_1"))


def is_held(vault: Vault, call: bytes = b"call") -> bool:
    return vault.held(vault.address_of(call, SEARCH)) is not None


@pytest.mark.parametrize(
    "change",
    ["deleted", "forgotten", "purged", "written", "flushed", "expired", "disconnected"],
)
async def test_what_changes_at_one_process_is_dropped_at_another(
    change: str, stores: list[RedisStore], redis_server: RedisServer
):
    """Within the time that the news takes, although it would be held for an hour."""
    here, there = (Vault(store, tier=LocalTier(3600, 2**20)) for store in stores)
    await keep(here)
    address = there.address_of(b"call", SEARCH)
    assert await there.read(address) is not None
    assert is_held(there)
    direct = redis.Redis(port=redis_server.port)
    match change:
        case "deleted":
            await here.forget_response("search", "resp_1")
        case "forgotten":
            await here.forget(SEARCH)
        case "purged":
            await here.remove(ENTRIES + address.keys[0])
        case "written":
            await keep(here)
        case "flushed":
            direct.flushdb()
        case "expired":
            direct.pexpire(ENTRIES + address.keys[0], 1)
        case "disconnected":
            direct.client_kill_filter(_type="normal", skipme=True)
    async with asyncio.timeout(10):
        while is_held(there):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert not is_held(here)


async def test_a_hit_of_the_tier_reads_nothing(stores: list[RedisStore], redis_server: RedisServer):
    """Not even the generation."""
    vault = Vault(stores[0], tier=LocalTier(3600, 2**20))
    await keep(vault)
    await vault.read(vault.address_of(b"call", SEARCH))
    before = redis.Redis(port=redis_server.port).info("commandstats")["cmdstat_get"]["calls"]
    held = [is_held(vault) for _ in range(3)]

    assert held == [True] * 3
    assert redis.Redis(port=redis_server.port).info("commandstats")["cmdstat_get"]["calls"] == before


async def test_a_user_that_may_not_ask_what_changes_reads_values(
    redis_server: RedisServer, logged: list[dict[str, object]]
):
    """Entries are then held for their short life only; the log says so once for each connection."""
    direct = redis.Redis(port=redis_server.port)
    direct.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", "-client|tracking")
    store = RedisStore(url=redis_server.url, user=SecretStr("limited"), password=SecretStr("secret"), timeout_ms=10_000)
    await store.start()
    vault = Vault(store, tier=LocalTier(3600, 2**20))
    await keep(vault)
    found = await vault.read(vault.address_of(b"call", SEARCH))
    await store.close()
    direct.execute_command("ACL", "DELUSER", "limited")

    assert found == ENTRY
    assert [line["event"] for line in logged] == ["store.changes_unknown"]


async def test_what_was_read_before_a_change_is_not_held():
    """The value may be the one from before."""
    store = MemoryStore()
    vault = Vault(store, tier=(tier := LocalTier(3600, 2**20)))
    await keep(vault)
    get_many = store.get_many

    async def read_then_change(keys: list[str]) -> object:
        values = await get_many(keys)
        tier.drop("another key")
        return values

    object.__setattr__(store, "get_many", read_then_change)
    assert await vault.read(vault.address_of(b"call", SEARCH)) is not None

    assert not is_held(vault)


async def test_entries_are_held_for_their_life_and_within_their_bound():
    """The least recently used one makes room; one that is larger than the bound is not held."""
    now = 0.0
    tier = LocalTier(5, 2 * SIZE, clock=lambda: now)
    for key in ("a", "b"):
        tier.put(key, ENTRY, b"g", STORED, changes=0)
    tier.get("a")
    tier.put("c", ENTRY, b"g", STORED, changes=0)
    held = [key for key in "abc" if tier.get(key)]
    now = 5.0
    small = LocalTier(5, SIZE - 1)
    small.put("a", ENTRY, b"g", STORED, changes=0)

    assert held == ["a", "c"]
    assert not any(tier.get(key) for key in "abc")
    assert small.get("a") is None


@pytest.mark.parametrize("secrets", [(), (b"a secret of at least 32 characters",)])
@pytest.mark.parametrize("life_s", [0.0, 60.0])
async def test_what_is_read_again_is_opened_once(secrets: tuple[bytes, ...], life_s: float):
    """As long as its bytes and the generation of its partition are the same; it is read each time without a life."""
    now = [0.0]
    store = MemoryStore()
    vault = Vault(store, secrets, LocalTier(life_s, 2**20, clock=lambda: now[0]))
    await keep(vault)
    first = await vault.read(address := vault.address_of(b"call", SEARCH))
    now[0] += life_s

    assert not is_held(vault)
    assert first is not None
    assert await vault.read(vault.address_of(b"call", SEARCH)) is first
    assert is_held(vault) == (life_s > 0)

    await vault.write(address, stored(body=b'{"status":"completed","id":"resp_2"}'), ttl_s=60)
    changed = await vault.read(vault.address_of(b"call", SEARCH))
    assert changed is not None
    assert changed.body == b'{"status":"completed","id":"resp_2"}'


async def test_an_entry_of_an_earlier_generation_is_not_given_though_it_was_opened():
    """Its bytes are the same, and no change was reported."""
    store = MemoryStore()
    here, elsewhere = Vault(store, (), LocalTier(0, 2**20)), Vault(store)
    await keep(here)
    assert await here.read(here.address_of(b"call", SEARCH)) is not None
    await elsewhere.forget(SEARCH)
    assert await here.read(here.address_of(b"call", SEARCH)) is None
    await keep(elsewhere, b"another call")  # begins a new generation

    assert await here.read(here.address_of(b"call", SEARCH)) is None
