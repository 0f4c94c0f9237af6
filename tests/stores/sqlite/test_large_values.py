"""Values in pieces: other commands are carried out between two of them, and readers see a value as a whole or not at all."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.stores import StoreError
from proxy.stores.sqlite import PIECE_BYTES, SqliteStore
from proxy.stores.sqlite.transaction import Transaction
from tests.raw import until

VALUE = random.Random(1).randbytes(3 * PIECE_BYTES + 17)
OTHER = random.Random(2).randbytes(2 * PIECE_BYTES)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(path=tmp_path / "a.sqlite3", timeout_ms=20_000)
    await opened.start()
    yield opened
    await opened.close()


def rows(store: SqliteStore) -> tuple[int, int]:
    """Return how many records and entries the file has."""
    with sqlite3.connect(store.path) as database:
        found = [database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("record", "entry")]
    database.close()
    return found[0], found[1]


async def test_a_large_value_is_kept_replaced_and_deleted(store: SqliteStore):
    """Like any other value; what it took is free again."""
    assert await store.put("k", VALUE, ttl_s=60)
    assert await store.get("k") == VALUE
    assert not await store.put("k", OTHER, ttl_s=60, if_absent=True)
    assert await store.get_many(["k", "l"]) == [VALUE, None]
    await store.put("k", OTHER, ttl_s=60)
    assert await store.get("k") == OTHER
    with pytest.raises(StoreError, match="the key holds a value, not a counter"):
        await store.take("k", 1, limit=1, window_s=60)
    await store.put("k", b"small", ttl_s=60)
    assert await store.get("k") == b"small"
    await store.put("k", VALUE, ttl_s=60)
    await store.delete("k")
    assert await store.get("k") is None
    await until(lambda: rows(store) == (0, 0))


async def test_small_commands_are_carried_out_between_two_pieces(store: SqliteStore, monkeypatch: pytest.MonkeyPatch):
    """One that comes after a large value has begun does not wait for its end."""
    began, order = asyncio.Event(), list[str]()
    loop, add_piece = asyncio.get_running_loop(), Transaction.add_piece

    def add(transaction: Transaction, record: int, position: int, data: bytes) -> None:
        loop.call_soon_threadsafe(began.set)
        add_piece(transaction, record, position, data)

    monkeypatch.setattr(Transaction, "add_piece", add)

    async def put_large() -> None:
        await store.put("large", VALUE * 8, ttl_s=60)
        order.append("large")

    putting = asyncio.create_task(put_large())
    await began.wait()
    await store.put("small", b"1", ttl_s=60)
    order.append("small")
    await putting

    assert order == ["small", "large"]


async def test_a_value_that_was_not_written_to_its_end_is_never_read(store: SqliteStore, monkeypatch):
    """What was written of it is swept."""
    monkeypatch.setattr("proxy.stores.sqlite.transaction.UNFINISHED_S", 0.01)
    monkeypatch.setattr(Transaction, "finish_pieces", lambda *_, **__: False)
    await store.put("k", b"before", ttl_s=60)
    assert not await store.put("k", VALUE, ttl_s=60)

    assert await store.get("k") == b"before"
    await until(lambda: rows(store) == (1, 0))


async def test_readers_beside_a_writer_see_whole_values(store: SqliteStore):
    """One of the two that are written in turn."""
    await store.put("k", VALUE, ttl_s=60)

    async def write() -> None:
        for number in range(6):
            await store.put("k", OTHER if number % 2 else VALUE, ttl_s=60)

    writing = asyncio.create_task(write())
    seen = []
    while not writing.done():
        seen.append(await store.get("k"))
    await writing

    assert set(seen) <= {VALUE, OTHER}
