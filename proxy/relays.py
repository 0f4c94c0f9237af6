"""The path of a relayed request: policies, ownership, the upstream, and the reading of its answer.

Everything else passes as it is: a relay knows no model, no cache and no history.
"""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from backends import Backend
from policies.support.alternatives import ANY, MODELS
from policies.support.walk import plain_name
from proxy.accounting import complete_cost
from proxy.context import Context
from proxy.pricing.prices import Prices
from proxy.relayed_usage import MAX_VALUES, TAIL_BYTES, RelayedUsage, parse_event, parse_json
from proxy.routing.attempt import log_failure
from proxy.routing.deadline import before_deadline
from proxy.rules import Rules
from proxy.state.relayed_answers import RelayedAnswers, count_listed, last_id, next_page
from proxy.state.relayed_forms import FormField
from proxy.state.relayed_ids import RelayedIds
from proxy.wire.bounds import parsed_size
from proxy.wire.call import MAX_MODEL_CHARS, Call
from proxy.wire.errors import BackendError, RequestError
from proxy.wire.large_bytes import join_pieces
from proxy.wire.large_json import dumps
from proxy.wire.loggable import clip
from proxy.wire.refusals import shorten
from proxy.wire.relay import RelayReply, RelayRequest
from proxy.wire.sse_frame import frames_of, payload_of

ROUTE = "relay"
MAX_LISTED, MAX_LISTED_VALUES = 10_000, 200_000
"""Longer lists are refused, not searched for other teams' objects. OpenAI's have up to 10,000 objects."""
EVENT_STREAM = "text/event-stream"
DATA = b"data:"
END_OF_EVENT = re.compile(rb"\n\r?\n|\r\r")
FILE_CONTENT = "/content"
"""The suffix of paths whose answer is the content of a file."""
MAX_PAGES = 20
"""The most pages of a list that are read to find one with the team's own objects."""
MODEL = "model"
# The fields that policies of relayed paths read, by their plain names: in forms they are read too.
CHECKED_FIELDS = {plain_name(name): name for name in (MODEL, "service_tier", *MODELS, *ANY)}


