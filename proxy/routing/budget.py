"""How many calls of a route may be sent again: a share of its calls, so that retries never multiply an overload.

Source: https://sre.google/sre-book/handling-overload/ (retry budgets)
"""

SHARE = 0.1
"""How many attempts more than calls a route may make: one for every ten."""
RESERVE = 10
"""How many more than that, so that a route with few calls may try again too."""
WINDOW_S = 30.0
"""Calls and retries of this window and of the one before count, in seconds: many calls may fail at once."""


class RetryBudget:
    """The budget of one route in this process. Times are those of the event loop's clock, in seconds."""

    __slots__ = ("_calls", "_calls_before", "_retries", "_retries_before", "_window_end")

    def __init__(self) -> None:
        self._window_end = 0.0
        self._calls = self._calls_before = 0
        self._retries = self._retries_before = 0

    def add_call(self, now: float) -> None:
        """Count a call: it earns its share of an attempt."""
        if now >= self._window_end:
            self._begin_window(now)
        self._calls += 1

    def take(self, now: float) -> bool:
        """Take one more attempt, if there is one."""
        if now >= self._window_end:
            self._begin_window(now)
        earned = SHARE * (self._calls + self._calls_before)
        if self._retries + self._retries_before + 1 > RESERVE + earned:
            return False
        self._retries += 1
        return True

    def _begin_window(self, now: float) -> None:
        is_next = now < self._window_end + WINDOW_S
        self._calls_before = self._calls if is_next else 0
        self._retries_before = self._retries if is_next else 0
        self._calls = self._retries = 0
        self._window_end = now + WINDOW_S
