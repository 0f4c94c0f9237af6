"""Limits what is used in a day, a month, or at all: calls, tokens or money, for each team, caller, end user, model ...

Request: reserves what the call will probably use, and refuses it with 429 `exhausted` if that is not left.
Response: passes; what was used replaces what was reserved when the call ends, also for a client that disconnects. The
    answer has `x-headgate-budget`: what is left, of how much, and until when.
Source: none; the protocol has no such limit.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Annotated, ClassVar, Literal

import structlog
from pydantic import Field, PositiveInt

from policies import Policy, PolicyState, RequestCheck
from policies.support.expected_tokens import ExpectedTokens
from policies.support.reservation import Reservation, counter_key
from policies.support.sharing import LIMITED, Per, shared_by
from proxy.context import Context
from proxy.stores import LONGEST_S, Grant, StoreError
from proxy.wire.call import Call, Operation
from proxy.wire.errors import LimitExceeded, Unavailable

log = structlog.get_logger()

NAME = "budget"
LATE_S = 86_400.0
"""How much longer than its window a counter is kept: a call that began in it may end after it."""
Window = Literal["day", "month", "total"]


class Budget(Policy):
    operations: ClassVar[frozenset[Operation]] = LIMITED

    limit: PositiveInt
    """How much may be used in the window, in the unit."""
    unit: Literal["tokens", "requests"] = "tokens"
    """What is counted: tokens of input and output together, or calls."""
    window: Window = "month"
    """Until when: the end of the day or the month in UTC, or for as long as the state lasts."""
    per: Per = "team"
    """Who shares it: "team", "caller", "end_user", "model", "metadata.NAME" or "all"."""
    warn: Annotated[float, Field(gt=0, le=1)] = 0.8
    """The share of it at which it is logged that little is left."""

    @cached_property
    def _clock(self) -> Callable[[], datetime]:
        return lambda: datetime.now(UTC)

    def request_check(self, state: PolicyState) -> RequestCheck:
        limit, unit, window, clock = self.limit, self.unit, self.window, self._clock
        who, expected, warn_from = shared_by(self.per), ExpectedTokens(), self.warn * self.limit

        async def check(call: Call, context: Context) -> Call:
            amount = 1 if unit == "requests" else min(limit, expected.of(call))
            shared, (period, left_s) = who(call, context), period_of(window, clock())
            key = counter_key(NAME, state.name, period, shared)
            counter = Reservation(state.store, limit, left_s + LATE_S, key, policy=NAME, team=context.caller.team)
            context.on_end(partial(settle, counter, call, context))  # before the take, which may be cancelled
            try:
                grant = await counter.take(amount, whole=True)
            except StoreError as error:
                raise Unavailable("The budget cannot be read right now.", code="budget_unavailable") from error
            header = _header(state.name, self, grant, left_s)
            if grant.granted < amount:
                raise _exhausted(self, left_s, header)
            context.add_header("x-headgate-budget", header)
            if grant.used >= warn_from > grant.used - grant.granted:
                log.warning("budget.warned", policy=state.name, shared_by=shared, used=grant.used, limit=limit)
            return call

        async def settle(counter: Reservation, call: Call, context: Context) -> None:
            if unit == "requests":
                used = counter.granted if context.is_sent or context.is_answered else 0
            else:
                used = expected.used(call, context, counter.granted)
            await counter.settle(used)

        return check


def period_of(window: Window, now: datetime) -> tuple[str, float]:
    """Return the name of the period that a time is in, and how long it still lasts, in seconds."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if window == "day":
        return f"{day:%Y-%m-%d}", (day + timedelta(days=1) - now).total_seconds()
    if window == "month":
        next_month = (day.replace(day=28) + timedelta(days=4)).replace(day=1)
        return f"{day:%Y-%m}", (next_month - now).total_seconds()
    return "total", float(LONGEST_S)


def _header(name: str, budget: Budget, grant: Grant, left_s: float) -> str:
    """Return what is left, as a dictionary of RFC 8941."""
    left = max(0, budget.limit - grant.used)
    resets = "" if budget.window == "total" else f";t={left_s:.0f}"
    return f'"{name}";u={budget.unit};q={budget.limit};r={left}{resets}'


def _exhausted(budget: Budget, left_s: float, header: str) -> LimitExceeded:
    until = "" if budget.window == "total" else f" It begins anew in {timedelta(seconds=round(left_s))}."
    message = f"The budget of {budget.limit} {budget.unit} ({budget.window}) is used up or reserved."
    refusal = LimitExceeded("exhausted", f"{message}{until}", after_s=left_s, headers={"x-headgate-budget": header})
    refusal.retry = False  # an SDK would try again within seconds
    return refusal
