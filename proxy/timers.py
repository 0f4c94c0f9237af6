"""Timers that share one timer of the event loop: that takes 0.7 KiB, and every connection needs one or two."""

import asyncio
from heapq import heapify, heappop, heappush
from typing import Protocol

from msgspec import Struct

MOST_CANCELLED = 64
"""How many cancelled timers are kept until they are due, if they are not more than the others."""
CLOCK_STEP_S = 0.001
"""How much later the event loop is asked to call: uvloop counts milliseconds, and calls up to half of one early."""


class Timed(Protocol):
    def on_due(self) -> None:
        """Do what is due; called once for each timer."""


class Timer(Struct, eq=False):
    """When an object is called, on the event loop's clock; None: it was called already, or the timer was cancelled."""

    due: float
    timed: Timed | None

    def __lt__(self, other: "Timer") -> bool:
        return self.due < other.due


class Timers:
    """Calls objects when their timers are due. Starts with the first of them, in its event loop."""

    __slots__ = ("_cancelled", "_handle", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[Timer] = []  # a heap: the first one is due next
        self._cancelled = 0  # how many of them are cancelled
        self._handle: asyncio.TimerHandle | None = None

    def start(self, due: float, timed: Timed) -> Timer:
        """Call an object at a time on the event loop's clock."""
        timer = Timer(due, timed)
        heappush(self._waiting, timer)
        if self._waiting[0] is timer:
            self._wait()
        return timer

    def cancel(self, timer: Timer) -> None:
        """Cancel a timer; does nothing for one that was due already."""
        if timer.timed is None:
            return
        timer.timed = None
        self._cancelled += 1
        if self._cancelled > max(MOST_CANCELLED, len(self._waiting) // 2):
            self._waiting = [each for each in self._waiting if each.timed is not None]
            self._cancelled = 0
            heapify(self._waiting)

    def _wait(self) -> None:
        """Ask the event loop to call when the first timer is due."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = asyncio.get_running_loop().call_at(self._waiting[0].due + CLOCK_STEP_S, self._call_due)

    def _call_due(self) -> None:
        self._handle = None
        now = asyncio.get_running_loop().time()
        try:
            while self._waiting and self._waiting[0].due <= now:
                timed, self._waiting[0].timed = self._waiting[0].timed, None
                heappop(self._waiting)
                if timed is None:
                    self._cancelled -= 1
                else:
                    timed.on_due()
        finally:
            if self._waiting and self._handle is None:
                self._wait()
