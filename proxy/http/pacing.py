"""Bounds how much all clients together upload and download at a time: the event loop serves small requests between."""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web

from proxy.workers import FULL_READ_BYTES, LARGE_READ_BYTES, Pace

PIECES_AT_ONCE = 4
"""How many pieces of large bodies are read or written in one turn of the event loop, on all connections together."""


class PieceTurns:
    """Lets connections read and write large bodies a few pieces at a time, in the order in which they ask.

    Each would otherwise move a piece in every turn of the event loop, and a small request needs about ten turns.
    """

    def __init__(self) -> None:
        self._left = PIECES_AT_ONCE  # in this turn of the loop
        self._waiting: deque[Callable[[], bool]] = deque()

    async def wait(self) -> None:
        """Wait until another piece may be moved, if there were enough in this turn of the event loop."""
        if not self._take():
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(partial(_settle, turn))
            await turn

    def call(self, move: Callable[[], bool]) -> None:
        """Call a function that moves a piece, now or in a later turn; it returns whether it did."""
        if not self._take():
            self._waiting.append(move)
        else:
            move()

    def _take(self) -> bool:
        """Take a place in this turn, if there is one."""
        if self._left == PIECES_AT_ONCE and not self._waiting:
            asyncio.get_running_loop().call_soon(self._begin_turn)
        if not self._left or self._waiting:
            return False
        self._left -= 1
        return True

    def _begin_turn(self) -> None:
        self._left = PIECES_AT_ONCE
        while self._left and self._waiting:
            self._left -= self._waiting.popleft()()
        if self._left < PIECES_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._begin_turn)


def _settle(turn: asyncio.Future[None]) -> bool:
    if turn.done():
        return False
    turn.set_result(None)
    return True


class PacedConnection(web.RequestHandler):
    """A connection that is not read for a while when the pace of all connections together is exceeded.

    `turns` are those in which all connections move large bodies.
    """

    __slots__ = ("_hold", "_pace", "_turns", "waits_for_turn")

    def __init__(self, manager: web.Server, *, pace: Pace, turns: PieceTurns, **options: Any) -> None:
        super().__init__(manager, **options)
        self._pace = pace
        self._turns = turns
        self.waits_for_turn = False  # whether an answer is being written, and continues soon
        self._hold: asyncio.Handle | None = None  # until it is read again

    async def take_turn(self) -> None:
        """Wait until another piece of a large answer may be written."""
        self.waits_for_turn = True
        try:
            await self._turns.wait()
        finally:
            self.waits_for_turn = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        size_bytes = len(data)
        if size_bytes < LARGE_READ_BYTES:
            return
        delay_s = self._pace.delay_s(size_bytes, self._loop.time())
        if self._hold is None and (delay_s or size_bytes >= FULL_READ_BYTES):
            self._hold = (
                self._loop.call_later(delay_s, self._release) if delay_s else self._loop.call_soon(self._release)
            )
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
        self._turns.call(self._read_on)

    def _read_on(self) -> bool:
        """Read again, unless the connection is closed, or its reader has not caught up; return whether it does."""
        self._hold = None
        if self.transport is None or self._reading_paused or self._buffer_paused:
            return False
        self._resume_transport_reading()
        return True
