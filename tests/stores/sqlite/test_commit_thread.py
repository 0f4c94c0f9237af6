"""The thread of the SQLite store: batches, cancelled commands, and a file that cannot be written."""

import asyncio
import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from proxy.stores import StoreError
from proxy.stores.sqlite import SqliteStore
from proxy.stores.sqlite.commit_thread import LARGE_BYTES
from proxy.stores.sqlite.transaction import Transaction
from tests.full_disk import disk_full_at
from tests.raw import no_tasks_left  # noqa: F401
from tests.stores.conftest import LONG_TIMEOUT_MS
from tests.stores.sqlite.conftest import busy, open_store, send

MIB = 1_048_576


async def test_a_lock_of_another_process_is_waited_for(path: Path, sqlite: SqliteStore):
    """A command waits for the lock for at most `timeout_ms`."""
    with closing(sqlite3.connect(path, isolation_level=None)) as direct:
        direct.execute("BEGIN IMMEDIATE")
        putting = asyncio.create_task(sqlite.put("a", b"a", ttl_s=60))
        await asyncio.sleep(0)
        direct.execute("COMMIT")
        await putting

    assert await sqlite.get("a") == b"a"


async def test_a_lock_that_is_held_too_long_is_an_error(path: Path):
    """The command has no effect, readers never wait, and the next command works."""
    async with open_store(path, timeout_ms=50) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as direct:
            direct.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError):
                await store.put("a", b"a", ttl_s=60)
            value = await read_with_retries(store, "a")
            direct.execute("COMMIT")
    async with open_store(path) as store:
        assert (value, await store.get("a")) == (None, None)
        assert await store.put("a", b"b", ttl_s=60) is True


async def read_with_retries(store: SqliteStore, key: str) -> bytes | None:
    """Read a value from a store with a short deadline; retry, because the machine may be busy."""
    async with asyncio.timeout(LONG_TIMEOUT_MS / 1000):
        while True:
            try:
                return await store.get(key)
            except StoreError:
                continue


async def test_commands_beyond_the_queue_are_errors(path: Path):
    """The error comes without waiting. Commands in the queue are carried out."""
    async with open_store(path, max_waiting=2) as store:
        async with busy(store):
            waiting = await send(store, store.put("a", b"a", ttl_s=60), store.put("b", b"b", ttl_s=60))
            with pytest.raises(StoreError, match="2 commands are waiting, and max_waiting allows no more"):
                await store.put("c", b"c", ttl_s=60)
        await asyncio.gather(*waiting)

        assert [await store.get(key) for key in "abc"] == [b"a", b"b", None]


async def test_commands_with_large_values_wait_for_all_others(path: Path):
    """Each of them has a transaction of its own, after one with the others that wait by then."""
    large, ended = b"x" * LARGE_BYTES, []
    async with open_store(path) as store:
        async with busy(store):
            commands = {
                "first": store.put("a", large, ttl_s=60),
                "second": store.append("b", large, ttl_s=60),
                "small": store.put("c", b"c", ttl_s=60),
                "read": store.get("a"),
            }
            waiting = await send(store, *commands.values())
            for name, task in zip(commands, waiting, strict=True):
                task.add_done_callback(lambda _, name=name: ended.append(name))
        await asyncio.gather(*waiting)

        assert ended == ["small", "read", "first", "second"]
        assert [await store.get(key) for key in "ac"] == [large, b"c"]
        assert await store.tail("b") == [(1, large)]


async def test_a_store_that_closes_writes_the_large_values_that_wait(path: Path):
    large = b"x" * LARGE_BYTES
    async with open_store(path) as store, busy(store):
        waiting = await send(store, *(store.put(key, large, ttl_s=60) for key in "abc"), store.put("d", b"d", ttl_s=60))
        waiting[1].cancel()
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
    await closing
    async with open_store(path) as store:
        assert [await store.get(key) for key in "abcd"] == [large, None, large, b"d"]


async def test_a_command_that_waits_too_long_is_not_carried_out(path: Path):
    """Its caller gets a StoreError and can rely on the command having no later effect."""
    async with open_store(path, timeout_ms=50) as store, busy(store):
        with pytest.raises(StoreError, match="longer than timeout_ms, which is 50"):
            await store.put("a", b"a", ttl_s=60)
    async with open_store(path) as store:
        assert await store.get("a") is None


async def test_a_cancelled_command_that_waits_is_not_carried_out(sqlite: SqliteStore):
    """The other commands get their own outcomes."""
    async with busy(sqlite):
        tasks = await send(sqlite, *(sqlite.append("a", b"%d" % i, ttl_s=60) for i in range(4)))
        for task in tasks[::2]:
            task.cancel()
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [1, 2]
    assert await sqlite.tail("a") == [(1, b"1"), (2, b"3")]


