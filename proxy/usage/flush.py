"""Writes what was counted to the store, every few seconds and when the process ends."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice

import structlog

from proxy.stores import Store, StoreError
from proxy.usage.book import UsageBook
from proxy.usage.columns import CALLS, INTERRUPTED
from proxy.usage.spool import Batch, Spool
from proxy.usage.table import UsageTable
from proxy.wire.loggable import short_message

log = structlog.get_logger()

DAY_S = 86_400.0
PART_ROWS = 200
"""How many rows are added by one command: a store does nothing else meanwhile."""
MAX_PARTS = 1_000_000
LAST_S = 1.0
"""How long the last batch is tried again when the process ends, in seconds."""
RETRY_S = 0.25


class UsageFlush:
    """Writes batches one after the other. Each part has a number, so that one whose fate is unknown can be repeated."""

    def __init__(self, store: Store, book: UsageBook, settings: UsageTable) -> None:
        self._store = store
        self._book = book
        self._ttl_s = settings.keep_days * DAY_S
        self._flush_s = settings.flush_s
        self._waiting: list[Batch] = [*book.left]
        self._lock = asyncio.Lock()
        self._is_failing = False
        if book.left:
            log.info("usage.recovered", **_sums_of(book.left))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write inside the block again and again, and once more at its end."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            await self._finish()

    async def flush(self) -> bool:
        """Write what was counted, and return whether all of it is in the store. What was not is kept."""
        async with self._lock:
            try:
                while self._waiting or self._cut():
                    await self._write(self._waiting[0])
                    del self._waiting[0]
                    if not self._waiting:
                        self._book.settle()
            except StoreError as error:
                if not self._is_failing:
                    log.warning("usage.flush_failed", error=short_message(error), **_sums_of(self._waiting))
                self._is_failing = True
                return False
            self._is_failing = False
            return True

    def _cut(self) -> bool:
        batch = self._book.cut()
        if batch is not None:
            self._waiting.append(batch)
        return batch is not None

    async def _write(self, batch: Batch) -> None:
        """Write a batch in parts. Raises StoreError; a part that was written is not added again."""
        for place, (hour, names) in enumerate(_parts(batch)):
            rows = {name: batch.sums[hour, name] for name in names}
            number = batch.number * MAX_PARTS + place
            await self._store.add(hour_key(hour), rows, ttl_s=self._ttl_s, source=batch.source, number=number)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._flush_s)
            await self.flush()

    async def _finish(self) -> None:
        end = asyncio.get_running_loop().time() + LAST_S
        while not await self.flush():
            if asyncio.get_running_loop().time() > end:
                log.error("usage.lost", **_sums_of(self._waiting))
                return
            await asyncio.sleep(RETRY_S)


@asynccontextmanager
async def counting(
    settings: UsageTable, store: Store, files: tuple[int, int] | None = None
) -> AsyncIterator[UsageBook | None]:
    """Count usage inside the block, and write it to the store; None if it is not counted.

    `files` are those of the place that a worker has.
    """
    if not settings.keep_days:
        yield None
        return
    book = UsageBook(settings, None if files is None else Spool(files))
    async with UsageFlush(store, book, settings).running():
        yield book


def _parts(batch: Batch) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield an hour and names of its rows for each command; the same ones each time."""
    for hour in dict.fromkeys(hour for hour, _ in batch.sums):
        names = iter([name for each, name in batch.sums if each == hour])
        while part := [*islice(names, PART_ROWS)]:
            yield hour, part


def _sums_of(batches: Sequence[Batch]) -> dict[str, int]:
    rows = [amounts for batch in batches for amounts in batch.sums.values()]
    return {"calls": sum(row[CALLS] for row in rows), "interrupted": sum(row[INTERRUPTED] for row in rows)}


def hour_key(hour: str) -> str:
    """Return the key of an hour, "2026-11-30T10" in UTC."""
    return f"headgate:usage:{hour}"
