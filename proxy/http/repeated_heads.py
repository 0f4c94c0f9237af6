"""Skips the parser for a request head that equals the last one of its connection, but for the body's length.

Most clients change nothing else from call to call, and parsing a head takes a twentieth of a cache hit. Between two
requests the parser's result depends on the bytes of the head alone, so such a head is compared with the last one that
the parser has accepted. The parser handles everything else: other heads, bodies in chunks, data after an upgrade, and
all data of a connection whose parser may not be between two requests.
"""

import re
from hmac import compare_digest
from typing import Any

import msgspec
from aiohttp import StreamReader, web
from aiohttp.hdrs import CONTENT_LENGTH
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.web_protocol import MAX_MSG_QUEUE_SIZE
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.http.pacing import PacedConnection
from proxy.http.received_body import ReceivedBody
from proxy.http.request_head import RequestHead

END_OF_HEAD = b"\r\n\r\n"
MAX_HEAD_BYTES = 4096
"""The longest head that is kept, in bytes: each connection keeps one, also while it is idle."""
MAX_DIGITS = 9
"""The most digits of a Content-Length that is read here; the parser reads longer ones."""
_find_digits = re.compile(rb"\r\ncontent-length:[ \t]*([1-9][0-9]*)\r\n", re.IGNORECASE).search


class AcceptedHead(msgspec.Struct, eq=False):
    """A head that the parser has accepted, or one that differs from it in the length only.

    `data` is the whole head, of `size` bytes; the digits of the length are between `start` and `end`. `length` is the
    length of its body in bytes, and `message` the parser's result, without the fields as bytes: they are not read, and
    take half of its memory. `known` is what the dispatcher derives from it; that does not depend on the length.
    """

    data: bytes
    start: int
    end: int
    size: int
    length: int
    message: RawRequestMessage
    known: RequestHead | None = None

    def __repr__(self) -> str:  # it has a key
        return f"AcceptedHead({self.size} bytes)"


