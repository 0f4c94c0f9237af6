"""Ejections that the processes of a gateway share, through the store of [state].

A process decides by what it knows itself; what others know arrives some seconds later. No call waits for the store, and
a fault of it changes nothing but that.
"""

import asyncio
import hashlib
import time
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any

import structlog

from proxy.routing.targets import Target
from proxy.stores import Store, StoreError
from proxy.wire.loggable import short_message

log = structlog.get_logger()

POLL_S = 2.0
"""How often the store is asked while calls are made to routes with several targets, in seconds."""


class SharedEjections:
    """Publishes the ejections of this process, and applies those of others."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next_poll = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def publish(self, target: Target, seconds: float) -> None:
        """Let other processes know that a target is ejected for some seconds."""
        until = f"{time.time() + seconds:.3f} {seconds:.3f}".encode()
        self._start(self._write(_key(target), until, seconds))

    def poll(self, targets: Iterable[Target], now: float) -> None:
        """Ask, now and then, which of these targets other processes have ejected."""
        if now >= self._next_poll:
            self._next_poll = now + POLL_S
            self._start(self._read([*targets]))

    async def close(self) -> None:
        """Give up what is not written or read yet."""
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, key: str, until: bytes, seconds: float) -> None:
        try:
            await self._store.put(key, until, ttl_s=max(1.0, seconds))
        except StoreError as error:
            log.warning("ejection.share_failed", error=short_message(error))

    async def _read(self, targets: list[Target]) -> None:
        with suppress(StoreError):
            for target in targets:
                seconds = _seconds_left(await self._store.get(_key(target)))
                if seconds > 0:
                    target.breaker.open_for(asyncio.get_running_loop().time(), seconds)


def _seconds_left(value: bytes | None) -> float:
    """Return for how long an ejection still holds, not longer than at its beginning; 0 for what is none."""
    try:
        until, most = map(float, (value or b"0 0").split())
    except ValueError:
        return 0.0
    return min(until - time.time(), most)  # the clock may have been set back


def _key(target: Target) -> str:
    return f"headgate:ejected:{hashlib.sha256(target.backend.name.encode()).hexdigest()}"
