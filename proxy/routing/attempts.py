"""Opens the reply to a call at a target of its route; after a failure at another target, or at the same one again."""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

import structlog
from msgspec import Struct

from proxy.context import Context
from proxy.routing.attempt import Attempt
from proxy.routing.budget import RetryBudget
from proxy.routing.hedge import HedgedAttempt, may_hedge
from proxy.routing.outcome import AttemptOutcome, Next
from proxy.routing.plan import Choice, Plan
from proxy.routing.routes import FALLBACK, Route
from proxy.routing.targets import Target, Targets
from proxy.wire.call import Call
from proxy.wire.errors import BackendError
from proxy.wire.event import Reply

log = structlog.get_logger()


class Attempts:
    """Attempts at the targets of a route, until one begins to answer or no target is left to try."""

    def __init__(self, targets: Targets | None = None) -> None:
        self.targets = Targets() if targets is None else targets
        self._budgets: dict[str, RetryBudget] = {}  # by route
        self._known: dict[str, tuple[Route, RetryBudget, Target | None]] = {}  # of each name the last route, its target

    async def preview(self, call: Call, route: Route, context: Context) -> Mapping[str, str]:
        """Return the headers of an answer whose work begins later. Raises RequestError for a call that is refused.

        A backend that is busy or out of order refuses nothing now.
        """
        try:
            return await route.targets[0].preview(call, context)
        except BackendError:
            return {}

    def reply(self, call: Call, route: Route, context: Context) -> AbstractAsyncContextManager[Reply]:
        """Return a context that opens the reply and waits for its first event; leaving it ends the work behind it.

        Nothing is retried after the first event, as the caller may have received it. The reply or error of the last
        attempt is the result. Entering raises BackendError, Unavailable.
        """
        return AttemptedReply(self, call, route, context)

    def begin(self, route: Route, now: float) -> Target | None:
        """Count a call of a route; return the route's target if it is the only one and can take a call at once."""
        known = self._known.get(route.name)
        if known is None or known[0] is not route:
            target = self.targets.of(route.targets[0]) if len(route.targets) == 1 else None
            known = self._known[route.name] = route, self._budget_of(route), target
        _, budget, target = known
        budget.add_call(now)
        if target is None:
            self.targets.poll(route)
            return None
        return target if target.is_ready(now) else None

    def plan(self, call: Call, route: Route, context: Context, started: float, first: Target | None) -> Plan:
        """Return the plan of a call that began at `started`. `first` is the target tried before, if any."""
        return Plan(call, route, context, self.targets, self._budget_of(route), started=started, first=first)

    def _budget_of(self, route: Route) -> RetryBudget:
        budget = self._budgets.get(route.name)
        if budget is None:
            budget = self._budgets[route.name] = RetryBudget()
        return budget


