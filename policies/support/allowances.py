"""The counters of one limit that this process uses at the moment, by those who share them."""

import asyncio
import secrets
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from itertools import count

import structlog

from policies import PolicyState
from policies.support.allowance import LEASE_S, PERIOD_S, Allowance
from proxy.stores import Grant, Holder, HoldRequest, Store, StoreError
from proxy.wire.loggable import short_message

log = structlog.get_logger()

PARTS = 16
"""What one process holds in reserve is at most this part of what is left, divided by the processes of its machine."""
REPEAT_S = 60.0
"""How long a counter knows the last command of a process that holds nothing, in seconds: it may be repeated."""
SLICE, SLICE_S = 256, 0.02
"""How many counters are brought up to date at a time, and how long the next ones wait, in seconds."""

UseNoted = Callable[[str, int, int], None]
"""Gets who shares a counter, and how much of it was in use before a command and after it."""


class Allowances:
    """What this process holds of each counter of a limit. Those of which nothing is held are forgotten."""

    def __init__(
        self, state: PolicyState, limit: int, note_use: UseNoted | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """The clock only moves forward."""
        self.held: dict[Hashable, Allowance] = {}
        self.limit = limit
        self.parts = PARTS * state.workers
        self.note_use = note_use
        self.clock = clock
        self._store = state.store
        self._policy = state.name
        self._is_reached = True
        self._process, self._numbers = secrets.token_hex(8), count(1)
        self._timer: asyncio.TimerHandle | None = None
        state.closers.append(self.close)

    def add(self, name: Hashable, key: str, window_s: float, shared: str, group: str) -> Allowance:
        """Return the allowance of another counter, of which nothing is held yet.

        `name` is its own in `held`, `shared` who shares it, `group` the team whose counter it is.
        """
        holder = f"{self._process}{next(self._numbers):x}"  # its own: the commands of each holder are numbered
        counter = StoreCounter(self, self._store, key, window_s, shared, group, holder)
        allowance = self.held[name] = Allowance(counter)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self.begin_period)
        return allowance

    def note_answer(self) -> None:
        """Note that the store can be reached."""
        self._is_reached = True

    def note_fault(self, error: StoreError) -> None:
        """Log once that what was used cannot be written. It is tried again in each period."""
        if self._is_reached:
            log.warning("budget.failed", policy=self._policy, error=short_message(error))
        self._is_reached = False

    async def close(self) -> None:
        """Give back what no call has."""
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*(allowance.close() for allowance in self.held.values()))

    def begin_period(self) -> None:
        """Write what was used in the period that ends, and give back what was not needed."""
        self._go_on([*self.held.items()])

    def _go_on(self, rest: list[tuple[Hashable, Allowance]]) -> None:
        """Begin a period for the next counters, and for the others a little later."""
        now, loop = self.clock(), asyncio.get_running_loop()
        for name, allowance in rest[:SLICE]:
            if not allowance.begin_period(now):
                del self.held[name]
        if rest := rest[SLICE:]:
            self._timer = loop.call_later(SLICE_S, partial(self._go_on, rest))
        else:
            self._timer = loop.call_later(PERIOD_S, self.begin_period) if self.held else None


@dataclass(frozen=True, slots=True)
class StoreCounter:
    """A counter in the store."""

    allowances: Allowances
    store: Store
    key: str
    window_s: float
    shared: str
    group: str
    holder: str

    @property
    def limit(self) -> int:
        return self.allowances.limit

    @property
    def parts(self) -> int:
        return self.allowances.parts

    @property
    def clock(self) -> Callable[[], float]:
        return self.allowances.clock

    async def hold(self, asked: HoldRequest, *, is_last: bool) -> Grant:
        """Change what is held; `is_last`: nothing is. Raises StoreError."""
        holder = Holder(self.holder, REPEAT_S if is_last else LEASE_S)
        grant = await self.store.hold(
            self.key, asked, limit=self.limit, window_s=self.window_s, holder=holder, group=self.group
        )
        self.allowances.note_answer()
        return grant

    def note_use(self, before: int, after: int) -> None:
        if self.allowances.note_use is not None:
            self.allowances.note_use(self.shared, before, after)

    def note_fault(self, error: StoreError) -> None:
        self.allowances.note_fault(error)
