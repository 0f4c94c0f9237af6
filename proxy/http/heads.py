"""Limits request heads: how long one may take to arrive, and how large it may be in all.

aiohttp limits each field and their number; this limits their sum, so that every head is bounded.
"""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from proxy.http.repeated_heads import RepeatedHeads
from proxy.socket_queues import unread_bytes
from proxy.wire.errors import RequestError
from proxy.workers import LARGE_READ_BYTES

MAX_HEAD_BYTES = 32_768
MAX_FIELDS = 128
TOO_LARGE = 431
"""Source: https://www.rfc-editor.org/rfc/rfc6585#section-5."""


class BoundedHeads(RepeatedHeads):
    """A connection that is closed if a head arrives too slowly, and answers a head that is too large with 431."""

    __slots__ = (
        "_expects_heads", "_head_began", "_head_bytes", "_max_head_bytes", "_next_request", "_short_bytes",
        "_waits_since",
    )  # fmt: skip

    def __init__(self, manager: web.Server, *, max_head_bytes: int, **options: Any) -> None:
        super().__init__(
            manager, max_line_size=max_head_bytes, max_field_size=max_head_bytes, max_headers=MAX_FIELDS, **options
        )
        self._max_head_bytes = max_head_bytes
        self._short_bytes = min(LARGE_READ_BYTES, max_head_bytes)  # a shorter read exceeds no limit
        self._head_began: float | None = None
        self._waits_since = 0.0  # since when it has no request
        self._head_bytes = 0  # an upper bound of what has arrived of it
        self._expects_heads = True
        self._next_request: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head_began = self._loop.time()  # a client that connects is expected to send a request

    def data_received(self, data: bytes) -> None:
        if len(data) < self._short_bytes and self.receive_repeated(data):  # as most requests
            self._head_began, self._head_bytes = None, 0
            if self._next_request is not None:
                self._note_next_request()
        else:
            self._receive_other(data)

    def _receive_other(self, data: bytes) -> None:
        """Handle data other than a short request with a repeated head."""
        complete, size_bytes = self._request_count, self._head_bytes + len(data)
        is_ahead = self._request_in_progress and self._is_before_next
        self.receive(data)
        if len(data) >= LARGE_READ_BYTES:
            self.note_read(len(data))
        if self._messages and type(refused := self._messages[-1][0]) is _ErrInfo:
            refused.exc.__traceback__ = None  # its frames refer to this connection and the data: a cycle
        if self._request_count > complete or self._request_in_progress:
            is_of_next = is_ahead and self._request_count == complete
            self._head_began, self._head_bytes = None, size_bytes if is_of_next else 0
            self._note_next_request()
            if size_bytes > self._max_head_bytes:
                self._refuse_large_heads(is_of_next=is_of_next)
        elif self._waiter is not None and not self._waiter.done():  # otherwise it may be part of a body
            if self._head_began is None:
                self._head_began = self._loop.time()
            self._head_bytes = size_bytes
            if size_bytes > self._max_head_bytes:
                self._refuse_head()
        if self._current_request is not None and self._request_count > complete and (body := self._unfinished_body()):
            # A parse error in the middle of a body ends that body; aiohttp would leave its reader waiting.
            body.set_exception(web.RequestPayloadError("the framing of the body is invalid"))

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002  aiohttp's form
        """aiohttp calls this after each body; most were never paused, so that no data is left to parse."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)
        elif self._request_in_progress:
            self._head_began, self._head_bytes = None, 0  # the head of its request has arrived

    @property
    def _is_before_next(self) -> bool:
        """Whether all requests so far have arrived completely, so that the next data is a head."""
        if not self._expects_heads or self._current_request is None:
            return False
        last = self._messages[-1][1] if self._messages else self._current_request.content
        return last.is_eof()

    def _refuse_large_heads(self, *, is_of_next: bool) -> None:
        """Refuse complete heads that are too large: a single read may have contained all of one.

        The connection is closed if another request is still being answered, as the refusal would have to wait.
        """
        if is_of_next:
            self.force_close()
        for index, (message, _) in enumerate(self._messages):
            if not isinstance(message, _ErrInfo) and _size_bytes(message) > self._max_head_bytes:
                self._messages[index] = (_ErrInfo(TOO_LARGE, RuntimeError(), ""), EMPTY_PAYLOAD)

    def _refuse_head(self) -> None:
        """Refuse a head that is too large in the way of an invalid one: the connection is closed after the answer."""
        self._head_bytes = 0
        self._messages.append((_ErrInfo(TOO_LARGE, RuntimeError(), ""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def head_error(self, status: int, error: BaseException | None) -> RequestError:
        """Return the error for a head that is too large, or is not valid HTTP."""
        has_many = isinstance(error, BadHttpMessage) and error.message.startswith("Too many headers")
        if status == TOO_LARGE or has_many or isinstance(error, LineTooLong):
            message = (
                f"The head of the request is too large; the limit is {self._max_head_bytes} bytes, in {MAX_FIELDS} "
                "fields. The operator of this gateway can raise it: max_head_bytes."
            )
            return RequestError(message, status=TOO_LARGE)
        return RequestError("The request is not valid HTTP.", status=status)

    @property
    def idle_since(self) -> float | None:
        """Since when it has no request, on the event loop's clock; None while it has one, or is closing."""
        if self._waiter is None or self.transport is None or self._messages:
            return None
        began = self._head_began
        return self._waits_since if began is None else began

    @property
    def has_unread(self) -> bool:
        """Whether something has arrived that was not read yet."""
        return self.transport is not None and unread_bytes(self.transport.get_extra_info("socket").fileno()) > 0

    def stop_head_checks(self) -> None:
        """Expect no more heads: the connection was upgraded."""
        self._expects_heads = False
        self.release_parser()

    def check_head(self, latest: float) -> None:
        """Close the connection if it has waited for a head since `latest` or longer, on the loop's clock."""
        if self._expects_heads and self._head_began is not None and self._head_began <= latest:
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._note_next_request()
        super().connection_lost(exc)

    def _note_next_request(self) -> None:
        """Wake the one who waits for a request: one has arrived, or none can arrive any more."""
        if self._next_request is not None and not self._next_request.done():
            self._next_request.set_result(None)

    def _unfinished_body(self) -> Any:
        """Return the body that is still being received, if any."""
        current = self._current_request
        return None if current is None or current.content.is_eof() else current.content


def _size_bytes(message: Any) -> int:
    """Return the size of a head: its first line, and each field with a colon, a space and a line end."""
    first = len(message.method) + len(message.path) + len(" HTTP/1.1\r\n") + 1
    fields = [len(name) + len(value.encode("utf-8", "surrogateescape")) + 4 for name, value in message.headers.items()]
    return first + sum(fields) + 2
