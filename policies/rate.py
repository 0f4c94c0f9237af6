"""Limits calls and tokens per minute and calls per second, for each team, caller, end user, model or field of metadata.

Request: refuses a call with 429 and `Retry-After`: `requests`, `burst` or `tokens` says which limit it exceeds. Tokens
    are reserved before the call, from its size and from what its model usually generates, and corrected after it.
Response: passes; the answer has `RateLimit`, `RateLimit-Policy` and OpenAI's `x-ratelimit-*` headers.
Source: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/ (units other than requests are named;
    "tokens" is not in its registry), and https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar, Self

import structlog
from pydantic import Field, PositiveInt, model_validator

from policies import Policy, PolicyState, Repeatable, RequestCheck
from policies.support.allowance import Allowance, CallPart
from policies.support.allowances import Allowances
from policies.support.expected_tokens import ExpectedTokens
from policies.support.reservation import counter_key
from policies.support.sharing import LIMITED, Per, shared_by
from proxy.context import Context
from proxy.outage import Outage
from proxy.stores import StoreError
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call, Operation
from proxy.wire.errors import LimitExceeded
from proxy.wire.loggable import short_message

log = structlog.get_logger()

NAME = "rate"
MINUTE_S, SECOND_S = 60.0, 1.0
BURST, TOKENS = "burst", "tokens"
Limit = Annotated[PositiveInt, Field(le=999_999_999_999_999)]
"""Up to the largest integer that a header can have (RFC 9651, 3.3.1)."""


class Rate(Policy):
    operations: ClassVar[frozenset[Operation]] = LIMITED
    counts_by: ClassVar[tuple[str, ...]] = ("per",)

    per: Per = "team"
    """Who shares the limits: "team", "caller", "key", "end_user", "model", "metadata.NAME" or "all"."""
    requests: Limit | None = None
    """The most calls in a minute, which begins with the first one."""
    tokens: Limit | None = None
    """The most tokens in a minute, of input and output together."""
    burst: Limit | None = None
    """The most calls in a second."""
    local_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of each limit that a process grants by itself while the store of [state] cannot be reached."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.requests is None and self.tokens is None and self.burst is None:
            raise ValueError("give at least one of requests, tokens and burst")
        return self

    def request_check(self, state: PolicyState) -> RequestCheck:
        check = RateCheck(self._limits(state), state.name, shared_by(self.per)).check
        return Repeatable(check, recheck=check)

    def _limits(self, state: PolicyState) -> Sequence["RateLimit"]:
        named = (
            (BURST, self.burst, SECOND_S),
            ("requests", self.requests, MINUTE_S),
            (TOKENS, self.tokens, MINUTE_S),
        )
        return [
            RateLimit(name, limit, window_s, state, max(1, int(limit * self.local_share)))
            for name, limit, window_s in named
            if limit is not None
        ]


class RateLimit:
    """One limit of a policy: what this process holds of it in the store, and what it grants while that is away."""

    def __init__(self, name: str, limit: int, window_s: float, state: PolicyState, local_limit: int) -> None:
        """`local_limit` is how much this process grants by itself."""
        self.name, self.limit, self.window_s = name, limit, window_s
        self._policy = state.name
        self._shared = Allowances(state, limit)
        self._local = Allowances(replace(state, store=MemoryStore()), local_limit)
        self.held = self._shared.held
        item, unit = f'"{state.name}.{name}"', f'qu="{TOKENS}";' if name == TOKENS else ""
        self.policy_header, self._item = f"{item};q={limit};{unit}w={window_s:.0f}", item
        self.limit_name, self.reset_name, self.left_name = (
            f"x-ratelimit-{what}-{name}" for what in ("limit", "reset", "remaining")
        )

    async def reserve(self, amount: int, shared: str, context: Context, *, is_local: bool = False) -> CallPart:
        """Return what a call gets: all of an amount or nothing. Raises StoreError."""
        allowances = self._local if is_local else self._shared
        allowance = allowances.held.get(shared)
        if allowance is None:
            key = counter_key(NAME, self._policy, self.name, shared)
            allowance = allowances.add(shared, key, self.window_s, shared, context.caller.team)
        part = CallPart(allowance, min(amount, allowances.limit))
        try:
            await allowance.reserve(part)
        except asyncio.CancelledError:
            await part.settle(0)
            raise
        return part

    def exceeded(self, part: CallPart) -> LimitExceeded:
        """Return the refusal of a call that got nothing."""
        unit = "second" if self.window_s == SECOND_S else "minute"
        what = "calls" if self.name == "burst" else self.name
        resets_in_s = part.allowance.resets_in_s
        message = f"The limit of {self.limit} {what} per {unit} is reached. Try again in {resets_in_s:.0f} s."
        left, resets = max(0, self.limit - part.allowance.used), max(0.0, resets_in_s)
        headers = {"RateLimit-Policy": self.policy_header, "RateLimit": f"{self._item};r={left};t={resets:.0f}"}
        if self.name != BURST:
            headers |= {
                self.limit_name: str(self.limit), self.reset_name: f"{resets:.3f}s", self.left_name: str(left),
            }  # fmt: skip
        return LimitExceeded(
            "tokens" if self.name == TOKENS else "burst" if self.name == BURST else "requests",
            message, after_s=resets_in_s, headers=headers,
        )  # fmt: skip

    def add_headers(self, allowance: Allowance, resets_in_s: float, headers: dict[str, str]) -> str:
        """Add what is left to OpenAI's headers, which have the scarcest of several policies; return it for RateLimit.

        It is what this process knows: other processes may have used more since it asked the store.
        """
        left = self.limit - allowance.seen + allowance.free
        left, resets_in_s = max(0, left), resets_in_s if resets_in_s > 0 else 0.0
        if self.name != BURST:
            before = headers.get(self.left_name)
            if before is None or int(before) >= left:
                headers[self.limit_name] = f"{self.limit}"
                headers[self.reset_name] = f"{resets_in_s:.3f}s"
                headers[self.left_name] = f"{left}"
        return f"{self._item};r={left};t={resets_in_s:.0f}"


class RateCheck:
    """Applies the limits of a policy to calls. A call that the process holds enough for does not wait."""

    def __init__(self, limits: Sequence[RateLimit], policy: str, who: Callable[[Call, Context], str]) -> None:
        self._limits, self._policy, self._who = limits, policy, who
        self._tokens = ExpectedTokens()
        self._counts_tokens = any(limit.name == TOKENS for limit in limits)
        self._policy_header = ", ".join(limit.policy_header for limit in limits)
        self._outage = Outage()

    def check(self, call: Call, context: Context) -> Call | Awaitable[Call]:
        shared, now = self._who(call, context), time.monotonic()
        tokens, found = self._tokens.of(call) if self._counts_tokens else 0, []
        for limit in self._limits:
            allowance, amount = limit.held.get(shared), 1
            if limit.name == TOKENS:
                amount = min(limit.limit, tokens)
            if allowance is None or amount > allowance.free or now >= allowance.ends_at:
                return self._wait(call, context, shared, tokens)
            found.append((limit, allowance, amount))
        lefts = ""
        for limit, allowance, amount in found:
            if limit.name == TOKENS:
                allowance.take(amount)
                context.cleanup.callback(self._settle, allowance, amount, allowance.window, call, context)
            else:
                allowance.spend(1)
            left = limit.add_headers(allowance, allowance.resets_at - now, context.answer_headers)
            lefts = f"{lefts}, {left}" if lefts else left
        self._add_headers(lefts, context)
        return call

    async def _wait(self, call: Call, context: Context, shared: str, tokens: int) -> Call:
        """Ask the store. Raises LimitExceeded."""
        taken = list[CallPart]()
        try:
            lefts = [await self._take(limit, call, context, shared, tokens, taken) for limit in self._limits]
        except BaseException:
            for part in taken:  # a call that is refused counts for nothing
                await part.settle(0)
            raise
        for part in taken:
            await part.settle(1)
        self._add_headers(", ".join(lefts), context)
        return call

    async def _take(
        self, limit: RateLimit, call: Call, context: Context, shared: str, tokens: int, taken: list[CallPart]
    ) -> str:
        """Take a call's part of a limit, and return what is left for RateLimit. Raises LimitExceeded."""
        part = await self._reserve(limit, tokens if limit.name == TOKENS else 1, shared, context)
        if not part.granted:
            raise limit.exceeded(part)
        if limit.name == TOKENS:
            context.on_end(partial(self._settle_part, part, call, context))
        else:
            taken.append(part)
        return limit.add_headers(part.allowance, part.allowance.resets_in_s, context.answer_headers)

    async def _reserve(self, limit: RateLimit, amount: int, shared: str, context: Context) -> CallPart:
        """Return what a call gets in the store, or in this process while that is away."""
        try:
            part = await limit.reserve(min(amount, limit.limit), shared, context)
        except StoreError as error:
            if self._outage.begins():
                log.warning("rate.local", policy=self._policy, error=short_message(error))
            return await limit.reserve(amount, shared, context, is_local=True)
        if self._outage.failures:
            log.info("rate.resumed", policy=self._policy, failures=self._outage.end())
        return part

    def _settle(self, allowance: Allowance, reserved: int, window: int, call: Call, context: Context) -> None:
        allowance.settle(reserved, self._tokens.used(call, context, reserved), window)

    async def _settle_part(self, part: CallPart, call: Call, context: Context) -> None:
        await part.settle(self._tokens.used(call, context, part.amount))

    def _add_headers(self, lefts: str, context: Context) -> None:
        headers, policy = context.answer_headers, self._policy_header
        if "RateLimit" in headers:
            policy, lefts = f"{headers['RateLimit-Policy']}, {policy}", f"{headers['RateLimit']}, {lefts}"
        headers["RateLimit-Policy"], headers["RateLimit"] = policy, lefts
