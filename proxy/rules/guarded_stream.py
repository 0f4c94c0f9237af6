"""Applies the reply checks to a stream, and ends one that breaks off so that clients can read its end.

This is the one loop on the way back: for each batch set the fields that the gateway resolved in place of the backend,
bind the response's id, run the checks, add the batch to the transcript, pass it on.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import structlog

from proxy.context import Binder, Context
from proxy.rules.reply_checks import ReplyChecks, until_terminal
from proxy.rules.response_fields import LIFECYCLE, complete_events
from proxy.rules.transcribing import add_run_to_transcript, add_to_transcript
from proxy.shutdown import ShuttingDown, shutdown_error
from proxy.wire.call import Call
from proxy.wire.ending import failure_events, incomplete_events
from proxy.wire.errors import BackendError, BackendRefusal, Unavailable
from proxy.wire.event import Batch, Event, Run
from proxy.wire.passage import Outlet, Passage, forward_runs
from proxy.wire.stream_errors import error_in, refusal_of_error, stream_cut
from proxy.wire.transcript import Transcript

log = structlog.get_logger()


class GuardedStream(Passage):
    """The batches of a stream that pass its checks. Forwarded runs are only added to the transcript.

    A class, since an async generator takes four times as much memory, and registers with the event loop.
    """

    __slots__ = ("_batches", "_call", "_checks", "_context", "_is_ended", "_stopped_by")

    def __init__(
        self, batches: AsyncIterator[Batch], checks: ReplyChecks | None, call: Call, context: Context
    ) -> None:  # fmt: skip
        """`checks` is None where nothing is checked."""
        self._batches = batches
        self._checks = checks
        self._call = call
        self._context = context
        self._is_ended = False
        self._stopped_by: str | None = None  # the rule that ends the stream with the next batch

    async def __anext__(self) -> Batch:
        """Return the next batch. Raises BackendError and Unavailable before the first one."""
        if self._is_ended:
            raise StopAsyncIteration
        transcript = self._context.transcript
        failure: BackendError | Unavailable
        try:
            if self._stopped_by is not None:
                return await self._end_incomplete(self._stopped_by)
            async for received in self._batches:
                if len(received) == 1 and transcript.is_started and isinstance(run := received[0], Run):
                    add_run_to_transcript(run, self._context)  # most batches of a stream: deltas that only pass
                    return received
                if batch := await self._receive(received):
                    return batch
                del received, batch  # or their events would stay in memory until the next ones come
            failure = stream_cut()
        except (BackendError, Unavailable) as error:
            failure = error.with_traceback(None)  # which has this frame, and would keep all of the call in a cycle
        except asyncio.CancelledError as cancelled:
            failure = shutdown_error(cancelled)
        try:
            return await self._end_failed(failure)
        finally:
            del failure  # it may be raised, and has this frame then

    def forward_runs(self, outlet: Outlet) -> None:
        """Forward runs, unless the transcript keeps all frames: then each batch has to be seen."""
        transcript = self._context.transcript
        if not transcript.keeps_frames:
            forward_runs(self._batches, partial(transcript.forward_run, outlet, self._context.memory.grow))

    async def _receive(self, received: Batch) -> Batch:
        """Check a batch and add it to the transcript; return what of it passes."""
        context, stopped_by = self._context, None
        transcript = context.transcript
        if not transcript.is_started:
            context.note_first_event()
        if context.response_fields:
            received = await complete_events(received, context)
        if context.binder is not None:
            for response in self._bind_now(received, context.binder):
                await context.binder.bind(self._call, context, response)
        if self._checks is None:
            received = until_terminal(received)
        else:
            received, stopped_by = await self._checks.apply(received)
        add_to_transcript(received, context)
        if transcript.is_ended:
            self._is_ended = True
            received = await self._complete(received)
        elif stopped_by is not None:
            self._stopped_by = stopped_by
            return received or await self._end_incomplete(stopped_by)
        return received

    def _bind_now(self, batch: Batch, binder: Binder) -> list[Mapping[str, Any]]:
        """Bind the ids of the response objects in a batch; return those of which binding has to be waited for."""
        context = self._context
        left: list[Mapping[str, Any]] = []
        for unit in reversed(batch):  # the last one first: with its id all items of a short stream are bound
            if unit.type in LIFECYCLE and isinstance(unit, Event):
                response = unit.response
                if context.has_new_ids(response) and not binder.bind_now(self._call, context, response):
                    left.append(response)
        return left

    async def _complete(self, batch: Batch) -> Batch:
        """Return the last batch of a reply after what needs the whole reply has run: now it is known what is stored."""
        context = self._context
        transcript = context.transcript
        if transcript.lacks_output:
            await context.run(transcript.response_bytes, transcript.compose_output)
        if context.must_complete:
            await context.complete_reply(self._call)
        if not context.response_fields:
            return batch
        completed = await complete_events(batch, context)
        if completed[-1:] != batch[-1:]:
            transcript.add_body(completed[-1:])
        return completed

    async def _end_incomplete(self, reason: str) -> Batch:
        """Return the events that end a reply where a rule stopped it."""
        self._is_ended = True
        transcript = self._context.transcript
        events = await self._context.run(transcript.response_bytes, incomplete_events, transcript, reason)
        return await self._complete(events)

    async def _end_failed(self, failure: BackendError | Unavailable) -> Batch:
        """Return the events that report a failure. Raises it while nothing was sent: then it is an HTTP status."""
        self._is_ended = True
        context = self._context
        transcript = context.transcript
        if isinstance(failure, BackendError) and (reason := _reason_of(transcript)) is not None:
            failure, context.record.upstream_code = reason, reason.code
        if not (self._call.is_stream and transcript.is_started):
            try:
                raise failure
            finally:
                del failure  # its traceback keeps this frame, and all that the call took, in a cycle
        if not isinstance(failure, ShuttingDown):
            message = None if isinstance(failure, BackendRefusal) else failure.message
            log.warning(
                "backend.failed", backend=context.record.backend, code=failure.code, message=message,
                request_id=context.request_id,
            )  # fmt: skip
        context.record.code = failure.code
        events = await context.run(transcript.response_bytes, failure_events, transcript, failure)
        return await self._complete(events)


def _reason_of(transcript: Transcript) -> BackendError | None:
    """Return the error that the upstream itself sent before its stream ended, if it did."""
    error = error_in(transcript.last) if transcript.error is None else error_in(transcript.error)
    return None if error is None else refusal_of_error(error)
