"""The HTTP server: aiohttp's, with timeouts for request heads, a bounded shutdown, and errors in the envelope."""

import asyncio
import logging
import secrets
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from aiohttp import StreamReader, web
from aiohttp.http_exceptions import ContentEncodingError

from proxy.http.body import unsupported_encoding
from proxy.http.errors import error_response
from proxy.shutdown import cancel_for_shutdown
from proxy.wire.errors import HeadgateError, RequestError

log = structlog.get_logger()

LINGERING_S = 2.0  # how long the rest of a refused body is read, so that the client can read the refusal
GRACE_S = 2.0  # how long to wait at shutdown for a client that must read before the end can be written
END_S = 0.5  # how long the client has to read the end itself
POLL_S = 0.02  # how often a paused connection is checked at shutdown
_SILENT = logging.getLogger("headgate.aiohttp")
_SILENT.disabled = True  # aiohttp logs the raw line of each malformed request, keys included


class Server(web.Server):
    """Creates a Connection for each client. `head_timeout_s`: how long a request's head may take to arrive."""

    def __init__(self, handler: Any, *, head_timeout_s: float, idle_timeout_s: float, **options: Any) -> None:
        self._head_timeout_s = head_timeout_s
        super().__init__(
            handler,
            handler_cancellation=True,  # a client that disconnects ends the work behind its request
            keepalive_timeout=idle_timeout_s,
            lingering_time=LINGERING_S,
            access_log=None,
            logger=_SILENT,
            **options,
        )

    def __call__(self) -> "Connection":
        return Connection(self, loop=self._loop, head_timeout_s=self._head_timeout_s, **self._kwargs)


class Connection(web.RequestHandler):
    """One client's connection. It is closed when a request's head has begun and is not complete in time."""

    __slots__ = ("_head_began", "_head_check", "_head_timeout_s")

    def __init__(self, manager: Server, *, head_timeout_s: float, **options: Any) -> None:
        super().__init__(manager, **options)
        self._head_timeout_s = head_timeout_s
        self._head_began: float | None = None
        self._head_check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head_began = self._loop.time()  # a client that connects is expected to send a request
        self._check_later()

    def data_received(self, data: bytes) -> None:
        complete = self._request_count
        super().data_received(data)
        if self._request_count > complete or self._request_in_progress:
            self._head_began = None
        elif self._head_began is None:
            self._head_began = self._loop.time()
        if self._request_count > complete and (body := self._unfinished_body()):
            # A parse error in the middle of a body concerns that body; aiohttp would let its reader wait on.
            body.set_exception(web.RequestPayloadError("the framing of the body is invalid"))

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head_check is not None:
            self._head_check.cancel()
        super().connection_lost(exc)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109  aiohttp's name
        """Let the running call finish for `timeout` seconds, then cancel it so that it can end its answer.

        A client that does not read that end is disconnected. aiohttp would wait twice as long, or forever if it is 0.
        """
        if (call := self._task_handler) is not None and timeout is not None:
            last = self._loop.time() + timeout + GRACE_S
            self._loop.call_later(timeout, self._cancel, call, last)
            self._loop.call_at(last + END_S, cancel_for_shutdown, call)
        if body := self._unfinished_body():
            with suppress(Exception):  # however the body ends, nothing more of it will come
                await asyncio.wait_for(body.wait_eof(), timeout)
        await super().shutdown(None if timeout is None else timeout + GRACE_S + END_S)

    def _cancel(self, call: asyncio.Task[None], last: float, *, confirmed: bool = False) -> None:
        """Cancel a call where it can still write an end: while it waits for its backend, not for its client to read.

        At the time `last` it is cancelled wherever it is.
        """
        if self.writing_paused and self._loop.time() < last:
            self._loop.call_later(POLL_S, self._cancel, call, last)
        elif not confirmed:  # a write that has just become possible continues first
            self._loop.call_soon(partial(self._cancel, call, last, confirmed=True))
        else:
            cancel_for_shutdown(call)

    def close(self) -> None:
        """Accept no more requests. aiohttp would stop reading a body too, and let its reader wait."""
        if self._unfinished_body() is None:
            super().close()

    def _unfinished_body(self) -> StreamReader | None:
        """The body that is still being received, if there is one."""
        current = self._current_request
        return None if current is None or current.content.is_eof() else current.content

    def _check_later(self) -> None:
        self._head_check = self._loop.call_later(self._head_timeout_s / 4, self._check_head)

    def _check_head(self) -> None:
        late = self._head_began is not None and self._loop.time() - self._head_began >= self._head_timeout_s
        if late and self.transport is not None:
            self.force_close()
        else:
            self._check_later()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what does not reach a handler: a head that is not valid HTTP. Nothing of the request is repeated."""
        del message
        if request.writer.output_size > 0:
            raise ConnectionResetError("the answer was cut off") from exc
        refusal: HeadgateError
        if isinstance(exc, ContentEncodingError):
            refusal = unsupported_encoding("in an unknown way")
        elif status < 500:
            refusal = RequestError("The request is not valid HTTP.", status=status)
        else:
            refusal = HeadgateError("The gateway failed to answer this request.", status=status, code="internal_error")
        request_id = f"req_{secrets.token_hex(16)}"
        if status < 500:
            log.info("request.rejected", request_id=request_id, status=refusal.status)
        else:
            log.error("request.crashed", request_id=request_id, exc_info=exc)
        response = error_response(refusal, {"x-request-id": request_id})
        response.force_close()
        return response
