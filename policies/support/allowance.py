"""What one process holds of a counter that processes share: calls take from it without a command of the store.

The process holds `free`, which calls may take, `busy`, which calls have taken that still run, and `spent`, which calls
have used and the store does not know of yet. The store counts all of it as used, so no process can exceed the limit by
what another one holds. One command at a time brings it up to date; calls that wait for one share the next one.

far from the limit   the process holds in reserve about what it uses in two periods, and writes once in a period
near to the limit    it holds nothing in reserve: what calls wait for is taken, and what is unused is given back at once
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from proxy.stores import Grant, HoldRequest, StoreError

PERIOD_S = 1.0
"""How often what was used is written, and what is held is fitted to it, in seconds."""
HEADROOM = 2
"""How many times what a period needs is held."""
MIN_CALLS = 4
"""How many calls in a period make a reserve worth a command, and how many it must be good for."""
LEASE_S = 900.0
"""How long what a killed process has held is kept for it, in seconds: from its last command for that counter."""
ENDLESS = float("inf")


class SharedCounter(Protocol):
    """A counter of the store, as one process uses it."""

    @property
    def limit(self) -> int: ...
    @property
    def parts(self) -> int: ...
    @property
    def clock(self) -> Callable[[], float]: ...

    async def hold(self, asked: HoldRequest, *, is_last: bool) -> Grant:
        """Change what is held. Raises StoreError."""

    def note_use(self, before: int, after: int) -> None:
        """Note how much was in use before a command of this process, and after it."""

    def note_fault(self, error: StoreError) -> None:
        """Note that what was used could not be written. It is tried again."""


@dataclass(slots=True)
class CallPart:
    """What one call has taken of an allowance."""

    allowance: "Allowance"
    amount: int
    window: int = 0
    granted: bool = False

    async def settle(self, used: int) -> None:
        """Let what the call has used replace what it has taken; near to the limit others can have the rest then."""
        self.allowance.settle(self.amount if self.granted else 0, used, self.window)
        if self.allowance.is_tight:
            await self.allowance.written()


class Allowance:
    """What this process holds of one counter."""

    __slots__ = (
        "_counter", "_flight", "_held", "_is_due", "_largest", "_low", "_number", "_renew_at", "_repeated", "_total",
        "_total_before", "_waiting", "busy", "calls", "calls_before", "ends_at", "free", "is_new", "is_tight",
        "resets_at", "resets_in_s", "seen", "spent", "window",
    )  # fmt: skip

    def __init__(self, counter: SharedCounter) -> None:
        self._counter = counter
        self.free = self.busy = self.spent = self.window = 0
        self.ends_at = self.resets_at = self.resets_in_s = 0.0
        """Until when calls may take from it, by the counter's clock, and when the window ends."""
        self.is_tight = True
        """Whether so little is left that nothing is held in reserve."""
        self.is_new = False
        """Whether the first command for the counter in its window was this process's."""
        self.calls = self.calls_before = 0  # in this period, and in the one before
        self.seen = 0
        """How much of the counter was in use by the last answer, all that this process holds included."""
        self._held = 0  # what this process held by that answer
        self._total = self._total_before = 0  # what calls have used in this period, and in the one before
        self._largest = 1
        self._low = -1  # below it more is taken before calls have to wait
        self._number = 0  # of the last command
        self._repeated: HoldRequest | None = None  # a command of which it is not known whether it was carried out
        self._renew_at = ENDLESS
        self._waiting: deque[tuple[CallPart, asyncio.Future[None]]] = deque()
        self._is_due = False
        self._flight: asyncio.Task[None] | None = None

    @property
    def used(self) -> int:
        """How much of the limit is used or reserved, as far as this process knows, less what it holds in reserve."""
        return self.seen - self.free

    def take(self, amount: int) -> None:
        """Take an amount for a call. The caller has checked that it is free, and that the window lasts."""
        self.calls += 1
        self.free -= amount
        self.busy += amount
        if self.free < self._low:
            self.refresh()

    def spend(self, amount: int) -> None:
        """Take an amount that the call uses, whatever becomes of it. The caller has checked as before `take`."""
        self.calls += 1
        self.free -= amount
        self.spent += amount
        self._total += amount
        if self.free < self._low:
            self.refresh()

    def settle(self, reserved: int, used: int, window: int) -> None:
        """Let what a call has used replace what it has taken. Of an earlier window only what exceeds that counts."""
        if window != self.window:
            reserved, used = 0, max(0, used - reserved)
        self.busy -= reserved
        self.spent += used
        self._total += used
        self.free += reserved - used
        if self.free < 0 or (self.is_tight and self.free != 0):
            self.refresh()

    async def reserve(self, part: CallPart) -> None:
        """Wait until a call has its part, or is known to be refused. Raises StoreError."""
        done = asyncio.get_running_loop().create_future()
        self._largest = max(self._largest, part.amount)
        self._waiting.append((part, done))
        self.refresh()
        await done

    def refresh(self) -> None:
        """Write what was used, and fit what is held, beside the calls."""
        self._is_due = True
        if self._flight is None:
            self._flight = asyncio.create_task(self._fly())

    async def written(self) -> None:
        """Wait until the command that is under way, if any, is answered."""
        if self._flight is not None:
            await asyncio.wait([self._flight])

    def begin_period(self, now: float) -> bool:
        """Begin another period, and return whether anything is held, or was in the last two."""
        self.calls, self.calls_before = 0, self.calls
        self._total, self._total_before = 0, self._total
        reserve = self._reserve()
        if self.spent or self._repeated is not None or self.free > reserve or (self.busy and now >= self._renew_at):
            self.refresh()
        return bool(self.calls_before or self.busy or self.free or self.spent or self._flight)

    async def close(self) -> None:
        """Give back what no call has."""
        self.calls = self.calls_before = 0  # so that nothing is held in reserve
        if self.free or self.spent or self._repeated is not None:
            self.refresh()
        await self.written()

    def _reserve(self) -> int:
        """Return how much should be free."""
        if self.is_tight or max(self.calls, self.calls_before) < MIN_CALLS:
            return 0
        needed = self.busy + max(self._total, self._total_before)
        return min(HEADROOM * needed - self.busy, self._most_in_reserve())

    def _most_in_reserve(self) -> int:
        return max(0, self._counter.limit - self.used) // self._counter.parts

    async def _fly(self) -> None:
        try:
            while self._is_due or self._waiting:
                self._is_due = False
                await self._exchange()
        finally:
            self._flight = None
            for _, done in self._waiting:  # the process ends
                done.cancel()
            self._waiting.clear()

    async def _exchange(self) -> None:
        """Send one command, and grant or refuse what calls wait for."""
        sent_at = self._counter.clock()
        has_ended = sent_at >= self.ends_at
        if has_ended and not self._waiting and self._repeated is None:
            self._end_window()
            if not self.spent:
                return
        asked, waiting = self._next_request(can_use_free=not has_ended), len(self._waiting)
        try:
            grant = await self._counter.hold(asked, is_last=not (asked.kept or asked.more or asked.spare))
        except StoreError as error:
            self._repeated = asked
            self._fail(waiting, error)
            return
        is_repeated, self._repeated = self._repeated is not None, None
        is_short = self._read(asked, grant, sent_at)
        if not is_repeated:  # else it has not asked for what calls wait for
            self._serve(waiting, is_short=is_short)
        self._is_due = self._is_due or is_repeated or (self.is_tight and self.free > 0)

    def _end_window(self) -> None:
        """Forget what was held in a window that has ended, but not what was used beyond it."""
        debt = max(0, -self.free)
        self.busy, self.spent, self.free, self.window, self.ends_at = 0, debt, -debt, 0, 0.0

    def _next_request(self, *, can_use_free: bool) -> HoldRequest:
        """Return the next command; what it gives back cannot be taken any more."""
        self._low = -1
        if not self._waiting:
            self.free = min(self.free, self._reserve())
        if (before := self._repeated) is not None:
            later = self.spent - before.spent - before.owed  # what calls have used since
            return replace(before, kept=self.busy + self.free + before.owed + later, more=0, spare=0)
        free, debt = max(0, self.free), max(0, -self.free)
        self._number += 1
        needed = sum(part.amount for part, done in self._waiting if not done.done())
        return HoldRequest(
            self._number, self.window, kept=self.busy + free, spent=self.spent - debt, owed=debt,
            more=max(0, needed - free * can_use_free), spare=max(0, self._reserve() - free), parts=self._counter.parts,
        )  # fmt: skip

    def _read(self, asked: HoldRequest, grant: Grant, sent_at: float) -> bool:
        """Take over what an answer says, and return whether less was left than is needed."""
        if grant.window == self.window:
            self.spent -= asked.spent + asked.owed
        else:  # what was held before has ended with its window
            self.busy = self._held = 0
            self.spent = max(0, -self.free - asked.owed)
            asked = replace(asked, kept=0, spent=0)
        before = grant.used - (grant.granted - self._held + asked.spent + asked.owed)
        self.is_new = self.is_new or before == 0 < grant.used
        self.free = grant.granted - self.busy - self.spent
        self.seen, self._held, self.window = grant.used, grant.granted, grant.window
        self.resets_in_s, self.resets_at = grant.resets_in_s, sent_at + grant.resets_in_s
        self.ends_at = self.resets_at if grant.window else 0.0
        self._renew_at = sent_at + LEASE_S / 3
        self.is_tight = self._most_in_reserve() < MIN_CALLS * self._largest
        self._counter.note_use(before, grant.used)
        return grant.granted < asked.kept + asked.more

    def _serve(self, number: int, *, is_short: bool) -> None:
        """Grant what is free to the calls that waited first; refuse others only if no more is left."""
        left = []
        for _ in range(number):
            part, done = self._waiting.popleft()
            if done.done():  # the call was cancelled
                continue
            if part.amount > max(0, self.free):
                if not is_short:  # other calls were faster
                    left.append((part, done))
                    continue
            else:
                self.take(part.amount)
                part.granted, part.window = True, self.window
            done.set_result(None)
        self._waiting.extendleft(reversed(left))
        self._low = self.free // 4 if self._reserve() else -1

    def _fail(self, number: int, error: StoreError) -> None:
        if not number:
            self._counter.note_fault(error)
        for _ in range(number):
            _, done = self._waiting.popleft()
            if not done.done():
                done.set_exception(error)
