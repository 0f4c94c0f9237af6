"""Places for calls at one target, and a bounded queue for those that wait: teams take turns.

A quarter of the places is kept for teams that have few, so slow calls of one team never have all of them. The queue
refuses at once what it cannot hold, so that an overload costs its callers no time. A quarter of it is kept for teams
that have no call in it.
"""

import asyncio
from collections import deque

from backends import Concurrency
from proxy.shares import Shares
from proxy.wire.errors import BackendError

RETRY = {"Retry-After": "1", "x-should-retry": "true"}
SHARED = 3 / 4
"""How much of the queue a team may fill."""


class Places:
    """The places of one target in this process."""

    __slots__ = ("_limits", "_shares", "_waiting", "_waiting_count")

    def __init__(self, limits: Concurrency, *, has_teams: bool = False) -> None:
        """`has_teams` is whether there is more than one team."""
        self._limits = limits
        self._shares = Shares(limits.at_once, has_teams=has_teams)
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by team, in the order of their next turns
        self._waiting_count = 0

    def set_teams(self, *, has_teams: bool) -> None:
        """Keep places for other teams from now on, or no more."""
        self._shares.set_teams(has_teams=has_teams)

    @property
    def is_free(self) -> bool:
        """Whether a call of any team gets a place at once."""
        return self._shares.has_common

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return self._waiting_count

    async def take(self, team: str) -> None:
        """Take a place, when it is the team's turn. Raises BackendError if the queue is full, or the wait too long."""
        if self._shares.take(1, team):
            return
        room = self._limits.max_waiting
        if self._waiting_count >= (max(1, int(room * SHARED)) if team in self._waiting else room):
            raise _queue_full()
        await self._wait(team)

    def give_back(self, team: str) -> None:
        """Give a place of a team back: to the first call of the next team that waits and may have it."""
        self._shares.give_back(1, team)
        for following in [*self._waiting]:
            turns = self._waiting[following]
            while turns and turns[0].done():  # cancelled just now
                turns.popleft()
            if turns and not self._shares.take(1, following):
                continue
            del self._waiting[following]
            if not turns:
                continue
            turns.popleft().set_result(None)
            if turns:
                self._waiting[following] = turns

    async def _wait(self, team: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(team, deque()).append(turn)
        self._waiting_count += 1
        try:
            async with asyncio.timeout(self._limits.max_wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self.give_back(team)
            self._forget(team, turn)
            if isinstance(error, TimeoutError):
                raise _busy() from error
            raise
        finally:
            self._waiting_count -= 1

    def _forget(self, team: str, turn: asyncio.Future[None]) -> None:
        """Remove a turn that is not waited for any more."""
        turns = self._waiting.get(team)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[team]


def _queue_full() -> BackendError:
    message = "Too many calls wait for the upstream."
    return BackendError(
        message, status=429, code="upstream_queue_full", headers=dict(RETRY), source="gateway", retryable=True,
        sent=False,
    )  # fmt: skip


def _busy() -> BackendError:
    message = "No place at the upstream became free in time."
    return BackendError(
        message, status=503, code="upstream_busy", headers=dict(RETRY), source="gateway", retryable=True, sent=False
    )  # fmt: skip
