"""Passes a reply on: applies the reply checks, and ends a stream that breaks off so that clients can read its end.

This is the one loop on the way back: for each batch set the fields that the gateway resolved in place of the backend,
bind the response's id, run the checks, add the batch to the transcript, pass it on.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
import structlog

from proxy.context import Context
from proxy.rules.admit import REPLY_CHECKS, ActiveCheck
from proxy.rules.decisions import Decisions
from proxy.rules.transcribing import GuardedBatches, add_run_to_transcript, add_to_transcript
from proxy.shutdown import ShuttingDown, shutdown_error
from proxy.wire.body_events import changed_response, events_of_body, terminal_of_body
from proxy.wire.call import Call
from proxy.wire.ending import failure_events, incomplete_events, incomplete_response
from proxy.wire.errors import BackendError, BackendRefusal, Unavailable
from proxy.wire.event import TERMINALS, Batch, Event, Reply, Run, Stop
from proxy.wire.large_json import dumps
from proxy.wire.stream_errors import error_in, refusal_of_error, stream_cut
from proxy.wire.transcript import Transcript
from proxy.workers import LARGE_BYTES

log = structlog.get_logger()

LIFECYCLE = TERMINALS | {"response.created", "response.queued", "response.in_progress"}
"""The events that carry the response object with its ids."""


def require_stream(call: Call, context: Context, enforced: Sequence[str]) -> Call:
    """Return the call as a stream where a check can stop the reply only while it is generated.

    `enforced` names the policies that the backend itself enforces. A rule that only reports changes nothing.
    """
    if call.is_stream or call.body.get("background"):
        return call
    for check in context.get(REPLY_CHECKS) or ():
        if check.needs_stream and check.is_enforced and check.rule.name not in enforced:
            return call.with_fields(stream=True)
    return call


class Guard:
    """Applies the reply checks that admission chose for a call."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions

    def pass_whole(self, call: Call, reply: Reply, context: Context) -> bool:
        """Add a body to the transcript as it is, if `guard` would do no more than that; return whether it was added.

        That is so for most bodies: nothing checks them, and their ids are bound or can be bound at once.
        """
        response, body, checks, binder = reply.response, reply.body, context.get(REPLY_CHECKS), context.binder
        if response is None or body is None or reply.status != 200 or call.is_stream:
            return False
        if checks or context.response_fields or context.reply_callbacks:
            return False
        if binder is not None and not binder.bind_now(call, context, response):
            return False
        context.note_first_event()
        context.transcript.see_whole(reply.terminal or terminal_of_body(response), len(body))
        return True

    async def guard(self, call: Call, reply: Reply, context: Context) -> Reply:
        """Return the reply with its checks applied. Nothing of an error is checked.

        A body is checked now, a stream as it is read. Raises BackendError and Unavailable.
        """
        if reply.status != 200:
            context.trace.end_wait()
            return reply
        checks = [*(context.get(REPLY_CHECKS) or ())]
        if reply.batches is not None:
            passed = self._guard_stream(call, reply.batches, checks, context)
            batches = GuardedBatches(passed, reply.batches, context)
            return Reply(reply.status, reply.headers, batches=batches, response=reply.response)
        context.note_first_event()
        if context.response_fields:
            reply = await _complete_body(reply, context)
        response, binder = reply.response or {}, context.binder
        if binder is not None:
            await binder.bind(call, context, response)
        if checks:
            reply = await self._check_body(reply, checks, call, context)
        else:
            context.transcript.see_whole(reply.terminal or terminal_of_body(response), len(reply.body or b""))
        if context.reply_callbacks or (binder is not None and not context.is_output_bound):
            await context.complete_reply(call)
        return await _complete_body(reply, context) if context.response_fields else reply  # it may not be stored

    async def _check_body(self, reply: Reply, checks: list[ActiveCheck], call: Call, context: Context) -> Reply:
        """Return a body with its checks applied, and add what passes to the transcript."""
        transcript, response = context.transcript, reply.response or {}
        received = events_of_body(response)
        events, stopped_by = await self._check(received, checks, call, context)
        transcript.see_body(events, len(reply.body or b""))
        if stopped_by is not None:
            return await _with_response(reply, incomplete_response(response, transcript, stopped_by), context)
        if not transcript.is_changed:
            return reply
        changed = changed_response(events, items_changed=events[1:-1] != received[1:-1])
        return await _with_response(reply, changed, context)

    async def _guard_stream(
        self, call: Call, batches: AsyncIterator[Batch], checks: list[ActiveCheck], context: Context
    ) -> AsyncIterator[Batch]:
        transcript = context.transcript
        failure: BackendError | Unavailable
        try:
            async for received in batches:
                if len(received) == 1 and transcript.is_started and isinstance(run := received[0], Run):
                    add_run_to_transcript(run, context)  # most batches of a stream: deltas that only pass
                    yield received
                    continue
                batch, stopped_by = await self._receive(received, checks, call, context)
                if batch:
                    yield batch
                if stopped_by is not None:
                    yield await _end_incomplete(stopped_by, call, context)
                    return
                if transcript.terminal is not None:
                    return
                del received, batch  # or their events would stay in memory until the next ones come
            failure = stream_cut()
        except (BackendError, Unavailable) as error:
            failure = error.with_traceback(None)  # which has this frame, and would keep all of the call in a cycle
        except asyncio.CancelledError as cancelled:
            failure = shutdown_error(cancelled)
        try:
            yield await _end_failed(failure, call, context)
        finally:
            del failure  # it may be raised, and has this frame then

    async def _receive(
        self, received: Batch, checks: list[ActiveCheck], call: Call, context: Context
    ) -> tuple[Batch, str | None]:
        """Check a batch and add it to the transcript; return what of it passes, and the rule that stopped it."""
        if not context.transcript.is_started:
            context.note_first_event()
        if context.response_fields:
            received = [await _complete_event(unit, context) for unit in received]
        for unit in reversed(received):  # the last one first: with its id all items of a short stream are bound
            if unit.type in LIFECYCLE and isinstance(unit, Event):
                await context.see_response(call, unit.response)
        checked = await self._check(received, checks, call, context) if checks else (until_terminal(received), None)
        received, stopped_by = checked
        add_to_transcript(received, context)
        if context.transcript.terminal is not None:
            received = await _complete(received, call, context)
        return received, stopped_by

    async def _check(
        self, batch: Batch, checks: list[ActiveCheck], call: Call, context: Context
    ) -> tuple[list[Event | Run], str | None]:
        """Return what of a batch may pass, and the name of the rule that stopped it there, if one did."""
        passed: list[Event | Run] = []
        for unit in batch:
            checked = unit
            for active in tuple(checks) if isinstance(unit, Event) else ():
                if active.types is not None and checked.type not in active.types:
                    continue
                try:
                    result = active.check(checked)  # type: ignore[arg-type]  # an event stays an event
                    if not isinstance(result, Event):
                        result = await result  # few checks wait
                    checked = result if active.is_enforced else checked
                except Unavailable:
                    if active.is_enforced:
                        raise
                except Stop as stop:
                    self._report(active, stop, call, context)
                    if active.is_enforced:
                        return passed, active.rule.name
                    checks.remove(active)  # reported once: what follows would not have been sent
            context.transcript.is_changed |= checked is not unit
            passed.append(checked)
            if checked.type in TERMINALS:
                break
        return passed, None

    def _report(self, active: ActiveCheck, stop: Stop, call: Call, context: Context) -> None:
        outcome = "stopped" if active.is_enforced else "reported"
        self._decisions.report(active.rule, call, context, f"{active.rule.name}.{stop.reason}", outcome)