@dataclass(frozen=True, slots=True)
class Relays:
    """Forwards requests of relayed paths to their backends, and the answers to the callers."""

    rules: Rules
    ids: RelayedIds
    answers: RelayedAnswers
    backends: Mapping[str, Backend]
    prices: Prices | None = None

    @asynccontextmanager
    async def reply_to(self, request: RelayRequest, target: Backend, context: Context) -> AsyncIterator[RelayReply]:
        """The answer to a request. Leaving the block ends the work behind it.

        The backend that keeps the object in the path answers, as far as it is known; else `target`. Raises
        HeadgateError before anything was passed on, and BackendError from the answer's chunks.
        """
        async with context.cleanup:
            context.trace.begin_step("policies")
            request = await self._admit(request, context)
            context.trace.begin_step("ownership")
            keeper = await self.ids.check(request, context)
            request = self.ids.check_form(request, partial(self._admit_field, context), context)
            if keeper is not None and (found := self.backends.get(keeper)) is not None and found.can_relay:
                target = found
            record = context.record
            record.route, record.backend, record.provider = ROUTE, target.name, target.provider
            context.is_sent = True
            if context.usage is not None:
                context.usage.begin(record, request.call)
            usage = RelayedUsage(request, context)
            if self.prices is not None and record.model:
                context.quote = self.prices.quote(target, record.model)
            with context.trace.model_call(record, "relay", target.address, relays=request.path) as attempt:
                try:
                    async with before_deadline(context, target.relay(request, context)) as reply:
                        context.is_answered = context.is_sent = 200 <= reply.status < 300
                        context.note_first_event()
                        attempt.status, attempt.error = reply.status, str(reply.status) if reply.status >= 400 else None
                        yield await self._receive(request, reply, target, usage, context, is_own=keeper is not None)
                except BackendError as error:
                    context.is_sent = error.sent
                    record.sent -= not error.sent
                    log_failure(target.name, error, context)
                    raise
                finally:
                    await usage.complete()
                    await complete_cost(context)

    async def _admit(self, request: RelayRequest, context: Context) -> RelayRequest:
        """Return the request as the policies allow it: its bytes as received, unless a policy changes a field.

        Without a JSON body it only counts for limits: once, however many fields of its form are checked.
        """
        if request.call is None:
            await self.rules.admit(Call({}, operation="bodiless"), context)
            return request
        if context.usage is not None and context.usage.metadata:
            context.record.note_usage_metadata(request.call.body, context.usage.metadata)
        call = await self.rules.admit(request.call, context)
        context.record.note_model(call.model)
        return request if call is request.call else replace(request, call=call, body=await context.encode(call))

    async def _admit_field(self, context: Context, field: FormField) -> None:
        """Apply the policies to a field of a form that they read in JSON. Raises PolicyViolation, Unavailable.

        A form passes as it is, so a field that a policy would change is refused with RequestError.
        """
        for name in sorted(field.plain_names & CHECKED_FIELDS.keys()):
            if not field.is_whole:
                raise RequestError(f"The field '{name}' of the form is too long.", code="invalid_value", param=name)
            call = Call({CHECKED_FIELDS[name]: field.value}, operation="form_field")
            if (await self.rules.admit(call, context)) is not call:
                message = (
                    f"A form passes as it is sent: '{shorten(field.value)}' is an alias; send the name it stands for."
                )
                raise RequestError(message, code="alias_in_form", param=CHECKED_FIELDS[name])
            if name == MODEL:
                context.record.note_model(clip(field.value, MAX_MODEL_CHARS))

    async def _receive(
        self,
        request: RelayRequest,
        reply: RelayReply,
        target: Backend,
        usage: RelayedUsage,
        context: Context,
        *,
        is_own: bool,
    ) -> RelayReply:
        """Return an answer after what the gateway needs of it was read: ids before the caller can use them.

        `is_own` is whether the path names something of the team's own.
        """
        if reply.chunks is None or not 200 <= reply.status < 300:
            return reply
        if reply.content_type == EVENT_STREAM:
            context.record.stream = True
            chunks = self._bind_first(reply.chunks, request, target, context)
            return replace(reply, chunks=usage.follow(chunks))
        if request.path.endswith(FILE_CONTENT) or not _may_be_json(reply):
            return reply
        body = await _read(reply.chunks, context)
        is_searched = not is_own and request.method == "GET"
        answer = await _parse(body, context, MAX_LISTED_VALUES if is_searched else MAX_VALUES)
        if request.method == "POST" and isinstance(answer, dict):
            usage.answer = answer
            await self.answers.bind_created(answer, request, target.name, context)
        if request.method == "DELETE" and isinstance(answer, dict):
            await self.answers.forget(answer, request, context)
        elif is_own and isinstance(answer, dict):
            await self.answers.bind_inner(answer, target.name, context)
        if is_searched:
            body = await self._own_part(request, body, answer, target, context)
        return replace(reply, body=body, chunks=None)

    async def _bind_first(
        self, chunks: AsyncIterator[bytes], request: RelayRequest, target: Backend, context: Context
    ) -> AsyncIterator[bytes]:  # fmt: skip
        """The chunks of a stream, untouched. The first event passes when the id of what it created was bound.

        Raises BackendError for an id that is too long to be protected.
        """
        held = bytearray()
        async for chunk in chunks:
            already = len(held)
            held += chunk
            position = held.find(DATA)
            if position < 0:  # comments and names of events have no id
                if lines := max(held.rfind(b"\n"), held.rfind(b"\r")) + 1:
                    yield bytes(held[:lines])
                    del held[:lines]
            elif END_OF_EVENT.search(held, max(position, already - 3)) or len(held) > TAIL_BYTES:
                break
        first = next(filter(None, map(payload_of, frames_of(bytes(held)))), b"")
        created = parse_event(first) if request.method == "POST" else None
        if created is not None:
            await self.answers.bind_created(created, request, target.name, context)
        if held:
            yield bytes(held)
        async for chunk in chunks:
            yield chunk

    async def _own_part(
        self, request: RelayRequest, body: bytes, answer: Any, target: Backend, context: Context
    ) -> bytes:  # fmt: skip
        """Return an answer without other teams' objects; in place of an empty page the next one.

        Raises BackendError for an answer that cannot be searched.
        """
        for _ in range(MAX_PAGES):
            if answer is None or count_listed(answer) > MAX_LISTED:
                message = "The upstream's answer cannot be searched for what belongs to other teams."
                raise BackendError(message, code="upstream_invalid_response", headers={"x-should-retry": "false"})
            last = last_id(answer)
            if not await self.answers.keep_own(answer, target.name, context):
                return body
            body = await context.run(len(body), dumps, answer, len(body))
            if last is None or answer.get("data"):
                return body
            following = replace(request, query=next_page(request.query, last))
            async with before_deadline(context, target.relay(following, context)) as reply:
                if reply.chunks is None or reply.status != 200:
                    return body
                answer = await _parse(following_body := await _read(reply.chunks, context), context, MAX_LISTED_VALUES)
                body = following_body
        return body


def _may_be_json(reply: RelayReply) -> bool:
    return not reply.content_type or reply.content_type.endswith(("/json", "+json"))


async def _read(chunks: AsyncIterator[bytes], context: Context) -> bytes:
    """Read a whole answer, and reserve its memory. Raises Unavailable, BackendError."""
    read = []
    async for chunk in chunks:
        context.use_memory(len(chunk))
        read.append(chunk)
    return await context.run(sum(map(len, read)), join_pieces, read)


async def _parse(body: bytes, context: Context, max_values: int) -> dict[str, Any] | list[Any] | None:
    """Return the JSON object or array in an answer of at most so many values; None for anything else."""
    values, parsed_bytes = await context.run(len(body), parsed_size, body, max_values)
    if values > max_values:
        return None
    context.use_memory(parsed_bytes)
    return await context.run(len(body), parse_json, body)
