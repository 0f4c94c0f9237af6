"""aiohttp's server, made fit for strangers: it waits for no head for ever, and every refusal has the envelope."""

import asyncio
import logging
from typing import Any

from aiohttp import web

from proxy.send import error_response
from proxy.wire.errors import HeadgateError, RequestError

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
            lingering_time=2.0,
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

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head_check is not None:
            self._head_check.cancel()
        super().connection_lost(exc)

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
        """What aiohttp itself refuses: a head that is no HTTP. The reason is told, what was sent is not repeated."""
        del request, exc, message
        if status < 500:
            refusal: HeadgateError = RequestError("The request is not HTTP that can be read.", status=status)
        else:
            refusal = HeadgateError("The gate failed to answer this request.", status=status)
        response = error_response(refusal, {})
        response.force_close()
        return response
