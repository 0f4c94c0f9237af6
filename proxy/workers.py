"""Threads and memory for large bodies, so that one caller's body neither delays nor starves other callers.

A large body is parsed, checked and hashed in a thread; small ones stay on the event loop, where that is cheaper. All
bodies share one budget of memory.
"""

import asyncio
import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from inspect import iscoroutine
from typing import Any, Self, TypeVar

from proxy.loop_turns import STARTS_AT_ONCE, LoopTurns
from proxy.shares import Shares
from proxy.wire.errors import Unavailable

LARGE_BYTES = 262_144
"""The size in bytes from which work on a body is done in a thread."""
SOME_VALUES = 512
"""The number of JSON values from which other requests are served between two checks of a body."""
MANY_VALUES = 4096
"""The number of JSON values from which it is done in a thread: checking a body takes up to 10 us for each value."""
HEAVY_BYTES = 8_388_608
"""The memory of a call, in bytes, from which its work is heavy: it takes 0.1 s and more."""
FREE_BYTES = 65_536
"""What each call may use without a reservation, in bytes: small requests work when the budget is used up."""

PACE_BYTES_PER_S = 134_217_728
"""How fast large reads of all connections together may follow each other."""
PACE_BURST_BYTES = 1_048_576
"""How much may be read at once before the pace applies."""
LARGE_READ_BYTES = 16_384
"""A smaller read does not count, in bytes."""
FULL_READ_BYTES = 131_072
"""After a read of this size its connection pauses for one turn: uvloop would do up to 32 such reads in one step."""

T = TypeVar("T")


class Pace:
    """How fast large amounts of data are read: the event loop serves small requests in between."""

    def __init__(self, bytes_per_s: float = PACE_BYTES_PER_S, burst_bytes: int = PACE_BURST_BYTES) -> None:
        self._bytes_per_s = bytes_per_s
        self._burst_s = burst_bytes / bytes_per_s
        self._reached_s = 0.0  # the time at which all data read so far fits the pace

    def delay_s(self, size_bytes: int, now_s: float) -> float:
        """Count what was read at this moment, and return how long its connection must wait before the next read."""
        if size_bytes < LARGE_READ_BYTES:
            return 0.0
        self._reached_s = max(self._reached_s, now_s - self._burst_s) + size_bytes / self._bytes_per_s
        return max(0.0, self._reached_s - now_s)


class FairSlot:
    """A slot for one piece of work at a time. When it is free, the caller with the least work so far is next.

    A caller that returns starts level with the others: it gets no credit for the time in which it had no work.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._used_s: dict[str, float] = {}  # of callers with more work than the one that was next
        self._least_s = 0.0  # how much work that one had

    async def take(self, caller: str) -> None:
        """Wait until it is this caller's turn."""
        if not self._is_taken:
            self._is_taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(caller, turn)
            else:  # it was this caller's turn just then
                self.release(caller, 0.0)
            raise

    def release(self, caller: str, used_s: float) -> None:
        """Give the slot to the next caller, after work that took this long."""
        self._used_s[caller] = self._work_of(caller) + used_s
        while self._waiting:
            following = min(self._waiting, key=self._work_of)
            turn = self._waiting[following][0]
            self._forget(following, turn)
            if not turn.done():
                self._least_s = self._work_of(following)
                self._used_s = {name: used for name, used in self._used_s.items() if used > self._least_s}
                turn.set_result(None)
                return
        self._is_taken = False
        self._used_s.clear()
        self._least_s = 0.0

    def _work_of(self, caller: str) -> float:
        return max(self._used_s.get(caller, 0.0), self._least_s)

    def _forget(self, caller: str, turn: asyncio.Future[None]) -> None:
        """Remove a turn, unless it was removed already: one whose call was cancelled just before a release."""
        turns = self._waiting.get(caller)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[caller]