class AttemptedReply(Struct, eq=False):
    """Makes the attempts of a call when it is entered, and ends the last one when it is left.

    Almost every call has one attempt at the one target of its route: it begins without a `Plan`, which decides about
    all others. It is a class, because a generator costs every call ten times as many calls of functions.
    """

    _attempts: Attempts
    _call: Call
    _route: Route
    _context: Context
    _started: float = 0.0
    _attempt: Attempt | HedgedAttempt | None = None
    _plan: Plan | None = None
    _may_have_run: bool = False

    async def __aenter__(self) -> Reply:
        context, made = self._context, 1
        self._started = time.monotonic()
        target = self._attempts.begin(self._route, self._started)
        attempt: Attempt | HedgedAttempt
        if target is not None:
            attempt, context.sent_call = Attempt(target, self._call, self._route, context), self._call
        else:
            choice, context.sent_call = self._get_plan(None).first(), self._call
            attempt = await self._make_attempt(choice)
        while True:
            context.is_sent = True
            try:
                outcome = await attempt.open()
            except BaseException:
                self._note_abandoned(attempt)
                raise
            if outcome.is_success and outcome.reply is not None:
                self._attempt = attempt
                self._note_success(attempt, made)
                return outcome.reply
            try:
                next_choice = self._next_choice(attempt, outcome, made)
                if next_choice is None:
                    self._attempt = attempt
                    return _final_reply(outcome, made)
            except BaseException as error:
                await attempt.close(error)
                raise
            await attempt.close(None)
            attempt, made = await self._make_attempt(next_choice), made + 1

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Coroutine[Any, Any, None]:
        if self._attempt is None:
            raise RuntimeError("A reply was left that was not entered.")
        return self._attempt.close(error)

    def _get_plan(self, first: Target | None) -> Plan:
        """Return the plan of the attempts, made at the first call; `first` is the target tried before."""
        if self._plan is None:
            self._plan = self._attempts.plan(self._call, self._route, self._context, self._started, first)
        return self._plan

    async def _make_attempt(self, choice: Choice) -> Attempt | HedgedAttempt:
        """Return the attempt at a choice, after the pause that the choice asks for."""
        if choice.delay_s:
            await asyncio.sleep(choice.delay_s)
        if choice.route.pool.hedge_after_s is not None and may_hedge(choice, self._context):
            return HedgedAttempt(self._get_plan(None), choice, self._context)
        return Attempt(choice.target, choice.call, choice.route, self._context)

    def _next_choice(self, attempt: Attempt | HedgedAttempt, outcome: AttemptOutcome, made: int) -> Choice | None:
        """Return the choice after an outcome; None if that outcome is final."""
        context = self._context
        if outcome.may_have_run:
            context.runs += 1
            self._may_have_run = True
        next_choice = self._get_plan(attempt.target).next_after(attempt.target, outcome)
        if next_choice is None:
            context.is_sent = self._may_have_run
            reply = outcome.reply
            if reply is not None and reply.status == 200 and (outcome.first_error is None or not outcome.is_refused):
                context.is_answered, context.target = True, attempt.target.name
            else:
                context.is_answered, context.target = False, None
            if reply is not None:
                context.record.upstream_code = outcome.upstream_code
            self._record_route(attempt, made)
        else:
            _log_retry(attempt.target, outcome, next_choice, context)
        return next_choice

    def _note_success(self, attempt: Attempt | HedgedAttempt, made: int) -> None:
        """Record which target answers, and after how many attempts."""
        context = self._context
        context.runs += 1
        context.is_answered, context.is_sent, context.target = True, True, attempt.target.name
        if made > 1 or attempt.route is not self._route:  # almost never
            self._record_route(attempt, made)

    def _record_route(self, attempt: Attempt | HedgedAttempt, made: int) -> None:
        """Record how many attempts were made, and the route of the last one if it is not the call's own."""
        context = self._context
        if made > 1:
            context.record.attempts = made
        if attempt.route is not self._route:
            context.set(FALLBACK, attempt.route.name)
            context.add_header("x-headgate-route", attempt.route.name)

    def _note_abandoned(self, attempt: Attempt | HedgedAttempt) -> None:
        """Record that the call ended during an attempt, which was sent or still waited for a place."""
        if attempt.has_started:
            self._context.runs += 1
        else:
            self._context.is_sent = self._may_have_run


def _final_reply(outcome: AttemptOutcome, made: int) -> Reply:
    """Return the reply of the last attempt, which failed, or raise its error.

    After several attempts `x-should-retry` says whether another one may help.
    """
    reply = outcome.reply if outcome.first_error is None else outcome.refusal() or outcome.reply
    if reply is not None and made == 1:
        return reply
    advice = {} if made == 1 else {"x-should-retry": "true" if outcome.next is Next.ANY_TARGET else "false"}
    if reply is None:
        error = outcome.error
        if error is None:
            raise RuntimeError("An attempt came to neither a reply nor an error.")
        error.headers = {**advice, **error.headers}
        raise error
    return reply.with_fields(headers={**advice, **reply.headers})


def _log_retry(target: Target, outcome: AttemptOutcome, next_choice: Choice, context: Context) -> None:
    name, code = target.backend.name, outcome.code or str(outcome.status)
    attempt = {"headgate.target": name, "error.type": code, "headgate.next_target": next_choice.target.backend.name}
    context.trace.event("headgate.retry", attempt)
    log.info(
        "backend.retried", backend=name, code=outcome.code, status=outcome.status,
        next=next_choice.target.backend.name, delay_ms=round(next_choice.delay_s * 1000), request_id=context.request_id,
    )  # fmt: skip
