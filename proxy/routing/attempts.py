"""Opens the reply to a call: at a target of its route, and after a failure at another one, or again."""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import TracebackType

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

    def reply(self, call: Call, route: Route, context: Context) -> AbstractAsyncContextManager[Reply]:
        """Return what opens a reply whose first event is there; leaving the block ends the work behind it.

        After that nothing is tried again: the caller may have received something. What the last attempt came to is
        the reply, or the error. Entering it raises BackendError, Unavailable.
        """
        return AttemptedReply(self, call, route, context)

    def plan(self, call: Call, route: Route, context: Context) -> Plan:
        """Begin the attempts of a call."""
        budget = self._budgets.get(route.name)
        if budget is None:
            budget = self._budgets[route.name] = RetryBudget()
        if len(route.targets) > 1:
            self.targets.poll(route)
        return Plan(call, route, context, self.targets, budget)


class AttemptedReply:
    """Makes the attempts of a call when it is entered, and leaves the last one when it is left.

    It is a class, because a generator costs every call ten times as many calls of functions.
    """

    __slots__ = ("_attempt", "_attempts", "_call", "_context", "_may_have_run", "_plan", "_route")

    def __init__(self, attempts: Attempts, call: Call, route: Route, context: Context) -> None:
        self._attempts = attempts
        self._call = call
        self._route = route
        self._context = context
        self._may_have_run = False
        self._plan: Plan
        self._attempt: Attempt | HedgedAttempt

    async def __aenter__(self) -> Reply:
        self._plan = self._attempts.plan(self._call, self._route, self._context)
        choice, attempts = self._plan.first(), 1
        self._context.sent_call = self._call
        while True:
            if choice.delay_s:
                await asyncio.sleep(choice.delay_s)
            self._context.is_sent = True
            attempt = self._attempt_at(choice)
            try:
                outcome = await attempt.__aenter__()
            except BaseException:
                self._note_given_up(attempt)
                raise
            try:
                following = self._following(attempt.choice, outcome, attempts)
                if following is None:
                    self._attempt = attempt
                    return _settled(outcome, attempts)
            except BaseException as error:
                await attempt.__aexit__(type(error), error, error.__traceback__)
                raise
            await attempt.__aexit__(None, None, None)
            choice, attempts = following, attempts + 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._attempt.__aexit__(kind, error, traceback)

    def _attempt_at(self, choice: Choice) -> Attempt | HedgedAttempt:
        is_hedged = choice.route.pool.hedge_after_s is not None and may_hedge(choice, self._context)
        return HedgedAttempt(self._plan, choice, self._context) if is_hedged else Attempt(choice, self._context)

    def _following(self, choice: Choice, outcome: AttemptOutcome, attempts: int) -> Choice | None:
        """Return the choice after an outcome; None if that is the reply, or the error."""
        if outcome.may_have_run:
            self._context.runs += 1
            self._may_have_run = True
        following = None if outcome.is_success else self._plan.after(choice, outcome)
        if following is None:
            self._context.is_sent = self._may_have_run
            _note_answer(choice, outcome, self._route, attempts, self._context)
        else:
            _log_retry(choice, outcome, following, self._context)
        return following

    def _note_given_up(self, attempt: Attempt | HedgedAttempt) -> None:
        """Note that the call ends while an attempt is made: it was sent, or waited for a place."""
        if attempt.has_started:
            self._context.runs += 1
        else:
            self._context.is_sent = self._may_have_run


def _note_answer(choice: Choice, outcome: AttemptOutcome, route: Route, attempts: int, context: Context) -> None:
    """Note which target has answered, and after how many attempts."""
    reply = outcome.reply
    begins = reply is not None and reply.status == 200
    context.is_answered = begins and (outcome.first_error is None or not outcome.is_refused)
    context.target = choice.target.name if context.is_answered else None
    if reply is not None and not outcome.is_success:
        context.record.upstream_code = outcome.upstream_code
    if attempts > 1:
        context.record.attempts = attempts
    if choice.route is not route:
        context.set(FALLBACK, choice.route.name)
        context.add_header("x-headgate-route", choice.route.name)


def _settled(outcome: AttemptOutcome, attempts: int) -> Reply:
    """Return the reply of the last attempt, or raise its error, saying truthfully whether another one may help."""
    reply = outcome.reply if outcome.first_error is None else outcome.refusal() or outcome.reply
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
    name, code = choice.target.backend.name, outcome.code or str(outcome.status)
    attempt = {"headgate.target": name, "error.type": code, "headgate.next_target": following.target.backend.name}
    context.trace.event("headgate.retry", attempt)
    log.info(
        "backend.retried", backend=choice.target.backend.name, code=outcome.code, status=outcome.status,
        next=following.target.backend.name, delay_ms=round(following.delay_s * 1000), request_id=context.request_id,
    )  # fmt: skip
