"""Passes tokens from the library's threads to the event loop, with one wake-up for all that are pending."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from backends.local.decoding.job import Job, RunEnd, Token

RunEvent = tuple[Job, Token | None, RunEnd | None, str]
"""A token of a job, or the end of its run with a message. A plain tuple: there is one for each token."""


class Outbox:
    """A queue that any thread fills; `wake` lets the loop call `on_events`, which drains it."""

    def __init__(self, on_events: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_events = on_events
        self._events: deque[RunEvent] = deque()
        self._wake_pending = False

    def emit(self, job: Job, token: Token) -> None:
        """Add a token."""
        self._events.append((job, token, None, ""))

    def end(self, job: Job, end: RunEnd, message: str) -> None:
        """Add the end of a run."""
        self._events.append((job, None, end, message))

    def wake(self) -> None:
        """Schedule `on_events` in the loop unless it is scheduled already."""
        # No lock is needed: `drain` resets the flag before it reads, so events that were added earlier are drained.
        if self._events and not self._wake_pending:
            self._wake_pending = True
            self._loop.call_soon_threadsafe(self._on_events)

    def emit_now(self, job: Job, token: Token) -> None:
        """Add a token and wake the loop."""
        self.emit(job, token)
        self.wake()

    def end_now(self, job: Job, end: RunEnd, message: str) -> None:
        """Add the end of a run and wake the loop."""
        self.end(job, end, message)
        self.wake()

    def drain(self) -> Iterator[RunEvent]:
        """Yield all pending events."""
        self._wake_pending = False
        while self._events:
            yield self._events.popleft()
