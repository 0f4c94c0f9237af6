"""Decides where requests are prepared, because templates, tokens and schemas may take long and must not block others.

A short request of plain text is prepared at once, which is faster than handing it to a thread. Other short requests are
prepared in parallel threads. Long ones are prepared one after the other, so that a few of them never occupy all
threads; when too many wait, one more is refused.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from backends.local.scheduling.admission import busy_error

T = TypeVar("T")

# A plain body of this size is prepared in a millisecond or two.
MAX_INLINE_BYTES = 4_096
# A longer body makes a long request.
MAX_SHORT_BYTES = 32_768
# The estimated time of one long request, for Retry-After.
LONG_REQUEST_S = 1.0


class RequestExecutor:
    """Runs the preparation of requests. At most `max_waiting` long requests wait for the one that is prepared."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        # One thread instead of a lock: a thread cannot be cancelled, so a request keeps its place until it is prepared.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headgate-request")
        self._long: list[Future[Any]] = []

    async def run(self, prepare: Callable[[], T], size_bytes: int, *, plain: bool) -> T:
        """Return what `prepare` returns, or raise what it raises. Raises BackendError when too many requests wait.

        `plain`: whether the request contains only text, so that its size bounds the time that it takes.
        """
        if plain and size_bytes <= MAX_INLINE_BYTES:
            return prepare()
        if size_bytes <= MAX_SHORT_BYTES:
            return await asyncio.to_thread(prepare)
        self._long = [each for each in self._long if not each.done()]
        waiting = len(self._long) - 1
        if waiting >= self._max_waiting:
            message = f"{waiting} long requests already wait to be prepared; the limit is {self._max_waiting}."
            raise busy_error(message, waiting * LONG_REQUEST_S)
        future = self._thread.submit(prepare)
        self._long.append(future)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Cancel the requests that wait."""
        self._thread.shutdown(wait=False, cancel_futures=True)