async def test_a_command_that_is_cancelled_while_it_runs_is_carried_out_as_a_whole(sqlite: SqliteStore):
    """Its caller is cancelled; the thread continues, and the next command gets its own outcome."""
    running, released = threading.Event(), threading.Event()

    def append(transaction: Transaction) -> int:
        position = transaction.append("a", b"1", 60)
        running.set()
        released.wait()
        return position

    task = asyncio.create_task(sqlite._ask(append, writes=True))
    await asyncio.to_thread(running.wait)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    released.set()

    assert await sqlite.append("a", b"2", ttl_s=60) == 2
    assert await sqlite.tail("a") == [(1, b"1"), (2, b"2")]


async def test_commands_that_wait_together_are_committed_together(sqlite: SqliteStore):
    """They share one transaction and so one write to the disk."""
    statements: list[str] = []
    async with busy(sqlite):
        waiting = await send(sqlite, *(sqlite.take("a", 1, limit=100, window_s=60) for _ in range(50)))
        sqlite._thread._database.set_trace_callback(statements.append)
    grants = await asyncio.gather(*waiting)

    assert sorted(grant.used for grant in grants) == list(range(1, 51))
    assert statements.count("BEGIN IMMEDIATE") == 1


async def test_a_command_that_fails_does_not_fail_its_batch(sqlite: SqliteStore):
    """The store or SQLite may refuse it."""
    broken = sqlite._ask(lambda transaction: transaction._execute("INSERT INTO entry VALUES (1, 1, NULL)"), writes=True)
    async with busy(sqlite):
        tasks = await send(
            sqlite,
            sqlite.put("a", b"a", ttl_s=60),
            sqlite.append("a", b"1", ttl_s=60),
            broken,
            sqlite.put("\ud800", b"no text", ttl_s=60),
            sqlite.take("b", 2**80, limit=2**80, window_s=60),
            sqlite.tail("c", after=2**80),
            sqlite.put("d", b"d", ttl_s=60),
        )
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(outcome).__name__ for outcome in outcomes] == [
        "bool",
        "StoreError",
        "StoreError",
        "StoreError",
        "Grant",
        "list",
        "bool",
    ]
    assert [await sqlite.get(key) for key in "ad"] == [b"a", b"d"]


async def test_a_full_disk_is_an_error(path: Path, sqlite: SqliteStore):
    """Acknowledged writes stay readable, and writing continues when there is room again."""
    await sqlite.put("a", b"a" * 1000, ttl_s=60)
    with room_for(path.with_name("state.sqlite3-wal").stat().st_size + MIB):
        with pytest.raises(StoreError, match="SQLite: "):
            await sqlite.put("b", b"b" * 4 * MIB, ttl_s=60)
        assert await sqlite.get("a") == b"a" * 1000
    await sqlite.put("b", b"b" * 4 * MIB, ttl_s=60)

    assert await sqlite.get("b") == b"b" * 4 * MIB


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Limit the size of files of this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_database_fails_every_command_of_the_batch(sqlite: SqliteStore):
    """SQLite undoes the whole transaction, so none of them is acknowledged or kept."""
    await sqlite.put("a", b"a", ttl_s=60)
    sqlite._thread._database.execute("PRAGMA max_page_count = 20")
    async with busy(sqlite):
        tasks = await send(sqlite, sqlite.put("a", b"b", ttl_s=60), sqlite.put("c", b"c" * MIB, ttl_s=60))
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    kept = await sqlite.get("a")

    assert "SQLITE_FULL" in str(outcomes[1])
    assert kept == (b"a" if isinstance(outcomes[0], StoreError) else b"b")


async def test_a_damaged_file_is_an_error(path: Path):
    """The answer is not wrong, and the thread does not end."""
    async with open_store(path) as store:
        for number in range(50):
            await store.put(f"{number:02}", bytes(8000), ttl_s=60)
    damage(path)
    async with open_store(path) as store:
        outcomes = await asyncio.gather(*(store.get(f"{number:02}") for number in range(50)), return_exceptions=True)

        assert {type(outcome) for outcome in outcomes} <= {StoreError, bytes}
        assert any(isinstance(outcome, StoreError) for outcome in outcomes)


def damage(path: Path) -> None:
    """Overwrite the middle half of a file."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4)
        file.write(b"\xff" * (size // 2))


async def test_a_closed_store_refuses_commands_and_keeps_those_before(path: Path):
    """Closing runs the queued commands; closing again is no error."""
    async with open_store(path) as store:
        async with busy(store):
            waiting = await send(store, *(store.append("a", b"", ttl_s=60) for _ in range(10)))
            closing_store = asyncio.create_task(store.close())
            await asyncio.sleep(0)
        await closing_store
        with pytest.raises(StoreError, match="closed"):
            await store.get("a")

        assert await asyncio.gather(*waiting) == list(range(1, 11))
        assert await store.ready() is False


async def test_a_store_on_a_full_disk_is_not_ready(sqlite: SqliteStore):
    """It can be read, but what has to be kept would be lost."""
    before = await sqlite.ready()
    with disk_full_at(1):
        full = await sqlite.ready()

    assert (before, full) == (True, False)
