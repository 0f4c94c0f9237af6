"""The part of a shared counter that one call reserves and returns."""

import asyncio
import hashlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from proxy.stores import Grant, Store, StoreError
from proxy.wire.loggable import short_message

log = structlog.get_logger()

T = TypeVar("T")


class Reservation:
    """A part of the limit of one counter, for one call.

    `granted` is what the call may use. What a call has begun with the store is finished even if the call is cancelled.
    """

    def __init__(self, store: Store, limit: int, window_s: float, key: str, *, policy: str, team: str) -> None:
        """`window_s` is how long the counter lasts from its first use, `policy` names the owner in the log."""
        self.limit = limit
        self.granted = 0
        self._store = store
        self._window_s = window_s
        self._key = key
        self._policy = policy
        self._team = team
        self._held = 0  # what was taken in `_window` and not given back
        self._window = 0
        self._step: asyncio.Task[Any] | None = None

    async def take(self, amount: int, *, whole: bool = False) -> Grant:
        """Add to `granted` up to `amount` of what is left; with `whole`, all of it or nothing. Raises StoreError."""
        return await self._finish(self._take(amount, self.limit, whole))

    async def give_back(self, used: int = 0) -> None:
        """Return what the call holds beyond `used`. A failure is logged: the counter stays lower by that much."""
        await self._end_step()
        if self._held > used:
            await self._finish(self._give_back(used))

    async def _end_step(self) -> None:
        """Wait for what was begun before the call was cancelled."""
        if self._step is not None and not self._step.done():
            await asyncio.wait([self._step])

    async def _finish(self, step: Coroutine[Any, Any, T]) -> T:
        self._step = task = asyncio.ensure_future(step)
        return await asyncio.shield(task)

    async def _take(self, amount: int, limit: int, whole: bool) -> Grant:  # noqa: FBT001  of `take`
        grant = await self._store.take(
            self._key, amount, limit=limit, window_s=self._window_s, whole=whole, group=self._team
        )
        if grant.granted and grant.window != self._window:  # what was taken in an earlier window ended with it
            self._window, self._held = grant.window, 0
        self._held += grant.granted
        self.granted += grant.granted
        return grant

    async def _give_back(self, used: int) -> None:
        unused, self._held = self._held - used, used
        try:
            await self._store.give(self._key, unused, window=self._window)
        except StoreError as error:
            log.warning("budget.failed", policy=self._policy, error=short_message(error))


def counter_key(policy: str, *parts: str) -> str:
    """Return the key of a counter. It contains a hash only, no text of a caller's."""
    framed = b"".join(
        len(encoded).to_bytes(8) + encoded for encoded in (part.encode(errors="surrogatepass") for part in parts)
    )
    return f"headgate:{policy}:{hashlib.sha256(framed).hexdigest()}"