def _with_fields(response: Mapping[str, Any], context: Context) -> Mapping[str, Any] | None:
    """Return a response object with the fields that the gateway sets; None if it has them already, or is none."""
    fields = context.response_fields
    if not response or all(name in response and response[name] == value for name, value in fields.items()):
        return None
    return {**response, **fields}


async def _complete_body(reply: Reply, context: Context) -> Reply:
    """Return a body with the fields that the gateway sets. One nested too deeply to be encoded is left as it is."""
    response = _with_fields(reply.response or {}, context)
    with suppress(orjson.JSONEncodeError):
        if response is not None:
            return await _encode_response(reply, response, context)
    return reply


async def _encode_response(reply: Reply, response: Mapping[str, Any], context: Context) -> Reply:
    """Return a body with another response object, which is about as long."""
    size = len(reply.body or b"")
    body = await context.run(size, dumps, response, size)
    return reply.with_fields(body=body, response=response, terminal=None)


async def _complete_event(unit: Event | Run, context: Context) -> Event | Run:
    """Return a lifecycle event like `_complete_body`, and any other unit as it is."""
    if isinstance(unit, Event) and unit.type in LIFECYCLE:
        response = _with_fields(unit.response, context)
        with suppress(orjson.JSONEncodeError):
            if response is not None:
                changed = Event(unit.type, data={**unit.data, "response": response})
                size = unit.received_bytes
                is_large = size >= LARGE_BYTES
                sse = await context.run_large(changed.encode, size) if is_large else changed.sse
                return Event(unit.type, sse, changed.data)
    return unit


