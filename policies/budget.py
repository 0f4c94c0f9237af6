"""Limits what is used in a day, a month, or at all: calls, tokens or money, for each team, caller, end user, model ...

Request: reserves what the call will probably use, and refuses it with 429 `exhausted` if that is not left, or with
    `unpriced` if what it would cost is not known.
Response: passes; what was used replaces what was reserved when the call ends, also for a client that disconnects. The
    answer has `x-headgate-budget`: what is left, of how much, and until when.
Source: none; the protocol has no such limit.
"""

import hashlib
import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Annotated, ClassVar, Literal, Protocol, Self

import orjson
import structlog
from pydantic import Field, PositiveFloat, model_validator

from policies import Balance, Policy, PolicyState, RequestCheck
from policies.support.expected_tokens import ExpectedTokens
from policies.support.reservation import LEASE_S, LeasedReservation, Reservation, counter_key
from policies.support.sharing import LIMITED, Per, shared_by
from proxy.context import Caller, Context
from proxy.stores import LONGEST_S, Grant, Holder, StoreError
from proxy.wire.call import Call, Operation
from proxy.wire.errors import LimitExceeded, PolicyViolation, Unavailable

log = structlog.get_logger()

NAME = "budget"
LISTED = frozenset({"team", "caller", "key"})
"""What calls have in common that is known of a caller without a call."""
KNOWN = LISTED | {"model", "all"}
"""What operators know by themselves; of any other it is noted in the state who shares a budget."""
NOTE_CHARS = 256
NO_CALLER = Caller("", "")
MILLION = 1_000_000
LATE_S = 86_400.0
"""How much longer than its window a counter is kept: a call that began in it may end after it."""
Window = Literal["day", "month", "total"]


class Budget(Policy):
    operations: ClassVar[frozenset[Operation]] = LIMITED

    limit: PositiveFloat
    """How much may be used in the window, in the unit."""
    unit: Literal["tokens", "requests", "usd"] = "tokens"
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
        return lambda: datetime.now(UTC)

    @property
    def _scale(self) -> int:
        """How many steps of the counter a unit has."""
        return MILLION if self.unit == "usd" else 1

    @property
    def needs_state(self) -> bool:
        return True

    def request_check(self, state: PolicyState) -> RequestCheck:
        window, clock, most = self.window, self._clock, int(self.limit * self._scale)
        meter, who, warn_from = self._meter(state), shared_by(self.per), self.warn * most
        holder = Holder(secrets.token_hex(8), LEASE_S)

        async def check(call: Call, context: Context) -> Call:
            amount = min(most, await meter.expected(call))
            shared, (period, left_s) = who(call, context), period_of(window, clock())
            key = counter_key(NAME, state.name, period, shared)
            team = context.caller.team
            counter = LeasedReservation(state.store, most, left_s + LATE_S, key, policy=NAME, team=team, holder=holder)
            context.on_end(partial(_settle, counter, meter, call, context))  # before the take, which may be cancelled
            try:
                grant = await counter.take(amount, whole=True)
            except StoreError as error:
                raise Unavailable("The budget cannot be read right now.", code="budget_unavailable") from error
            header = self._header(state.name, grant, left_s)
            if grant.granted < amount or (not amount and grant.used >= most):
                raise self._exhausted(left_s, header)
            if self.per not in KNOWN and grant.used == grant.granted > 0:  # the first one of the period
                await self._note(state, period, shared, team if self.per == "end_user" else "", left_s)
            context.add_header("x-headgate-budget", header)
            if grant.used >= warn_from > grant.used - grant.granted:
                log.warning("budget.warned", policy=state.name, shared_by=shared, used=grant.used / self._scale)
            return call

        return check

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
        return "" if self.per in KNOWN else self._notes(state, period_of(self.window, self._clock())[0])

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

    def _notes(self, state: PolicyState, period: str) -> str:
        return f"{counter_key('budget-notes', state.name, period)}:"

    async def _note(self, state: PolicyState, period: str, shared: str, team: str, left_s: float) -> None:
        """Note who shares the budget, for operators: counters do not say it. Without the note the call goes on."""
        if len(shared) > NOTE_CHARS:
            return
        key = f"{self._notes(state, period)}{hashlib.sha256(shared.encode(errors='surrogatepass')).hexdigest()}"
        with suppress(StoreError, orjson.JSONEncodeError):
            await state.store.put(key, orjson.dumps([team, shared]), ttl_s=left_s + LATE_S, group=team)

    def _meter(self, state: PolicyState) -> "_Meter":
        if self.unit == "usd":
            return _Dollars(state, refuses_unpriced=self.on_unpriced == "refuse")
        return _Tokens() if self.unit == "tokens" else _Calls()

    def _shown(self, steps: float) -> str:
        """Return an amount of the counter in the unit."""
        return f"{steps / self._scale:.{4 if self.unit == 'usd' else 0}f}"

    def _header(self, name: str, grant: Grant, left_s: float) -> str:
        """Return what is left, as an item of RFC 8941 with parameters."""
        most = int(self.limit * self._scale)
        resets = "" if self.window == "total" else f";t={left_s:.0f}"
        left = self._shown(max(0, most - grant.used))
        return f'"{name}";u={self.unit};q={self._shown(most)};r={left}{resets}'

    def _exhausted(self, left_s: float, header: str) -> LimitExceeded:
        until = "" if self.window == "total" else f" It begins anew in {timedelta(seconds=round(left_s))}."
        message = f"The budget of {self.limit:.10g} {self.unit} ({self.window}) is used up or reserved.{until}"
        refusal = LimitExceeded("exhausted", message, after_s=left_s, headers={"x-headgate-budget": header})
        refusal.retry = False  # an SDK would try again within seconds
        return refusal


