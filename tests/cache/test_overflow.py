"""Readers that are far behind get the rest of a shared reply from the journal of the cache's store."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest

from proxy.cache import overflow
from proxy.cache.overflow import MESSAGE_BYTES, Overflow
from proxy.cache.vault import Vault
from proxy.cache.vault_keys import PREFIX, Partition
from proxy.stores import Store, StoreError
from proxy.stores.memory import MemoryStore
from proxy.stores.redis import RedisStore
from proxy.stores.sqlite import SqliteStore
from proxy.wire.errors import BackendError
from proxy.wire.event import Event, Run
from tests.cache.test_single_flight import Source, flying, read_all, settle
from tests.redis_server import RedisServer

BLOCKS = [b"%c" % (97 + number) * 100_000 for number in range(20)]


@pytest.fixture(params=["memory", "redis", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """A store of each kind."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        store: Store = RedisStore(url=server.url, timeout_ms=30_000)
    else:
        store = MemoryStore() if request.param == "memory" else SqliteStore(path=tmp_path / "store", timeout_ms=30_000)
    await store.start()
    yield store
    await store.close()


def overflow_of(store: Store, secret: bytes = b"") -> Overflow:
    vault = Vault(store, [secret] if secret else [])
    return Overflow(store, vault, vault.address_of(b"call", Partition("team", "search")))


async def journals(store: Store) -> set[str]:
    return {name async for name in store.scan(f"{PREFIX}j:")}


async def sse_of(behind: Overflow, offset: int, size: int) -> bytes:
    """Return so many bytes of what is kept, from an offset on."""
    found = b""
    async with aclosing(behind.read(offset)) as batches:
        while len(found) < size:
            found += b"".join([unit.sse for unit in await anext(batches)])
    return found


@pytest.mark.parametrize("secret", [b"", b"s" * 32])
async def test_a_slow_reader_gets_the_whole_reply(store: Store, secret: bytes):
    """From the journal, and then from what is kept again; the fast one does not wait, and the journal is deleted."""
    source, before = Source(), await journals(store)
    flight = flying(source.opening(), 1000, partial(overflow_of, store, secret))
    async with flight.join() as slow:
        assert slow.batches is not None
        reading = aiter(slow.batches)
        first = asyncio.ensure_future(anext(reading))
        fast = asyncio.create_task(read_all(flight))
        source.send(*BLOCKS, None)
        assert await fast == b"".join(BLOCKS)
        found = [unit.sse for unit in await first] + [unit.sse async for batch in reading for unit in batch]
        during = await journals(store) - before

    assert found == BLOCKS
    assert (len(during), await journals(store) - before) == (1, set())


async def test_a_slow_reader_that_is_alone_slows_the_backend_down():
    """It is read no faster than a bound ahead of it once the others have left."""
    source = Source()
    flight = flying(source.opening(), 1000, partial(overflow_of, MemoryStore()))
    async with flight.join() as slow:
        assert slow.batches is not None
        reading = aiter(slow.batches)
        first = asyncio.ensure_future(anext(reading))
        fast = asyncio.create_task(read_all(flight))
        source.send(*BLOCKS[:10])
        await settle()
        fast.cancel()
        await asyncio.wait([fast])
        source.send(*BLOCKS[10:], None)
        await settle()
        ahead = source.taken
        found = [*await first, *[unit async for batch in reading for unit in batch]]

    assert [unit.sse for unit in found] == BLOCKS
    assert 10 <= ahead < 20


async def test_events_and_runs_are_read_as_they_were(store: Store):
    """From any of them on, also if they were written in one message, or in several."""
    behind = overflow_of(store)
    large = Run(b"x" * MESSAGE_BYTES)
    behind.add([[Event("response.created", b"abc"), Run(b"de")], [Run(b"f")], [large], [Run(b"g")]], 100)
    behind.add([[Run(b"later")]], 1_000_000)
    end = 106 + MESSAGE_BYTES + 1
    async with aclosing(behind.read(100)) as batches:
        first = await anext(batches)

    assert [(type(unit), unit.type, unit.sse) for unit in first[:3]] == [
        (Event, "response.created", b"abc"), (Run, "", b"de"), (Run, "", b"f")
    ]  # fmt: skip
    whole = b"abcdef" + large.sse + b"g"
    for offset in (100, 103, 105, 106, end - 1):
        assert await sse_of(behind, offset, end - offset) == whole[offset - 100 :]
    assert await sse_of(behind, 1_000_000, 5) == b"later"
    await behind.close()


async def test_a_reader_waits_for_what_is_written_next():
    """The journal is read as fast as it is written."""
    behind = overflow_of(MemoryStore())
    reading = asyncio.create_task(sse_of(behind, 0, 2))
    await settle()
    behind.add([[Run(b"a")]], 0)
    await settle()
    waits = not reading.done()
    behind.add([[Run(b"b")]], 1)

    assert (waits, await reading) == (True, b"ab")


class FailingStore(MemoryStore):
    """Fails one of its verbs."""

    failing: str

    async def append(self, key: str, value: bytes, *, ttl_s: float, group: str = "") -> int:
        if self.failing == "append":
            raise StoreError("down")
        return await super().append(key, b"?" if self.failing == "garbage" else value, ttl_s=ttl_s, group=group)

    async def tail(self, key: str, *, after: int = 0, limit: int = 1000) -> list[tuple[int, bytes]]:
        if self.failing == "tail":
            raise StoreError("down")
        found = list(await super().tail(key, after=after, limit=limit))
        return [] if self.failing == "lost" else [(n, value[:-1]) for n, value in found]


@pytest.mark.parametrize(
    "make_store",
    [*(partial(FailingStore, failing=verb) for verb in ("append", "tail", "garbage", "lost", "short")),
     partial(MemoryStore, store_max_journal_bytes=1000)],
)  # fmt: skip
async def test_what_the_store_does_not_keep_is_an_error_of_the_reader(make_store: Callable[[], Store]):
    """Not of the others."""
    source = Source()
    flight = flying(source.opening(), 1000, partial(overflow_of, make_store()))
    async with flight.join() as slow:
        assert slow.batches is not None
        reading = aiter(slow.batches)
        first = asyncio.ensure_future(anext(reading))
        fast = asyncio.create_task(read_all(flight))
        source.send(*BLOCKS, None)
        assert await fast == b"".join(BLOCKS)
        await first
        with pytest.raises(BackendError) as caught:
            async for _ in reading:
                pass

    assert (caught.value.status, caught.value.code) == (503, "reader_too_slow")


async def test_what_waits_to_be_written_is_bounded(monkeypatch: pytest.MonkeyPatch, logged):
    """A store that is slower than the reply does not fill the memory."""
    monkeypatch.setattr(overflow, "MAX_WAITING_BYTES", 10)
    behind = overflow_of(MemoryStore())
    behind.add([[Run(b"0123456789")]], 0)
    behind.add([[Run(b"0")]], 10)
    behind.add([[Run(b"1")]], 11)

    with pytest.raises(BackendError, match="too slowly"):
        await sse_of(behind, 0, 12)
    assert [line["event"] for line in logged] == ["cache.overflow_failed"]
