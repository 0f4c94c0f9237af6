"""Bounds how fast all clients together may upload, so that the event loop has time for small requests."""

import asyncio
from typing import Any

from aiohttp import web

from proxy.workers import LARGE_READ_BYTES, Pace


class PacedConnection(web.RequestHandler):
    """A connection that is not read for a while when the pace of all connections together is exceeded."""

    __slots__ = ("_hold", "_pace")

    def __init__(self, manager: web.Server, *, pace: Pace, **options: Any) -> None:
        super().__init__(manager, **options)
        self._pace = pace
        self._hold: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if len(data) < LARGE_READ_BYTES:
            return
        delay_s = self._pace.delay_s(len(data), self._loop.time())
        if delay_s and self._hold is None:
            self._hold = self._loop.call_later(delay_s, self._release)
            self._pause_transport_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._hold is not None:
            self._hold.cancel()
        super().connection_lost(exc)

    def _resume_transport_reading(self) -> None:
        """aiohttp calls this when the reader of a body has caught up."""
        if self._hold is None:
            super()._resume_transport_reading()

    def _release(self) -> None:
        self._hold = None
        if not self._reading_paused and not self._buffer_paused:
            self._resume_transport_reading()
