"""Keeps a directory up to date with the issued keys in `[state]`, in a background task.

While the store is away the keys that are known stay valid until they expire, and others are refused with 503.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager

import structlog

from proxy.context import Caller
from proxy.identity.directory import Directory
from proxy.identity.key_book import KeyBook, used_key
from proxy.stores import LONGEST_S, Store, StoreError
from proxy.wire.loggable import short_message

log = structlog.get_logger()

USES_EVERY_S = 30.0
"""How often the last uses of keys are written, in seconds."""


class IssuedKeys:
    """Reads changes every `refresh_s` seconds."""

    def __init__(
        self, store: Store, directory: Directory, refresh_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._directory = directory
        self._refresh_s = refresh_s
        self._clock = clock
        self._book = KeyBook()
        self._began_at, self._ends_at = 0.0, 0.0  # the time in which no known key begins or ceases to be valid
        self._uses_due = time.monotonic() + USES_EVERY_S

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Read the keys, and follow their changes inside the block."""
        await self.refresh()
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            await self.write_uses()

    async def refresh(self) -> None:
        """Read the changes, and apply them to the directory."""
        directory, book = self._directory, self._book
        try:
            book = await book.read_on(self._store)
        except StoreError as error:
            if directory.is_current:
                log.warning("keys.unavailable", error=short_message(error))
            directory.is_current = False
        else:
            if not directory.is_current:
                log.info("keys.resumed", keys=len(book.keys))
            directory.is_current = True
        now = self._clock()
        if book is not self._book or not self._began_at <= now < self._ends_at:  # a clock may be set back
            self._book = book
            callers, ended, ends_at = await asyncio.to_thread(_valid_at, now, book)
            directory.replace_issued(callers, ended)
            self._began_at, self._ends_at = now, ends_at

    async def write_uses(self) -> None:
        """Write the time of use of the keys used since the last write. A failed write is lost."""
        used, now = self._directory.take_used(), str(int(self._clock())).encode()
        if used:
            try:
                await self._store.put_many([(used_key(key_id), now) for key_id in used], ttl_s=LONGEST_S)
            except StoreError as error:
                log.warning("keys.use_lost", keys=len(used), error=short_message(error))

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            await self.refresh()
            if time.monotonic() >= self._uses_due:
                self._uses_due = time.monotonic() + USES_EVERY_S
                await self.write_uses()


def _valid_at(now: float, book: KeyBook) -> tuple[Mapping[bytes, Caller], Collection[bytes], float]:
    """Return the callers of the keys that are valid at a time, the keys that were, and until when that holds."""
    valid = [key for key in book.keys.values() if key.status(now) == "valid"]
    ended = {bytes.fromhex(key.digest) for key in book.keys.values() if key.status(now) != "valid"}
    ends_at = min((key.expires_at for key in valid if key.expires_at), default=now + LONGEST_S)
    return {bytes.fromhex(key.digest): key.caller for key in valid}, ended, ends_at
