"""Delivers what runs decode: tokens from the thread that decodes them, ends from the event loop, which starts new runs.

    a run, in a thread:  emit, emit, end, on_step ──▶ deliver     the tokens of the step
                                               └────▶ on_ends     in the loop: ends, with the last tokens of their jobs

To wake the loop costs more than what it would do for a token. So does waking the gateway, so tokens that nothing needs
at once wait for others, HOLD_S at most while their batch goes on.
"""  # fmt: skip

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from backends.local.decoding.job import DecodingStep, Job, RunEnd, Token
from backends.local.scheduling.plan import ScheduledJob

HOLD_S = 0.25

Deliver = Callable[[Sequence[DecodingStep]], None]
EndedRun = tuple[Job, Sequence[Token], RunEnd, str]
"""A job whose run has ended, its tokens that were not delivered, how it ended, and a message."""


class EndQueue:
    """A queue of ended runs that any thread fills; `wake` lets the loop call `on_ends`, which drains it."""

    def __init__(self, on_ends: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_ends = on_ends
        self._ends: deque[EndedRun] = deque()
        self._wake_pending = False

    def add(self, job: Job, tokens: Sequence[Token], end: RunEnd, message: str) -> None:
        """Add the end of a job's run."""
        self._ends.append((job, tokens, end, message))

    def wake(self) -> None:
        """Schedule `on_ends` in the loop unless nothing has ended, or it is scheduled already."""
        # No lock is needed: `drain` resets the flag before it reads, so ends that were added earlier are drained.
        if self._ends and not self._wake_pending:
            self._wake_pending = True
            self._loop.call_soon_threadsafe(self._on_ends)

    def drain(self) -> Iterator[EndedRun]:
        """Yield all ends."""
        self._wake_pending = False
        while self._ends:
            yield self._ends.popleft()


class RunOutput:
    """What one run has decoded since the last delivery. One thread at a time uses it.

    The tokens of a job are delivered before its end is in the queue, or with it, so they stay in order.
    """

    def __init__(
        self, batch: Sequence[ScheduledJob], ends: EndQueue, deliver: Deliver, on_first_token: Callable[[], None]
    ) -> None:  # fmt: skip
        self._batch = {scheduled.job.id: scheduled for scheduled in batch}
        self._ends = ends
        self._deliver = deliver
        self._on_first_token = on_first_token
        self._has_begun = False
        self._tokens: dict[int, list[Token]] = {}  # by job
        self._is_urgent = False  # whether one of them cannot wait for others
        self._delivered_at = time.monotonic()

    def emit(self, job: Job, token: Token) -> None:
        """Add a token."""
        if not self._has_begun:
            self._has_begun = True
            self._on_first_token()
        self._batch[job.id].generated.append(token.id)
        self._tokens.setdefault(job.id, []).append(token)
        if job.options.delivers_at_once:
            self._is_urgent = True

    def end(self, job: Job, end: RunEnd, message: str) -> None:
        """Add the end of a job's run."""
        self._ends.add(job, self._tokens.pop(job.id, ()), end, message)

    def on_step(self) -> None:
        """Deliver the tokens, unless all of them can wait for more, and let the loop see the ends."""
        if self._tokens:
            now = time.monotonic()
            if self._is_urgent or now - self._delivered_at >= HOLD_S:
                self._is_urgent, self._delivered_at = False, now
                tokens, self._tokens = self._tokens, {}
                steps = [
                    DecodingStep(number, added)
                    for number, added in tokens.items()
                    if not self._batch[number].job.cancelled
                ]
                if steps:
                    self._deliver(steps)
        self._ends.wake()

    def emit_now(self, job: Job, token: Token) -> None:
        """Add a token and deliver it."""
        self.emit(job, token)
        self.on_step()

    def end_now(self, job: Job, end: RunEnd, message: str) -> None:
        """Add the end of a job's run and let the loop see it."""
        self.end(job, end, message)
        self.on_step()
