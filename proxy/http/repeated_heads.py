"""Heads of requests that repeat the last one of their connection, but for the length: those are not parsed again.

Most clients change nothing else in it from call to call, and to parse it takes a twentieth of a cache hit. What
aiohttp's parser makes of a head depends on its bytes alone, while the parser is between two requests. So a head is only
compared with one that the parser has accepted, and all else is the parser's: any other head, bodies in chunks, what
follows an upgrade, and everything on a connection of which it is not certain that the parser is between two requests.
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
"""How long a head may be that is remembered: each connection has one, also while it is idle."""
MAX_DIGITS = 9
"""How many digits a length has at most; one with more is not read as a number here."""
_find_digits = re.compile(rb"\r\ncontent-length:[ \t]*([1-9][0-9]*)\r\n", re.IGNORECASE).search


class AcceptedHead(msgspec.Struct, eq=False):
    """A head that the parser has accepted, or one that differs from it in the length only.

    `data` is the whole head, of `size` bytes; the digits of the length are between `start` and `end`. `length` is how
    long its body is in bytes, and `message` what the parser makes of it, without the fields as bytes: nothing reads
    those, and they take half of its memory. `known` is what follows from it for each request, once that was found out;
    it does not depend on the length.
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
    """A connection that compares the head of a request with the last one before it is parsed."""

    __slots__ = ("_body", "_last_head", "_missing_bytes")

    def __init__(self, manager: web.Server, **options: Any) -> None:
        # Nothing is decompressed on the event loop, where the ratio has no bound.
        super().__init__(manager, auto_decompress=False, **options)
        self._missing_bytes: int | None = 0
        """How much of the current body has not arrived; 0: a head is next. None: not known, now and from now on."""
        self._body: StreamReader | None = None  # the body that is received here, and not by the parser
        self._last_head: AcceptedHead | None = None

    def forget_head(self) -> None:
        """Let the next head be parsed."""
        self._last_head = None

    def release_parser(self) -> None:
        """Release the parser, which keeps the last head that it has read, until there is another one for it.

        Between two requests it is as a new one; at any other time it is kept. After an upgrade no head follows.
        """
        if self._upgraded or (self._missing_bytes == 0 and not self._messages):
            self._parser = None

    def receive(self, data: bytes) -> None:
        """Take what has arrived: requests and parts of them are in the queue of messages then."""
        if self._body is not None:
            data = self._receive_body(self._body, data)
            if not data:
                return
        if not self.receive_repeated(data):
            self._parse(data)

    def receive_repeated(self, data: bytes) -> bool:
        """Take a request with a head like the last one, if this is one, with its body or a part of it, and no more.

        Returns whether it is. How long the comparison takes says nothing about the key in the head.
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
        """Whether this begins like a head but for the digits of the length, which the head gets then."""
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
        """Take a part of a body whose head was not parsed; return what follows it."""
        missing = self._missing_bytes or 0
        part = data[:missing]
        body.feed_data(part)
        self._missing_bytes = missing - len(part)
        if not self._missing_bytes:
            self._body = None
            body.feed_eof()
        return data[missing:]

    def _parse(self, data: bytes) -> None:
        """Let aiohttp's parser take this, and note where it is then."""
        missing, complete = self._missing_bytes, self._request_count
        if self._parser is None and not (self._upgraded or self._force_close):
            self._parser = self._new_parser()
        web.RequestHandler.data_received(self, data)
        if missing is None:
            return
        self._missing_bytes = None
        arrived = self._request_count - complete
        if not missing and arrived == 1 and self._messages:
            self._missing_bytes = self._note_request(data, *self._messages[-1])
        elif not arrived and len(data) <= missing:
            self._missing_bytes = missing - len(data)

    def _new_parser(self) -> HttpRequestParser:
        """Return a parser like the one that aiohttp makes for each connection."""
        return HttpRequestParser(
            self, self._loop, self._read_bufsize, max_line_size=self.max_line_size, max_headers=self.max_headers,
            max_field_size=self.max_field_size, payload_exception=web.RequestPayloadError, auto_decompress=False,
            max_msg_queue_size=MAX_MSG_QUEUE_SIZE,
        )  # fmt: skip

    def _note_request(self, data: bytes, message: object, body: StreamReader) -> int | None:
        """Remember the head of a request that the parser has taken from this; return how much of the body is missing.

        None: this is not one head, with its body or a part of it, and nothing else.
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
        self._last_head = head = _head_of(data[:end], length, message) if is_kept else None
        if head is not None:
            self._messages[-1] = head.message, body
        return missing


def _head_of(head: bytes, length: int, message: RawRequestMessage) -> AcceptedHead | None:
    """Return a head that may be repeated; None for one whose length is not written as clients do."""
    found = _find_digits(head)
    if found is None or len(message.headers.getall(CONTENT_LENGTH)) > 1:
        return None
    start, end = found.span(1)
    return AcceptedHead(head, start, end, len(head), length, message._replace(raw_headers=()))


def _with_length(message: RawRequestMessage, digits: bytes) -> RawRequestMessage:
    """Return what the parser makes of a head with another length."""
    headers = CIMultiDict(message.headers)
    headers[CONTENT_LENGTH] = digits.decode()
    return message._replace(headers=CIMultiDictProxy(headers))
