"""The received, unread part of an answer's body."""

import asyncio

HIGH_WATER_BYTES = 65_536
"""How many unread bytes an answer may have before reading from the upstream is paused."""


class UnreadBody:
    """Keeps chunks until they are read, and pauses the connection above the limit."""

    __slots__ = ("_bytes", "_is_paused", "_transport", "chunks")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.chunks: list[bytes] = []
        self._bytes = 0
        self._is_paused = False

    def put(self, chunk: bytes) -> None:
        """Add a chunk that others may follow. The last one is added to `chunks` directly, without pausing."""
        self.chunks.append(chunk)
        self._bytes += len(chunk)
        if self._bytes > HIGH_WATER_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def take(self) -> bytes:
        """Return everything, and resume the connection; b"" if there is nothing."""
        chunks = self.chunks
        if not chunks:
            return b""
        if len(chunks) == 1:
            data = chunks.pop()
        else:
            data = b"".join(chunks)
            chunks.clear()
        self._bytes = 0
        if self._is_paused:
            self._is_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return data
