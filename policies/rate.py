"""Limits calls and tokens per minute and calls per second, for each team, caller, end user, model or field of metadata.

Request: refuses a call with 429 and `Retry-After`: `requests`, `burst` or `tokens` says which limit it exceeds. Tokens
    are reserved before the call, from its size and from what its model usually generates, and corrected after it.
Response: passes; the answer has `RateLimit`, `RateLimit-Policy` and OpenAI's `x-ratelimit-*` headers.
Source: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/, and
    https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Self

import structlog
from pydantic import Field, PositiveInt, model_validator

from policies import Policy, PolicyState, RequestCheck
from policies.support.expected_tokens import ExpectedTokens
from policies.support.reservation import Reservation, counter_key
from policies.support.sharing import LIMITED, Per, shared_by
from proxy.context import Context
from proxy.stores import Grant, Store, StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call, Operation
from proxy.wire.errors import LimitExceeded
from proxy.wire.loggable import short_message

log = structlog.get_logger()

NAME = "rate"
MINUTE_S, SECOND_S = 60.0, 1.0
TOKENS = "tokens"


class Rate(Policy):
    operations: ClassVar[frozenset[Operation]] = LIMITED

    per: Per = "team"
    """Who shares the limits: "team", "caller", "key", "end_user", "model", "metadata.NAME" or "all"."""
    requests: PositiveInt | None = None
    """The most calls in a minute, which begins with the first one."""
    tokens: PositiveInt | None = None
    """The most tokens in a minute, of input and output together."""
    burst: PositiveInt | None = None
    """The most calls in a second."""
    local_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of each limit that a process grants by itself while the store of [state] cannot be reached."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.requests is None and self.tokens is None and self.burst is None:
            raise ValueError("give at least one of requests, tokens and burst")
        return self

    def request_check(self, state: PolicyState) -> RequestCheck:
        limits, who, expected = self._limits(), shared_by(self.per), ExpectedTokens()
        counters = _Counters(state, self.local_share)

        async def check(call: Call, context: Context) -> Call:
            shared, taken = who(call, context), list[Reservation]()
            for limit in limits:
                amount = min(limit.limit, expected.of(call)) if limit.name == TOKENS else 1
                counter, grant = await counters.take(limit, amount, shared, context)
                if grant.granted < amount:
                    for reservation in taken:  # a call that is refused counts for nothing
                        await reservation.give_back()
                    raise _exceeded(limit, grant)
                if limit.name == TOKENS:
                    context.on_end(partial(_settle, counter, expected, call, context))
                else:
                    taken.append(counter)
                _add_headers(limit, grant, context)
            return call

        return check

    def _limits(self) -> Sequence["_Limit"]:
        named = (
            ("burst", self.burst, SECOND_S),
            ("requests", self.requests, MINUTE_S),
            (TOKENS, self.tokens, MINUTE_S),
        )
        return [_Limit(name, limit, window_s) for name, limit, window_s in named if limit is not None]


@dataclass(frozen=True, slots=True)
class _Limit:
    """One limit of a policy, and how long it lasts."""

    name: str
    limit: int
    window_s: float


class _Counters:
    """The counters of a policy in the store, and in this process while that cannot be reached."""

    def __init__(self, state: PolicyState, local_share: float) -> None:
        self._store, self._name = state.store, state.name
        self._own, self._local_share = MemoryStore(), local_share
        self._is_reached = True

    async def take(self, limit: _Limit, amount: int, shared: str, context: Context) -> tuple[Reservation, Grant]:
        """Take an amount of a limit, all of it or nothing."""
        key, team = counter_key(NAME, self._name, limit.name, shared), context.caller.team
        reserve: Callable[[Store, int], Reservation] = lambda store, most: Reservation(  # noqa: E731
            store, most, limit.window_s, key, policy=NAME, team=team
        )
        counter = reserve(self._store, limit.limit)
        try:
            grant = await counter.take(amount, whole=True)
        except StoreError as error:
            if self._is_reached:
                log.warning("rate.local", policy=self._name, error=short_message(error))
            self._is_reached = False
            counter = reserve(self._own, max(1, int(limit.limit * self._local_share)))
            return counter, await counter.take(min(amount, counter.limit), whole=True)
        self._is_reached = True
        return counter, grant


async def _settle(counter: Reservation, expected: ExpectedTokens, call: Call, context: Context) -> None:
    await counter.settle(expected.used(call, context, counter.granted))


def _exceeded(limit: _Limit, grant: Grant) -> LimitExceeded:
    unit = "second" if limit.window_s == SECOND_S else "minute"
    what = "calls" if limit.name == "burst" else limit.name
    message = f"The limit of {limit.limit} {what} per {unit} is reached. Try again in {grant.resets_in_s:.0f} s."
    headers = dict(_headers(limit, grant))
    return LimitExceeded(
        "tokens" if limit.name == TOKENS else "burst" if limit.window_s == SECOND_S else "requests",
        message, after_s=grant.resets_in_s, headers=headers,
    )  # fmt: skip


def _add_headers(limit: _Limit, grant: Grant, context: Context) -> None:
    """Add what is left of a limit to the answer. Of several policies the scarcest one is in OpenAI's headers."""
    kept = context.answer_headers
    for name, value in _headers(limit, grant):
        if not name.startswith("x-"):
            context.add_header(name, value)
        elif int(kept.get(f"x-ratelimit-remaining-{limit.name}", limit.limit)) >= limit.limit - grant.used:
            kept[name] = value


def _headers(limit: _Limit, grant: Grant) -> Iterator[tuple[str, str]]:
    left, reset_s = max(0, limit.limit - grant.used), max(0.0, grant.resets_in_s)
    yield "RateLimit-Policy", f'"{limit.name}";q={limit.limit};w={limit.window_s:.0f}'
    yield "RateLimit", f'"{limit.name}";r={left};t={reset_s:.0f}'
    if limit.name != "burst":
        yield f"x-ratelimit-limit-{limit.name}", str(limit.limit)
        yield f"x-ratelimit-reset-{limit.name}", f"{reset_s:.3f}s"
        yield f"x-ratelimit-remaining-{limit.name}", str(left)
