"""aiohttp's server, made fit for strangers: it waits for no head for ever, and every refusal has the envelope."""

import asyncio
import logging
import secrets
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from aiohttp import StreamReader, web
from aiohttp.http_exceptions import ContentEncodingError

from proxy.body import unread_encoding
from proxy.closing import end
from proxy.send import error_response
from proxy.wire.errors import HeadgateError, RequestError

log = structlog.get_logger()

LINGERING_S = 2.0  # how long the rest of a refused body is read, so that its caller gets to read why
GRACE_S = 2.0  # how long a caller is waited for that must take some of its answer before it can be told the end
LEAVING_S = 0.5  # how long it has for the end itself
RETRY_S = 0.02  # how often it is looked at
_SILENT = logging.getLogger("headgate.aiohttp")
_SILENT.disabled = True  # aiohttp logs the raw line of each malformed request, keys included


class Door(web.Server):
    """Makes a Connection for each caller that comes. `head_timeout_s`: how long a request's head may take."""

    def __init__(self, handler: Any, *, head_timeout_s: float, idle_timeout_s: float, **options: Any) -> None:
        self._head_timeout_s = head_timeout_s
        super().__init__(
            handler,
            handler_cancellation=True,  # a caller that leaves ends the work behind its request
            keepalive_timeout=idle_timeout_s,
            lingering_time=LINGERING_S,
            access_log=None,
            logger=_SILENT,
            **options,
        )

    def __call__(self) -> "Connection":
        return Connection(self, loop=self._loop, head_timeout_s=self._head_timeout_s, **self._kwargs)


class Connection(web.RequestHandler):
    """One caller's connection. It is closed when a head that has begun is not whole in time."""

    __slots__ = ("_head_began", "_head_check", "_head_timeout_s")

    def __init__(self, manager: Door, *, head_timeout_s: float, **options: Any) -> None:
        super().__init__(manager, **options)
        self._head_timeout_s = head_timeout_s
        self._head_began: float | None = None
        self._head_check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head_began = self._loop.time()  # who connects is expected to speak
        self._check_later()

    def data_received(self, data: bytes) -> None:
        whole = self._request_count
        super().data_received(data)
        if self._request_count > whole or self._request_in_progress:
            self._head_began = None
        elif self._head_began is None:
            self._head_began = self._loop.time()
        if self._request_count > whole and (body := self._unfinished_body()):
            # What comes in the middle of a body can only be its fault; aiohttp lets the body's reader wait on.
            body.set_exception(web.RequestPayloadError("the body is not framed as it should be"))

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head_check is not None:
            self._head_check.cancel()
        super().connection_lost(exc)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109  aiohttp's name
        """Let the running call finish for `timeout` seconds, then have it say that it ends.

        A caller that does not take that either is left. aiohttp would wait twice as long, or for ever when it is 0.
        """
        if (call := self._task_handler) is not None and timeout is not None:
            last = self._loop.time() + timeout + GRACE_S
            self._loop.call_later(timeout, self._end, call, last)
            self._loop.call_at(last + LEAVING_S, end, call)
        if body := self._unfinished_body():
            with suppress(Exception):  # however the body ends, there is no more of it to wait for
                await asyncio.wait_for(body.wait_eof(), timeout)
        await super().shutdown(None if timeout is None else timeout + GRACE_S + LEAVING_S)

    def _end(self, call: asyncio.Task[None], last: float, *, sure: bool = False) -> None:
        """End a call, at the `last` moment wherever it is, and before that only where it can still say so.

        That is where it waits for its backend, not for its caller to take what is being written.
        """
        if self.writing_paused and self._loop.time() < last:
            self._loop.call_later(RETRY_S, self._end, call, last)
        elif not sure:  # a write that its caller has just made room for goes on first
            self._loop.call_soon(partial(self._end, call, last, sure=True))
        else:
            end(call)

    def close(self) -> None:
        """Take no more requests. aiohttp would take no more of a body either, and let its reader wait."""
        if self._unfinished_body() is None:
            super().close()

    def _unfinished_body(self) -> StreamReader | None:
        """The body that is still coming in, if there is one."""
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
        """What does not come as far as a handler: a head that is no HTTP. What was sent is not repeated."""
        del message
        if request.writer.output_size > 0:
            raise ConnectionResetError("the answer was broken off") from exc
        refusal: HeadgateError
        if isinstance(exc, ContentEncodingError):
            refusal = unread_encoding("in a way that is not known here")
        elif status < 500:
            refusal = RequestError("The request is not HTTP that can be read.", status=status)
        else:
            refusal = HeadgateError("The gate failed to answer this request.", status=status, code="internal_error")
        request_id = f"req_{secrets.token_hex(16)}"
        if status < 500:
            log.info("request.unreadable", request_id=request_id, status=refusal.status)
        else:
            log.error("request.crashed", request_id=request_id, exc_info=exc)
        response = error_response(refusal, {"x-request-id": request_id})
        response.force_close()
        return response
