"""The WebSocket protocol on one connection of the server: messages in, frames out, pings, and the end."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from aiohttp import web

from proxy.config.process_tables import ServerTable
from proxy.http.body import BYTES_PER_SECOND
from proxy.http.pieces import pieces_of
from proxy.http.server import Connection
from proxy.loop_turns import LoopTurns
from proxy.wire.errors import Unavailable
from proxy.wire.frame_bytes import close_frame, ping_frame, pong_frame, short_frames, text_frames
from proxy.wire.frames import GOING_AWAY, PART_BYTES, POLICY, TRY_AGAIN, FrameError, FrameParser, Message
from proxy.workers import MemoryLease

MAX_WAITING = 64
"""How many received messages of one connection may wait before reading its socket is paused."""
FRAMES_AT_ONCE = 64
"""How many frames of one connection are read before others are served."""
MAX_CONTROL_FRAMES = 1024
"""How many pings and pongs a client may send between two checks, which are `keep_alive_s` apart."""
CLOSE_S = 1.0
"""How long the client has to answer a close, in seconds."""


class Received(NamedTuple):
    """A message and its memory."""

    message: Message
    memory: MemoryLease


class Upgrade(web.StreamResponse):
    """The answer after which a connection speaks WebSocket. It has no body, and no request follows."""

    _length_check = False

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__(status=101, headers=headers)
        self.force_close()

    async def write_eof(self, data: bytes = b"") -> None:
        del data
        self._eof_sent = True


class Socket:
    """One connection after its upgrade.

    `fault` is why the caller's frames cannot be read any more, `closed` the caller's close.
    """

    def __init__(
        self, request: web.BaseRequest, connection: Connection, server: ServerTable, memory: MemoryLease,
        turns: LoopTurns,
    ) -> None:  # fmt: skip
        """`turns` are those in which the frames of all connections are read that do not come alone."""
        self.fault: FrameError | None = None
        self.closed: Message | None = None
        self._writer = request.writer
        self._connection = connection
        self._server = server
        self._parser = FrameParser(server.max_body_bytes)
        self._partial = memory  # of a message that is not complete
        self._inbox: list[Received] = []  # an idle connection should be small: no deque, no events
        self._is_paused = False  # whether too many messages wait
        self._is_stopped = False  # whether the socket is not read
        self._turns = turns
        self._is_advancing = False  # while frames have arrived that are not read
        self._control_frames = 0  # since the last check
        self._due_pong = b""  # the answer to the last ping, while the client does not read
        self._is_ended = False
        self._is_closing = False  # whether a close was sent: nothing follows it
        self._is_gone = False  # whether the caller has closed, or its connection is lost
        self._waiter: asyncio.Future[None] | None = None  # of `receive` or `close`
        self._sending = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._silent_checks = 0  # since something was received: a busy event loop makes fewer of them
        self._began: float | None = None  # when the message that is being received began
        self._timer = connection.timers.start(self._loop.time() + server.keep_alive_s, self)
        connection.keep_alive(val=False)
        connection.stop_head_checks()
        connection.set_parser(self)  # type: ignore[arg-type]  # it has the two methods that aiohttp calls

    @property
    def _is_unreadable(self) -> bool:
        """Whether received data can no longer be interpreted."""
        return self.fault is not None or self.closed is not None

    @property
    def is_stalled(self) -> bool:
        """Whether the connection was closed because its client did not read."""
        return self._connection.is_stalled

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Read received data; called by aiohttp."""
        self._silent_checks = 0
        if not self._is_unreadable:
            self._parser.push(data)
            if not (self._is_advancing or self._is_paused):
                self._advance()
        return False, b""

    def _advance_later(self) -> bool:
        """Read more of the received frames; return whether there were any."""
        if not self._is_advancing:
            return False
        self._is_advancing = False
        self._advance()
        return True

    def _advance(self) -> None:
        """Read some of the received frames; other connections are served before the rest is read."""
        has_more = False
        try:
            messages, has_more = self._parser.read(FRAMES_AT_ONCE)
            for message in messages:
                self._partial.release()
                self._began = None
                self._take(message)
                if self._is_unreadable:
                    return
            self._partial.release()
            self._partial.grow(self._parser.pending_bytes)
        except FrameError as error:
            self._fail(error.with_traceback(None))  # which keeps this frame in a cycle
        except Unavailable as error:
            self._fail(FrameError(TRY_AGAIN, error.message))
        if self._began is None and self._parser.pending_bytes:
            self._began = self._loop.time()
        self._pace(has_more=has_more)

    def _pace(self, *, has_more: bool) -> None:
        """Pause reading the socket while received frames are unread, or too many messages wait."""
        self._is_paused = len(self._inbox) >= MAX_WAITING
        if has_more and not self._is_paused and not self._is_unreadable:
            self._is_advancing = True
            self._turns.call_later(self._advance_later, self._connection.team)
        is_stopped = self._is_paused or self._is_advancing
        if is_stopped != self._is_stopped:
            self._is_stopped = is_stopped
            (self._connection.pause_reading if is_stopped else self._connection.resume_reading)()

    def feed_eof(self) -> None:
        """Handle the loss of the connection; called by aiohttp."""
        self._is_gone = True
        self.end()

    @property
    def has_messages(self) -> bool:
        """Whether the next message has arrived."""
        return bool(self._inbox)

    async def receive(self) -> Received | None:
        """Return the next message; None when no more will come."""
        while not self._inbox and not self._is_ended:
            await self._wait()
        if self._is_ended:
            return None
        received = self._inbox.pop(0)
        if self._is_paused and len(self._inbox) <= MAX_WAITING // 2:
            self._silent_checks = 0
            self._advance()
        return received

    def end(self) -> None:
        """Read no more messages."""
        self._is_ended = True
        self._wake()

    async def send(self, payloads: list[bytes]) -> None:
        """Send each payload as a text message, a long one in several frames; no other message comes in between.

        Raises ConnectionError when the client has disconnected.
        """
        async with self._sending:
            if self._is_closing:
                raise ConnectionResetError("the connection is closed")
            if sum(map(len, payloads)) < PART_BYTES:
                await self._writer.write(short_frames(payloads))
            else:
                await self._send_in_pieces(frame for payload in payloads for frame in text_frames(payload))
            if self._due_pong:
                self._write(self._due_pong)
                self._due_pong = b""

    def send_now(self, payloads: list[bytes]) -> bool:
        """Send short messages if that needs no waiting; return whether they were sent."""
        transport, connection = self._connection.transport, self._connection
        is_busy = self._sending.locked() or self._is_closing or connection.writing_paused
        if is_busy or transport is None or transport.is_closing() or sum(map(len, payloads)) >= PART_BYTES:
            return False
        transport.write(short_frames(payloads))
        return True

    async def _send_in_pieces(self, frames: Iterable[bytes]) -> None:
        is_whole = False
        try:
            for piece in pieces_of(frames):
                if self._is_closing:
                    raise ConnectionResetError("the connection is closed")
                await self._writer.write(piece)
                await self._connection.take_turn()
            is_whole = True
        finally:
            if not is_whole and self._connection.transport is not None:
                self._connection.transport.abort()  # nothing can follow a part of a message

    async def close(self, code: int = GOING_AWAY, reason: str = "") -> None:
        """Send the reason why the connection ends, and give the client a moment to answer."""
        self.end()
        self._write(close_frame(code, reason))
        self._is_closing = True
        if not self._connection.is_draining:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._wait_until_gone()

    def release(self) -> None:
        """Stop the timer, and release the memory of unread messages."""
        self._connection.timers.cancel(self._timer)
        self._is_advancing = False
        self._partial.release()
        self._parser = FrameParser(0)
        while self._inbox:
            self._inbox.pop().memory.release()

    def _take(self, message: Message) -> None:
        """Answer a control frame, or queue a message for `receive`. Raises FrameError for a flood."""
        if message.kind in ("ping", "pong"):
            self._control_frames += 1
            if self._control_frames > MAX_CONTROL_FRAMES:
                raise FrameError(POLICY, f"More than {MAX_CONTROL_FRAMES} pings in a short time are not allowed.")
        if message.kind == "ping":
            if self._connection.writing_paused:  # what such a client gets to read is bounded
                self._due_pong = pong_frame(message.data)
            else:
                self._write(pong_frame(message.data))
        elif message.kind == "close":
            self.closed = message
            self._is_gone = True
            self.end()
        elif message.kind != "pong":
            memory = self._partial.begin_another()
            memory.grow(message.size_bytes)
            self._inbox.append(Received(message, memory))
            self._wake()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def _wait_until_gone(self) -> None:
        while not self._is_gone:
            await self._wait()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, fault: FrameError) -> None:
        self.fault = fault
        self._partial.release()
        self._parser = FrameParser(0)
        self.end()

    def _write(self, frame: bytes) -> None:
        transport = self._connection.transport
        if transport is not None and not transport.is_closing() and not self._is_closing:
            transport.write(frame)

    def on_due(self) -> None:
        """Ping a silent client, and disconnect one that does not answer or sends a message too slowly."""
        now, server = self._loop.time(), self._server
        self._timer = self._connection.timers.start(now + server.keep_alive_s, self)
        self._control_frames = 0
        if self._is_paused:  # the client cannot be heard; a ping notices one that has left
            self._began = None if self._began is None else now
            self._write(ping_frame())
            return
        self._silent_checks += 1
        if self._began is not None:
            limit_s = server.body_timeout_s + self._parser.pending_bytes / BYTES_PER_SECOND
            if now - self._began > limit_s and self.fault is None:
                self._fail(FrameError(POLICY, f"The message did not arrive within {server.body_timeout_s:g} s."))
        if self._connection.writing_paused or self._connection.is_draining:
            return
        transport = self._connection.transport
        silent_s = (self._silent_checks - 1) * server.keep_alive_s
        if silent_s > server.keep_alive_s + server.write_timeout_s and transport is not None:
            transport.abort()
        else:
            self._write(ping_frame())
