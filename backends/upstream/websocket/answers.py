"""Answers of an upstream in WebSocket mode: the events of a turn, or an object like the answer to a POST."""

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Protocol, Self

from backends.upstream.errors import overran, stalled, timed_out
from proxy.wire.encoded import encode
from proxy.wire.errors import BackendError, HeadgateError
from proxy.wire.event import Batch, Event, Run
from proxy.workers import MemoryLease

HIGH_WATER_BYTES = 65_536
"""How many unread bytes a turn may have before reading the connection is paused."""
STEP_BYTES = 65_536
"""How many bytes are passed on before other calls are served."""


class TurnOwner(Protocol):
    """The connection that a turn belongs to."""

    def abandon(self, turn: "TurnAnswer") -> None:
        """End the work behind a turn whose rest is not needed."""

    def note_room(self) -> None:
        """Called when a turn that was full has room again."""


class FixedAnswer:
    """A complete answer: a refusal, or a response of the gateway itself."""

    content_type = "application/json"
    is_complete = True

    def __init__(self, status: int, fields: Mapping[str, str], body: Mapping[str, object]) -> None:
        self.status = status
        self.fields = fields
        self._body = encode(body)

    def take(self) -> bytes:
        body, self._body = self._body, b""
        return body

    async def read(self) -> bytes:
        return self.take()

    def offer_chunks(self, taker: Callable[[bytes], bool]) -> None:
        """Nothing arrives later."""

    def count_events(self) -> None:
        """There is nothing to wait for."""

    def note_event(self) -> None:
        """There is nothing to wait for."""

    def close(self) -> None:
        """There is no rest to discard."""


class TurnAnswer:
    """The events of one turn, in batches. `first` is its first event, or the first run of others."""

    def __init__(
        self, owner: TurnOwner, lane: str | None, previous: object, *, first_s: float, between_s: float,
        memory: MemoryLease,
    ) -> None:  # fmt: skip
        """`previous` is the response that the turn continues, `memory` that of its call."""
        self.lane = lane
        self.previous = previous
        self.response_id: object = None
        self.first: Event | Run | None = None
        self.is_complete = False
        self.after: list[Callable[[], None]] = []  # what is due when everything of the turn was sent
        self.is_closed = False
        self._owner = owner
        self._between_s = between_s
        self._memory = memory
        self._units: list[Event | Run] = []
        self._size = 0
        self._was_full = False
        self._is_behind = False  # whether more was unread than one batch
        self._error: HeadgateError | None = None
        self._end: asyncio.TimerHandle | None = None
        self._reader: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = math.inf  # of the event that is waited for
        self._limit_s = first_s
        self._late: Callable[[float], BackendError] = timed_out  # the error when it does not come in that time

    def put(self, unit: Event | Run, *, is_last: bool) -> None:
        """Add an event, or a run of others. What comes after `close` is dropped."""
        if self.is_closed or self._error is not None:
            return
        size = unit.received_bytes
        try:
            self._memory.grow(size)
        except HeadgateError as error:
            self.fail(error)
            return
        self.first = self.first or unit
        self._units.append(unit)
        self._size += size
        self.is_complete = is_last
        _wake(self._reader)

    def is_full(self) -> bool:
        """Return whether too much is unread for more to be received; the owner is notified when that has changed."""
        self._was_full = self._size > HIGH_WATER_BYTES and not self.is_complete and not self.is_closed
        return self._was_full

    def fail(self, error: HeadgateError) -> None:
        """End the turn: what has arrived is read, then this error is raised."""
        if not self.is_complete:
            self._error = self._error or error
        _wake(self._reader)

    def end_within(self, total_s: float) -> None:
        """Fail if the turn has not ended by then."""
        self._end = self._loop.call_later(total_s, self.fail, overran(total_s))

    async def wait_for_first(self) -> Event | Run:
        """Return the first event, or run of others. Raises HeadgateError."""
        if self.first is None:
            await self._wait()
        if self.first is None:
            raise self._error or timed_out(self._limit_s)
        return self.first

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        """Return what has arrived since the last batch. Raises HeadgateError."""
        if not self._units:
            if self.is_complete or self.is_closed:
                raise StopAsyncIteration
            self._late, self._limit_s = stalled, self._between_s
            await self._wait()
            if not self._units and self._error is not None:
                raise self._error
        elif self._is_behind:
            await asyncio.sleep(0)
        return self._take()

    def _take(self) -> Batch:
        size = count = 0
        for unit in self._units:
            if count and size + unit.received_bytes > STEP_BYTES:
                break
            size += unit.received_bytes
            count += 1
        batch, self._units = self._units[:count], self._units[count:]
        self._size -= size
        self._is_behind = bool(self._units)
        self._memory.grow(-size)
        self._note_room()
        return batch

    def close(self) -> None:
        """Discard the unread rest."""
        if self.is_closed:
            return
        self.is_closed = True
        for timer in (self._end, self._timer):
            if timer is not None:
                timer.cancel()
        self._memory.grow(-self._size)
        self._units, self._size, self.first = [], 0, None
        self._note_room()
        if not self.is_complete:
            self._owner.abandon(self)
        del self._owner  # which keeps the last turn of each lane: a cycle
        after, self.after = self.after, []
        for action in after:
            action()

    def _note_room(self) -> None:
        if self._was_full and not self.is_full():
            self._owner.note_room()

    async def _wait(self) -> None:
        """Wait for an event or the end. The turn fails when none comes in time."""
        if self._error is not None:
            return
        self._deadline = self._loop.time() + self._limit_s
        if self._timer is not None and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._check)
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._deadline = math.inf

    def _check(self) -> None:
        """Fail if the deadline has passed. The timer is not moved by events, but restarted for the next deadline."""
        self._timer = None
        if self._loop.time() >= self._deadline:
            self.fail(self._late(self._limit_s))
        elif self._deadline != math.inf:
            self._timer = self._loop.call_at(self._deadline, self._check)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
