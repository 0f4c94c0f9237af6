"""The WebSocket protocol on one connection to an upstream: the handshake, messages in, masked frames out, and the end.

What one read brings is parsed at once. A message that has not arrived as a whole counts against the memory of all
bodies, byte by byte as it arrives. No extension is offered, so that nothing is compressed.

Source: https://www.rfc-editor.org/rfc/rfc6455
"""

import asyncio
from typing import Protocol, cast

from backends.upstream.errors import invalid_answer, reason_of, stalled, was_reset
from backends.upstream.http1 import AnswerHead, InvalidHttp, ResponseParser
from backends.upstream.websocket.frame_writer import FrameWriter
from proxy.wire.errors import HeadgateError, Unavailable
from proxy.wire.frame_bytes import close_frame, ping_frame, pong_frame
from proxy.wire.frames import (
    GOING_AWAY,
    MAX_FRAGMENTS,
    MAX_TEXTS,
    NO_STATUS,
    PROTOCOL_ERROR,
    TOO_BIG,
    FrameError,
    FrameParser,
    Message,
)
from proxy.wire.loggable import without_frames
from proxy.wire.sse import MAX_FRAME_BYTES
from proxy.workers import FULL_READ_BYTES, MemoryLease

PING_S = 30.0
"""How long an upstream may be silent before it is pinged, and after that before it is disconnected, in seconds."""
CLOSE_S = 0.25
"""How long an upstream has to end its side of a connection that was closed, in seconds. A little of what it sends
meanwhile is dropped, more ends the connection."""
STEP_BYTES = 65_536
"""How many bytes are read before other calls are served."""
MAX_CONTROL_FRAMES = 1024
"""How many pings and pongs an upstream may send in PING_S."""


class MessageReceiver(Protocol):
    """The receiver of a connection's messages."""

    def receive(self, payloads: list[bytes]) -> None:
        """Receive text messages that have arrived together, in order."""

    def receive_parts(self, parts: list[bytes]) -> None:
        """Receive a long text message."""

    def lose(self, error: HeadgateError) -> None:
        """Called when no more messages will arrive."""


