"""Writes answers onto the connections of their requests: a head and a whole body, or a head and a stream.

Replies of models are written here; errors and probes use aiohttp's own responses, which build a multidict of headers
and write each part separately: a fifth of the cost of a small answer.
"""

import time
from collections.abc import Awaitable, Mapping, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType

from aiohttp import HttpVersion, web

from proxy.http.pieces import PIECE_BYTES, pieces_of
from proxy.http.request import Request

STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
WITHOUT_BODY = frozenset({204, 304})
NO_FIELDS: Mapping[str, str] = MappingProxyType({})
LINE_ENDS = frozenset("\r\n\0")
"""Characters with which a field could be read as several."""
LAST_CHUNK = b"0\r\n\r\n"
LARGE_BYTES = 65_536
"""The size in bytes from which a body is written separately from its head."""


class Answer(web.StreamResponse):
    """One answer. The first write contains the head, so that an error before it can still have its own status.

    A stream is sent in chunks; for a client of HTTP/1.0 it ends with the connection.
    Writing raises ConnectionError when the client has disconnected, and waits while the client reads too slowly.
    """

    __slots__ = (
        "_connection", "_fields", "_has_body", "_is_chunked", "_is_in_frame", "_request", "_unpaced_bytes",
        "_unsent_head", "checked_bytes", "keep_alive", "silent_checks", "status",
    )  # fmt: skip

    keep_alive: bool | None  # attributes and no properties
    status: int

    def __init__(self, request: Request, status: int, headers: Mapping[str, str]) -> None:
        """aiohttp's constructor is not called: it prepares headers, cookies and codings that are not used."""
        self._request = request
        self._connection = request.protocol
        self._fields = headers
        self.status = status
        self.keep_alive = None
        self._has_body = request.method != "HEAD" and status not in WITHOUT_BODY
        self._unpaced_bytes = 0  # written since other connections had a turn

    def send(self, body: bytes) -> Awaitable[None] | None:
        """Write the head and the whole body; return an awaitable for the rest if not all could be written at once."""
        self.keep_alive = self._request.keep_alive
        framing = () if self.status in WITHOUT_BODY else ("Content-Length", str(len(body)))
        head = self._encode_head(*framing)
        if not self._has_body:
            body = b""
        if len(body) >= LARGE_BYTES:
            return self._send_large(head, body)
        self._put(head + body)
        return self.wait_turn() if self._connection.writing_paused else None

    async def _send_large(self, head: bytes, body: bytes) -> None:
        await self._write(head)
        for piece in pieces_of([body]):
            await self._write(piece)

    def begin_stream(self) -> None:
        """Prepare the head of a stream; it is sent with the first write."""
        self._is_chunked = self._request.version >= (1, 1)
        self._is_in_frame = False  # whether a part of a frame was written, and the rest was not
        self.checked_bytes, self.silent_checks = -1, 0  # for heartbeats
        self.keep_alive = self._request.keep_alive and (self._is_chunked or not self._has_body)
        framing = ("Transfer-Encoding", "chunked") if self._is_chunked and self._has_body else ()
        self._unsent_head = self._encode_head(*framing)
        self._fields = NO_FIELDS  # so that they are not kept while the stream lasts
        self._connection.release_parser()

    async def write_chunk(self, data: bytes) -> None:
        """Write a part of the stream."""
        await self._write(self._frame((data,), len(data)))

    def write_now(self, frames: bytes) -> bool:
        """Write whole frames, which are shorter than a piece; return whether `wait_turn` has to follow."""
        data = b"%x\r\n%b\r\n" % (len(frames), frames) if self._is_chunked else frames
        return self._put_now(self._take_head() + data if self._unsent_head else data)

    def write_run(self, frames: bytes) -> bool:
        """Write frames after the head, between other writes, if possible without waiting; return whether it was."""
        connection = self._connection
        transport = connection.transport
        if transport is None or transport.is_closing() or connection.writing_paused:
            return False
        data = b"%x\r\n%b\r\n" % (len(frames), frames) if self._is_chunked else frames
        size = len(data)
        unpaced_bytes = self._unpaced_bytes + size
        if unpaced_bytes >= PIECE_BYTES:
            return False
        transport.write(data)
        self._request.sent_bytes += size
        self._unpaced_bytes = unpaced_bytes
        return True

    async def wait_turn(self) -> None:
        """Wait while the client reads too slowly, and after each piece until others have written."""
        await self._connection.wait_until_writable()
        if self._unpaced_bytes >= PIECE_BYTES:
            self._unpaced_bytes = 0
            await self._connection.take_turn()

    def write_frames(self, frames: Sequence[bytes], *, is_last: bool = False) -> Awaitable[None] | None:
        """Write whole frames; return an awaitable if they are long, or the client reads too slowly."""
        size = sum(map(len, frames))
        if size > PIECE_BYTES:
            return self._write_pieces(frames, is_last=is_last)
        return self.wait_turn() if self._put_now(self._frame(frames, size, is_last=is_last)) else None

    async def _write_pieces(self, frames: Sequence[bytes], *, is_last: bool) -> None:
        """Write whole frames in pieces, between which nothing else is written."""
        last = b""
        for piece in pieces_of(frames):
            if last:
                self._is_in_frame = True
                await self.write_chunk(last)
            last = piece
        self._is_in_frame = False
        await (self.end_stream(last) if is_last else self.write_chunk(last))

    async def end_stream(self, data: bytes = b"") -> None:
        """Write the last part of the stream, and its end."""
        await self._write(self._frame((data,), len(data), is_last=True) if self._has_body else self._take_head())

    def write_between(self, data: bytes) -> None:
        """Write data between two frames of the stream, unless the client has disconnected or reads too slowly."""
        transport, connection = self._connection.transport, self._connection
        if self._is_in_frame:
            return
        if transport is not None and not transport.is_closing() and not connection.writing_paused:
            self._put_now(self._frame((data,), len(data)))

    @property
    def sent_bytes(self) -> int:
        """How much of the answer was written, in bytes."""
        return self._request.sent_bytes

    async def prepare(self, request: web.BaseRequest) -> None:
        """aiohttp calls this when all is written."""

    async def write_eof(self, data: bytes = b"") -> None:
        """aiohttp calls this when all is written."""

    def _frame(self, parts: Sequence[bytes], size: int, *, is_last: bool = False) -> bytes:
        """Return these parts of the stream, `size` bytes together, as one chunk. They are copied once."""
        head = self._take_head()
        if not self._is_chunked:
            return b"".join((head, *parts))
        end = LAST_CHUNK if is_last else b""
        return b"".join((head, b"%x\r\n" % size, *parts, b"\r\n", end) if size else (head, end))

    def _take_head(self) -> bytes:
        head, self._unsent_head = self._unsent_head, b""
        return head

    def _encode_head(self, *framing: str) -> bytes:
        """Return the head; `framing` is the name and the value of the field that says where the body ends, if any does.

        Raises ValueError if a field could be read as more than one.
        """
        names, values = [*self._fields], [*self._fields.values()]
        if framing:
            names.append(framing[0])
            values.append(framing[1])
        text = "".join(values)  # searching one text takes less than searching each value
        if "\n" in text or "\r" in text or "\0" in text:
            raise invalid_field()
        values.append(_format_date(time.time() // 1))
        parts = [*_head_parts(tuple(names), self.status, self._request.version, self.keep_alive)]
        parts[1::2] = values
        return "".join(parts).encode("utf-8", "surrogateescape")

    async def _write(self, data: bytes) -> None:
        if self._put_now(data):
            await self.wait_turn()

    def _put_now(self, data: bytes) -> bool:
        """Write data; return whether `wait_turn` has to follow. Raises ConnectionError."""
        self._put(data)
        self._unpaced_bytes += len(data)
        return self._unpaced_bytes >= PIECE_BYTES or self._connection.writing_paused

    def _put(self, data: bytes) -> None:
        """Write data without pacing. Raises ConnectionError."""
        transport = self._connection.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has disconnected")
        transport.write(data)
        self._request.sent_bytes += len(data)


def invalid_field() -> ValueError:
    return ValueError("A header of an answer has a line end in its name or value.")


@lru_cache(maxsize=256)
def _head_parts(
    names: tuple[str, ...],
    status: int,
    version: HttpVersion,
    keep_alive: bool | None,  # noqa: FBT001  keys of a cache
) -> Sequence[str]:
    """Return the parts of a head around the values of these fields and of Date, with an empty part for each value.

    Most answers have the same fields. Raises ValueError for a name that could be read as more than one field.
    """
    if not LINE_ENDS.isdisjoint("".join(names)):
        raise invalid_field()
    connection = ""
    if keep_alive:
        connection = "\r\nConnection: keep-alive" if version == (1, 0) else ""
    elif version == (1, 1):
        connection = "\r\nConnection: close"
    start = f"HTTP/{version[0]}.{version[1]} {STATUS_LINES.get(status) or f'{status} '}"
    places = [part for name in (*names, "Date") for part in (f"\r\n{name}: ", "")]
    return (start + places[0], *places[1:], f"{connection}\r\n\r\n")


@lru_cache(maxsize=1)
def _format_date(second: float) -> str:
    """Source: https://www.rfc-editor.org/rfc/rfc9110#section-5.6.7"""
    return formatdate(second, usegmt=True)
