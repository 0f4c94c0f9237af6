"""The deadlines of a connection to an upstream.

One timer checks them. It is not moved when data arrives, but started again for the new deadline when it is due.
"""

import asyncio
import math
import time

from backends.upstream.errors import overran, stalled, timed_out
from backends.upstream.http1.timeouts import Timeouts
from proxy.timers import Timer, Timers
from proxy.wire.errors import BackendError


class TimedConnection(asyncio.Protocol):
    """A connection that fails when a deadline passes. At most one task waits for it."""

    __slots__ = (
        "_deadline", "_ends", "_error", "_event_deadline", "_has_event", "_is_active", "_loop", "_timeouts", "_timer",
        "_timers", "_transport", "_waiter",
    )  # fmt: skip
    _transport: asyncio.Transport

    def __init__(self, timeouts: Timeouts, timers: Timers) -> None:
        self._timeouts = timeouts
        self._timers = timers
        self._loop = asyncio.get_running_loop()
        self._error: BackendError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: Timer | None = None
        self._deadline = self._ends = math.inf  # of the current wait, and of the whole answer; infinite: none
        self._event_deadline: float | None = None  # of the next event
        self._has_event = self._is_active = False

    def note_event(self) -> None:
        """Record that an event has arrived; the deadline of the next one begins."""
        self._has_event, self._event_deadline = True, None

    def abort(self) -> None:
        """Close the connection and discard unwritten data."""
        self._transport.abort()

    def _fail(self, error: BackendError) -> None:
        self._error = error
        self._transport.abort()
        self._wake()

    def _wait(self) -> asyncio.Future[None]:
        """Return a future for the next change of the connection. Raises BackendError if the connection has ended."""
        if self._error is not None:
            raise self._error
        waiter = self._waiter = self._loop.create_future()
        return waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _start_wait(self, seconds: float) -> None:
        """Set the deadline. The timer is due no later than any later deadline, so it need not be moved."""
        self._deadline = time.monotonic() + seconds
        if self._timer is None:
            self._start_timer()

    def _start_timer(self) -> None:
        shortest_s = min(self._timeouts.first_event_s, self._timeouts.between_events_s)
        due = min(self._deadline, self._ends, time.monotonic() + shortest_s)
        self._timer = self._timers.start(due, self)

    def on_due(self) -> None:
        """Check the deadline."""
        self._timer = None
        now = time.monotonic()
        if now >= self._ends:
            self._fail(overran(self._timeouts.total_s or 0))
        elif now >= self._deadline:
            limits = self._timeouts
            self._fail(stalled(limits.between_events_s) if self._has_event else timed_out(limits.first_event_s))
        elif self._is_active:
            self._start_timer()
