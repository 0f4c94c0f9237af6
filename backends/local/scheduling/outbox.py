"""Brings what the library's threads tell into the loop: one wake-up for all that is there, not one for each token."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from backends.local.decoding.job import End, Job, Token


class News(NamedTuple):
    """A token of a job, or the end of a run."""

    job: Job
    token: Token | None
    finish: End | None = None
    message: str = ""


class Outbox:
    """Filled in any thread, emptied in the loop's; `full` is called there after `wake`."""

    def __init__(self, full: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._full = full
        self._news: deque[News] = deque()
        self._woken = False

    def emit(self, job: Job, token: Token) -> None:
        self._news.append(News(job, token))

    def ended(self, job: Job, finish: End, message: str) -> None:
        self._news.append(News(job, None, finish, message))

    def wake(self) -> None:
        """Have it emptied soon."""
        # Without a lock: the flag is taken back before the emptying begins, so what is in before it was read gets out.
        if self._news and not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._full)

    def emit_now(self, job: Job, token: Token) -> None:
        self.emit(job, token)
        self.wake()

    def ended_now(self, job: Job, finish: End, message: str) -> None:
        self.ended(job, finish, message)
        self.wake()

    def emptied(self) -> Iterator[News]:
        """All that is there."""
        self._woken = False
        while self._news:
            yield self._news.popleft()
