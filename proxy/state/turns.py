"""Turns of work that waits for a place: teams get them one after the other, so that none waits for all of another's."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxy.wire.errors import HeadgateError

SHARED = 3 / 4
"""How much of the queue, and of the places, teams that have work there may use; the rest is for teams without any."""


class QueueFull(HeadgateError):
    """Source: https://platform.openai.com/docs/guides/rate-limits (429: the error's type names the limit)."""

    type = "requests"
    retry = True

    def __init__(self, message: str) -> None:
        super().__init__(message, status=429, code="background_queue_full", headers={"Retry-After": "5"})


class Turns:
    """Places for work: so much at a time, and so much altogether, with what waits."""

    def __init__(self, at_once: int, limit: int) -> None:
        self._at_once = at_once
        self._running: Counter[str] = Counter()  # by team
        self._limit = limit
        self._held: Counter[str] = Counter()  # by team: running and waiting
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by team, in the order of their next turns

    def enter(self, team: str) -> None:
        """Take a place in the queue. Raises QueueFull."""
        limit = self._limit * SHARED if self._held[team] else self._limit
        if self._held.total() >= max(1, limit):
            message = (
                f"Too many background responses are running or waiting; the limit is {self._limit}. "
                "Try again when some have finished."
            )
            raise QueueFull(message)
        self._held[team] += 1

    def leave(self, team: str) -> None:
        """Give the place back."""
        self._held[team] -= 1
        if not self._held[team]:
            del self._held[team]

    @asynccontextmanager
    async def turn(self, team: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it."""
        if self._may_run(team):
            self._running[team] += 1
        else:
            await self._wait(team)
        try:
            yield
        finally:
            self._end(team)

    async def _wait(self, team: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(team, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came at the same moment
                self._end(team)
            raise

    def _may_run(self, team: str) -> bool:
        """Whether there is a place for one more of a team: work that never ends must not hold them all."""
        shared = max(1, int(self._at_once * SHARED))
        return self._running.total() < (shared if self._running[team] else self._at_once)

    def _end(self, team: str) -> None:
        """End a turn, and give its place to the next team that waits and may have it."""
        self._running[team] -= 1
        if not self._running[team]:
            del self._running[team]
        while (chosen := next(filter(self._may_run, self._waiting), None)) is not None:
            turns = self._waiting.pop(chosen)
            turn = turns.popleft()
            if turns:
                self._waiting[chosen] = turns
            if not turn.done():
                self._running[chosen] += 1
                turn.set_result(None)
