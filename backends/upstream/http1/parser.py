"""Parses the answers of one connection. Knows no sockets.

A head is read by `head.py` when it is whole. Where it leaves no question about where the body ends (`_is_plain`), the
body is counted here if it has a length, and one in chunks is cut here as long as each arrives as a whole and without an
extension, as most events of a stream do. httptools (llhttp) reads all other heads too, and splits their bodies.
Source: https://www.rfc-editor.org/rfc/rfc9112
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import count
from typing import Any

import httptools

from backends.upstream.http1.head import MAX_HEAD_BYTES, AnswerHead, InvalidHttp, read_head

MAX_INTERIM_ANSWERS = 32
"""The most answers of a status below 200, such as 100 Continue, to one request."""
MAX_FRAMING_BYTES = 65_536
"""The most bytes of an answer that are not body, head or a usual chunk's size: extensions of chunks, and trailers."""
CHUNK_FRAMING_BYTES = 32
"""How many bytes a chunk may have beside its data without counting towards that limit."""
_START, _PERSISTENT = b"HTTP/1.", b"HTTP/1.1 "
_SPACE_AT_END = re.compile(rb"[ \t]+(?=\r\n)")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_WITHOUT_BODY = frozenset({204, 304})
_MAX_LENGTH_DIGITS = 15
_END = b"0\r\n\r\n"
"""What follows the last chunk, without trailers."""


