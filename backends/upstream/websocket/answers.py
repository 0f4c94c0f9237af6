"""What an upstream answers in WebSocket mode, read like the answer to a POST: status, fields, body in chunks."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import orjson

from backends.upstream.errors import overran, stalled, timed_out
from backends.upstream.websocket.messages import LAST, PIECE_BYTES, UpstreamMessage
from proxy.wire.errors import BackendError, HeadgateError
from proxy.workers import MemoryLease

HIGH_WATER_BYTES = 65_536
"""How much of a turn may wait for its reader before the connection is not read any more, in bytes."""


class TurnOwner(Protocol):
    """The connection that a turn belongs to."""

    def abandon(self, turn: "TurnAnswer") -> None:
        """End the work behind a turn whose rest is not wanted."""


class FixedAnswer:
    """An answer that is known as a whole: a refusal, or a response of the gateway's own."""

    content_type = "application/json"
    is_complete = True

    def __init__(self, status: int, fields: Mapping[str, str], body: Mapping[str, object]) -> None:
        self.status = status
        self.fields = fields
        self._body = orjson.dumps(body)

    async def read(self) -> bytes:
        body, self._body = self._body, b""
        return body

    def count_events(self) -> None:
        """There is nothing to wait for."""

    def note_event(self) -> None:
        """There is nothing to wait for."""

    def close(self) -> None:
        """There is nothing to give up."""


class TurnAnswer:
    """The messages of one turn, as a stream. `first` is the type of its first message once that has arrived, and of
    an error its payload.
    """

    status = 200
    content_type = "text/event-stream"

    def __init__(
        self, owner: TurnOwner, lane: str | None, previous: object, *, first_s: float, between_s: float,
        memory: MemoryLease,
    ) -> None:  # fmt: skip
        """`previous` is the response that the turn continues, `memory` that of its call."""
        self.fields: Mapping[str, str] = {}
        self.lane = lane
        self.previous = previous
        self.response_id: object = None
        self.first: tuple[str, bytes] | None = None
        self.is_complete = False
        self.after: list[Callable[[], None]] = []  # what is due when everything of the turn was sent
        self.is_closed = False
        self._owner = owner
        self._first_s, self._between_s = first_s, between_s
        self._memory = memory
        self._pieces: list[bytes] = []
        self._size = 0
        self._error: HeadgateError | None = None
        self._end: asyncio.TimerHandle | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    def put(self, message: UpstreamMessage) -> None:
        """Add a message. What comes after `close` is dropped."""
        if self.is_closed or self._error is not None:
            return
        self.first = self.first or (message.kind, message.payload)
        try:
            self._memory.grow(message.frame_bytes)
        except HeadgateError as error:
            self.fail(error)
            return
        self._pieces += message.frame
        self._size += message.frame_bytes
        self.is_complete = message.kind in LAST
        _wake(self._reader)

    @property
    def is_full(self) -> bool:
        """Whether too much of the turn is unread for more of it to be received."""
        return self._size > HIGH_WATER_BYTES and not self.is_complete and not self.is_closed

    async def wait_for_room(self) -> None:
        """Wait until enough of the turn was read."""
        while self.is_full:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

    def fail(self, error: HeadgateError) -> None:
        """End the turn: what has arrived is read, then this error is raised."""
        if not self.is_complete:
            self._error = self._error or error
        _wake(self._reader)

    def end_within(self, total_s: float) -> None:
        """Fail if the turn has not ended by then."""
        self._end = asyncio.get_running_loop().call_later(total_s, self.fail, overran(total_s))

    async def wait_for_first(self) -> tuple[str, bytes]:
        """Return the type of the first message, and of an error its payload. Raises HeadgateError."""
        if self.first is None:
            await self._wait(timed_out(self._first_s), self._first_s)
        if self.first is None:
            raise self._error or timed_out(self._first_s)
        return self.first

    async def read(self) -> bytes:
        """Return what has arrived since the last read, at least a byte; b"" at the end. Raises HeadgateError."""
        if not self._pieces and not self.is_complete:
            await self._wait(stalled(self._between_s), self._between_s)
        if not self._pieces and self._error is not None:
            raise self._error
        chunk = b""
        if self._pieces:
            count = size = 0
            while count < len(self._pieces) and (not count or size + len(self._pieces[count]) <= PIECE_BYTES):
                size += len(self._pieces[count])
                count += 1
            chunk = b"".join(self._pieces[:count])
            del self._pieces[:count]
            self._size -= size
            self._memory.grow(-size)
        _wake(self._writer)
        return chunk

    def count_events(self) -> None:
        """Each message is an event."""

    def note_event(self) -> None:
        """Each message is an event."""

    def close(self) -> None:
        """Give up what was not read."""
        if self.is_closed:
            return
        self.is_closed = True
        if self._end is not None:
            self._end.cancel()
        self._memory.grow(-self._size)
        self._pieces, self._size, self.first = [], 0, None
        _wake(self._writer)
        if not self.is_complete:
            self._owner.abandon(self)
        after, self.after = self.after, []
        for action in after:
            action()

    async def _wait(self, late: BackendError, timeout_s: float) -> None:
        """Wait for a message or the end. Raises `late` when none comes in time."""
        if self._error is not None:
            return
        self._reader = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._reader
        except TimeoutError as error:
            raise late from error


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
