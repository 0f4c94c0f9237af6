"""Bounds how much all clients together upload and download at a time, so that the event loop serves small requests."""

import asyncio
from typing import Any

from aiohttp import ClientConnectionResetError, web
from aiohttp.base_protocol import BaseProtocol

from proxy.loop_turns import LoopTurns
from proxy.workers import FULL_READ_BYTES, Pace

PIECES_AT_ONCE = 4
"""How many pieces of large bodies are read or written in one turn of the event loop, on all connections together."""


class PacedConnection(web.RequestHandler):
    """A connection that pauses reading when all connections together exceed the pace.

    `turns` are shared: each is one piece of a large body, read or written on any connection.
    """

    __slots__ = ("_hold", "_is_held", "_pace", "_turns", "team", "waits_for_turn")

    writing_paused: bool = vars(BaseProtocol)["_paused"]  # the slot, and no property: each write reads it

    def __init__(self, manager: web.Server, *, pace: Pace, turns: LoopTurns, **options: Any) -> None:
        super().__init__(manager, **options)
        self._pace = pace
        self._turns = turns
        self.team = ""  # of the last request, if there are several
        self.waits_for_turn = False  # whether an answer is being written, and continues soon
        self._is_held = False  # whether reading is paused until its turn
        self._hold: asyncio.TimerHandle | None = None  # the timer until it queues for a turn

    async def take_turn(self) -> None:
        """Wait until another piece of a large answer may be written."""
        self.waits_for_turn = True
        try:
            if not self._turns.take():
                await self._turns.wait(self.team)
        finally:
            self.waits_for_turn = False

    async def wait_until_writable(self) -> None:
        """Wait while the client reads too slowly. Raises ConnectionError when it has disconnected."""
        if self.transport is not None and self._paused:
            await self._drain_helper()

    async def _drain_helper(self) -> None:
        """Wait as `wait_until_writable` does; aiohttp calls it after its own writes.

        aiohttp's own function keeps the future in its frame. When the client disconnects, the traceback of the future's
        error has that frame: a cycle, which would keep the whole answer in memory.
        """
        if self.transport is None:
            raise ClientConnectionResetError("Connection lost")
        if self._paused:
            self._drain_waiter = self._drain_waiter or self._loop.create_future()
            await self._drain_waiter

    def note_read(self, size_bytes: int) -> None:
        """Pause reading after a large read, if the pace requires it."""
        delay_s = self._pace.delay_s(size_bytes, self._loop.time())
        if self._is_held or not (delay_s or size_bytes >= FULL_READ_BYTES):
            return
        self._is_held = True
        self._pause_transport_reading()
        if delay_s:
            self._hold = self._loop.call_later(delay_s, self._release)
        else:
            self._release()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._hold is not None:
            self._hold.cancel()
        super().connection_lost(exc)

    def _resume_transport_reading(self) -> None:
        """aiohttp calls this when the reader of a body has caught up."""
        if not self._is_held:
            super()._resume_transport_reading()

    def _release(self) -> None:
        self._turns.call_later(self._read_on, self.team)

    def _read_on(self) -> bool:
        """Resume reading, unless the connection is closed or its reader is behind; return whether it resumed."""
        self._is_held = False
        if self.transport is None or self._reading_paused or self._buffer_paused:
            return False
        self._resume_transport_reading()
        return True
