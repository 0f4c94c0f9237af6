"""One message after another over a socket between the gate and an engine's process: JSON behind its length.

    00 00 00 0b ["cancel",7]

Neither side trusts the other's bytes: what is no message breaks the link, and a link is never mended.
"""  # fmt: skip

import asyncio
import socket
from typing import Any, Self

import orjson

HEAD_BYTES = 4
# A prompt of a million tokens and the grammar of a very large schema have room; a length that is noise does not.
MAX_BYTES = 33_554_432


class BrokenLink(Exception):
    """What came is not a message of this protocol."""


class Link:
    """Both directions of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        """The link over one end of a socket pair, which it closes."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: bytes) -> None:
        """Write a message; what the other side does not read waits in memory, so `room` comes before large ones."""
        if not self._writer.is_closing():  # who reads learns that it is over
            self._writer.write(len(message).to_bytes(HEAD_BYTES) + message)

    async def room(self) -> None:
        """Wait until the other side has read most of what was sent. Raises OSError when it is gone."""
        await self._writer.drain()

    async def receive(self) -> Any | None:
        """The next message, None when the other side is gone. Raises BrokenLink."""
        try:
            size = int.from_bytes(await self._reader.readexactly(HEAD_BYTES))
            if size > MAX_BYTES:
                raise BrokenLink(f"a message of {size} bytes; at most {MAX_BYTES} are allowed")
            return orjson.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError):
            return None
        except orjson.JSONDecodeError as error:
            raise BrokenLink("a message that is not JSON") from error

    def close(self) -> None:
        """Let go at once; what was not yet read is lost."""
        self._writer.transport.abort()
