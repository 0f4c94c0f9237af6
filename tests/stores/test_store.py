"""What every store owes its users: one suite, run on each."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from proxy.stores import Store, StoreError
from proxy.stores.memory import Memory
from proxy.stores.redis import RedisStore
from tests.redis_server import RedisServer

BYTES = bytes(range(256)) + "\u00e9\u4e2d\U0001f600".encode()


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A started store of each kind."""
    if request.param == "memory":
        made: Store = Memory()
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        made = RedisStore(url=server.url, timeout_ms=5000)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def key() -> str:
    """A key that nobody else has."""
    return secrets.token_hex(32)


def test_a_store_that_lacks_a_verb_cannot_be_made():
    """It fails before the first call, and names what is missing."""

    class Half(Store):
        async def get(self, key: str) -> bytes | None:
            raise AssertionError(key)

    with pytest.raises(TypeError, match=r"abstract methods.* add.*delete.*put"):
        Half.model_validate({})


async def test_what_was_never_put_is_not_there(store: Store, key: str):
    """None, and no error."""
    assert await store.get(key) is None


@pytest.mark.parametrize("value", [b"", b"a", BYTES, b"a" * 2_000_000], ids=["empty", "short", "every byte", "long"])
async def test_bytes_come_back_as_they_were_put(store: Store, key: str, value: bytes):
    """Nothing is decoded on the way."""
    assert await store.put(key, value, ttl_s=60) is True
    assert await store.get(key) == value


async def test_a_later_value_replaces_an_earlier_one(store: Store, key: str):
    """And begins its own time."""
    await store.put(key, b"earlier", ttl_s=0.05)
    await store.put(key, b"later", ttl_s=60)
    await asyncio.sleep(0.1)  # the earlier one's time is over

    assert await store.get(key) == b"later"


async def test_a_value_is_gone_when_its_time_is_over(store: Store, key: str):
    """Fractions of a second count."""
    await store.put(key, b"a", ttl_s=0.05)
    async with asyncio.timeout(5):
        while await store.get(key) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_shortest_time_is_no_error(store: Store, key: str):
    """Redis counts in milliseconds, and refuses none of them."""
    assert await store.put(key, b"a", ttl_s=0.0001) is True


@pytest.mark.parametrize("ttl_s", [1e9, 1e15, 1e308])
async def test_the_longest_time_is_no_error(store: Store, key: str, ttl_s: float):
    """Whoever means "for ever" gets as much of it as the store has."""
    assert await store.put(key, b"1", ttl_s=ttl_s) is True
    assert await store.add(key, 1, ttl_s=ttl_s) == 2
    assert await store.get(key) == b"2"


async def test_if_absent_keeps_what_is_there(store: Store, key: str):
    """It says whether the new value was kept."""
    assert await store.put(key, b"first", ttl_s=60, if_absent=True) is True
    assert await store.put(key, b"second", ttl_s=60, if_absent=True) is False
    assert await store.get(key) == b"first"


async def test_if_absent_takes_the_place_of_what_is_over(store: Store, key: str):
    """An entry whose time is over is absent."""
    await store.put(key, b"first", ttl_s=0.02)
    async with asyncio.timeout(5):
        while not await store.put(key, b"second", ttl_s=60, if_absent=True):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    assert await store.get(key) == b"second"


async def test_only_one_of_many_is_the_first(store: Store, key: str):
    """Whoever puts if absent at the same time as others: one of them wins."""
    kept = await asyncio.gather(*(store.put(key, b"%d" % i, ttl_s=60, if_absent=True) for i in range(20)))

    assert kept.count(True) == 1
    assert await store.get(key) == b"%d" % kept.index(True)


async def test_a_sum_begins_at_nothing(store: Store, key: str):
    """And is there to be read, as digits."""
    assert [await store.add(key, amount, ttl_s=60) for amount in (5, 0, -7)] == [5, 5, -2]
    assert await store.get(key) == b"-2"


async def test_many_add_at_once_and_nothing_is_lost(store: Store, key: str):
    """Each sees a sum of its own: the step is one."""
    sums = await asyncio.gather(*(store.add(key, 1, ttl_s=60) for _ in range(50)))

    assert sorted(sums) == list(range(1, 51))


async def test_a_sum_is_gone_when_its_time_is_over(store: Store, key: str):
    """It begins at nothing again."""
    await store.add(key, 5, ttl_s=0.02)
    async with asyncio.timeout(5):
        while await store.get(key) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    assert await store.add(key, 1, ttl_s=60) == 1


async def test_what_is_no_number_is_not_added_to(store: Store, key: str):
    """A StoreError, as every fault of a store; the value stays."""
    await store.put(key, b"a", ttl_s=60)
    with pytest.raises(StoreError):
        await store.add(key, 1, ttl_s=60)

    assert await store.get(key) == b"a"


async def test_what_was_deleted_is_gone(store: Store, key: str):
    """Deleting what is not there is no error."""
    await store.put(key, b"a", ttl_s=60)
    await store.delete(key)
    await store.delete(key)

    assert await store.get(key) is None


async def test_keys_do_not_mix(store: Store, key: str):
    """Many at once, each gets its own."""
    names = [f"{key}{i}" for i in range(100)]
    await asyncio.gather(*(store.put(name, name.encode(), ttl_s=60) for name in names))
    told = await asyncio.gather(*(store.get(name) for name in names))

    assert told == [name.encode() for name in names]


async def test_it_can_be_reached(store: Store):
    """/readyz asks."""
    assert await store.ready() is True
