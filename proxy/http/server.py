"""The HTTP server: aiohttp's, with timeouts for request heads, a bounded shutdown, and errors in the envelope.

A connection is built in layers, one a module: `PacedConnection` (pacing.py) bounds how much is read and written in one
turn of the event loop, `RepeatedHeads` (repeated_heads.py) skips the parser for a head that repeats, `BoundedHeads`
(heads.py) limits heads in time and size, `RequestLoop` (request_loop.py) answers the requests, and `Connection` here
ends what stalls or shuts down.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError

from proxy.http.admission import Admission
from proxy.http.body import unsupported_encoding
from proxy.http.errors import error_response
from proxy.http.heads import MAX_HEAD_BYTES
from proxy.http.pacing import PIECES_AT_ONCE
from proxy.http.request_id import new_request_id
from proxy.http.request_loop import RequestLoop
from proxy.loop_turns import LoopTurns
from proxy.shutdown import cancel_for_shutdown
from proxy.socket_queues import unacknowledged_bytes
from proxy.timers import Timers
from proxy.wire.errors import HeadgateError
from proxy.workers import Pace

log = structlog.get_logger()

GRACE_S = 2.0  # how long shutdown waits for a client that must read before the end can be written
END_S = 0.5  # how long the client then has to read the end
IDLE_GRACE_S = 0.5  # how long an idle connection may still send a request after shutdown began
POLL_S = 0.02  # how often a paused connection is checked at shutdown
MIN_READ_BYTES = 16_384  # a client that reads less of its answer than this within the write timeout has stalled
_SILENT = logging.getLogger("headgate.aiohttp")
_SILENT.disabled = True  # aiohttp logs the raw line of each malformed request, keys included


class Server(web.Server):
    """Creates a Connection for each client.

    `head_timeout_s`: how long a request's head may take to arrive, `max_head_bytes`: how large it may be.
    `write_timeout_s`: how long a client may leave an answer unread while more of it waits to be sent.
    `max_connections`: how many clients are served at once. `pace`: how fast all of them together may upload.
    `evicts_idle`: whether, beyond the limit, idle connections are closed for new ones: those of one team must not keep
    others out.
    """

    def __init__(  # noqa: PLR0913  each independent of the others
        self,
        handler: Any,
        *,
        head_timeout_s: float,
        write_timeout_s: float,
        idle_timeout_s: float,
        max_connections: int,
        max_body_bytes: int,
        max_head_bytes: int = MAX_HEAD_BYTES,
        pace: Pace | None = None,
        evicts_idle: bool = False,
    ) -> None:
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._limits: dict[str, Any] = {
            "max_head_bytes": max_head_bytes, "max_body_bytes": max_body_bytes, "write_timeout_s": write_timeout_s,
            "idle_timeout_s": idle_timeout_s, "timers": Timers(),
        }  # fmt: skip
        self.admission = Admission(max_connections, evicts_idle=evicts_idle)
        self._pace = Pace() if pace is None else pace
        self._turns = LoopTurns(PIECES_AT_ONCE)
        super().__init__(
            handler,
            handler_cancellation=True,  # a client that disconnects ends the work behind its request
            access_log=None,
            logger=_SILENT,
        )

    def __call__(self) -> "Connection":
        return Connection(
            self, pace=self._pace, turns=self._turns, loop=self._loop, **self._limits, **self._kwargs
        )  # fmt: skip

    def replace_handler(self, handler: Any) -> None:
        """Answer the next requests of all connections, existing ones included, with another handler."""
        self.request_handler = handler
        connections: Any = self._connections
        for connection in connections:
            connection._request_handler = handler  # noqa: SLF001  read for each request
            connection.forget_head()  # it has results of the old handler

    def admit(self, connection: "Connection", file: int) -> None:
        """Decide whether a new connection is served, refused, or closed at once; `file` is its file descriptor."""
        if self._head_timer is None:
            self._check_heads_later()
        connections: Any = self._connections
        connection.is_admitted = self.admission.admit(connections, file, self._loop.time())
        if not connection.is_admitted and self.admission.is_overrun(connections, file):
            connection.force_close()

    def _check_heads_later(self) -> None:
        self._head_timer = self._loop.call_later(self._head_timeout_s / 4, self._check_heads)

    def _check_heads(self) -> None:
        """Close the connections on which a request head takes too long. One timer serves all of them."""
        self._head_timer = None
        latest = self._loop.time() - self._head_timeout_s
        connections: Any = self.connections
        for connection in connections:
            connection.check_head(latest)
        if connections:
            self._check_heads_later()


class Connection(RequestLoop):
    """One client's connection. It is closed if a request head arrives, or the client reads, too slowly."""

    __slots__ = ("_read_bytes", "_write_check", "_write_timeout_s", "on_drain")

    def __init__(self, manager: Server, *, write_timeout_s: float, **options: Any) -> None:
        super().__init__(manager, **options)
        self._write_timeout_s = write_timeout_s
        self._write_check: asyncio.TimerHandle | None = None
        self._read_bytes = 0  # how much of the answer the client had acknowledged at the last check
        self.on_drain: Callable[[], None] | None = None  # called when the gateway begins to shut down

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        manager = self._manager
        if isinstance(manager, Server):
            manager.admit(self, transport.get_extra_info("socket").fileno())

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._write_check is not None:
            self._write_check.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than its answer arrives: check once per write timeout that it still reads."""
        super().pause_writing()
        self._read_bytes = self._count_read()
        self._write_check = self._loop.call_later(self._write_timeout_s, self._check_reading)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_check is not None:
            self._write_check.cancel()

    def _check_reading(self) -> None:
        before, self._read_bytes = self._read_bytes, self._count_read()
        if self._read_bytes - before >= MIN_READ_BYTES:
            self._write_check = self._loop.call_later(self._write_timeout_s, self._check_reading)
        elif self.transport is not None:
            self.is_stalled = True
            self.transport.abort()

    def _count_read(self) -> int:
        """Return how many bytes of the current answer the client's machine has acknowledged."""
        if self.transport is None or self._current_request is None:
            return 0
        file = self.transport.get_extra_info("socket").fileno()
        return self.output_size - self.transport.get_write_buffer_size() - unacknowledged_bytes(file)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109  aiohttp's name
        """Let the running call finish within `timeout` seconds, then cancel it so that it can end its answer.

        A client that does not read that end is disconnected. aiohttp would wait twice as long, or forever for 0.
        """
        if timeout and self._current_request is None:
            await self._await_last_request(min(timeout, IDLE_GRACE_S))
        if self._unfinished_body() is None:
            super().close()
        if (call := self._task_handler) is not None and timeout is not None:
            last = self._loop.time() + timeout + GRACE_S
            self._loop.call_later(timeout, self._cancel, call, last)
            self._loop.call_at(last + END_S, cancel_for_shutdown, call)
        if call is not None and (body := self._unfinished_body()):
            call.add_done_callback(lambda _: body.set_exception(ConnectionResetError()))  # no more of it will arrive
            with suppress(Exception):  # the connection closes however the body ends
                async with asyncio.timeout(timeout):
                    await body.wait_eof()
        await super().shutdown(None if timeout is None else timeout + GRACE_S + END_S)

    def _cancel(self, call: asyncio.Task[None], last: float, *, confirmed: bool = False) -> None:
        """Cancel a call while it waits for its backend, where it can still end its answer, not while the client reads.

        At the time `last` it is cancelled in any case.
        """
        if (self.writing_paused or self.waits_for_turn) and self._loop.time() < last:
            self._loop.call_later(POLL_S if self.writing_paused else 0, self._cancel, call, last)
        elif not confirmed:  # a write that has just become possible continues first
            self._loop.call_soon(partial(self._cancel, call, last, confirmed=True))
        else:
            cancel_for_shutdown(call)

    def close(self) -> None:
        """Begin to drain: the running request, or the next to arrive, is the last. `shutdown` closes the connection.

        aiohttp would close idle connections at once, and reset those whose client is just sending a request.
        """
        self.is_draining = True
        if self.on_drain is not None:
            self.on_drain()

    async def _await_last_request(self, timeout_s: float) -> None:
        """Wait for a request on an idle connection."""
        self._next_request = self._loop.create_future()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._next_request

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer a request that cannot reach a handler, as its head is not valid HTTP. The answer quotes none of it."""
        del request, message
        if self.output_size > 0:
            if exc is not None and not isinstance(exc, ConnectionError):
                log.error("request.crashed", exc_info=exc)
            raise ConnectionResetError("the answer was cut off") from exc
        refusal: HeadgateError
        if isinstance(exc, ContentEncodingError):
            refusal = unsupported_encoding("in an unknown way")
        elif status < 500:
            refusal = self.head_error(status, exc)
        else:
            refusal = HeadgateError("The gateway failed to answer this request.", status=status, code="internal_error")
        request_id = new_request_id()
        if status < 500:
            log.info("request.rejected", request_id=request_id, status=refusal.status)
        else:
            log.error("request.crashed", request_id=request_id, exc_info=exc)
        response = error_response(refusal, {"Server": "headgate", "x-request-id": request_id})
        response.force_close()
        return response
