"""When the library forgets the prefixes that it keeps: it can only forget them all, and only while nothing runs."""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from backends.local.engine.device import reload
from backends.local.engine.prefixes import Prefixes

log = structlog.get_logger()

# Loading may take this part of the time.
PART = 0.01
# While there is always something to do the model is kept from it for so long, so seldom, in case what runs ends soon.
DRAINED_S, DRAINED_EVERY_S = 1.0, 30.0


class Reloading:
    """Asked before anything is started; `again` is called when that may go on."""

    def __init__(self, generator: Any, prefixes: Prefixes, again: Callable[[], None]) -> None:
        self._generator = generator
        self._prefixes = prefixes
        self._again = again
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._drains_from = self._drains_until = 0.0
        self._closed = False

    def holds_back(self, busy: bool) -> bool:  # noqa: FBT001  the one thing it is told
        """Whether nothing may be started now."""
        if self._closed or self._task is not None:
            return True
        now = self._loop.time()
        if not self._prefixes.full or now < self._not_before:
            return False
        if not busy:
            self._task = self._loop.create_task(self._reload())
            return True
        if now >= self._drains_from:
            self._drains_from, self._drains_until = now + DRAINED_EVERY_S, now + DRAINED_S
            self._loop.call_at(self._drains_until, self._again)
        return now < self._drains_until

    async def close(self) -> None:
        """From now on nothing is started."""
        self._closed = True
        if self._task is not None:
            await self._task
        self._generator = None

    async def _reload(self) -> None:
        began = self._loop.time()
        try:
            await asyncio.to_thread(reload, self._generator)
        except (RuntimeError, OSError, MemoryError) as error:
            log.error("local.reload_failed", error=str(error))  # noqa: TRY400  the sentence says it all
        else:
            self._prefixes.emptied()
        ended = self._loop.time()
        self._not_before = ended + (ended - began) / PART
        self._task = None
        self._again()
