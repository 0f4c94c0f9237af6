"""One connection to an upstream: writes a request, reads its answer, and limits how long both may take.

It belongs to one call at a time, so at most one task waits for it. The data of one `data_received` is parsed at once
and is one batch.

An answer in HTTP/1.1 does not say which request it belongs to. Data on an idle connection, or before the upstream's
machine has acknowledged a byte of the request, belongs to an earlier request, so the connection is closed. An upstream
that answers a request a second time after it has received the next one looks like a correct one: for such an upstream
set `idle_timeout_s` so short that connections are not reused.
"""

import asyncio
import math
import select
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import cast

from backends.upstream.errors import invalid_answer, reason_of, was_reset
from backends.upstream.http1.head import AnswerHead, InvalidHttp
from backends.upstream.http1.parser import ResponseParser
from backends.upstream.http1.request import BodySource
from backends.upstream.http1.timed import TimedConnection
from backends.upstream.http1.timeouts import Timeouts
from backends.upstream.http1.unread import UnreadBody
from proxy.socket_queues import unacknowledged_bytes
from proxy.timers import Timers
from proxy.wire.loggable import without_frames

PIECE_BYTES = 262_144
"""Larger bodies are written in pieces of this size, and other calls are served in between."""


class UpstreamConnection(TimedConnection):
    """Sends one request at a time. It can send the next one after `finish` has returned True."""

    __slots__ = (
        "__weakref__", "_counts_parts", "_file", "_is_writing_paused", "_is_written", "_may_be_early", "_readable",
        "_taker", "_unread", "_written_bytes", "idle_since", "parser", "take", "was_refused_unread",
    )  # fmt: skip

    def __init__(self, timeouts: Timeouts, timers: Timers) -> None:
        super().__init__(timeouts, timers)
        self.parser = ResponseParser()
        self._taker: Callable[[bytes], bool] | None = None
        self._counts_parts = self._is_written = False
        self._readable = select.poll()
        self._may_be_early = False  # whether the next data may belong to an earlier request
        self._is_writing_paused = False
        self._written_bytes = 0
        self.idle_since = 0.0
        self.was_refused_unread = False
        """Whether the upstream had closed the connection before it received a byte of the request."""

    @property
    def is_usable(self) -> bool:
        """Whether an idle connection can be reused: neither data nor its end has arrived."""
        return not self._transport.is_closing() and not self._readable.poll(0)

    def send(self, head: bytes, body: bytes | BodySource) -> Awaitable[None]:
        """Send a request. The returned awaitable is done when `received_head` can be called. Raises BackendError.

        Awaiting it raises BackendError, and the errors of a BodySource.
        """
        if self._error is not None:
            raise self._error
        now = time.monotonic()
        self._is_active, self._has_event, self._counts_parts = True, False, True
        if self._timeouts.total_s is not None:
            self._ends = now + self._timeouts.total_s
        self._deadline = self._event_deadline = now + self._timeouts.first_event_s
        if self._timer is None:
            self._start_timer()
        if not isinstance(body, bytes) or len(body) > PIECE_BYTES:
            return self._send_in_pieces(head, body)
        request = head + body
        self._written_bytes, self._is_written = len(request), True
        self._transport.write(request)
        waiter = self._waiter = self._loop.create_future()
        return waiter

    def received_head(self) -> AnswerHead:
        """Return the head of the answer. Raises BackendError if the connection has ended before it."""
        if (head := self.parser.head) is None:
            raise self._error or was_reset()
        self._deadline = math.inf
        return head

    async def read(self) -> bytes:
        """Wait for the next part of the body, and return all that has arrived since the last read; b"" at the end.

        Raises BackendError.
        """
        if self._counts_parts:
            # `note_event` inlined: the head or the last part
            self._has_event, self._event_deadline = True, None
        while not self._unread.chunks:
            if self.parser.is_complete:
                return b""
            if self._error is not None:
                raise self._error
            if self._event_deadline is None:
                self._event_deadline = time.monotonic() + self._timeouts.between_events_s
            self._deadline = self._event_deadline
            if self._timer is None:
                self._start_timer()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            self._deadline = math.inf
        return self.take()

    def offer_chunks(self, taker: Callable[[bytes], bool]) -> None:
        """Offer each chunk that arrives while `read` waits to `taker`. A chunk that it takes counts as an event."""
        self._taker = taker

    def count_events(self) -> None:
        """Count the caller's calls of `note_event` as events, not each part of the body: a trickle is no event."""
        self._counts_parts = False

    def finish(self) -> bool:
        """End the call; return whether the connection can be reused. If not, it is closed."""
        parser = self.parser
        is_reusable = (
            parser.is_complete and parser.can_continue and not parser.has_surplus and self._error is None
            and self._is_written and not self._transport.is_closing() and not self._transport.get_write_buffer_size()
        )  # fmt: skip
        self._is_active, self._taker = False, None
        self._deadline = self._ends = math.inf
        if is_reusable:
            if self._unread.chunks:
                self.take()
            parser.reset()
            self._may_be_early = True
            self.idle_since = time.monotonic()
        else:
            self.abort()
        return is_reusable

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._file = self._transport.get_extra_info("socket").fileno()
        self._readable.register(self._file, select.POLLIN)
        self._unread = UnreadBody(self._transport)
        self.take = self._unread.take

    def data_received(self, data: bytes) -> None:
        if self._error is not None:
            return
        parser = self.parser
        if not self._is_active or (self._may_be_early and not self._can_be_received()):
            self._fail(invalid_answer("an answer before its request", sent=self._is_active))
            return
        self._may_be_early = False
        try:
            chunk = parser.feed(data)
        except InvalidHttp as error:
            failure = invalid_answer("an answer that is not valid HTTP")
            failure.__cause__ = without_frames(error)  # its frames refer to this connection and the data
            self._fail(failure)
            return
        waiter, taker = self._waiter, self._taker
        if waiter is not None and waiter.done():
            waiter = None
        if chunk and taker is not None and waiter is not None and taker(chunk):
            self._deadline = self._event_deadline = time.monotonic() + self._timeouts.between_events_s
            if not parser.is_complete:
                return
        elif chunk and parser.is_complete:
            self._unread.chunks.append(chunk)
        elif chunk:
            self._unread.put(chunk)
        if waiter is not None and parser.head is not None:
            waiter.set_result(None)

    def eof_received(self) -> None:
        """End the connection. The bytes acknowledged by now show whether the upstream received any of the request."""
        if self._is_active and not self.parser.has_begun:
            self.was_refused_unread = not self._can_be_received()
        self._end(None)
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timers.cancel(self._timer)
        self._end(exc)
        self.parser.discard()

    def pause_writing(self) -> None:
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        if not self._is_written:  # the task waits for this; otherwise it waits for the answer
            self._wake()

    async def _send_in_pieces(self, head: bytes, body: bytes | BodySource) -> None:
        """Send a large request, and wait for the head of the answer."""
        try:
            await (self._write(head, body) if isinstance(body, bytes) else self._write_source(head, body))
            while self.parser.head is None:
                await self._wait()
        except BaseException:
            self.abort()
            raise

    async def _write(self, head: bytes, body: bytes) -> None:
        """Write a request with a large body; stop if the upstream answers before the end."""
        self._transport.write(head)
        self._written_bytes, self._is_written = len(head), False
        view = memoryview(body)
        for start in range(0, len(body), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            self._transport.write(piece)
            self._written_bytes += len(piece)
            await asyncio.sleep(0)
            while self._is_writing_paused and not self._has_answered:
                await self._wait()
            if self._has_answered:
                return
        self._is_written = True

    async def _write_source(self, head: bytes, body: BodySource) -> None:
        """Write a request while its body is received; stop if the upstream answers before the end."""
        self._transport.write(head)
        self._written_bytes = len(head)
        async with aclosing(body.frames()) as pieces:
            self._deadline = math.inf  # while the source is awaited, which has its own limits
            async for piece in pieces:
                if self._has_answered:
                    return
                self._transport.write(piece)
                self._written_bytes += len(piece)
                self._start_wait(self._timeouts.first_event_s)
                while self._is_writing_paused and not self._has_answered:
                    await self._wait()
                self._deadline = math.inf
        self._is_written = True
        self._start_wait(self._timeouts.first_event_s)

    def _can_be_received(self) -> bool:
        """Whether the upstream's machine has received a byte of the request; earlier data cannot be its answer."""
        unread_bytes = self._transport.get_write_buffer_size() + unacknowledged_bytes(self._file)
        return unread_bytes < self._written_bytes

    @property
    def _has_answered(self) -> bool:
        return self.parser.head is not None or self._error is not None

    def _end(self, exc: Exception | None) -> None:
        """Record the end of the connection, which completes an answer without a length."""
        if self._error is None and not (exc is None and self.parser.finish()):
            reason = "connection closed" if exc is None else reason_of(exc)
            self._error = was_reset(reason, sent=self._is_active and not self.was_refused_unread)
        self._wake()
