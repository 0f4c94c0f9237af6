"""The order in which a call tries targets: the first one, and the next one after each failure."""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.context import Context
from proxy.routing.advice import delay_of
from proxy.routing.budget import RetryBudget
from proxy.routing.outcome import AttemptOutcome, Next
from proxy.routing.routes import Route
from proxy.routing.selection import in_order
from proxy.routing.targets import Target, Targets
from proxy.wire.call import Call
from proxy.wire.errors import BackendError

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 8.0
LONGEST_PAUSE_S = 8.0
"""The longest pause that the gateway makes itself, in seconds: a longer one is left to the caller, with the answer."""
RETRY_COUNT = "x-stainless-retry-count"
"""How often the caller's SDK has sent this call before. Source: openai-python."""


@dataclass(slots=True)  # not frozen, as AttemptOutcome
class Choice:
    """A target, the call that it is sent, the route by which it is, and how long to wait before, in seconds."""

    target: Target
    call: Call
    route: Route
    delay_s: float = 0


class Plan:
    """The attempts of one call: at the targets of its route, then of the routes that it falls back to."""

    __slots__ = (
        "_budget",
        "_call",
        "_context",
        "_fallbacks",
        "_keeper",
        "_made",
        "_made_before",
        "_queue",
        "_received",
        "_repeatable",
        "_route",
        "_started",
        "_targets",
        "_tried",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913  each independent of the others
        self, call: Call, route: Route, context: Context, targets: Targets, budget: RetryBudget, *, started: float,
        first: Target | None = None,
    ) -> None:  # fmt: skip
        """`started` is when the call began, `first` the target to which it was sent without a plan."""
        self._received = call
        self._context = context
        self._targets = targets
        self._budget = budget
        self._started = started
        self._fallbacks = iter(route.fallbacks)
        self._made_before: int | None = None
        self._enter(route, call)
        if first is not None:
            self._tried.append(first)
            self._made = 1

    def first(self) -> Choice:
        """Return the first choice. Raises BackendError if every target is at its limit, or drained by an operator.

        If all targets are ejected the preferred one is asked: the last one never is.
        """
        now = self._started
        preferred = self._queue[0]
        if preferred.is_available(now) and preferred.has_place:  # almost always
            return self._choose(preferred)
        target = self._next_available(now) or self._next_available(now, is_free=False)
        if target is not None:
            return self._choose(target)
        route, call, queue = self._route, self._call, self._queue
        if (fallback := self._fall_back(now)) is not None:
            return fallback
        self._enter(route, call)
        if not (queue := [target for target in queue if not target.is_drained]):
            raise _all_drained()
        least = min(queue, key=lambda target: max(0.0, target.limited_until - now))
        wait_s = max(0.0, least.limited_until - now)
        if wait_s > LONGEST_PAUSE_S:
            raise _at_limit(wait_s)
        return self._choose(least, wait_s)

    def hedge(self) -> Choice | None:
        """Return a second target of the route for the same call; None if none is available."""
        now = time.monotonic()
        target = self._next_available(now)
        return None if target is None or not self._budget.take(now) else self._choose(target)

    def next_after(self, target: Target, outcome: AttemptOutcome) -> Choice | None:
        """Return the choice after an attempt at a target; None if no attempt may follow."""
        next_step = outcome.next
        if next_step is Next.NOTHING:
            return None
        if next_step is Next.ANY_TARGET:
            self._repeatable.append(target)
        now = time.monotonic()
        if now > self._started + self._route.pool.retry_within_s:
            return None
        return self._within_route(outcome, now) or self._fall_back(now)

    def _enter(self, route: Route, call: Call) -> None:
        """Begin with the targets of a route."""
        self._route, self._call = route, call
        self._queue = self._ordered(route)
        self._tried: list[Target] = []
        self._repeatable: list[Target] = []  # those that may be asked again, the earliest first
        self._made = 0

    def _ordered(self, route: Route) -> Sequence[Target]:
        """Return the targets that can answer the call, the preferred one first; at least one."""
        backends = route.targets
        if len(backends) == 1:
            return [self._targets.of(backends[0])]
        able = [backend for backend in backends if self._call.operation in backend.operations] or backends[:1]
        targets = [self._targets.of(backend) for backend in able]
        return in_order(targets, route.pool, self._call, self._context, self._targets.hot_keys)

    def _next_available(self, now: float, *, is_free: bool = True) -> Target | None:
        """Return the next available target that this call has not tried; `is_free`: one that can take it at once."""
        for target in self._queue:
            if target not in self._tried and target.is_available(now) and (target.has_place or not is_free):
                return target
        return None

    def _choose(self, target: Target, delay_s: float = 0) -> Choice:
        self._tried.append(target)
        self._made += 1
        return Choice(target, self._call, self._route, delay_s)

    def _within_route(self, outcome: AttemptOutcome, now: float) -> Choice | None:
        """Return another target of the route, at once, or one of the same again after a pause."""
        if self._made + self._attempts_before() >= self._route.pool.attempts:
            return None
        fresh = self._next_available(now)
        if fresh is None and not self._repeatable:
            return None
        delay_s = 0.0 if fresh is not None else self._pause_s(outcome)
        if delay_s > LONGEST_PAUSE_S or not self._is_in_time(now + delay_s):
            return None
        if (outcome.reply is not None or outcome.may_have_run) and not self._budget.take(now):
            return None
        return self._choose(fresh or self._repeatable.pop(0), delay_s)

    def _fall_back(self, now: float) -> Choice | None:
        """Return the first target of the next route that has one which may be asked."""
        for fallback in self._fallbacks:
            call = self._received
            self._enter(fallback.route, call if fallback.model is None else call.with_fields(model=fallback.model))
            target = self._next_available(now)
            if target is not None:
                return self._choose(target)
        return None

    def _attempts_before(self) -> int:
        """Return how often the caller has sent this call before: these attempts count."""
        if self._made_before is None:
            count = self._context.received.get(RETRY_COUNT, "")
            self._made_before = int(count) if count.isascii() and count.isdigit() and len(count) < 4 else 0
        return self._made_before

    def _pause_s(self, outcome: AttemptOutcome) -> float:
        """Return how long to wait before a target is asked again: as advised, else exponential with full jitter.

        Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        """
        advised = delay_of(outcome.headers)
        if advised is not None:
            return advised
        return random.uniform(0, min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (self._made - 1)))  # noqa: S311

    def _is_in_time(self, begins: float) -> bool:
        """Whether an attempt that begins then begins before the deadline of them all."""
        deadline = self._context.deadline
        return begins <= self._started + self._route.pool.retry_within_s and (deadline is None or begins < deadline)


def _all_drained() -> BackendError:
    message = "The backends of this model are out of use at the moment; try again later."
    return BackendError(
        message, status=503, code="backend_drained", headers={"Retry-After": "30"}, source="gateway", sent=False
    )


def _at_limit(wait_s: float) -> BackendError:
    message = "The upstream's limits are used up until they reset."
    headers = {"Retry-After": str(math.ceil(wait_s)), "x-should-retry": "true"}
    return BackendError(message, status=429, code="upstream_limited", headers=headers, retryable=True, sent=False)
