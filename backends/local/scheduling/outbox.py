"""Passes tokens from the library's threads to the event loop, with one wake-up for all that are pending.

To wake the loop and the gateway costs more than what they do for a token, so tokens that nothing needs at once wait for
others, HOLD_S at most while their batch goes on.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator

from backends.local.decoding.job import Job, RunEnd, Token

HOLD_S = 0.25

RunEvent = tuple[Job, Token | None, RunEnd | None, str]
"""A token of a job, or the end of its run with a message. A plain tuple: there is one for each token."""


class Outbox:
    """A queue that any thread fills; `wake` lets the loop call `on_events`, which drains it."""

    def __init__(self, on_events: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_events = on_events
        self._events: deque[RunEvent] = deque()
        self._wake_pending = False
        self._is_urgent = False  # whether an event cannot wait for others
        self._woken_at = 0.0

    def emit(self, job: Job, token: Token) -> None:
        """Add a token."""
        self._events.append((job, token, None, ""))
        if job.options.delivers_at_once:
            self._is_urgent = True

    def end(self, job: Job, end: RunEnd, message: str) -> None:
        """Add the end of a run."""
        self._events.append((job, None, end, message))
        self._is_urgent = True

    def wake(self) -> None:
        """Schedule `on_events` in the loop unless it is scheduled already, or what is pending can wait for more."""
        # No lock is needed: `drain` resets the flags before it reads, so events that were added earlier are drained.
        if not self._events or self._wake_pending:
            return
        now = time.monotonic()
        if self._is_urgent or now - self._woken_at >= HOLD_S:
            self._wake_pending, self._woken_at = True, now
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
        self._wake_pending = self._is_urgent = False
        while self._events:
            yield self._events.popleft()
