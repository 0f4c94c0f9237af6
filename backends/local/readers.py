"""Who reads requests: their templates, tokens and schemas may take long, and other callers do not wait for that.

What is plain and short is read at once: that takes less than to hand it over. Short requests are read side by side.
Long ones are read one after the other, so that a few of them never take all the threads that there are; who would have
to wait behind too many is told to come back.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from backends.local.scheduling.admission import busy_error as busy

T = TypeVar("T")

# A plain body of this size is read in a millisecond or two.
PLAIN_BYTES = 4_096
# A longer body is a long request.
LONG_BYTES = 32_768
# What one that is long may take, about; for those who are to come back.
LONG_S = 1.0


class Readers:
    """At most `max_waiting` long requests wait for the one that is read."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        # One thread, not a lock: a caller that leaves ends nothing, and what it has begun goes on to hold its place.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headgate-reader")
        self._long: list[Future[Any]] = []

    async def read(self, work: Callable[[], T], size_bytes: int, *, plain: bool) -> T:
        """What `work` gives, and what it raises. Raises BackendError when too many wait.

        `plain`: whether there is nothing in it but text, so that its size bounds what it takes to read.
        """
        if plain and size_bytes <= PLAIN_BYTES:
            return work()
        if size_bytes <= LONG_BYTES:
            return await asyncio.to_thread(work)
        self._long = [each for each in self._long if not each.done()]
        waiting = len(self._long) - 1
        if waiting >= self._max_waiting:
            raise busy(
                f"{waiting} long requests wait to be read already; the limit is {self._max_waiting}.", waiting * LONG_S
            )
        reading = self._thread.submit(work)
        self._long.append(reading)
        return await asyncio.wrap_future(reading)

    def close(self) -> None:
        """Nothing is begun any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