def until_terminal(batch: Batch) -> Batch:
    """Return a batch up to its terminal event; nothing follows that."""
    for position, unit in enumerate(batch, 1):
        if unit.type in TERMINALS:
            return batch[:position]
    return batch


async def _with_response(reply: Reply, response: Mapping[str, Any], context: Context) -> Reply:
    """Return a body with another response object, and record that one as the final response."""
    context.transcript.see_body(events_of_body(response)[-1:])
    return await _encode_response(reply, response, context)


async def _complete(batch: Batch, call: Call, context: Context) -> Batch:
    """Return the last batch of a reply after what needs the whole reply has run: now it is known what is stored."""
    transcript = context.transcript
    if transcript.lacks_output:
        await context.run(transcript.response_bytes, transcript.compose_output)
    await context.complete_reply(call)
    if not context.response_fields:
        return batch
    completed = [await _complete_event(unit, context) for unit in batch]
    if completed[-1:] != batch[-1:]:
        transcript.see_body(completed[-1:])
    return completed


async def _end_incomplete(reason: str, call: Call, context: Context) -> Batch:
    """Return the events that end a reply where a rule stopped it."""
    transcript = context.transcript
    events = await context.run(transcript.response_bytes, incomplete_events, transcript, reason)
    return await _complete(events, call, context)


async def _end_failed(failure: BackendError | Unavailable, call: Call, context: Context) -> Batch:
    """Return the events that report a failure. Raises it while nothing was sent: then it is still an HTTP status."""
    transcript = context.transcript
    if isinstance(failure, BackendError) and (reason := _reason_of(transcript)) is not None:
        failure, context.record.upstream_code = reason, reason.code
    if not (call.is_stream and transcript.is_started):
        try:
            raise failure
        finally:
            del failure  # its traceback keeps this frame, and all that the call took, in a cycle
    if not isinstance(failure, ShuttingDown):
        words = {} if isinstance(failure, BackendRefusal) else {"message": failure.message}
        log.warning("backend.failed", code=failure.code, **words)
    context.record.code = failure.code
    events = await context.run(transcript.response_bytes, failure_events, transcript, failure)
    return await _complete(events, call, context)


def _reason_of(transcript: Transcript) -> BackendError | None:
    """Return the error that the upstream itself sent before its stream ended, if it did."""
    error = error_in(transcript.last) if transcript.error is None else error_in(transcript.error)
    return None if error is None else refusal_of_error(error)
