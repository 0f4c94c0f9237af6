"""Batches reach the store once, whatever happens to it."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from proxy.stores import StoreError
from proxy.stores.memory import MemoryStore
from proxy.usage.columns import CALLS
from proxy.usage.flush import PART_ROWS, UsageFlush, hour_key
from proxy.usage.table import UsageTable
from tests.policies.limited import timed_store
from tests.usage.test_book import call, make_book

SETTINGS = UsageTable(flush_s=300)
KEY = hour_key("1970-01-01T00")


class FailingStore(MemoryStore):
    """Fails as `faults` say, one for each command: before the command, or after it was carried out."""

    def __init__(self, faults: str) -> None:
        super().__init__()
        vars(self)["faults"] = iter(faults)
        vars(self)["first_add"] = asyncio.Event()

    async def add(self, key: str, rows: Mapping[str, Sequence[int]], **options: object) -> bool:
        fault = next(vars(self)["faults"], ".")
        if fault == "b":
            raise StoreError("before")
        done = await super().add(key, rows, **options)
        vars(self)["first_add"].set()
        if fault == "a":
            raise StoreError("after")
        return done


async def calls_in(store: MemoryStore) -> int:
    return sum(row[CALLS] for row in (await store.rows(KEY)).values())


@pytest.mark.parametrize("faults", ["", "b", "a", "aa", ".a", ".b", "bab", ".a.b"])
async def test_no_fault_of_the_store_loses_a_call_or_counts_it_twice(faults: str, logged):
    """Also where it is not known whether a part was added, and with calls that come meanwhile."""
    store, book = FailingStore(faults), make_book(max_rows=10_000)
    flush = UsageFlush(store, book, SETTINGS)
    for number in range(PART_ROWS + 50):
        book.count(call(model=f"m{number}"))
    tries = 0
    while not await flush.flush():
        tries += 1
        book.count(call(model="m0"))

    assert tries == sum(faults.count(fault) for fault in "ab")
    assert await calls_in(store) == PART_ROWS + 50 + tries
    assert sum(line["event"] == "usage.flush_failed" for line in logged) == min(tries, 1)


async def test_an_hour_is_kept_for_400_days():
    """From its last call on; then it is gone."""
    now = [0.0]
    store, book = timed_store(now), make_book()
    book.count(call())
    await UsageFlush(store, book, SETTINGS).flush()
    now[0] = 400 * 86_400.0 - 1
    kept = await calls_in(store)
    now[0] += 1

    assert (kept, await calls_in(store)) == (1, 0)


async def test_what_is_counted_is_written_again_and_again_and_at_the_end():
    """Without being asked."""
    store, book = FailingStore(""), make_book()
    flush = UsageFlush(store, book, UsageTable(flush_s=0.05))
    async with flush.running():
        book.count(call())
        await asyncio.wait_for(vars(store)["first_add"].wait(), 30)
        book.count(call())

    assert await calls_in(store) == 2


async def test_what_cannot_be_written_at_the_end_is_logged(monkeypatch, logged):
    """It is tried for a while."""
    monkeypatch.setattr("proxy.usage.flush.LAST_S", 0)
    book = make_book()
    async with UsageFlush(FailingStore("b" * 99), book, SETTINGS).running():
        book.count(call())

    assert [line for line in logged if line["event"] == "usage.lost"] == [
        {"event": "usage.lost", "log_level": "error", "calls": 1, "interrupted": 0}
    ]
