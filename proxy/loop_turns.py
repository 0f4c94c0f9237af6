"""Bounds how much work begins in one turn of the event loop. The rest waits, and teams take turns.

A small request needs about ten turns of the loop, and a turn takes as long as all work in it. Without a bound a team
with many connections would slow down all others.
"""

import asyncio
from collections import deque
from collections.abc import Callable

STARTS_AT_ONCE = 16
"""How many requests, WebSocket turns and portions of frames begin in one turn of the event loop."""

Waiter = Callable[[], bool] | asyncio.Future[None]


class LoopTurns:
    """Gives a number of places in each turn of the event loop; teams get those of later turns one after the other."""

    __slots__ = ("_at_once", "_is_due", "_left", "_waiting")

    def __init__(self, at_once: int = STARTS_AT_ONCE) -> None:
        self._at_once = at_once
        self._left = at_once  # in this turn of the loop
        self._is_due = False  # whether the next turn gives places again
        self._waiting: dict[str, deque[Waiter]] = {}  # by team, in the order of their next places

    def take(self) -> bool:
        """Take a place in this turn of the event loop; return False if none is left, or others wait."""
        if not self._left or self._waiting:
            return False
        self._left -= 1
        if not self._is_due:
            self._give_later()
        return True

    def wait(self, team: str = "") -> asyncio.Future[None]:
        """Return a future that is done when there is a place in a later turn of the event loop."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(waiter, team)
        return waiter

    def call_later(self, begin: Callable[[], bool], team: str = "") -> None:
        """Call a function when a place is free in a later turn; it returns whether it uses the place."""
        self._add(begin, team)

    def _add(self, waiter: Waiter, team: str) -> None:
        if (of_team := self._waiting.get(team)) is not None:
            of_team.append(waiter)
            return
        self._waiting[team] = deque((waiter,))
        if not self._is_due:
            self._give_later()

    def _give_later(self) -> None:
        self._is_due = True
        asyncio.get_running_loop().call_soon(self._give_places)

    def _give_places(self) -> None:
        waiting, self._waiting = self._waiting, {}  # work that arrives during this loop waits for later turns
        left = self._at_once
        try:
            while left and waiting:
                team = next(iter(waiting))
                of_team = waiting.pop(team)
                waiter = of_team.popleft()
                if of_team:
                    waiting[team] = of_team
                if not isinstance(waiter, asyncio.Future):
                    left -= waiter()
                elif not waiter.done():
                    waiter.set_result(None)
                    left -= 1
        finally:  # also after a function that failed
            for team, of_team in self._waiting.items():
                waiting.setdefault(team, deque()).extend(of_team)
            self._waiting, self._left = waiting, left
            self._is_due = False
            if left < self._at_once or waiting:
                self._give_later()
