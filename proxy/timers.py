"""Timers that share one timer of the event loop, which takes 0.7 KiB: every connection needs one or two."""

import asyncio
from heapq import heapify, heappop, heappush
from typing import Protocol

from msgspec import Struct

MOST_CANCELLED = 64
"""How many cancelled timers may stay in the heap, if they are not the majority."""
CLOCK_STEP_S = 0.001
"""The delay added to each call: uvloop rounds to milliseconds, and calls up to half of one early."""


class Timed(Protocol):
    def on_due(self) -> None:
        """Called once when a timer is due."""


class Timer(Struct, eq=False):
    """The time of a call, on the event loop's clock, and the object; None once it was called or cancelled."""

    due: float
    timed: Timed | None

    def __lt__(self, other: "Timer") -> bool:
        return self.due < other.due


class Timers:
    """Calls objects when their timers are due, in the event loop of the first one."""

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
        """Set the event loop's timer to the first one in the heap."""
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
