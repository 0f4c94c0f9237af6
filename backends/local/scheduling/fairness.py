"""Shares a queue between teams: whose turn it is, and how many places a team may use.

A team that fills a queue delays others by one turn, not by all that it has queued. A part of each limit is kept for
teams that hold nothing, in addition to the configured limit, so that one busy team never has another one refused.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TypeVar

T = TypeVar("T")

# One in so many places is added for teams that hold nothing, rounded up.
RESERVED_FRACTION = 4
# How many teams' turns are known; an unknown team comes first.
MAX_TEAMS = 1024


def queue_limit(limit: int, *, holds_nothing: bool) -> int:
    """Return how many may wait when a team adds one more."""
    return limit + -(-limit // RESERVED_FRACTION) if holds_nothing else limit


class TeamRotation:
    """The order of teams in one queue: the one whose turn was longest ago comes first."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, int] = OrderedDict()  # the number of each team's last turn, oldest first
        self._count = 0

    def order(self, waiting: Sequence[T], team_of: Callable[[T], str]) -> list[T]:
        """Return what waits as the teams take turns: the first of each team, then the second of each.

        `waiting` is in the order of arrival, in which each team's own part stays.
        """
        by_team: dict[str, list[T]] = {}
        for each in waiting:
            by_team.setdefault(team_of(each), []).append(each)
        if len(by_team) < 2:
            return list(waiting)
        teams = sorted(by_team, key=lambda team: self._turns.get(team, -1))
        rounds = zip_longest(*(by_team[team] for team in teams))
        return [each for turn in rounds for each in turn if each is not None]

    def record_turn(self, team: str) -> None:
        """Move a team to the end."""
        self._count += 1
        self._turns.pop(team, None)
        self._turns[team] = self._count
        if len(self._turns) > MAX_TEAMS:
            self._turns.popitem(last=False)
