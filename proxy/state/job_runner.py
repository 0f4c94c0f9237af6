"""The work of one background response, from its turn to its end.

The backend is asked for a stream, and its events pass through the reply checks like those of any other call. What the
gateway has already sent of the response (its id, `response.created`, `response.queued`) replaces the backend's own.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import orjson
import structlog

from proxy.cleanup import Cleanup
from proxy.rules import Rules
from proxy.shutdown import shutdown_error
from proxy.state.jobs import IN_PROGRESS, OPENERS, BackgroundJob
from proxy.state.responses import NOT_KEPT, StoredResponses, report_not_kept
from proxy.state.turns import Turns
from proxy.stores import StoreError
from proxy.wire.convert import convert
from proxy.wire.ending import failure_events, refusal_of
from proxy.wire.errors import BackendRefusal, HeadgateError, Unavailable
from proxy.wire.event import TERMINALS, Batch, Reply

log = structlog.get_logger()

SAVE_PAUSES_S = (0.5, 1, 2, 4, 8, 15, 30)
"""How long to wait before a response that could not be saved is saved again."""
BUSY_S = 600
"""How long a busy backend is asked again, in seconds."""
MIN_PAUSE_S, MAX_PAUSE_S = 1, 30
"""The shortest and the longest pause in between, in seconds: a backend that names none must not keep the CPU busy."""
BUSY_STATUSES = frozenset({429, 503})


class LeaseLost(Exception):
    """Another process took this response over."""


class JobRunner:
    """Does the work of jobs. Every one of them ends with the last entry of its journal and a final response."""

    def __init__(
        self,
        rules: Rules,
        responses: StoredResponses,
        turns: Turns,
        *,
        on_start: Callable[[BackgroundJob], Awaitable[None]],
        is_ours: Callable[[BackgroundJob], Awaitable[bool]],
    ) -> None:
        """`is_ours` says whether no other process has ended a job, `on_start` is called when its turn comes."""
        self._rules = rules
        self._responses = responses
        self._turns = turns
        self._on_start = on_start
        self._is_ours = is_ours

    async def run(self, job: BackgroundJob) -> None:
        """Run a job to its end. Raises CancelledError only if the process ends."""
        context = job.context
        last: Batch = ()
        try:
            async with context.cleanup, aclosing(self._events(job)) as events:
                reply = await self._rules.guard(job.call, Reply(200, {}, batches=events), context)
                async for batch in reply.batches or ():  # type: ignore[union-attr]  # a stream stays one
                    if not context.transcript.is_ended:
                        await job.writer.write(batch)
                    else:
                        last = batch
            await self._finish(job, last)
        except LeaseLost:
            job.stop = "lost"
        except asyncio.CancelledError as cancelled:
            await self._end_early(job, cancelled)
        except Exception:
            log.exception("background.crashed", request_id=context.request_id)
            message = "The gateway failed to finish this response."
            await self._fail(job, HeadgateError(message, code="internal_error"))

    async def _events(self, job: BackgroundJob) -> AsyncGenerator[Batch, None]:
        """Yield what follows the opening events. Raises BackendError, and LeaseLost instead of an end."""
        try:
            async with aclosing(self._work(job)) as work:
                async for batch in work:
                    if any(unit.type in TERMINALS for unit in batch) and not await self._is_ours(job):
                        raise LeaseLost
                    yield batch
        except (HeadgateError, asyncio.CancelledError):
            if job.stop is None and not await self._is_ours(job):
                raise LeaseLost from None
            raise

    async def _work(self, job: BackgroundJob) -> AsyncGenerator[Batch, None]:
        """Yield the events of the backend when it is this job's turn."""
        context = job.context
        await context.cleanup.enter_async_context(self._turns.turn(context.caller.team))
        job.status = "in_progress"
        await self._on_start(job)
        reply = await self._open(job)
        is_first = True
        async for received in reply.batches or ():  # type: ignore[union-attr]  # it was converted to a stream
            batch = [unit for unit in received if unit.type not in OPENERS]
            if is_first and batch:
                is_first = False
                context.note_first_event()
                if batch[0].type != IN_PROGRESS:
                    batch.insert(0, job.progress_event)
            yield batch

    async def _open(self, job: BackgroundJob) -> Reply:
        """Open the reply of the backend, when it is no longer busy. Raises BackendError, Unavailable."""
        loop = asyncio.get_running_loop()
        end = loop.time() + BUSY_S
        while True:
            try:
                return await self._attempt(job)
            except HeadgateError as error:
                if error.status not in BUSY_STATUSES or loop.time() > end:
                    if error.status >= 500:
                        raise
                    raise _late_refusal(error) from error
                retry_after = error.headers.get("Retry-After", "")
            await asyncio.sleep(_pause_s(retry_after))

    async def _attempt(self, job: BackgroundJob) -> Reply:
        context = job.context
        async with Cleanup() as stack:
            reply = await stack.enter_async_context(job.open_reply(job.whole))
            if reply.status != 200:
                raise refusal_of(reply)
            reply = await convert(reply, context.transcript, context, stream=True)
            context.cleanup.push_async_exit(stack.pop_all())
            return reply

    async def _finish(self, job: BackgroundJob, last: Batch) -> None:
        """Close the journal of a response that was kept when its last event came, or is kept now."""
        if job.context.get(NOT_KEPT):
            await self._save(job, job.context.transcript.response)
        await job.writer.close(last)

    async def _end_early(self, job: BackgroundJob, cancelled: asyncio.CancelledError) -> None:
        """End a job that was stopped. Raises the cancellation if the process ends."""
        task = asyncio.current_task()
        if job.stop is None:
            await self._fail(job, shutdown_error(cancelled))
        elif task is not None:
            task.uncancel()
        if job.stop == "cancelled" and await self._is_ours(job):
            output = job.context.transcript.items
            await self._save(job, {**job.stored.response, "status": "cancelled", "output": output})
            await job.writer.close()

    async def _fail(self, job: BackgroundJob, error: HeadgateError) -> None:
        """End a job outside of its stream, unless another process has done so."""
        if not await self._is_ours(job):
            job.stop = "lost"
            return
        transcript = job.context.transcript
        job.context.record.code = error.code
        events: Batch = [transcript.terminal] if transcript.terminal is not None else ()
        if not events:
            events = await job.context.run(transcript.response_bytes, failure_events, transcript, error)
        await self._save(job, transcript.response)
        await job.writer.close(events)

    async def _save(self, job: BackgroundJob, response: Mapping[str, Any]) -> None:
        """Keep the final response. A store that fails is asked again."""
        size = job.stored.size_bytes + job.context.transcript.response_bytes
        stored = replace(job.stored, response=response, size_bytes=size)
        for pause_s in (*SAVE_PAUSES_S, None):
            try:
                return await self._responses.save(stored, job.context)
            except (StoreError, Unavailable, orjson.JSONEncodeError) as error:
                if pause_s is None or isinstance(error, orjson.JSONEncodeError):
                    return report_not_kept(job.context, error)
            await asyncio.sleep(pause_s)
        return None


def _pause_s(retry_after: str) -> float:
    """Return how long to wait for a busy backend: as long as it says, if it says that in whole seconds."""
    is_number = retry_after.isascii() and retry_after.isdigit()
    return max(MIN_PAUSE_S, min(int(retry_after[:6]), MAX_PAUSE_S)) if is_number else MIN_PAUSE_S


def _late_refusal(error: HeadgateError) -> BackendRefusal:
    """Return a refusal as the end of a stream: it comes too late to be an answer."""
    return BackendRefusal(error.message, status=error.status, code=error.code or "upstream_error")