class _Meter(Protocol):
    """Measures calls, in steps of a counter."""

    async def expected(self, call: Call) -> int:
        """Return what a call will probably use. Raises PolicyViolation."""

    def used(self, call: Call, context: Context, reserved: int) -> int:
        """Return what a call has used that has ended."""


class _Calls:
    async def expected(self, _call: Call) -> int:
        return 1

    def used(self, _call: Call, context: Context, reserved: int) -> int:
        return reserved if context.is_sent or context.is_answered else 0


class _Tokens:
    def __init__(self) -> None:
        self._tokens = ExpectedTokens()

    async def expected(self, call: Call) -> int:
        return self._tokens.of(call)

    def used(self, call: Call, context: Context, reserved: int) -> int:
        return self._tokens.used(call, context, reserved)


class _Dollars:
    """Millionths of a dollar."""

    def __init__(self, state: PolicyState, *, refuses_unpriced: bool) -> None:
        self._quote_of = state.quote_of
        self._refuses_unpriced = refuses_unpriced
        self._tokens = ExpectedTokens()

    async def expected(self, call: Call) -> int:
        if call.operation == "bodiless":  # it names no model
            return 0
        quote = self._quote_of(call.model)
        rates = None if quote is None else await quote.known_rates()
        if rates is not None:
            return math.ceil(rates.cost(*self._tokens.parts_of(call)) * MILLION)
        if self._refuses_unpriced:
            raise PolicyViolation("unpriced", "The price of this model is not known, and the budget is one of money.")
        return 0

    def used(self, call: Call, context: Context, reserved: int) -> int:
        self._tokens.used(call, context, 0)  # what is usual
        cost_usd = context.record.cost_usd
        if cost_usd is not None:
            return round(cost_usd * MILLION)
        return reserved if context.is_sent or context.is_answered else 0


async def _settle(counter: Reservation, meter: _Meter, call: Call, context: Context) -> None:
    await counter.settle(meter.used(call, context, counter.granted))


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
