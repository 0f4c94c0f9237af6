"""Heads of requests that repeat the last one of their connection, byte for byte: those are not parsed again.

Clients send the same head with each call whose body is as long, and to parse it takes a twentieth of a cache hit. What
aiohttp's parser makes of a head depends on its bytes alone, while the parser is between two requests. So a head is only
compared with one that the parser has accepted, and all else is the parser's: any other head, bodies in chunks, what
follows an upgrade, and everything on a connection of which it is not certain that the parser is between two requests.
"""

import asyncio
from hmac import compare_digest
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.hdrs import CONTENT_LENGTH
from aiohttp.http import RawRequestMessage

from proxy.http.pacing import PacedConnection
from proxy.http.received_body import ReceivedBody

END_OF_HEAD = b"\r\n\r\n"
MAX_HEAD_BYTES = 4096
"""How long a head may be that is remembered: each connection has one, also while it is idle."""
MAX_DIGITS = 9
"""How many digits a length has at most; one with more is not read as a number here."""


class RepeatedHeads(PacedConnection):
    """A connection that compares the head of a request with the last one before it is parsed."""

    __slots__ = ("_body", "_last_head", "_last_length", "_last_message", "_missing_bytes")

    _last_message: RawRequestMessage

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._missing_bytes: int | None = 0
        """How much of the current body has not arrived; 0: a head is next. None: not known, now and from now on."""
        self._body: StreamReader | None = None  # the body that is received here, and not by the parser
        self._last_head = b""  # that was parsed last
        self._last_length = 0  # of the body behind it

    def receive(self, data: bytes) -> None:
        """Take what has arrived: requests and parts of them are in the queue of messages then."""
        if self._body is not None:
            data = self._receive_body(self._body, data)
            if not data:
                return
        waiter = self._waiter
        if waiter is not None and not waiter.done() and self._repeats_head(data):
            self._receive_repeated(data[len(self._last_head) :], waiter)
        else:
            self._parse(data)

    def _repeats_head(self, data: bytes) -> bool:
        """Whether this is the last head again, with its body or a part of it, and the parser is between two requests.

        How long the comparison takes says nothing about the key in the head.
        """
        head = self._last_head
        if not head or self._missing_bytes != 0 or len(data) > len(head) + self._last_length:
            return False
        return compare_digest(data[: len(head)], head)

    def _receive_repeated(self, data: bytes, waiter: "asyncio.Future[None]") -> None:
        """Take a request that has the last head; `data` is its body or a part of it."""
        is_whole = len(data) == self._last_length
        body = ReceivedBody(data) if is_whole else StreamReader(self, self._read_bufsize, loop=self._loop)
        self._request_count += 1
        self._messages.append((self._last_message, body))
        waiter.set_result(None)
        if not is_whole:
            self._body, self._missing_bytes = body, self._last_length
            self._receive_body(body, data)

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
        web.RequestHandler.data_received(self, data)
        if missing is None:
            return
        self._missing_bytes = None
        arrived = self._request_count - complete
        if not missing and arrived == 1 and self._messages:
            self._missing_bytes = self._note_request(data, *self._messages[-1])
        elif not arrived and len(data) <= missing:
            self._missing_bytes = missing - len(data)

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
        is_kept = end <= MAX_HEAD_BYTES and 0 < length <= self._read_bufsize  # a longer body pauses the parser
        self._last_head, self._last_message, self._last_length = data[:end] if is_kept else b"", message, length
        return missing
