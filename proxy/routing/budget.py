"""How many calls of a route may be sent again: a share of all calls, so that retries never multiply an overload.

Source: https://sre.google/sre-book/handling-overload/ (retry budgets)
"""

SHARE = 0.1
"""How many attempts more than calls a route may make: one for every ten."""
RESERVE = 5.0
"""How many it may make at once: what calls left unused is kept up to here."""


class RetryBudget:
    """The budget of one route in this process."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = RESERVE

    def add_call(self) -> None:
        """Count a call: it earns its share of an attempt."""
        if self._left < RESERVE:
            self._left += SHARE

    def take(self) -> bool:
        """Take one more attempt, if there is one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