class ResponseParser:
    """Reads one answer after another; `reset` comes between them. The `on_` methods are called by httptools."""

    __slots__ = (
        "_framing_bytes", "_held_head", "_interim_answers", "_is_between_chunks", "_is_chunked", "_is_counted",
        "_is_open_ended", "_last", "_last_piece", "_left_bytes", "_may_upgrade", "_parser", "_partial", "_pieces",
        "can_continue", "has_surplus", "head", "is_complete", "is_upgraded", "on_body", "on_chunk_complete",
        "on_chunk_header",
    )  # fmt: skip

    def __init__(self, *, may_upgrade: bool = False) -> None:
        """`may_upgrade` is whether the request has asked for another protocol: what follows a status of 101 is that."""
        self._may_upgrade = may_upgrade
        self.is_upgraded = False
        self._pieces: list[bytes] = []
        self._parser: Any = None  # of httptools, once an answer needs it
        self._partial = bytearray()  # the part of a head that has arrived
        self.reset()

    def reset(self) -> None:
        """Prepare for the next answer. The one before must be complete."""
        self.head: AnswerHead | None = None
        self.is_complete = False
        self.can_continue = False
        """Whether the upstream keeps the connection open after this answer."""
        self.has_surplus = False
        """Whether bytes followed the end of the answer: nothing that comes after it can be trusted."""
        self._is_counted = self._is_chunked = self._is_open_ended = False
        self._is_between_chunks = False  # whether a chunk begins with what comes next, if that does not end the body
        self._held_head = b""  # of a body in chunks, as long as httptools was needed for none of them
        self._left_bytes = 0  # of a counted body
        self._interim_answers = 0
        self._framing_bytes = 0
        self._last_piece = 0  # where the body ends in the pieces that httptools found, once the answer is complete
        self._last = b""  # the last five bytes of a chunked body

    @property
    def has_begun(self) -> bool:
        """Whether a byte of the answer has arrived, interim answers included."""
        return self.head is not None or self._interim_answers > 0 or bool(self._partial)

    def feed(self, data: bytes) -> bytes:
        """Return the part of the body that these bytes contain, or of another protocol after an upgrade.

        Raises InvalidHttp.
        """
        if self._is_between_chunks:
            lines = _size_lines(len(data))
            if data.startswith(lines) and data.endswith(b"\r\n"):  # as most of a stream arrives
                return data[len(lines[0]) : -2]
        start = 0
        if self.head is None:
            data, start = self._read_heads(data)
        if start == len(data):
            return b""
        if self._is_between_chunks and (chunk := self._whole_chunk(data, start)) is not None:
            return chunk
        data = data[start:]
        if self.is_complete:
            self.has_surplus = True
            return data if self.is_upgraded else b""
        if not self._is_counted:
            return self._split_body(data)
        left = self._left_bytes = self._left_bytes - len(data)
        self.is_complete, self.has_surplus = left <= 0, left < 0
        return data if left >= 0 else data[:left]

    def _read_heads(self, data: bytes) -> tuple[bytes, int]:
        """Read heads up to the one of the answer; return bytes, and where what follows it begins in them.

        Raises InvalidHttp.
        """
        start = 0
        while self.head is None:
            end = -1 if self._partial else data.find(b"\r\n\r\n", start) + 4
            if 4 <= end <= start + MAX_HEAD_BYTES:  # almost always
                head, start = data[start:end], end
            elif (found := self._split_head(data[start:])) is not None:
                (head, data), start = found, 0
            else:
                return b"", 0
            self._parse_head(head)
        return data, start

    def _whole_chunk(self, data: bytes, start: int) -> bytes | None:
        """Return the data of the one whole chunk that begins at `start`, behind which the body may end.

        Returns None if something else is there.
        """
        is_end = bool(self._held_head) and data.endswith(_END, start)
        end = len(data) - len(_END) if is_end else len(data)
        lines = _size_lines(end - start)
        is_chunk = data.startswith(lines, start) and data.endswith(b"\r\n", 0, end)
        if not (is_chunk or (is_end and end == start)):
            return None
        if is_end:
            self.is_complete, self._is_between_chunks = True, False
        return data[start + len(lines[0]) : end - 2] if is_chunk else b""

    def _split_body(self, data: bytes) -> bytes:
        """Return the part of these bytes that is body as httptools finds it. Raises InvalidHttp.

        What is not body is bounded. Line ends after the last chunk, which httptools skips, are found.
        """
        if head := self._held_head:
            self._held_head = b""
            self._feed_head(head)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self.is_complete:
                raise InvalidHttp("a body that is not valid") from error.with_traceback(None)
            self.has_surplus = True
        pieces = self._pieces
        if self.is_complete:
            del pieces[self._last_piece :]  # what follows is of another answer
        count = len(pieces)
        body = pieces[0] if count == 1 else b"".join(pieces)
        pieces.clear()
        other_bytes = len(data) - len(body)
        if not self._is_chunked:
            self.has_surplus = self.has_surplus or other_bytes > 0
            return body
        framing_bytes = self._framing_bytes + other_bytes - CHUNK_FRAMING_BYTES * count
        if framing_bytes > MAX_FRAMING_BYTES:
            raise InvalidHttp("too large trailers, or extensions of chunks")
        # The size of a chunk may come before the chunk itself.
        self._framing_bytes = max(-MAX_FRAMING_BYTES, framing_bytes)
        last = self._last = data[-5:] if len(data) >= 5 else (self._last + data)[-5:]
        if self.is_complete and not (last.endswith(b"\r\n\r\n") and last[0] not in b"\r\n"):
            self.has_surplus = True
        # Headers and ends of chunks are counted; behind the last end there may be a part of a line, but no whole one.
        is_last_ended = self.on_chunk_header() == self.on_chunk_complete()
        self._is_between_chunks = is_last_ended and last.endswith(b"\r\n") and not self.is_complete
        return body

    def finish(self) -> bool:
        """Return whether an answer is complete now that the connection has ended."""
        self.is_complete = self.is_complete or self._is_open_ended
        return self.is_complete

    def discard(self) -> None:
        """Drop what was received of a head, and the part of the body that was being read: there will be no more.

        httptools' parser is dropped with them, as it and this one are a cycle.
        """
        self._held_head = b""
        self._partial.clear()
        self._pieces.clear()
        self._parser = None

    def _split_head(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Return a whole head and what follows it; None if more of it must arrive. Raises InvalidHttp."""
        received: bytes | bytearray = data
        searched = 0
        if partial := self._partial:
            searched = max(len(partial) - 3, 0)
            partial += data
            received = partial
        end = received.find(b"\r\n\r\n", searched) + 4
        if end < 4:
            is_possible = received.startswith(_START[: len(received)]) and not _BARE_LF.search(received, searched)
            if not is_possible or len(received) > MAX_HEAD_BYTES:
                raise InvalidHttp("a head that is not valid, or too large")
            if not partial:
                partial += data
            return None
        if end > MAX_HEAD_BYTES:
            raise InvalidHttp("a head that is not valid, or too large")
        head, rest = bytes(received[:end]), bytes(received[end:])
        partial.clear()
        return head, rest

    def _parse_head(self, head: bytes) -> None:
        """Set `head`, unless it is one of an interim answer. Raises InvalidHttp."""
        found = status, fields = read_head(head)
        coding, length = fields.get("transfer-encoding"), fields.get("content-length")
        is_plain = head.startswith(_PERSISTENT) and _is_plain(status, fields)
        if is_plain and coding is None and length is not None and _is_length(length):
            self._is_counted = self.can_continue = True
            self._left_bytes = int(length)
            self.is_complete = self._left_bytes == 0
        elif is_plain and length is None and coding is not None and coding.lower() == "chunked":
            self._held_head = head
            self._is_chunked = self._is_between_chunks = self.can_continue = True
        else:
            self._feed_head(head)
            if self.is_upgraded:
                self.head = found
                return
            if status < 200:
                self._interim_answers += 1
                if self._interim_answers > MAX_INTERIM_ANSWERS:
                    raise InvalidHttp("too many interim answers")
                self.is_complete = False
                return
            if coding is not None and (coding.lower() != "chunked" or not head.startswith(_PERSISTENT)):
                raise InvalidHttp("a transfer coding other than chunked")
            self._is_chunked = coding is not None
            self._is_between_chunks = self._is_chunked and not self.is_complete  # it is with 204, which has no body
            self._is_open_ended = not (self._is_chunked or self.is_complete or "content-length" in fields)
        self.head = found

    def _make_parser(self) -> None:
        """Make httptools' parser, with which a connection takes twice the memory. Most connections need none."""
        self.on_body = self._pieces.append
        self.on_chunk_header, self.on_chunk_complete = count().__next__, count().__next__  # in C, as bursts have many
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(lenient_headers=True, lenient_spaces_after_chunk_size=True)

    def _feed_head(self, head: bytes) -> None:
        """Let httptools read a head. Raises InvalidHttp."""
        if self._parser is None:
            self._make_parser()
        if head.find(b" \r\n") >= 0 or head.find(b"\t\r\n") >= 0:
            head = _SPACE_AT_END.sub(b"", head)  # no part of a value, but llhttp would not know `chunked` then
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade as error:  # status 101, with an `Upgrade`
            if not self._may_upgrade:
                raise InvalidHttp("an upgrade that nothing has asked for") from error.with_traceback(None)
            self.is_upgraded = True
        except httptools.HttpParserError as error:
            raise InvalidHttp("a head that is not valid") from error.with_traceback(None)

    def on_message_begin(self) -> None:
        if self.is_complete:
            self.has_surplus = True

    def on_headers_complete(self) -> None:
        self.can_continue = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        if not self.is_complete:
            self.is_complete = True
            self._last_piece = len(self._pieces)


@lru_cache(1024)
def _size_lines(chunk_bytes: int) -> tuple[bytes, ...]:
    """Return the line with the size of a chunk that has this many bytes with its framing, in both cases of letters.

    Returns nothing if there is no such chunk.
    """
    for digits in range(1, 9):
        size = chunk_bytes - digits - 4  # without two line ends
        if size > 0 and len(b"%x" % size) == digits:
            return b"%x\r\n" % size, b"%X\r\n" % size
    return ()


def _is_plain(status: int, fields: Mapping[str, str]) -> bool:
    """Return whether an answer in HTTP/1.1 has a body and keeps the connection, with nothing unusual about either."""
    if "upgrade" in fields or "proxy-connection" in fields:
        return False
    if status != 200 and (status < 200 or status in _WITHOUT_BODY):
        return False
    return "connection" not in fields or fields["connection"].lower() == "keep-alive"


def _is_length(length: str) -> bool:
    """Return whether this is the length of a body, and not one that may be read in two ways."""
    return len(length) <= _MAX_LENGTH_DIGITS and length.isascii() and length.isdigit()
