"""The store in a SQLite file: its file, its thread, and what happens when either cannot do its work."""

import asyncio
import resource
import sqlite3
import stat
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.config import ConfigError, build
from proxy.stores import StoreError
from proxy.stores.sqlite import SqliteStore
from proxy.stores.sqlite.database import open_database
from proxy.stores.sqlite.transaction import Transaction
from tests.stores.conftest import PATIENT_MS, SteppedClock

MIB = 1_048_576


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite3"


@pytest.fixture
async def sqlite(path: Path) -> AsyncIterator[SqliteStore]:
    """A started store in a new file."""
    async with opened(path) as store:
        yield store


@asynccontextmanager
async def opened(path: Path, clock: SteppedClock | None = None, **keys: Any) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path=path, **{"timeout_ms": PATIENT_MS, **keys})
    if clock is not None:
        vars(store)["_clock"] = clock
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def busy(store: SqliteStore) -> AsyncIterator[None]:
    """Keep the thread of a store from its next command: what is sent within the block waits."""
    running, released = threading.Event(), threading.Event()

    def wait(_: Transaction) -> None:
        running.set()
        released.wait()

    blocking = asyncio.gather(store._ask(wait, writes=False), return_exceptions=True)
    await asyncio.to_thread(running.wait)
    try:
        yield
    finally:
        released.set()
        await blocking


async def send(store: SqliteStore, *commands: Coroutine[Any, Any, object]) -> list[asyncio.Task[object]]:
    """Send commands that wait, in this order."""
    tasks = [asyncio.create_task(command) for command in commands]
    while store._thread._waiting.qsize() < len(tasks):  # noqa: ASYNC110
        await asyncio.sleep(0)
    return tasks


def count_rows(path: Path) -> int:
    """How many rows a file has, including those of expired data."""
    with closing(sqlite3.connect(path)) as direct:
        return sum(direct.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("record", "entry"))


async def test_only_the_owner_can_read_the_file(path: Path, sqlite: SqliteStore):
    """The files beside it, in which SQLite writes first, included."""
    await sqlite.put("a", b"a", ttl_s=60)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}

    assert modes == {"state.sqlite3": 0o600, "state.sqlite3-wal": 0o600, "state.sqlite3-shm": 0o600}


async def test_everything_is_kept_across_a_restart(path: Path):
    """Values, what is in use of a window that runs, journals, leases."""
    clock = SteppedClock()
    async with opened(path, clock) as store:
        await store.put("value", b"a", ttl_s=60)
        window = (await store.take("counter", 7, limit=10, window_s=60)).window
        await store.append("journal", b"b", ttl_s=60)
        await store.claim("lease", "owner", lease_s=60)
    clock.advance(30)
    async with opened(path, clock) as store:
        await store.give("counter", 1, window=window)
        grant = await store.take("counter", 10, limit=10, window_s=60)

        assert await store.get("value") == b"a"
        assert (grant.granted, grant.window, grant.resets_in_s) == (4, window, 30)
        assert await store.append("journal", b"c", ttl_s=60) == 2
        assert await store.claim("lease", "another", lease_s=60) is False
    clock.advance(31)
    async with opened(path, clock) as store:
        assert [key async for key in store.scan("")] == ["journal"]


async def test_two_stores_of_one_file_share_it(path: Path, sqlite: SqliteStore):
    """As they do while a new config replaces an old one."""
    async with opened(path) as other:
        await other.put("a", b"a", ttl_s=60)
        await sqlite.take("b", 6, limit=10, window_s=60)

        assert await sqlite.get("a") == b"a"
        assert (await other.take("b", 6, limit=10, window_s=60)).granted == 4


async def test_time_is_the_clock_of_the_machine(path: Path):
    """It goes on while no process runs, and is the same in all of them."""
    assert SqliteStore(path=path)._clock is time.time


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))

    assert SqliteStore(path=Path("~/a.sqlite3")).path == tmp_path / "a.sqlite3"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "state.path: missing"),
        ({"path": "~no-such-user/a"}, "state.path: .*home directory"),
        ({"path": "a", "timeout_ms": 0}, "state.timeout_ms"),
        ({"path": "a", "max_waiting": 0}, "state.max_waiting"),
    ],
)
def test_a_broken_table_names_its_key(keys: dict[str, object], message: str):
    """As the config is read."""
    tables = {"backend": [{"name": "a", "use": "replay", "path": "a.sse"}], "route": [{"model": "*", "backend": "a"}]}
    with pytest.raises(ConfigError, match=message):
        build(tables | {"state": {"use": "sqlite", **keys}})