class Workers:
    """Threads for work on large bodies, and the pace at which large amounts of data are read.

    A thread that works in Python competes with the event loop for the interpreter, so at most two do: one for heavy
    work, and one for all other work, which need not wait for the heavy work of other callers. What releases the
    interpreter (decompressing, joining) has a thread of its own.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self.starts = LoopTurns(STARTS_AT_ONCE)  # of requests and turns of WebSockets, and portions of their frames
        self.floods = asyncio.Lock()  # connections with many waiting messages take turns
        self._heavy, self._moderate = FairSlot(), FairSlot()
        self._pool = ThreadPoolExecutor(3, thread_name_prefix="body")
        self._lock = threading.Lock()
        self._running = 0

    async def run(self, size_bytes: int, function: Callable[..., T], *args: Any) -> T:
        """Return what the function returns, called in a thread if it works on a large body."""
        if size_bytes < LARGE_BYTES:
            return function(*args)
        return await self._run_in_thread(function, args)

    async def run_for(self, caller: str, memory_bytes: int, function: Callable[..., T], *args: Any) -> T:
        """Return what the function returns, called in a thread when it is this caller's turn.

        `memory_bytes` is what its call takes: the size and the values of its bodies, by which the work takes time. The
        turn ends with the work, also for a call that was cancelled: its thread cannot be stopped.
        """
        slot = self._heavy if memory_bytes >= HEAVY_BYTES else self._moderate
        await slot.take(caller)
        began = time.monotonic()
        return await self._run_in_thread(function, args, lambda: slot.release(caller, time.monotonic() - began))

    async def _run_in_thread(
        self, function: Callable[..., T], args: tuple[Any, ...], on_end: Callable[[], None] = lambda: None
    ) -> T:
        try:
            working = self._pool.submit(self._call, function, args)
        except RuntimeError:  # the gateway closes
            on_end()
            raise
        done = asyncio.wrap_future(working)
        done.add_done_callback(lambda _: on_end())
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            working.cancel()
            working.add_done_callback(_close_result)
            raise
        finally:
            del done, working  # they have the exception, whose traceback has this frame: a cycle, with all of the call

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _call(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        with self._collector_paused():
            return function(*args)

    @contextmanager
    def _collector_paused(self) -> Iterator[None]:
        """Pause the cyclic garbage collector: while many objects are created it would inspect them all repeatedly."""
        with self._lock:
            self._running += 1
            gc.disable()
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    gc.enable()


def _close_result(working: Future[Any]) -> None:
    """Close a coroutine that a thread returned for a call that was cancelled meanwhile: nothing will await it."""
    if not working.cancelled() and working.exception() is None and iscoroutine(result := working.result()):
        result.close()


class BodyMemory(Shares):
    """The memory of all bodies together, in bytes, and of each team."""

    @property
    def used_bytes(self) -> int:
        return self._used

    def share(self, amount: int) -> float:
        """Return how much of the whole budget an amount is."""
        return amount / self._limit


class MemoryLease:
    """The part of the budget that one call holds. Leaving its `with` block releases it."""

    __slots__ = ("_allowed", "_budget", "_needed", "_taken", "_team")

    def __init__(self, budget: BodyMemory | None = None, team: str = "") -> None:
        self._budget = budget
        self._team = team
        self._needed = 0
        self._taken = 0
        self._allowed = FREE_BYTES  # what it may need with what it has taken

    def grow(self, amount: int) -> None:
        """Reserve more. Raises Unavailable when the budget is used up."""
        needed = self._needed + amount
        if needed > self._allowed and self._budget is not None:
            self._take(self._budget, needed - self._allowed)
        self._needed = needed

    def _take(self, budget: BodyMemory, missing: int) -> None:
        if not budget.take(missing, self._team):
            message = "The gateway has no memory left for a request of this size; try again later."
            raise Unavailable(message, code="memory_exhausted")
        self._taken += missing
        self._allowed += missing

    @property
    def needed_bytes(self) -> int:
        """How much this call uses, including the part that needs no reservation."""
        return self._needed

    @property
    def share(self) -> float:
        """How much of the whole budget this call has; 0 without a budget."""
        return 0 if self._budget is None else self._budget.share(self._taken)

    def begin_another(self) -> "MemoryLease":
        """Return an empty lease of the same budget."""
        return MemoryLease(self._budget, self._team)

    def hand_over(self) -> "MemoryLease":
        """Return a new lease with everything that this one holds; this one is empty then."""
        other = MemoryLease(self._budget, self._team)
        other._needed, other._taken, other._allowed = self._needed, self._taken, self._allowed
        self._needed, self._taken, self._allowed = 0, 0, FREE_BYTES
        return other

    def __enter__(self) -> Self:
        return self

    def release(self, *_error: object) -> None:
        """Release everything."""
        if self._budget is not None and self._taken:
            self._budget.give_back(self._taken, self._team)
        self._needed, self._taken, self._allowed = 0, 0, FREE_BYTES

    __exit__ = release
