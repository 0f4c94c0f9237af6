"""Bounds how much all clients together upload and download at a time: the event loop serves small requests between."""

import asyncio
from collections import deque
from typing import Any

from aiohttp import web

from proxy.workers import LARGE_READ_BYTES, Pace

PIECES_AT_ONCE = 4
"""How many pieces of large answers are written in one turn of the event loop, on all connections together."""


class WriteTurns:
    """Lets connections write large answers a few pieces at a time, in the order in which they ask.

    Each would otherwise write a piece in every turn of the event loop, and a small request needs about ten turns.
    """

    def __init__(self) -> None:
        self._left = PIECES_AT_ONCE  # in this turn of the loop
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Wait until another piece may be written, if there are enough in this turn of the event loop."""
        loop = asyncio.get_running_loop()
        if self._left == PIECES_AT_ONCE and not self._waiting:
            loop.call_soon(self._begin_turn)
        if self._left and not self._waiting:
            self._left -= 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _begin_turn(self) -> None:
        self._left = PIECES_AT_ONCE
        while self._left and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._left -= 1
        if self._left < PIECES_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._begin_turn)


class PacedConnection(web.RequestHandler):
    """A connection that is not read for a while when the pace of all connections together is exceeded.

    `turns` are those in which all connections write large answers.
    """

    __slots__ = ("_hold", "_pace", "_turns", "waits_for_turn")

    def __init__(self, manager: web.Server, *, pace: Pace, turns: WriteTurns, **options: Any) -> None:
        super().__init__(manager, **options)
        self._pace = pace
        self._turns = turns
        self.waits_for_turn = False  # whether an answer is being written, and continues soon
        self._hold: asyncio.TimerHandle | None = None

    async def take_turn(self) -> None:
        """Wait until another piece of a large answer may be written."""
        self.waits_for_turn = True
        try:
            await self._turns.wait()
        finally:
            self.waits_for_turn = False

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
