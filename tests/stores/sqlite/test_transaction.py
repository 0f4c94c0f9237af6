"""How the SQLite store removes expired data."""

import asyncio
from contextlib import closing
from pathlib import Path

from proxy.stores.sqlite.database import open_database
from proxy.stores.sqlite.transaction import SWEPT_JOURNALS, Transaction
from tests.stores.conftest import LONG_TIMEOUT_MS, SteppedClock
from tests.stores.sqlite.conftest import count_rows, open_store


def test_a_sweep_removes_a_limited_number_of_rows(path: Path):
    """A journal's entries count as rows, so that no command waits for a long journal to be removed."""
    with closing(open_database(path, 1)) as database:
        writing = Transaction(database, now=1000)
        for number in range(25):
            writing.put(f"{number}", b"", 10, if_absent=False)
            writing.append("journal", b"", 20)
            writing.append("kept", b"", 900)
        removed = []
        while True:
            before = count_rows(path)
            more = Transaction(database, now=1100).sweep(10)
            removed.append(before - count_rows(path))
            if not more:
                break

        assert removed == [10, 10, 10, 10, 10, 1]
        assert Transaction(database, now=1100).has_expired() is False
        assert len(Transaction(database, now=1100).tail("kept", 0, 100)) == 25


def test_a_sweep_takes_few_statements(path: Path):
    """At each of them, and at each row that one returns, the thread gives up the interpreter's lock."""
    statements: list[str] = []
    with closing(open_database(path, 1)) as database:
        for number in range(100):
            Transaction(database, now=1000).put(f"{number}", b"", 10, if_absent=False)
        for number in range(SWEPT_JOURNALS + 1):
            Transaction(database, now=1000).append(f"journal {number}", b"", 10)
        database.set_trace_callback(statements.append)
        sweeping = Transaction(database, now=1100)
        more = [sweeping.sweep(100)]
        of_values, statements[:] = len(statements), []
        more += [sweeping.sweep(100), sweeping.sweep(100)]

    assert of_values == 1
    assert len(statements) == 2 + 2 * SWEPT_JOURNALS + 2 + 2
    assert more == [True, True, False]


async def test_expired_rows_are_removed_without_any_command(path: Path):
    """The thread sweeps when it is idle; deleted journals are removed too."""
    clock = SteppedClock()
    async with open_store(path, clock) as store:
        for number in range(150):
            await store.put(f"{number}", b"", ttl_s=10)
            await store.append("expired", b"", ttl_s=10)
            await store.append("deleted", b"", ttl_s=900)
        await store.delete("deleted")
        await store.append("deleted", b"new", ttl_s=900)
        clock.advance(11)
        async with asyncio.timeout(LONG_TIMEOUT_MS / 1000):
            while count_rows(path) > 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        assert await store.tail("deleted") == [(1, b"new")]


async def test_every_write_removes_some_expired_rows(path: Path):
    """The file of a busy store does not keep growing."""
    clock = SteppedClock()
    async with open_store(path, clock) as store:
        for _ in range(20):
            await asyncio.gather(*(store.put(f"{clock.now} {i}", b"", ttl_s=10) for i in range(50)))
            clock.advance(11)
        await store.put("last", b"", ttl_s=10)

        assert count_rows(path) <= 51
