"""Passes a reply on: applies the reply checks to a body now, to a stream as it is read (`guarded_stream.py`)."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson

from proxy.context import Context
from proxy.rules.admit import REPLY_CHECKS
from proxy.rules.decisions import Decisions
from proxy.rules.guarded_stream import GuardedStream
from proxy.rules.reply_checks import ReplyChecks
from proxy.rules.response_fields import with_fields
from proxy.wire.body_events import changed_response, events_of_body
from proxy.wire.call import Call
from proxy.wire.ending import incomplete_response
from proxy.wire.event import Reply
from proxy.wire.large_json import dumps


def require_stream(call: Call, context: Context, enforced: Sequence[str]) -> Call:
    """Return the call as a stream where a check can stop the reply only while it is generated.

    `enforced` names the policies that the backend itself enforces. A rule that only reports changes nothing.
    """
    checks = None if call.is_stream else context.get(REPLY_CHECKS)
    if not checks or call.body.get("background"):
        return call
    for check in checks:
        if check.needs_stream and check.is_enforced and check.rule.name not in enforced:
            return call.with_fields(stream=True)
    return call


class Guard:
    """Applies the reply checks that admission chose for a call."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions

    def pass_unchecked(self, call: Call, reply: Reply, context: Context) -> bool:
        """Add a body to the transcript if `guard` would do no more than that; return whether it was added.

        So for most bodies: no check applies, and their ids are bound or can be bound at once.
        """
        response, body, binder = reply.response, reply.body, context.binder
        if response is None or body is None or reply.status != 200 or call.is_stream:
            return False
        if context.get(REPLY_CHECKS) or context.response_fields or context.reply_callbacks:
            return False
        if binder is not None and not binder.bind_now(call, context, response):
            return False
        context.note_first_event()
        context.transcript.add_whole(response, len(body))
        return True

    async def guard(self, call: Call, reply: Reply, context: Context) -> Reply:
        """Return the reply with its checks applied. Nothing of an error is checked.

        A body is checked now, a stream as it is read. Raises BackendError and Unavailable.
        """
        if reply.status != 200:
            context.trace.end_wait()
            return reply
        chosen = context.get(REPLY_CHECKS)
        checks = ReplyChecks(chosen, self._decisions, call, context) if chosen else None
        if reply.batches is not None:
            batches = GuardedStream(reply.batches, checks, call, context)
            return Reply(reply.status, reply.headers, batches=batches, response=reply.response)
        context.note_first_event()
        if context.response_fields:
            reply = await _complete_body(reply, context)
        response, binder = reply.response or {}, context.binder
        if binder is not None and not binder.bind_now(call, context, response):
            await binder.bind(call, context, response)
        if checks is not None:
            reply = await _check_body(reply, checks, context)
        else:
            context.transcript.add_whole(response, len(reply.body or b""))
        if context.must_complete:
            await context.complete_reply(call)
        return await _complete_body(reply, context) if context.response_fields else reply  # it may not be stored


async def _check_body(reply: Reply, checks: ReplyChecks, context: Context) -> Reply:
    """Return a body with its checks applied, and add what passes to the transcript."""
    transcript, response = context.transcript, reply.response or {}
    received = events_of_body(response)
    events, stopped_by = await checks.apply(received)
    transcript.add_body(events, len(reply.body or b""))
    if stopped_by is not None:
        return await _with_response(reply, incomplete_response(response, transcript, stopped_by), context)
    if not transcript.is_changed:
        return reply
    changed = changed_response(events, items_changed=events[1:-1] != received[1:-1])
    return await _with_response(reply, changed, context)


async def _complete_body(reply: Reply, context: Context) -> Reply:
    """Return a body with the fields that the gateway sets. One nested too deeply to be encoded is left as it is."""
    response = with_fields(reply.response or {}, context)
    with suppress(orjson.JSONEncodeError):
        if response is not None:
            return await _encode_response(reply, response, context)
    return reply


async def _encode_response(reply: Reply, response: Mapping[str, Any], context: Context) -> Reply:
    """Return a body with another response object, which is about as long."""
    size = len(reply.body or b"")
    body = await context.run(size, dumps, response, size)
    return reply.with_fields(body=body, response=response)


async def _with_response(reply: Reply, response: Mapping[str, Any], context: Context) -> Reply:
    """Return a body with another response object, and record that one as the final response."""
    context.transcript.add_body(events_of_body(response)[-1:])
    return await _encode_response(reply, response, context)
