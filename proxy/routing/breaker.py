"""Decides whether a target is left alone for a while, from how its last calls went.

    closed      it is asked
    open        it is not asked until a time
    half-open   that time is over: one call at a time tries it. If that goes well it is closed, otherwise open again,
                for twice as long

It opens after FAULTS_IN_A_ROW, or when of MIN_CALLS and more in about WINDOW_S at least the half were faults, or began
too late. All times are those of the event loop's clock, in seconds. Nothing here waits.
"""

from typing import Literal

FAULTS_IN_A_ROW = 5
WINDOW_S = 10.0
MIN_CALLS = 20
RATE = 0.5
OPEN_S, LONGEST_OPEN_S = 5.0, 60.0
"""How long it is open the first time, and at most."""


class Breaker:
    """The state of one target."""

    __slots__ = (
        "_calls", "_calls_before", "_faults", "_faults_before", "_in_a_row", "_is_probed", "_open_s", "_slow",
        "_slow_before", "_window_end", "open_until",
    )  # fmt: skip

    def __init__(self) -> None:
        self.open_until = 0.0
        """Until when it is open; 0 while it is closed."""
        self._open_s = OPEN_S
        self._in_a_row = 0
        self._is_probed = False
        self._window_end = 0.0
        self._calls = self._calls_before = 0
        self._faults = self._faults_before = 0
        self._slow = self._slow_before = 0

    def state(self, now: float) -> Literal["closed", "half-open", "open"]:
        """Return what it is now."""
        if not self.open_until:
            return "closed"
        return "open" if now < self.open_until else "half-open"

    def allows(self, now: float) -> bool:
        """Whether a call may be sent: it is closed, or it is time to try, and no other call does."""
        return self.open_until == 0 or (now >= self.open_until and not self._is_probed)

    def start(self, now: float) -> None:
        """Note that a call is sent: if the time is over, it is the one that tries."""
        if self.open_until and now >= self.open_until:
            self._is_probed = True

    def begin(self, now: float, *, is_slow: bool = False) -> bool:
        """Note an answer that began; return whether that opened the breaker, because too many began too late."""
        if now >= self._window_end:
            self._begin_window(now)
        self._calls += 1
        if not is_slow:
            if self.open_until and now >= self.open_until:
                self._close()
            return False
        self._slow += 1
        return self._is_over(self._slow + self._slow_before) and self._open(now)

    def end(self, *, is_well: bool) -> None:
        """Note that a call ended. If it tried the target without a result, another one may try; an answer that ended
        as it should ends a row of faults.
        """
        self._is_probed = False
        if is_well:
            self._in_a_row = 0

    def fail(self, now: float, *, has_begun: bool = False) -> bool:
        """Note a fault, of an answer that had begun or of one that did not; return whether it opened the breaker."""
        if not has_begun:
            if now >= self._window_end:
                self._begin_window(now)
            self._calls += 1
        self._faults += 1
        self._in_a_row += 1
        is_failed_probe = self.open_until != 0 and now >= self.open_until
        if is_failed_probe or self._in_a_row >= FAULTS_IN_A_ROW or self._is_over(self._faults + self._faults_before):
            return self._open(now)
        return False

    def open_for(self, now: float, seconds: float) -> None:
        """Open it because another process did."""
        self.open_until = max(self.open_until, now + min(seconds, LONGEST_OPEN_S))
        self._is_probed = False

    def _open(self, now: float) -> bool:
        """Open it; False if it is open already."""
        if now < self.open_until:
            return False
        self.open_until = now + self._open_s
        self._open_s = min(2 * self._open_s, LONGEST_OPEN_S)
        self._is_probed = False
        return True

    def _close(self) -> None:
        self.open_until, self._open_s, self._is_probed, self._in_a_row = 0.0, OPEN_S, False, 0
        self._calls = self._calls_before = self._faults = self._faults_before = self._slow = self._slow_before = 0

    def _begin_window(self, now: float) -> None:
        """Begin a window. The one before it counts as well, so that none begins empty."""
        is_next = now < self._window_end + WINDOW_S / 2
        self._calls_before = self._calls if is_next else 0
        self._faults_before = self._faults if is_next else 0
        self._slow_before = self._slow if is_next else 0
        self._calls = self._faults = self._slow = 0
        self._window_end = now + WINDOW_S / 2

    def _is_over(self, count: int) -> bool:
        calls = self._calls + self._calls_before
        return calls >= MIN_CALLS and count >= RATE * calls
