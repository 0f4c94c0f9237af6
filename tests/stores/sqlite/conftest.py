"""Fixtures with a store in a SQLite file, and functions that block its thread."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from proxy.stores.sqlite import SqliteStore
from proxy.stores.sqlite.transaction import Transaction
from tests.stores.conftest import LONG_TIMEOUT_MS, SteppedClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite3"


@pytest.fixture
async def sqlite(path: Path) -> AsyncIterator[SqliteStore]:
    """A started store in a new file."""
    async with open_store(path) as store:
        yield store


@asynccontextmanager
async def open_store(path: Path, clock: SteppedClock | None = None, **keys: Any) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path=path, **{"timeout_ms": LONG_TIMEOUT_MS, **keys})
    if clock is not None:
        vars(store)["_clock"] = clock
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def busy(store: SqliteStore) -> AsyncIterator[None]:
    """Block the thread of a store: commands sent within the `with` block wait."""
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
    """Send commands to a blocked thread, in this order."""
    tasks = [asyncio.create_task(command) for command in commands]
    while store._thread._waiting.qsize() < len(tasks):  # noqa: ASYNC110
        await asyncio.sleep(0)
    return tasks


def count_rows(path: Path) -> int:
    """Return the number of rows in a file, including those of expired data."""
    with closing(sqlite3.connect(path)) as direct:
        return sum(direct.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("record", "entry"))
