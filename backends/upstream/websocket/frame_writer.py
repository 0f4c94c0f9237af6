"""Writes the frames of one connection to an upstream: messages in pieces, and control frames between them."""

import asyncio

from proxy.wire.frame_bytes import masked_control, masked_text
from proxy.wire.frames import PART_BYTES


class FrameWriter:
    """The writing side of a connection. It has no buffer of its own: who sends a message waits for room."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._sending = asyncio.Lock()
        self._is_paused = False
        self._room: asyncio.Future[None] | None = None  # what the message that is sent waits for
        self._due = b""  # the last control frame that must wait for room, or for the end of a message
        self.is_in_message = False
        """Whether a part of a message was written, which no other frame can follow."""

    async def send(self, payload: bytes) -> None:
        """Send a text message. Raises ConnectionError when the connection has ended."""
        async with self._sending:
            unsent_bytes = len(payload)
            try:
                for piece in masked_text(payload):
                    if self._transport.is_closing():
                        raise ConnectionResetError("the connection has ended")
                    self._transport.write(piece)
                    unsent_bytes -= PART_BYTES
                    self.is_in_message = unsent_bytes > 0
                    if self.is_in_message:
                        await asyncio.sleep(0)
                    if self._is_paused:
                        await self._wait_for_room()
            finally:
                if self.is_in_message:
                    self._transport.abort()
            self._write_due()

    def write(self, control: bytes) -> None:
        """Write a control frame (without a mask), now or after the message that is being sent.

        While the upstream does not read, the last one waits: one that only sends pings cannot fill the memory.
        """
        if self.is_in_message or self._is_paused:
            self._due = control
        elif not self._transport.is_closing():
            self._transport.write(masked_control(control))

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        """Write again; a lost connection fails then."""
        self._is_paused = False
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._write_due()

    def _write_due(self) -> None:
        due, self._due = self._due, b""
        if due:
            self.write(due)

    async def _wait_for_room(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        try:
            await self._room
        finally:
            self._room = None
