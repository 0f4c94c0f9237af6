"""A second attempt beside one that is late: the first that begins to answer wins, and the other one is cancelled.

Each attempt has a task of its own, in which it is entered and left, because its time limits belong to that task.
"""

import asyncio
import time

import structlog

from policies.support.tools import offers_server_tools
from proxy.context import Context
from proxy.lane import LANE_CALL
from proxy.routing.attempt import Attempt
from proxy.routing.outcome import AttemptOutcome
from proxy.routing.plan import Choice, Plan

log = structlog.get_logger()


def may_hedge(choice: Choice, context: Context) -> bool:
    """Whether a call may run at two targets at a time: not if it may have effects, nor on an upstream's WebSocket."""
    targets = choice.route.targets
    if len(targets) < 2 or (context.get(LANE_CALL) is not None and any(each.speaks_websocket for each in targets)):
        return False
    return not choice.call.fact(offers_server_tools)


class HedgedAttempt:
    """Like an `Attempt`: its target is that of the attempt whose outcome it is."""

    def __init__(self, plan: Plan, choice: Choice, context: Context) -> None:
        self.target = choice.target
        self.route = choice.route
        self._choice = choice
        self._plan = plan
        self._context = context
        self._running: list[_RunningAttempt] = []

    async def open(self) -> AttemptOutcome:
        """Return the outcome of the attempt that has begun to answer, or of the last one that failed."""
        try:
            winner = await self._race()
            await self._cancel_losers(winner)
        except BaseException:
            await asyncio.gather(*(each.cancel() for each in self._running))
            raise
        self._running = [winner]
        winner.attempt.note_target()
        self.target = winner.attempt.target
        return winner.outcome.result()

    async def _cancel_losers(self, winner: "_RunningAttempt") -> None:
        """Cancel the other attempt, if there is one, and note that."""
        for loser in [each for each in self._running if each is not winner]:
            self._context.runs += loser.may_have_run
            await loser.cancel()
            log.info(
                "backend.hedged", backend=winner.name, cancelled=loser.name, ran_ms=loser.elapsed_ms(),
                request_id=self._context.request_id,
            )  # fmt: skip
            self._context.record.hedged = loser.name

    @property
    def has_started(self) -> bool:
        """Whether a target may have received the call."""
        return any(each.attempt.has_started for each in self._running)

    async def close(self, error: BaseException | None) -> None:
        """End the work behind the reply."""
        await self._running[0].end(error)

    async def _race(self) -> "_RunningAttempt":
        """Return the attempt that has begun to answer, or the last one that failed."""
        first = self._start(self._choice)
        await asyncio.wait([first.outcome], timeout=self.route.pool.hedge_after_s)
        another = None if first.outcome.done() else self._plan.hedge()
        if another is None:
            await first.opened()
            return first
        second = self._start(another)
        await asyncio.wait([first.outcome, second.outcome], return_when=asyncio.FIRST_COMPLETED)
        early, late = (first, second) if first.outcome.done() else (second, first)
        if early.outcome.result().is_success:
            return early
        await late.opened()
        return late

    def _start(self, choice: Choice) -> "_RunningAttempt":
        running = _RunningAttempt(Attempt(choice.target, choice.call, choice.route, self._context))
        self._running.append(running)
        return running


class _RunningAttempt:
    """An attempt in a task. `outcome` has its outcome, or the error that it raised instead."""

    def __init__(self, attempt: Attempt) -> None:
        loop = asyncio.get_running_loop()
        self.attempt = attempt
        self.outcome: asyncio.Future[AttemptOutcome] = loop.create_future()
        self._started = time.monotonic()
        self._ended: asyncio.Future[BaseException | None] = loop.create_future()
        self._task = loop.create_task(self._run())

    @property
    def name(self) -> str:
        return self.attempt.target.backend.name

    @property
    def may_have_run(self) -> bool:
        """Whether the target may have worked on the call so far."""
        if self.outcome.done() and not self.outcome.cancelled() and self.outcome.exception() is None:
            return self.outcome.result().may_have_run
        return self.attempt.has_started

    def elapsed_ms(self) -> int:
        return round((time.monotonic() - self._started) * 1000)

    async def opened(self) -> AttemptOutcome:
        """Wait for the outcome, which a caller that is cancelled does not cancel: the attempt may just be entered."""
        await asyncio.wait([self.outcome])
        return self.outcome.result()

    async def end(self, error: BaseException | None) -> None:
        """End the work behind the reply, which the caller has read, or has given up with an error."""
        self._ended.set_result(error)
        await asyncio.shield(self._task)

    async def cancel(self) -> None:
        """Give the attempt up, whatever it has come to. A second time it waits for the end of it."""
        if not self._task.cancelling():
            self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # it is not missed
        if self.outcome.done() and not self.outcome.cancelled():
            self.outcome.exception()
        else:
            self.outcome.cancel()

    async def _run(self) -> None:
        """Enter the attempt, and leave it when its caller ends it or gives it up.

        A cancellation ends here: a task that ends by one keeps it, and with it the frame of its own work, in a cycle.
        """
        try:
            outcome = await self.attempt.open()
        except asyncio.CancelledError:
            self.outcome.cancel()
            return
        except BaseException as error:
            if not self.outcome.done():
                self.outcome.set_exception(error)
            raise
        self.outcome.set_result(outcome)
        reason: BaseException | None = None
        try:
            reason = await self._ended
        except asyncio.CancelledError as cancelled:
            reason = cancelled.with_traceback(None)
        await self.attempt.close(reason)
