"""One reply of a backend for several calls: identical calls in flight share one upstream call.

A flight reads the reply in a task of its own, as fast as its fastest reader. Each reader gets every batch from the
first one on. The work ends when the last reader leaves. A body that a call has opened itself is only passed on.
"""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from proxy.wire.errors import BackendError
from proxy.wire.event import Batch, Reply, has_terminal
from proxy.wire.passage import deliver_at_once

AHEAD_BYTES = 262_144
"""How many bytes a flight reads ahead of its fastest reader."""

WANTED_S = 1.0
"""The interval in which a flight checks whether another process needs the work, in seconds."""
IsWanted = Callable[[], Awaitable[bool]]


def reader_too_slow() -> BackendError:
    """Return the error of a client for which the rest of a reply is not kept."""
    message = "This client reads too slowly for an answer that it shares with others; send the call again."
    return BackendError(message, status=503, code="reader_too_slow", source="gateway", retryable=True)


class Behind(Protocol):
    """What readers that are far behind lack of a reply is kept elsewhere."""

    def add(self, batches: Sequence[Batch], at: int) -> None:
        """Keep batches that begin at a byte of the reply, and that some reader lacks."""

    def read(self, offset: int) -> AsyncGenerator[Batch, None]:
        """Yield the batches from a byte of the reply on. Raises BackendError if they are not kept."""

    async def close(self) -> None:
        """Forget what is kept: every reader has left."""


