"""Bounds how much begins in one turn of the event loop. What a crowd of connections asks for waits; teams take turns.

A small request needs about ten turns of the loop, and each of them takes as long as all that is done in it: a team with
many connections would otherwise have a part of it for each.
"""

import asyncio
from collections import deque
from collections.abc import Callable

STARTS_AT_ONCE = 16
"""How many requests and turns of WebSockets begin in one turn of the event loop, with portions of frames that wait."""

Place = Callable[[], bool] | asyncio.Future[None]


class LoopTurns:
    """Lets so much begin in each turn of the event loop. Teams get the places of the next turns one after the other."""

    __slots__ = ("_at_once", "_is_due", "_left", "_waiting")

    def __init__(self, at_once: int = STARTS_AT_ONCE) -> None:
        self._at_once = at_once
        self._left = at_once  # in this turn of the loop
        self._is_due = False  # whether the next turn gives places again
        self._waiting: dict[str, deque[Place]] = {}  # by team, in the order of their next places

    def take(self) -> bool:
        """Take a place in this turn of the event loop, if there is one that nothing waits for."""
        if not self._left or self._waiting:
            return False
        self._left -= 1
        if not self._is_due:
            self._give_later()
        return True

    def wait(self, team: str = "") -> asyncio.Future[None]:
        """Return a future that is done when there is a place in a later turn of the event loop."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(place, team)
        return place

    def call_later(self, begin: Callable[[], bool], team: str = "") -> None:
        """Call a function when there is a place in a later turn; it returns whether it uses the place."""
        self._add(begin, team)

    def _add(self, place: Place, team: str) -> None:
        if (of_team := self._waiting.get(team)) is not None:
            of_team.append(place)
            return
        self._waiting[team] = deque((place,))
        if not self._is_due:
            self._give_later()

    def _give_later(self) -> None:
        self._is_due = True
        asyncio.get_running_loop().call_soon(self._give_places)

    def _give_places(self) -> None:
        waiting, self._waiting = self._waiting, {}  # what waits from now on is for later turns
        left = self._at_once
        try:
            while left and waiting:
                team = next(iter(waiting))
                of_team = waiting.pop(team)
                place = of_team.popleft()
                if of_team:
                    waiting[team] = of_team
                if not isinstance(place, asyncio.Future):
                    left -= place()
                elif not place.done():
                    place.set_result(None)
                    left -= 1
        finally:  # a function that fails must not keep all others waiting
            for team, of_team in self._waiting.items():
                waiting.setdefault(team, deque()).extend(of_team)
            self._waiting, self._left = waiting, left
            self._is_due = False
            if left < self._at_once or waiting:
                self._give_later()