class RepeatedHeads(PacedConnection):
    """A connection that compares each request head with the last one before it is parsed."""

    __slots__ = ("_body", "_last_head", "_missing_bytes")

    def __init__(self, manager: web.Server, **options: Any) -> None:
        # Nothing is decompressed on the event loop, where the ratio has no bound.
        super().__init__(manager, auto_decompress=False, **options)
        self._missing_bytes: int | None = 0
        """How many bytes of the current body have not arrived; 0: a head is next. None: unknown from now on."""
        self._body: StreamReader | None = None  # the body of a head that was not parsed
        self._last_head: AcceptedHead | None = None

    def forget_head(self) -> None:
        """Have the next head parsed."""
        self._last_head = None

    def release_parser(self) -> None:
        """Release the parser, and the memory of the last head that it read, until another head has to be parsed.

        Done only between two requests, where a new parser is equivalent, or after an upgrade, where no head follows.
        """
        if self._upgraded or (self._missing_bytes == 0 and not self._messages):
            self._parser = None

    def receive(self, data: bytes) -> None:
        """Handle received data: add its requests to the queue of messages, and parts of bodies to their bodies."""
        if self._body is not None:
            data = self._receive_body(self._body, data)
            if not data:
                return
        if not self.receive_repeated(data):
            self._parse(data)

    def receive_repeated(self, data: bytes) -> bool:
        """Take a request whose head repeats the last one, with its body or a part of it; return whether this is one.

        The comparison takes constant time, as the head contains a key.
        """
        head, waiter = self._last_head, self._waiter
        if head is None or waiter is None or self._missing_bytes != 0 or waiter.done():
            return False
        if not (compare_digest(data[: head.size], head.data) or self._differs_in_length(head, data)):
            return False
        part, length = data[head.size :], head.length
        if len(part) > length:
            return False
        is_whole = len(part) == length
        body = ReceivedBody(part) if is_whole else StreamReader(self, self._read_bufsize, loop=self._loop)
        self._request_count += 1
        self._messages.append((head.message, body))
        waiter.set_result(None)
        if not is_whole:
            self._body, self._missing_bytes = body, length
            self._receive_body(body, part)
        return True

    def _differs_in_length(self, head: AcceptedHead, data: bytes) -> bool:
        """Return whether the data begins with the same head but for the length. If so, update the head's length."""
        start, before, after = head.start, head.data[: head.start], head.data[head.end :]
        end = data.find(b"\r", start, start + MAX_DIGITS + 1)
        digits, size = data[start:end], end + len(after)
        if end < 0 or not digits.isdigit() or digits.startswith(b"0"):
            return False
        if not (compare_digest(data[:start], before) and compare_digest(data[end:size], after)):
            return False
        length = int(digits)
        if len(data) - size > length or length > self._read_bufsize:  # a longer body pauses the parser
            return False
        head.data, head.end, head.size, head.length = data[:size], end, size, length
        head.message = _with_length(head.message, digits)
        return True

    def _receive_body(self, body: StreamReader, data: bytes) -> bytes:
        """Add data to a body whose head was not parsed; return what follows the body."""
        missing = self._missing_bytes or 0
        part = data[:missing]
        body.feed_data(part)
        self._missing_bytes = missing - len(part)
        if not self._missing_bytes:
            self._body = None
            body.feed_eof()
        return data[missing:]

    def _parse(self, data: bytes) -> None:
        """Feed the parser, and track how much of the current body is missing."""
        missing, complete = self._missing_bytes, self._request_count
        if self._parser is None and not (self._upgraded or self._force_close):
            self._parser = self._new_parser()
        web.RequestHandler.data_received(self, data)
        if missing is None:
            return
        self._missing_bytes = None
        arrived = self._request_count - complete
        if not missing and arrived == 1 and self._messages:
            self._missing_bytes = self._keep_head(data, *self._messages[-1])
        elif not arrived and len(data) <= missing:
            self._missing_bytes = missing - len(data)

    def _new_parser(self) -> HttpRequestParser:
        """Return a parser with the settings that aiohttp gives each connection."""
        return HttpRequestParser(
            self, self._loop, self._read_bufsize, max_line_size=self.max_line_size, max_headers=self.max_headers,
            max_field_size=self.max_field_size, payload_exception=web.RequestPayloadError, auto_decompress=False,
            max_msg_queue_size=MAX_MSG_QUEUE_SIZE,
        )  # fmt: skip

    def _keep_head(self, data: bytes, message: object, body: StreamReader) -> int | None:
        """Keep the head of the request that was just parsed; return how many bytes of its body are missing.

        None if the data was anything but one head with its body or a part of it.
        """
        if not isinstance(message, RawRequestMessage) or message.should_close or message.upgrade or message.chunked:
            return None
        digits = message.headers.get(CONTENT_LENGTH, "0")
        if len(digits) > MAX_DIGITS:
            return None
        end, length = data.find(END_OF_HEAD) + len(END_OF_HEAD), int(digits)
        missing = length - body.total_bytes
        if end + body.total_bytes != len(data) or body.is_eof() != (missing == 0):
            return None
        is_kept = end <= MAX_HEAD_BYTES and 0 < length <= self._read_bufsize
        self._last_head = head = _accepted_head(data[:end], length, message) if is_kept else None
        if head is not None:
            self._messages[-1] = head.message, body
        return missing


def _accepted_head(head: bytes, length: int, message: RawRequestMessage) -> AcceptedHead | None:
    """Return the head for comparisons; None if its Content-Length is not in the usual form."""
    found = _find_digits(head)
    if found is None or len(message.headers.getall(CONTENT_LENGTH)) > 1:
        return None
    start, end = found.span(1)
    return AcceptedHead(head, start, end, len(head), length, message._replace(raw_headers=()))


def _with_length(message: RawRequestMessage, digits: bytes) -> RawRequestMessage:
    """Return the parser's result for the head with another length."""
    headers = CIMultiDict(message.headers)
    headers[CONTENT_LENGTH] = digits.decode()
    return message._replace(headers=CIMultiDictProxy(headers))
