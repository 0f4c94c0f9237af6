"""The body of a request that is sent on while it is received: files and forms, which may be large."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from proxy.config.process_tables import ServerTable
from proxy.http.body import BYTES_PER_SECOND, body_too_large, body_too_late, continue_if_expected, incomplete_body
from proxy.wire.errors import RequestError

BLANK = b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"  # what may precede a JSON text: white space, and marks of an encoding


class BodyStream:
    """Reads a body in chunks, unless it begins like a JSON object or array, which policies would not have seen.

    The time that its receiver takes does not count as time of the caller.
    """

    def __init__(self, request: web.BaseRequest, server: ServerTable) -> None:
        self._request = request
        self._server = server
        self._first = b""
        self._is_blank = True  # whether nothing but BLANK has arrived
        self._size = 0
        self._waited_s = 0.0

    async def begin(self) -> None:
        """Read the first chunk, which stays a part of the stream. Raises as `chunks` does."""
        await continue_if_expected(self._request)
        self._first = await self._read()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks of the body. Raises RequestError: 415 JSON, 413 too large, 408 too slow, 400 incomplete.

        Of JSON the receiver has nothing but the white space that has arrived before it.
        """
        chunk = self._first
        while chunk:
            yield chunk
            chunk = await self._read()

    async def _read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises RequestError."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        left_s = self._server.body_timeout_s + self._size / BYTES_PER_SECOND - self._waited_s
        try:
            async with asyncio.timeout(left_s):
                chunk = await self._request.content.readany()
        except TimeoutError as error:
            raise body_too_late(self._server) from error
        except web.RequestPayloadError as error:
            raise incomplete_body() from error
        self._waited_s += loop.time() - started
        self._size += len(chunk)
        if self._size > self._server.max_body_bytes:
            raise body_too_large(self._server.max_body_bytes)
        if self._is_blank:
            self._check_beginning(chunk)
        return chunk

    def _check_beginning(self, chunk: bytes) -> None:
        """Raises RequestError for a chunk that begins like JSON, if nothing but BLANK precedes it."""
        text = chunk.lstrip(BLANK)
        if text[:1] in (b"{", b"["):
            message = "The body is JSON, but its Content-Type is another; send application/json."
            raise RequestError(message, status=415)
        self._is_blank = not text
