"""Limits what is used in a day, a month, or at all: calls, tokens or money, for each team, caller, end user, model ...

Request: reserves what the call will probably use, and refuses it with 429 `exhausted` if that is not left, or with
    `unpriced` if what it would cost is not known.
Response: passes; what was used replaces what was reserved when the call ends, also for a client that disconnects. The
    answer has `x-headgate-budget`: what is left, of how much, and until when.
Source: none; the protocol has no such limit.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Annotated, ClassVar, Literal, Self

import orjson
import structlog
from pydantic import Field, PositiveFloat, model_validator

from policies import Balance, Policy, PolicyState, Repeatable, RequestCheck
from policies.support.allowance import Allowance, CallPart
from policies.support.allowances import Allowances
from policies.support.meters import MILLION, Unit, meter_of
from policies.support.reservation import counter_key
from policies.support.sharing import LIMITED, Per, shared_by
from proxy.context import Caller, Context
from proxy.stores import LONGEST_S, StoreError
from proxy.wire.call import Call, Operation
from proxy.wire.errors import LimitExceeded, Unavailable

log = structlog.get_logger()

NAME, HEADER = "budget", "x-headgate-budget"
LISTED = frozenset({"team", "caller", "key"})
"""What calls have in common that is known of a caller without a call."""
KNOWN = LISTED | {"model", "all"}
"""What operators know by themselves; of any other it is noted in the state who shares a budget."""
NOTE_CHARS = 256
NO_CALLER = Caller("", "")
LATE_S = 86_400.0
"""How much longer than its window a counter is kept: a call that began in it may end after it."""
Window = Literal["day", "month", "total"]


class Budget(Policy):
    operations: ClassVar[frozenset[Operation]] = LIMITED
    counts_by: ClassVar[tuple[str, ...]] = ("per", "unit", "window")

    limit: PositiveFloat
    """How much may be used in the window, in the unit."""
    unit: Unit = "tokens"
    """What is counted: tokens of input and output together, calls, or US dollars."""
    window: Window = "month"
    """Until when: the end of the day or the month in UTC, or for as long as the state lasts."""
    per: Per = "team"
    """Who shares it: "team", "caller", "key", "end_user", "model", "metadata.NAME" or "all"."""
    warn: Annotated[float, Field(gt=0, le=1)] = 0.8
    """The share of it at which it is logged that little is left."""
    on_unpriced: Literal["refuse", "allow"] = "refuse"
    """With "usd": what happens to calls of models whose price is not known; those that are allowed cost nothing."""

    @model_validator(mode="after")
    def _whole_units(self) -> Self:
        if self.unit != "usd" and self.limit != int(self.limit):
            raise ValueError(f"limit is {self.limit}; {self.unit} are counted in whole numbers")
        return self

    @cached_property
    def _clock(self) -> Callable[[], datetime]:
        return partial(datetime.now, UTC)

    @property
    def _scale(self) -> int:
        """How many steps of the counter a unit has."""
        return MILLION if self.unit == "usd" else 1

    @property
    def needs_state(self) -> bool:
        return True

    def request_check(self, state: PolicyState) -> RequestCheck:
        check = BudgetCheck(self, state, self._clock, self._scale).check
        return Repeatable(check, recheck=check)

    async def balances(self, state: PolicyState, callers: Iterable[Caller], models: Iterable[str]) -> Sequence[Balance]:
        """Return what is left to each team, caller, key or model; end users and values of metadata are noted."""
        who = shared_by(self.per)
        contexts = [(Call({}), Context("", caller)) for caller in callers]
        if self.per == "model":
            contexts = [(Call({"model": model}), Context("", NO_CALLER)) for model in models]
        elif self.per == "all":
            contexts = [(Call({}), Context("", NO_CALLER))]
        elif self.per not in LISTED:
            contexts = []
        return await self.balances_of(state, (who(call, context) for call, context in contexts))

    def notes_prefix(self, state: PolicyState) -> str:
        return "" if self.per in KNOWN else notes_prefix(state.name, period_of(self.window, self._clock())[0])

    async def balances_of(self, state: PolicyState, shared: Iterable[str]) -> Sequence[Balance]:
        now, most = self._clock(), int(self.limit * self._scale)
        period, left_s = period_of(self.window, now)
        found = []
        for name in dict.fromkeys(shared):
            key = counter_key(NAME, state.name, period, name)
            used = (await state.store.take(key, 0, limit=most, window_s=left_s + LATE_S)).used
            is_endless = self.window == "total"
            found.append(Balance(
                name, self.unit, self.limit, used / self._scale, self.window,
                None if is_endless else length_of(self.window, now), None if is_endless else left_s,
            ))  # fmt: skip
        return found


class BudgetCheck:
    """Applies a budget to calls, with its settings at hand. A call that the process holds enough for does not wait."""

    def __init__(self, policy: Budget, state: PolicyState, clock: Callable[[], datetime], scale: int) -> None:
        """`scale` is how many steps of the counter a unit has."""
        self._name, self._window, self._clock, self._scale = state.name, policy.window, clock, scale
        self._limit = f"{policy.limit:.10g} {policy.unit} ({policy.window})"
        self._most = int(policy.limit * scale)
        self._warn_from = policy.warn * self._most
        self._per, self._store, self._is_noted = policy.per, state.store, policy.per not in KNOWN
        self._who = shared_by(policy.per)
        self._meter = meter_of(policy.unit, state, refuses_unpriced=policy.on_unpriced == "refuse")
        self._allowances = Allowances(state, self._most, self._note_use)
        self._held = self._allowances.held
        self._decimals = 4 if policy.unit == "usd" else 0
        self._header_start = f'"{state.name}";u={policy.unit};q={policy.limit:.{self._decimals}f};r='
        self._period, self._begins, self._ends = "", datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

    def check(self, call: Call, context: Context) -> Call | Awaitable[Call]:
        now = self._clock()
        if not self._begins <= now < self._ends:
            self._period, left_s = period_of(self._window, now)
            self._begins, self._ends = now, now + timedelta(seconds=left_s)
        shared = self._who(call, context)
        allowance, amount = self._held.get((self._period, shared)), self._meter.expected(call)
        if amount and amount > self._most:
            amount = self._most
        if not amount or allowance is None or amount > allowance.free or time.monotonic() >= allowance.ends_at:
            return self._wait(call, context, shared, (self._ends - now).total_seconds())
        allowance.take(amount)
        context.cleanup.callback(self._settle, allowance, amount, allowance.window, call, context)
        header = self._header(allowance, (self._ends - now).total_seconds())
        headers = context.answer_headers
        headers[HEADER] = f"{headers[HEADER]}, {header}" if HEADER in headers else header
        return call

    async def _wait(self, call: Call, context: Context, shared: str, left_s: float) -> Call:
        """Ask the store. Raises LimitExceeded, PolicyViolation, Unavailable."""
        name = self._period, shared
        amount = min(self._most, await self._meter.await_expected(call))
        allowance = self._held.get(name)
        if allowance is None:
            key = counter_key(NAME, self._name, *name)
            allowance = self._allowances.add(name, key, left_s + LATE_S, shared, context.caller.team)
        part = CallPart(allowance, amount)
        context.on_end(partial(self._settle_part, part, call, context))  # before the wait, which may be cancelled
        try:
            await allowance.reserve(part)
        except StoreError as error:
            raise Unavailable("The budget cannot be read right now.", code="budget_unavailable") from error
        header = self._header(allowance, left_s)
        if not part.granted or (not amount and allowance.used >= self._most):
            raise self._exhausted(allowance, amount, left_s, header)
        if allowance.is_new and self._is_noted:
            allowance.is_new = False
            await self._note(shared, context.caller.team, left_s)
        context.add_header(HEADER, header)
        return call

    async def _note(self, shared: str, team: str, left_s: float) -> None:
        """Note who shares the budget, for operators: counters do not say it. Without the note the call goes on."""
        if len(shared) > NOTE_CHARS:
            return
        name = hashlib.sha256(shared.encode(errors="surrogatepass")).hexdigest()
        key = f"{notes_prefix(self._name, self._period)}{name}"
        with suppress(StoreError, orjson.JSONEncodeError):
            await self._store.put(key, orjson.dumps([team, shared]), ttl_s=left_s + LATE_S, group=team)

    def _settle(self, allowance: Allowance, reserved: int, window: int, call: Call, context: Context) -> None:
        allowance.settle(reserved, self._meter.used(call, context, reserved), window)

    async def _settle_part(self, part: CallPart, call: Call, context: Context) -> None:
        await part.settle(self._meter.used(call, context, part.amount if part.granted else 0))

    def _note_use(self, shared: str, before: int, after: int) -> None:
        if after >= self._warn_from > before:
            log.warning("budget.warned", policy=self._name, shared_by=shared, used=after / self._scale)

    def _header(self, allowance: Allowance, left_s: float) -> str:
        """Return what is left, as an item of RFC 8941 with parameters."""
        shown = f"{self._left(allowance) / self._scale:.{self._decimals}f}"
        return (
            f"{self._header_start}{shown}" if self._window == "total" else f"{self._header_start}{shown};t={left_s:.0f}"
        )

    def _left(self, allowance: Allowance) -> int:
        """Return what is left as far as this process knows, in steps of the counter."""
        return max(0, self._most - allowance.seen + allowance.free)

    def _exhausted(self, allowance: Allowance, amount: int, left_s: float, header: str) -> LimitExceeded:
        """Return the refusal of a call that needs more than what was left: others may have given some back since."""
        found, left = "is used up or reserved", self._left(allowance)
        if 0 < left < amount:
            decimals = 6 if self._scale == MILLION else 0
            shown, needed = (f"{steps / self._scale:.{decimals}f}" for steps in (left, amount))
            found = f"has {shown} left; this call needs {needed}"
        until = "" if self._window == "total" else f" It is reset in {timedelta(seconds=round(left_s))}."
        message = f"The budget of {self._limit} {found}.{until}"
        refusal = LimitExceeded("exhausted", message, after_s=left_s, headers={HEADER: header})
        refusal.retry = False  # an SDK would try again within seconds
        return refusal


def notes_prefix(name: str, period: str) -> str:
    """Return how the keys begin under which it is noted who shares a budget in a period."""
    return f"{counter_key('budget-notes', name, period)}:"


def length_of(window: Window, now: datetime) -> float:
    """Return how long the period of a day or a month is that a time is in, in seconds."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    begins = day if window == "day" else day.replace(day=1)
    return (now - begins).total_seconds() + period_of(window, now)[1]


def period_of(window: Window, now: datetime) -> tuple[str, float]:
    """Return the name of the period that a time is in, and how long it still lasts, in seconds."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if window == "day":
        return f"{day:%Y-%m-%d}", (day + timedelta(days=1) - now).total_seconds()
    if window == "month":
        next_month = (day.replace(day=28) + timedelta(days=4)).replace(day=1)
        return f"{day:%Y-%m}", (next_month - now).total_seconds()
    return "total", float(LONGEST_S)