def no_folder(path: Path) -> Path:
    return path / "none"


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


def a_text(path: Path) -> Path:
    path.write_text("This is not a database. " * 100)
    return path


def another_program(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as direct:
        direct.execute("CREATE TABLE bookmarks (url TEXT)")
    return path


def another_schema(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as direct:
        for table in ("schema", "record", "entry"):
            direct.execute(f"CREATE TABLE {table} (something TEXT)")
    return path


def newer(path: Path) -> Path:
    open_database(path, 1).close()
    with closing(sqlite3.connect(path)) as direct, direct:
        direct.execute("UPDATE schema SET version = 2")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_folder, "cannot be opened: No such file or directory"),
        (a_folder, "cannot be opened: Is a directory"),
        (a_text, "is not a SQLite database"),
        (another_program, "is a database of another program"),
        (another_schema, "cannot be used: no such column: version"),
        (newer, "has schema version 2; this program knows version 1"),
    ],
)
async def test_a_file_that_cannot_be_used_fails_the_start(path: Path, make, message: str):
    """With its path; a file of something else is not changed, and closing is no error."""
    found = make(path)
    before = contents(found)
    store = SqliteStore(path=found)
    with pytest.raises(ValueError, match=f"{found} {message}"):
        await store.start()
    with pytest.raises(StoreError, match="not started"):
        await store.get("a")
    await store.close()

    assert contents(found) == before


def contents(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


async def test_a_file_that_another_process_locks_fails_the_start_in_time(path: Path):
    """A store does not wait longer than for a command."""
    open_database(path, 1).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as direct:
        direct.execute("BEGIN IMMEDIATE")
        with pytest.raises(ValueError, match="database is locked"):
            await SqliteStore(path=path, timeout_ms=50).start()


async def test_a_lock_of_another_process_is_waited_for(path: Path, sqlite: SqliteStore):
    """As long as timeout_ms allows."""
    with closing(sqlite3.connect(path, isolation_level=None)) as direct:
        direct.execute("BEGIN IMMEDIATE")
        putting = asyncio.create_task(sqlite.put("a", b"a", ttl_s=60))
        await asyncio.sleep(0)
        direct.execute("COMMIT")
        await putting

    assert await sqlite.get("a") == b"a"


async def test_a_lock_that_is_held_too_long_is_an_error(path: Path):
    """Nothing of the command is done, readers never wait, and the next command works."""
    async with opened(path, timeout_ms=50) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as direct:
            direct.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError):
                await store.put("a", b"a", ttl_s=60)
            value = await read_patiently(store, "a")
            direct.execute("COMMIT")
    async with opened(path) as store:
        assert (value, await store.get("a")) == (None, None)
        assert await store.put("a", b"b", ttl_s=60) is True


async def read_patiently(store: SqliteStore, key: str) -> bytes | None:
    """Read a value from a store with a short deadline on a machine that may be busy."""
    async with asyncio.timeout(PATIENT_MS / 1000):
        while True:
            try:
                return await store.get(key)
            except StoreError:
                continue


async def test_commands_beyond_the_queue_are_errors(path: Path):
    """At once. Those that wait are carried out."""
    async with opened(path, max_waiting=2) as store:
        async with busy(store):
            waiting = await send(store, store.put("a", b"a", ttl_s=60), store.put("b", b"b", ttl_s=60))
            with pytest.raises(StoreError, match="2 commands are waiting, and max_waiting allows no more"):
                await store.put("c", b"c", ttl_s=60)
        await asyncio.gather(*waiting)

        assert [await store.get(key) for key in "abc"] == [b"a", b"b", None]


async def test_a_command_that_waits_too_long_is_not_carried_out(path: Path):
    """Its caller gets a StoreError, and may decide without fear of a late effect."""
    async with opened(path, timeout_ms=50) as store, busy(store):
        with pytest.raises(StoreError, match="longer than timeout_ms, which is 50"):
            await store.put("a", b"a", ttl_s=60)
    async with opened(path) as store:
        assert await store.get("a") is None


async def test_a_cancelled_command_that_waits_is_not_carried_out(sqlite: SqliteStore):
    """And the others get their own outcomes."""
    async with busy(sqlite):
        tasks = await send(sqlite, *(sqlite.append("a", b"%d" % i, ttl_s=60) for i in range(4)))
        for task in tasks[::2]:
            task.cancel()
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [1, 2]
    assert await sqlite.tail("a") == [(1, b"1"), (2, b"3")]


