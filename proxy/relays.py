"""The path of a relayed request: policies, ownership, the upstream, and what is read of its answer.

Everything else passes as it is: a relay knows no model, no cache and no history.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import orjson

from backends import Backend
from proxy.context import Context
from proxy.routing.attempts import before_deadline, log_failure
from proxy.rules import Rules
from proxy.state.relayed_ids import RelayedIds
from proxy.wire.bounds import count_values, parsed_bytes
from proxy.wire.errors import BackendError, Unavailable
from proxy.wire.event import frames_of, payload_of
from proxy.wire.large_json import TooMuchText, loads
from proxy.wire.relay import RelayReply, RelayRequest

ROUTE = "relay"
MAX_VALUES = 1_000_000
"""An answer of more JSON values is not parsed: only large lists of numbers have so many."""
TAIL_BYTES = 262_144
"""How much of the end of a stream is kept to read its last event, in bytes."""
EVENT_STREAM = "text/event-stream"
SENTINEL = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Relays:
    """Passes requests of relayed paths to their backends, and the answers back."""

    rules: Rules
    ids: RelayedIds

    @asynccontextmanager
    async def reply_to(self, request: RelayRequest, target: Backend, context: Context) -> AsyncIterator[RelayReply]:
        """The answer to a request. Leaving the block ends the work behind it.

        Raises HeadgateError before anything was passed on, and BackendError from the answer's chunks.
        """
        async with context.cleanup:
            with context.trace.step("policies"):
                request = await self._admit(request, context)
            with context.trace.step("ownership"):
                await self.ids.check(request, context)
                request = self.ids.check_form(request, context)
            record = context.record
            record.route, record.backend, record.provider = ROUTE, target.name, target.provider
            context.is_sent = True
            with context.trace.model_call(record, relays=request.path):
                try:
                    async with before_deadline(context, target.relay(request, context)) as reply:
                        context.is_answered = context.is_sent = 200 <= reply.status < 300
                        context.note_first_event()
                        yield await self._receive(request, reply, target, context)
                except BackendError as error:
                    context.is_sent = error.sent
                    log_failure(target, error, context)
                    raise

    async def _admit(self, request: RelayRequest, context: Context) -> RelayRequest:
        """Return the request as the policies allow it: its bytes as received, unless a policy changes a field."""
        if request.call is None:
            return request
        call = await self.rules.admit(request.call, context)
        context.record.model = call.model or None
        return request if call is request.call else replace(request, call=call, body=call.encoded)

    async def _receive(
        self, request: RelayRequest, reply: RelayReply, target: Backend, context: Context
    ) -> RelayReply:  # fmt: skip
        """Return an answer after what the gateway needs of it was read: ids before the caller can use them."""
        if reply.chunks is None or not 200 <= reply.status < 300:
            return reply
        if reply.content_type == EVENT_STREAM:
            context.record.stream = True
            return replace(reply, chunks=_with_usage(reply.chunks, context))
        if request.method != "POST" or not reply.content_type.endswith(("/json", "+json")):
            return reply
        chunks = []
        async for chunk in reply.chunks:
            context.use_memory(len(chunk))
            chunks.append(chunk)
        body = b"".join(chunks)
        if (answer := await _parse(body, context)) is not None:
            context.record.read_relayed(answer)
            await self.ids.bind(answer, request, target.name, context)
        return replace(reply, body=body, chunks=None)


async def _parse(body: bytes, context: Context) -> dict[str, Any] | None:
    """Return the JSON object in an answer; None for anything else."""
    values = await context.run(len(body), count_values, body, MAX_VALUES)
    if values > MAX_VALUES:
        return None
    context.use_memory(parsed_bytes(len(body), values))
    return await context.run(len(body), _object, body)


def _object(payload: bytes) -> dict[str, Any] | None:
    try:
        value = loads(payload)
    except (orjson.JSONDecodeError, TooMuchText):
        return None
    return value if isinstance(value, dict) else None


async def _with_usage(chunks: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    """The chunks of a stream, untouched. When they end, the token counts of the last event are recorded."""
    tail = StreamTail(context)
    try:
        async for chunk in chunks:
            tail.add(chunk)
            yield chunk
    finally:
        if (event := tail.last_event()) is not None:
            context.record.read_relayed(event)


class StreamTail:
    """The end of a stream, of up to twice TAIL_BYTES. What there is no memory for is not kept."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tail = bytearray()
        self._counted_bytes = 0

    def add(self, chunk: bytes) -> None:
        """Add what follows."""
        if not self._has_memory(len(chunk)):
            return
        self._tail += chunk
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]

    def last_event(self) -> dict[str, Any] | None:
        """Return the data of the last event that is not the sentinel; None if that was not kept as a whole."""
        for frame in reversed(list(frames_of(bytes(self._tail[-TAIL_BYTES:])))):
            payload = payload_of(frame)
            if payload and payload.strip() != SENTINEL:
                return _object(payload) if count_values(payload, MAX_VALUES) <= MAX_VALUES else None
        return None

    def _has_memory(self, size_bytes: int) -> bool:
        if self._counted_bytes < 2 * TAIL_BYTES:
            try:
                self._context.use_memory(size_bytes)
            except Unavailable:
                self._tail.clear()
                return False
            self._counted_bytes += size_bytes
        return True
