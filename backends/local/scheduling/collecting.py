"""Decides when waiting jobs start: at once while nothing runs, else when those that belong together have arrived.

While a batch runs, the next one starts when no job has arrived for QUIET_FRACTION of an answer's time (at most
QUIET_S), or when its first job has waited COLLECT_FACTOR times as long. The same applies to jobs of which the first one
comes within AFTER_BATCH_S after a batch: callers that were answered together send their next requests together. When as
many have come as there were while the batch ran, no other is waited for; before that, these times are EXPECTED_FACTOR
times as long, because a job that comes too late for a batch waits for a whole answer.
"""

import asyncio
from collections.abc import Callable

QUIET_FRACTION, QUIET_S, COLLECT_FACTOR = 0.02, 0.012, 5
EXPECTED_FACTOR = 2
AFTER_BATCH_S = 0.05


class Collector:
    """Calls `start` in the loop's thread when the waiting jobs should start."""

    def __init__(self, start: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._start = start
        self._timer: asyncio.Handle | None = None
        self._collect_until = self._after_batch_until = 0.0
        self._expected = 0  # how many will wait when all callers are back

    def schedule(self, waiting: int, answer_s: float, *, is_running: bool) -> None:
        """Start `waiting` jobs in time. `answer_s` is how long an answer takes alone; `is_running`: a batch runs."""
        now, quiet_s = self._loop.time(), min(QUIET_S, QUIET_FRACTION * answer_s)
        follows_batch = now < self._after_batch_until
        misses_callers = follows_batch and waiting < self._expected
        if misses_callers:
            quiet_s *= EXPECTED_FACTOR
        if self._timer is None:
            self._collect_until = now + COLLECT_FACTOR * quiet_s
            if misses_callers:
                self._after_batch_until = max(self._after_batch_until, self._collect_until)
        else:
            self._timer.cancel()
        at_once = 0 < self._expected <= waiting if follows_batch else not is_running
        self._timer = self._loop.call_at(now if at_once else min(now + quiet_s, self._collect_until), self._start)

    def stop(self) -> None:
        """Drop what is scheduled: the waiting jobs start now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def note_start(self, rows: int) -> None:
        """Note that so many jobs no longer wait."""
        self._expected = max(0, self._expected - rows)

    def note_end(self, expected: int) -> None:
        """Note that a batch has ended, and that so many jobs wait when all callers of that time are back."""
        self._expected = expected
        self._after_batch_until = self._loop.time() + AFTER_BATCH_S
