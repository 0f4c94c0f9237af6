"""Answers the requests of a connection one after the other.

It replaces aiohttp's request loop, which makes a task, a writer and a response with two dicts for each request. The
parser, the queue of requests, flow control and the closing of connections are aiohttp's.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import ERROR, _ErrInfo

from proxy.http.answer import Answer
from proxy.http.heads import BoundedHeads
from proxy.http.request import Request
from proxy.identity.directory import Sender
from proxy.timers import Timer, Timers

LINGERING_S = 2.0  # how long the rest of a refused body is read, so that the client can read the refusal

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class RequestLoop(BoundedHeads):
    """A connection that answers its requests in one task."""

    __slots__ = (
        "_held_call", "_idle_timeout_s", "_idle_timer", "_is_call_held", "_max_body_bytes", "is_admitted",
        "is_draining", "is_stalled", "remote", "sender", "timers",
    )  # fmt: skip

    _messages: Any

    def __init__(
        self, manager: web.Server, *, max_body_bytes: int, idle_timeout_s: float, timers: Timers, **options: Any
    ) -> None:  # fmt: skip
        """All connections share `timers`: one timer of aiohttp's takes 0.8 KiB."""
        super().__init__(manager, keepalive_timeout=0, **options)
        self._idle_timeout_s = idle_timeout_s
        self.timers = timers
        self._idle_timer: Timer | None = None
        self._messages = []  # an empty deque has room for 64 requests, while most connections never have two
        # The parser stops when it has counted as many requests as aiohttp's queue holds, and still counts one that was
        # taken before its body had arrived. It resumes only after the queue was full.
        self._max_msg_queue_size -= 1
        self._max_body_bytes = max_body_bytes
        self._is_call_held = False  # whether the call continues when the client disconnects
        self._held_call: asyncio.Task[None] | None = None  # the call that has continued
        self.is_admitted = True  # False: beyond the limit of connections, so its one request is refused
        self.is_draining = False  # whether the next answer is the last on this connection
        self.is_stalled = False  # whether it was closed because the client did not read
        self.sender: Sender | None = None  # of the last request, if a key identified it
        self.remote: str | None = None
        """The address of the client; None for a connection without one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer, _ = self.peername, self.ssl_context  # aiohttp caches them for when the connection is lost
        self.remote = None if peer is None else peer if isinstance(peer, str) else str(peer[0])
        self._waits_since = self._loop.time()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._idle_timer is not None:
            self.timers.cancel(self._idle_timer)
        if self._is_call_held:
            self._held_call, self._task_handler = self._task_handler, None  # which aiohttp would cancel
        super().connection_lost(exc)
        self._messages.clear()  # the bodies of requests that were not begun have this connection: a cycle

    def _expect_request(self) -> None:
        """Start the idle timeout: the current request was answered."""
        self._waits_since = self._loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.timers.start(self._waits_since + self._idle_timeout_s, self)

    def on_due(self) -> None:
        """Close the connection if the idle timeout has passed. The timer is not moved for each request."""
        self._idle_timer = None
        due = self._waits_since + self._idle_timeout_s
        if self._loop.time() < due:
            self._idle_timer = self.timers.start(due, self)
        elif self.has_unread:  # a request has just arrived
            self._idle_timer = self.timers.start(self._loop.time() + self._idle_timeout_s, self)
        elif self._waiter is not None and not self._waiter.done() and self._head_began is None:
            self.force_close()  # a head that has begun to arrive has a timeout of its own

    def forget_head(self) -> None:
        """Forget the last head, and with it the sender that it identified."""
        super().forget_head()
        self.sender = None

    def hold_call(self) -> bool:
        """Let the call continue if the client disconnects. Returns False if it already has: the call is cancelled."""
        # A connection that is closing cancels the call only once it is closed.
        self._is_call_held = self._is_call_held or self.transport is not None
        return self._is_call_held

    def release_call(self, *, is_needed: bool = False) -> asyncio.Task[None] | None:
        """Undo `hold_call`. A call whose client has disconnected is cancelled and returned, unless it is needed."""
        self._is_call_held = False
        call, self._held_call = self._held_call, None
        if call is None or is_needed:
            return None
        call.cancel()
        return call

    async def start(self) -> None:
        """Answer requests until the connection closes. aiohttp runs this as the connection's task."""
        is_open = True
        while is_open and not self._force_close:
            if not self._messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            request, handler = self._take_request()
            try:
                try:
                    answer = await handler(request)
                except Exception as error:  # noqa: BLE001  it is logged, or answered
                    answer = self._answer_failure(request, error)
                if type(answer) is not Answer or self._upgraded:
                    await self._write_response(request, answer)
            except ConnectionError:
                break
            except BaseException as error:  # noqa: BLE001  it is raised again
                self.force_close()
                # The task keeps the cancellation that ended it, whose frames may refer to the task: a cycle.
                raise error.with_traceback(None) from None
            finally:
                self._clear_request()
            body = request.content
            is_read = body is EMPTY_PAYLOAD or body.is_eof() or await self._discard(body)
            is_open = self._may_continue(answer, is_read=is_read)
            del request, handler, answer, body  # an idle connection must not keep them alive
            if self._messages:
                await asyncio.sleep(0)  # serve other clients between the pipelined requests of one
        self._end()

    @property
    def active_method(self) -> str | None:
        """The method of the request that is being answered; None without one."""
        return None if self._current_request is None else self._current_request.method

    @property
    def output_size(self) -> int:
        """How much of the answer to the current request was written, in bytes."""
        current = self._current_request
        return current.output_size if isinstance(current, Request) else 0

    def _take_request(self) -> tuple[Request, Handler]:
        """Return the next request and its handler."""
        message, content = self._messages.pop(0)
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        handler: Any = self._request_handler
        if isinstance(message, _ErrInfo):
            handler, message = self._make_error_handler(message), ERROR
        head = self._last_head
        accepted = head if head is not None and head.message is message else None
        request = Request(message, content, self, self._max_body_bytes, accepted)
        self._current_request, self._request_in_progress = request, True
        return request, handler

    def _answer_failure(self, request: Request, error: Exception) -> web.StreamResponse:
        """Return the answer to a request whose handler raised. Raises ConnectionError if the client left."""
        if isinstance(error, web.HTTPException):
            return error
        if isinstance(error, ConnectionError) and (self.transport is None or self.transport.is_closing()):
            try:
                raise error.with_traceback(None)  # the client has disconnected
            finally:
                del error  # its traceback refers to this frame: a cycle
        return self.handle_error(request, 504 if isinstance(error, TimeoutError) else 500, error)

    async def _write_response(self, request: Request, answer: web.StreamResponse) -> None:
        """Write a response of aiohttp's own kind. Raises ConnectionError if the client has disconnected."""
        _, is_lost = await self.finish_response(request, answer, None)
        if is_lost:
            raise ConnectionResetError("the client has disconnected")

    def _clear_request(self) -> None:
        """Clear the current request, which was answered or given up."""
        self._current_request, self._request_in_progress = None, False
        if self._handler_waiter is not None:
            self._handler_waiter.set_result(None)

    async def _discard(self, body: StreamReader) -> bool:
        """Read and discard the rest of a body for a while, so that a client that still sends can read the answer.

        Return whether the whole body has arrived.
        """
        try:
            with suppress(TimeoutError, web.RequestPayloadError):
                async with asyncio.timeout(LINGERING_S):
                    while not self._force_close and not body.is_eof():
                        await body.readany()
        except BaseException:
            self.force_close()
            raise
        return body.is_eof()

    def _end(self) -> None:
        """Close the connection, unless it is closed already."""
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    def _may_continue(self, answer: web.StreamResponse, *, is_read: bool) -> bool:
        """Return whether another request may follow, and start the idle timeout if so."""
        self._keepalive = bool(answer.keep_alive) and is_read
        if not self._keepalive or self._close or self._force_close:
            return False
        self._expect_request()
        return True