async def test_a_command_that_is_cancelled_while_it_runs_is_carried_out_as_a_whole(sqlite: SqliteStore):
    """Its caller has left; the thread goes on, and the next command gets its own outcome."""
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
    """One transaction, and so one write to the disk, for many of them."""
    statements: list[str] = []
    async with busy(sqlite):
        waiting = await send(sqlite, *(sqlite.take("a", 1, limit=100, window_s=60) for _ in range(50)))
        sqlite._thread._database.set_trace_callback(statements.append)
    grants = await asyncio.gather(*waiting)

    assert sorted(grant.used for grant in grants) == list(range(1, 51))
    assert statements.count("BEGIN IMMEDIATE") == 1


async def test_a_command_that_fails_leaves_its_batch_alone(sqlite: SqliteStore):
    """Whether the store or SQLite refuses it."""
    broken = sqlite._ask(lambda transaction: transaction._execute("INSERT INTO entry VALUES (1, 1, NULL)"), writes=True)
    async with busy(sqlite):
        tasks = await send(
            sqlite,
            sqlite.put("a", b"a", ttl_s=60),
            sqlite.add("a", 1, ttl_s=60),
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
    """What was acknowledged before stays readable, and writes go on when there is room again."""
    await sqlite.put("a", b"a" * 1000, ttl_s=60)
    with room_for(path.with_name("state.sqlite3-wal").stat().st_size + MIB):
        with pytest.raises(StoreError, match="SQLite: "):
            await sqlite.put("b", b"b" * 4 * MIB, ttl_s=60)
        assert await sqlite.get("a") == b"a" * 1000
    await sqlite.put("b", b"b" * 4 * MIB, ttl_s=60)

    assert await sqlite.get("b") == b"b" * 4 * MIB


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond that size."""
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

    assert "database or disk is full" in str(outcomes[1])
    assert kept == (b"a" if isinstance(outcomes[0], StoreError) else b"b")


async def test_a_damaged_file_is_an_error(path: Path):
    """Neither a wrong answer nor the end of the thread."""
    async with opened(path) as store:
        for number in range(50):
            await store.put(f"{number:02}", bytes(8000), ttl_s=60)
    damage(path)
    async with opened(path) as store:
        outcomes = await asyncio.gather(*(store.get(f"{number:02}") for number in range(50)), return_exceptions=True)

        assert {type(outcome) for outcome in outcomes} <= {StoreError, bytes}
        assert any(isinstance(outcome, StoreError) for outcome in outcomes)


def damage(path: Path) -> None:
    """Overwrite the middle half of a file."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4)
        file.write(b"\xff" * (size // 2))


def test_a_sweep_removes_no_more_than_its_share(path: Path):
    """A journal's entries count, so that no command waits for a long journal to be removed."""
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


async def test_expired_rows_are_removed_without_any_command(path: Path):
    """The thread sweeps when it has nothing else to do, a deleted journal included."""
    clock = SteppedClock()
    async with opened(path, clock) as store:
        for number in range(150):
            await store.put(f"{number}", b"", ttl_s=10)
            await store.append("expired", b"", ttl_s=10)
            await store.append("deleted", b"", ttl_s=900)
        await store.delete("deleted")
        await store.append("deleted", b"new", ttl_s=900)
        clock.advance(11)
        async with asyncio.timeout(PATIENT_MS / 1000):
            while count_rows(path) > 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        assert await store.tail("deleted") == [(1, b"new")]


async def test_every_write_removes_some_expired_rows(path: Path):
    """However busy a store is, its file does not keep growing."""
    clock = SteppedClock()
    async with opened(path, clock) as store:
        for _ in range(20):
            await asyncio.gather(*(store.put(f"{clock.now} {i}", b"", ttl_s=10) for i in range(50)))
            clock.advance(11)
        await store.put("last", b"", ttl_s=10)

        assert count_rows(path) <= 51


async def test_a_closed_store_refuses_commands_and_keeps_those_before(path: Path):
    """Closing runs what waits; closing again is no error."""
    async with opened(path) as store:
        async with busy(store):
            waiting = await send(store, *(store.append("a", b"", ttl_s=60) for _ in range(10)))
            closing_store = asyncio.create_task(store.close())
            await asyncio.sleep(0)
        await closing_store
        with pytest.raises(StoreError, match="closed"):
            await store.get("a")

        assert await asyncio.gather(*waiting) == list(range(1, 11))
        assert await store.ready() is False
