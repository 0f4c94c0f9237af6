"""Shares of a limited resource: while there are several teams, none can hold all of it.

Three quarters are for any team. Of the last quarter a team may hold as much as it leaves free, so the next team always
finds some. With one team nothing is reserved.
"""

from collections import defaultdict
from collections.abc import Mapping

KEPT = 1 / 4


class Shares:
    """The used part of a limit, in all and by team."""

    __slots__ = ("_held", "_kept", "_limit", "_used")

    def __init__(self, limit: int, *, has_teams: bool = False) -> None:
        """`has_teams` is whether there is more than one team."""
        self._limit = limit
        self._used = 0
        self._held: defaultdict[str, int] = defaultdict(int)
        self.set_teams(has_teams=has_teams)

    def set_teams(self, *, has_teams: bool) -> None:
        """Reserve a quarter from now on, or nothing. What a team holds already counts towards its share."""
        self._kept = int(self._limit * KEPT) if has_teams else 0

    @property
    def has_common(self) -> bool:
        """Whether any team may take more: the part for all teams is not used up."""
        return self._used < self._limit - self._kept

    @property
    def held(self) -> Mapping[str, int]:
        """Return the amount that each team holds."""
        return self._held

    def take(self, amount: int, team: str = "") -> bool:
        """Take an amount for a team; return whether its share allows that."""
        left = self._limit - self._used - amount
        if left < 0:
            return False
        if left < self._kept and self._held.get(team, 0) + amount > left + 1:  # the last unit may be taken
            return False
        self._used += amount
        self._held[team] += amount
        return True

    def give_back(self, amount: int, team: str = "") -> None:
        """Return an amount that the team has taken."""
        self._used -= amount
        self._held[team] -= amount
        if not self._held[team]:
            del self._held[team]
