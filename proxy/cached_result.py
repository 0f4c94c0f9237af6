"""A result that is fetched once at a time and cached for a while."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class CachedResult(Generic[T]):
    """Calls `fetch` when the last result is older than `ttl_s`. Concurrent callers share one fetch."""

    def __init__(self, fetch: Callable[[], Awaitable[T]], ttl_s: float) -> None:
        self._fetch = fetch
        self._ttl_s = ttl_s
        self._result: tuple[float, T] | None = None
        self._fetching: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Return the result, fetched now if the last one is too old. Raises what `fetch` raises."""
        loop = asyncio.get_running_loop()
        if self._result is not None and loop.time() - self._result[0] < self._ttl_s:
            return self._result[1]
        if self._fetching is None:
            self._fetching = loop.create_task(self._refresh())
        return await asyncio.shield(self._fetching)  # a caller that is cancelled does not cancel the others

    async def _refresh(self) -> T:
        try:
            result = await self._fetch()
            self._result = (asyncio.get_running_loop().time(), result)
            return result
        finally:
            self._fetching = None