class Flight:
    """One opening of a reply, and those who read it. What most flights never set has its value in the class."""

    last: Batch = ()
    """The batch with which the reply has ended as it should; empty until then."""
    _head: Reply | None = None
    _readers = 0
    _dropped = _dropped_bytes = 0  # batches that are no longer kept
    _behind: Behind | None = None
    _failure: BaseException | None = None
    _is_ended = False
    _is_given_up = False  # whether the work is ended before its end: no other call may join
    _task: asyncio.Task[None] | None = None
    _ending: asyncio.Task[None] | None = None

    def __init__(
        self, keep_bytes: int, keep_behind: Callable[[], Behind] | None = None, is_wanted: IsWanted | None = None
    ) -> None:  # fmt: skip
        """`keep_bytes` is how much of a reply is kept for calls that join, and how far a reader may be behind.

        `keep_behind` returns what keeps the rest for readers that are further behind. `is_wanted` says whether someone
        else needs the work when every reader has left.
        """
        self._keep_behind = keep_behind
        self._is_wanted = is_wanted
        self._keep_bytes = keep_bytes
        self._loop = asyncio.get_running_loop()
        self._batches: list[Batch] = []
        self._ends: list[int] = []  # of each batch: how many bytes of the reply there are after it
        self._positions: dict[int, int] = {}  # of each reader: the number of its next batch
        self._waiting: list[asyncio.Future[None]] = []

    def begin(self, opening: AbstractAsyncContextManager[Reply]) -> None:
        """Open the reply, and read it, in a task."""
        self._task = self._loop.create_task(self._run(opening))

    def pass_on(self, body: Reply) -> None:
        """Give the readers a body that was opened elsewhere."""
        self._head, self._is_ended = body, True
        self._wake()

    def fail(self, failure: BaseException) -> None:
        """Let each reader raise why there is no reply."""
        self._failure, self._is_ended = failure, True
        self._wake()

    @property
    def has_begun(self) -> bool:
        """Whether it reads the reply itself."""
        return self._task is not None

    @property
    def can_be_joined(self) -> bool:
        """Whether a call that joins now gets the whole reply."""
        return self._dropped == 0 and self._failure is None and not self._is_given_up

    @property
    def readers(self) -> int:
        """How many calls read it."""
        return len(self._positions)

    @asynccontextmanager
    async def join(self) -> AsyncIterator[Reply]:
        """The reply from its beginning. Raises what opening it raises. The last reader that leaves ends the work."""
        reader = self.enter()
        try:
            yield await self.reply(reader)
        finally:
            if (waiting := self.leave(reader)) is not None:
                await waiting

    def enter(self) -> int:
        """Return the number of a new reader, which leaves later."""
        self._readers += 1
        self._positions[self._readers] = 0
        return self._readers

    async def reply(self, reader: int) -> Reply:
        """Return the reply from its beginning. Raises what opening it raises."""
        while (head := self._head) is None:
            if self._failure is not None:
                raise self._failure
            if self._is_ended:
                raise asyncio.CancelledError
            await self._change()
        return head if head.batches is None else head.with_fields(batches=self._read(reader))

    def deliver_at_once(self) -> None:
        """Let each event come as it is there: a reader streams a reply that was opened for a call without a stream."""
        if self._head is not None and self._head.batches is not None:
            deliver_at_once(self._head.batches)

    def leave(self, reader: int) -> Awaitable[None] | None:
        """Remove a reader. The last one ends the work, or waits for its end while another process needs it.

        Returns what it has to wait for, if there is anything.
        """
        self._positions.pop(reader, None)
        if self._waiting:
            self._wake()  # the flight may have waited for this reader
        if self._positions or self._task is None or (self._behind is None and self._task.done()):
            return None
        return self._leave_last(self._task)

    async def _leave_last(self, task: asyncio.Task[None]) -> None:
        if not task.done():
            await self._end(task)
        if self._behind is not None and not self._positions:
            await self._behind.close()

    async def _read(self, reader: int) -> AsyncIterator[Batch]:
        """Yield the batches of one reader. Raises what the reply raises, and BackendError for one that is too slow."""
        read_bytes, rest = 0, None
        while True:
            number = self._positions[reader]
            if number < self._dropped:
                if self._behind is None:
                    raise reader_too_slow()
                rest = rest or self._behind.read(read_bytes)
                batch = await anext(rest, None)
                if batch is None:
                    return
                read_bytes += sum([len(unit.sse) for unit in batch])
                if read_bytes >= self._dropped_bytes:  # the rest is kept here
                    self._positions[reader] = self._dropped + bisect_right(self._ends, read_bytes)
                    await rest.aclose()
                    rest = None
                yield batch
                self._wake()
            elif number < self._next:
                self._positions[reader] = number + 1
                read_bytes = self._ends[number - self._dropped]
                yield self._batches[number - self._dropped]
                if self._waiting:
                    self._wake()
            elif self._failure is not None:
                raise self._failure
            elif self._is_ended:
                return
            else:
                await self._change()

    async def _run(self, opening: AbstractAsyncContextManager[Reply]) -> None:
        try:
            async with opening as reply:
                self._head = reply
                if self._waiting:
                    self._wake()
                if reply.batches is not None:
                    async for batch in reply.batches:
                        if has_terminal(batch):
                            self.last = batch
                        await self._add(batch)
                        if self.last:  # as without others: what follows is not waited for
                            break
        except asyncio.CancelledError:  # it ends here: the task would keep it, and with it this frame, in a cycle
            pass
        except BaseException as error:  # noqa: BLE001  each reader raises it
            self._failure = error
        finally:
            self._is_ended = True
            if self._waiting:
                self._wake()

    async def _add(self, batch: Batch) -> None:
        """Keep a batch for the readers, and wait while even the fastest one is far behind."""
        end = self._bytes_before(self._next) + sum([len(unit.sse) for unit in batch])
        self._batches.append(batch)
        self._ends.append(end)
        if self._waiting:
            self._wake()
        while self._positions and end - self._bytes_before(max(self._positions.values())) > AHEAD_BYTES:
            await self._change()
        if end > self._keep_bytes:
            self._drop(end)

    def _drop(self, end: int) -> None:
        """Drop the batches that every reader has, and those that only a reader far behind lacks."""
        until = known = max(self._dropped, min(self._positions.values(), default=self._next))
        while until < self._next and end - self._bytes_before(until) > self._keep_bytes + AHEAD_BYTES:
            until += 1
        count = until - self._dropped
        if until > known and self._keep_behind is not None:
            self._behind = self._behind or self._keep_behind()
            self._behind.add(self._batches[known - self._dropped : count], self._bytes_before(known))
        if count > 0:
            self._dropped, self._dropped_bytes = until, self._bytes_before(until)
            del self._batches[:count], self._ends[:count]

    @property
    def _next(self) -> int:
        """The number of the next batch."""
        return self._dropped + len(self._batches)

    def _bytes_before(self, number: int) -> int:
        """Return how many bytes the batches before this one have."""
        return self._dropped_bytes if number <= self._dropped else self._ends[number - self._dropped - 1]

    def _change(self) -> asyncio.Future[None]:
        """Return a future for the next change of the flight."""
        change = self._loop.create_future()
        self._waiting.append(change)
        return change

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            if not change.done():
                change.set_result(None)

    async def _end(self, task: asyncio.Task[None]) -> None:
        """End the work, and wait until it has ended; if someone else needs it, it ends later."""
        if not self.last:
            if self._is_wanted is not None and not self._is_ended and await self._is_wanted():
                self._ending = asyncio.create_task(self._end_later(task, self._is_wanted))
            elif self._positions:  # a call has joined meanwhile
                return
            else:
                self._is_given_up = True
                task.cancel()
        await asyncio.wait([task])  # what it has used is known then

    async def _end_later(self, task: asyncio.Task[None], is_wanted: IsWanted) -> None:
        while True:
            await asyncio.sleep(WANTED_S)
            if self._is_ended or not (self._positions or await is_wanted() or self._positions):
                self._is_given_up = True
                task.cancel()
                return
