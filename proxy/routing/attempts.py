"""Opens the reply to a call: at a target of its route, and after a failure at another one, or again."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from proxy.context import Context
from proxy.routing.attempt import Attempt
from proxy.routing.budget import RetryBudget
from proxy.routing.hedge import HedgedAttempt, may_hedge
from proxy.routing.outcome import AttemptOutcome, Next
from proxy.routing.plan import Choice, Plan
from proxy.routing.routes import FALLBACK, Route
from proxy.routing.targets import Targets
from proxy.wire.call import Call
from proxy.wire.errors import BackendError
from proxy.wire.event import Reply

log = structlog.get_logger()


class Attempts:
    """Attempts at the targets of a route until one begins to answer, or nothing is left that may be tried."""

    def __init__(self, targets: Targets | None = None) -> None:
        self.targets = Targets() if targets is None else targets
        self._budgets: dict[str, RetryBudget] = {}  # by route

    async def preview(self, call: Call, route: Route, context: Context) -> Mapping[str, str]:
        """Return the headers of an answer whose work begins later. Raises RequestError for a call that is refused.

        A backend that is busy or out of order refuses nothing now.
        """
        try:
            return await route.targets[0].preview(call, context)
        except BackendError:
            return {}

    @asynccontextmanager
    async def reply(self, call: Call, route: Route, context: Context) -> AsyncIterator[Reply]:
        """Open a reply whose first event is there; leaving the block ends the work behind it.

        After that nothing is tried again: the caller may have received something. What the last attempt came to is
        the reply, or the error. Raises BackendError, Unavailable.
        """
        budget = self._budgets.get(route.name)
        if budget is None:
            budget = self._budgets[route.name] = RetryBudget()
        if len(route.targets) > 1:
            self.targets.poll(route)
        plan = Plan(call, route, context, self.targets, budget)
        choice, attempts, may_have_run = plan.first(), 1, False
        while True:
            if choice.delay_s:
                await asyncio.sleep(choice.delay_s)
            context.is_sent = True
            is_hedged = choice.route.pool.hedge_after_s is not None and may_hedge(choice, context)
            attempt = HedgedAttempt(plan, choice, context) if is_hedged else Attempt(choice, context)
            async with attempt as outcome:
                choice = attempt.choice
                may_have_run = may_have_run or outcome.may_have_run
                following = None if outcome.is_success else plan.after(choice, outcome)
                if following is None:
                    context.is_sent = may_have_run
                    _note_answer(choice, outcome, route, attempts, context)
                    yield _settled(outcome, attempts)
                    return
                _log_retry(choice, outcome, following, context)
            choice, attempts = following, attempts + 1


def _note_answer(choice: Choice, outcome: AttemptOutcome, route: Route, attempts: int, context: Context) -> None:
    """Note which target has answered, and after how many attempts."""
    reply = outcome.reply
    context.is_answered = reply is not None and reply.status == 200 and not outcome.is_refused
    context.target = choice.target.backend.name if context.is_answered else None
    if attempts > 1:
        context.record.attempts = attempts
    if choice.route is not route:
        context.set(FALLBACK, choice.route.name)
        context.add_header("x-headgate-route", choice.route.name)


def _settled(outcome: AttemptOutcome, attempts: int) -> Reply:
    """Return the reply of the last attempt, or raise its error, saying truthfully whether another one may help."""
    reply = outcome.refusal() or outcome.reply
    if reply is not None and (attempts == 1 or outcome.is_success):
        return reply
    advice = {} if attempts == 1 else {"x-should-retry": "true" if outcome.next is Next.ANY_TARGET else "false"}
    if reply is None:
        error = outcome.error
        if error is None:
            raise RuntimeError("An attempt came to neither a reply nor an error.")
        error.headers = {**advice, **error.headers}
        raise error
    return replace(reply, headers={**advice, **reply.headers})


def _log_retry(choice: Choice, outcome: AttemptOutcome, following: Choice, context: Context) -> None:
    log.info(
        "backend.retried", backend=choice.target.backend.name, code=outcome.code, status=outcome.status,
        next=following.target.backend.name, delay_ms=round(following.delay_s * 1000), request_id=context.request_id,
    )  # fmt: skip