class FrameSocket(asyncio.Protocol):
    """One connection. `upgrade` comes first, then `start`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer = ResponseParser(may_upgrade=True)
        self._parser = FrameParser(MAX_FRAME_BYTES, is_masked=False)
        self._receiver: MessageReceiver | None = None
        self._partial = MemoryLease()
        self._error: HeadgateError | None = None  # why nothing more is received
        self._waiter: asyncio.Future[None] | None = None  # of the answer to the upgrade
        self._is_paused = False  # whether the receiver wants no more messages
        self._is_stopped = False  # whether the connection is not read
        self._advancing: asyncio.Handle | None = None  # while frames have arrived that are not read
        self._control_frames = 0  # since the last check
        self._is_heard = True  # whether something has arrived since then
        self._is_pinged = False
        self._timer: asyncio.TimerHandle | None = None
        self._dropped_bytes = 0  # since nothing more is received
        self.closed: asyncio.Future[None] = self._loop.create_future()
        """Done when the connection has ended."""

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent and received."""
        return self._error is None and not self._transport.is_closing()

    async def upgrade(self, request: bytes) -> AnswerHead:
        """Send the request of the handshake and return the head of its answer. Raises BackendError."""
        self._transport.write(request)
        while self._answer.head is None:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            await self._waiter
        self._pace(is_stopped=True)
        return self._answer.head

    def start(self, receiver: MessageReceiver, memory: MemoryLease) -> None:
        """Pass on messages from now on. `memory` is that of an unfinished one.

        Those that have arrived are passed on at once: they answer nothing that is sent later.
        """
        self._receiver, self._partial = receiver, memory
        self._timer = self._loop.call_later(PING_S, self._check)
        if self._error is not None:
            receiver.lose(self._error)
            return
        self._advance()
        while (advancing := self._advancing) is not None:
            advancing.cancel()
            self._advance()

    async def send(self, payload: bytes) -> None:
        """Send a text message. Raises ConnectionError when the connection has ended."""
        if self._error is not None:
            raise ConnectionResetError("the connection has ended")
        await self._writer.send(payload)

    def pause(self) -> None:
        """Stop passing on messages; further ones wait at the upstream."""
        self._is_paused = True
        self._pace(is_stopped=True)

    def resume(self) -> None:
        """Pass on messages again, in the next turn of the event loop."""
        self._is_paused = False
        self._is_heard = True
        if self._advancing is None and self._error is None:
            self._advancing = self._loop.call_soon(self._advance)

    def close(self, code: int = GOING_AWAY) -> None:
        """Send the reason why the connection ends, and give the upstream a moment to close it."""
        self._end(was_reset(), code)

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._writer = FrameWriter(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._error is not None:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > STEP_BYTES:
                self.abort()
            return
        if not self._answer.is_upgraded:
            data = self._read_answer(data)
        if data:
            self._is_heard = True
            self._parser.push(data)
        if self._receiver is None or self._advancing is not None or self._is_paused:
            return
        if len(data) < FULL_READ_BYTES:
            self._advance()
        else:
            self._advancing = self._loop.call_soon(self._advance)
            self._pace(is_stopped=True)

    def connection_lost(self, exc: Exception | None) -> None:
        reason = "connection closed" if exc is None else reason_of(exc)
        self._lose(was_reset(reason, sent=self._answer.is_upgraded))
        self._answer.discard()
        if self._timer is not None:
            self._timer.cancel()
        self._receiver = None  # which has this connection: both would wait for the garbage collector
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._writer.pause()

    def resume_writing(self) -> None:
        self._writer.resume()

    def _read_answer(self, data: bytes) -> bytes:
        """Read the answer to the upgrade, and return what follows it."""
        try:
            rest = self._answer.feed(data)
        except InvalidHttp as error:
            failure = invalid_answer("an answer to the upgrade that is not valid", sent=False)
            failure.__cause__ = without_frames(error)  # whose frames have this connection
            self._lose(failure)
            self.abort()
            return b""
        if self._answer.head is not None:
            self._wake()
        return rest if self._answer.is_upgraded else b""

    def _advance(self) -> None:
        """Pass on some of the messages that have arrived; others are served before the rest is read."""
        self._advancing = None
        parser, receiver = self._parser, self._receiver
        last = parser.pending_bytes - STEP_BYTES
        has_more = True
        try:
            while has_more and not self._is_paused and self._error is None:
                payloads = parser.read_short_texts(STEP_BYTES)
                if payloads and receiver is not None:
                    receiver.receive(payloads)
                messages, has_more = parser.read(1)
                for message in messages:
                    self._take(message)
                if has_more and (len(payloads) == MAX_TEXTS or parser.pending_bytes <= last):
                    break
            if self._error is None:
                self._partial.release()
                self._partial.grow(parser.pending_bytes)
        except FrameError as error:
            is_large = error.code == TOO_BIG
            limits = f"{MAX_FRAME_BYTES} bytes or {MAX_FRAGMENTS} frames"
            failure = invalid_answer(f"a message of more than {limits}" if is_large else "a frame that is not valid")
            failure.__cause__ = without_frames(error)  # whose frames have this connection
            self._end(failure, error.code)
        except HeadgateError as error:
            self._end(error, GOING_AWAY if isinstance(error, Unavailable) else PROTOCOL_ERROR)
        if has_more and not self._is_paused and self._error is None:
            self._advancing = self._loop.call_soon(self._advance)
        self._pace(is_stopped=self._error is None and (self._is_paused or self._advancing is not None))

    def _pace(self, *, is_stopped: bool) -> None:
        """Read the connection or not: only when what has arrived is read, and messages are wanted."""
        if is_stopped != self._is_stopped and not self._transport.is_closing():
            self._is_stopped = is_stopped
            (self._transport.pause_reading if is_stopped else self._transport.resume_reading)()

    def _take(self, message: Message) -> None:
        """Answer a control frame, or pass a message on. Raises BackendError, and what the receiver raises."""
        kind, receiver = message.kind, self._receiver
        if kind == "text" and receiver is not None:
            if message.parts:
                receiver.receive_parts(message.parts)
            else:
                receiver.receive([message.data])
        elif kind == "binary":
            raise invalid_answer("a binary message")
        elif kind == "close":
            code = "no status" if message.code == NO_STATUS else str(message.code)
            self._end(was_reset(f"closed with {code}"), message.code)
        else:
            self._control_frames += 1
            if self._control_frames > MAX_CONTROL_FRAMES:
                raise invalid_answer(f"more than {MAX_CONTROL_FRAMES} pings in {PING_S:g} s")
            if kind == "ping":
                self._writer.write(pong_frame(message.data))

    def _end(self, error: HeadgateError, code: int) -> None:
        """Stop receiving, notify the receiver, and end the connection soon."""
        if self._error is None and not self._transport.is_closing():
            if self._writer.is_in_message:
                self.abort()
            else:
                self._writer.write(close_frame(code))
                self._pace(is_stopped=False)  # its end is only noticed so
                self._loop.call_later(CLOSE_S, self._transport.abort)
        self._lose(error)

    def _lose(self, error: HeadgateError) -> None:
        """Record why no more messages are received."""
        if self._error is not None:
            return
        self._error = error
        self._partial.release()
        self._parser = FrameParser(0, is_masked=False)
        if self._advancing is not None:
            self._advancing.cancel()
        self._wake()
        self._writer.resume()
        if self._receiver is not None:
            self._receiver.lose(error)

    def _check(self) -> None:
        """Ping a silent upstream, and disconnect one that does not answer."""
        self._timer = self._loop.call_later(PING_S, self._check)
        self._control_frames = 0
        is_heard, self._is_heard = self._is_heard or self._is_paused, False
        if is_heard or self._error is not None:
            self._is_pinged = False
        elif self._is_pinged:
            self._lose(stalled(PING_S))
            self.abort()
        else:
            self._is_pinged = True
            self._writer.write(ping_frame())

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
