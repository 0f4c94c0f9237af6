"""Shares of something limited: one team cannot hold all of it while there are others.

A quarter is kept for teams that hold little. Of that quarter a team may have as much as it leaves, so the next team
always finds some. With one team only nothing is kept.
"""

from collections import defaultdict
from collections.abc import Mapping

KEPT = 1 / 4


class Shares:
    """How much of a limit is in use, and how much of that each team holds."""

    __slots__ = ("_held", "_kept", "_limit", "_used")

    def __init__(self, limit: int, *, has_teams: bool = False) -> None:
        """`has_teams` is whether there is more than one team."""
        self._limit = limit
        self._used = 0
        self._held: defaultdict[str, int] = defaultdict(int)
        self.set_teams(has_teams=has_teams)

    def set_teams(self, *, has_teams: bool) -> None:
        """Keep a quarter from now on, or no more. What a team holds already counts towards its share."""
        self._kept = int(self._limit * KEPT) if has_teams else 0

    @property
    def has_common(self) -> bool:
        """Whether any team may take something."""
        return self._used < self._limit - self._kept

    @property
    def held(self) -> Mapping[str, int]:
        """Return what each team that holds something has."""
        return self._held

    def take(self, amount: int, team: str = "") -> bool:
        """Take an amount for a team, if there is as much that it may have."""
        left = self._limit - self._used - amount
        if left < 0:
            return False
        if left < self._kept and self._held.get(team, 0) + amount > left + 1:  # the last one may be taken
            return False
        self._used += amount
        self._held[team] += amount
        return True

    def give_back(self, amount: int, team: str = "") -> None:
        """Give back an amount that the team has taken."""
        self._used -= amount
        self._held[team] -= amount
        if not self._held[team]:
            del self._held[team]
