"""Steering and injected input: checked by the policies, and passed on to the backend that generates the response."""

from dataclasses import dataclass, field

from proxy.context import Context
from proxy.lane import CallerConnection, ConnectionPart
from proxy.pipeline import Pipeline
from proxy.wire.call import Call
from proxy.wire.errors import HeadgateError, RequestError
from proxy.wire.items import JSON
from proxy.wire.lifting import add_contact
from proxy.wire.side_message import INJECT, STEER, SideMessage
from proxy.workers import MemoryLease

NOT_SUPPORTED = "This model does not support steering; send the input with the next response.create."
INVALID = "The input must have messages of the user, with text, images or files."
NOT_FOUND = "This connection has no response with this id that is being generated."
MAX_STEERED = 32
"""For how many steered responses a connection keeps the input."""


@dataclass(frozen=True, slots=True)
class SteeredInput:
    """A steered call, the new input, and the memory of both."""

    call: Call
    memory: MemoryLease
    items: list[JSON] = field(default_factory=list)


class SideMessages:
    """Handles the side messages of one connection."""

    def __init__(self, connection: CallerConnection, pipeline: Pipeline, contact: str | None = None) -> None:
        """`contact` is how callers reach the operator."""
        self._connection = connection
        self._pipeline = pipeline
        self._contact = contact
        self._steered: dict[object, SteeredInput] = {}  # by the response's id

    async def pass_on(self, message: SideMessage, running: Call | None, context: Context) -> bytes | None:
        """Return the answer to a message that is refused; None for one that its backend answers.

        `running` is the call whose response the message names, None if no turn generates it.
        """
        record, size = context.record, context.memory.needed_bytes
        try:
            part = self._part_of(message, running)
            record.model = running.model if running is not None else None
            async with context.cleanup:
                call = await context.run(size, self._call, message, running, size)
                checked = await self._check(call, context)
            if running is not None and message.kind == STEER:
                self._keep(message, running, context)
        except HeadgateError as error:
            record.status, record.code = error.status, error.code
            add_contact(error, self._contact)
            return await context.run(size, message.failed, error.code or error.type, error.message, size)
        await part.send(await context.run(size, message.encode, checked.body.get("items"), size))
        record.status = 200
        return None

    def take(self, response_id: object) -> SteeredInput | None:
        """Remove and return the input with which a response was steered; None if it was not."""
        return self._steered.pop(response_id, None)

    def release(self) -> None:
        """Release the memory of all kept input."""
        while self._steered:
            self._steered.popitem()[1].memory.release()

    def _keep(self, message: SideMessage, running: Call, context: Context) -> None:
        """Keep the input for the response that continues this one. Raises Unavailable if there is no memory for it."""
        kept = self._steered.get(message.response_id) or SteeredInput(running, context.memory.begin_another())
        kept.memory.grow(context.memory.needed_bytes)
        kept.items.extend(message.items or ())
        self._steered[message.response_id] = kept
        if len(self._steered) > MAX_STEERED:
            self._steered.pop(next(iter(self._steered))).memory.release()

    def _part_of(self, message: SideMessage, running: Call | None) -> ConnectionPart:
        """Return the backend's part of the connection that generates the response. Raises RequestError."""
        part = self._connection.part_of(message.response_id)
        if part is not None and running is not None:
            return part
        speaks = any(target.speaks_websocket for target in self._pipeline.routes.targets)
        if speaks or message.kind == INJECT:
            raise RequestError(NOT_FOUND, code="response_not_found")
        raise RequestError(NOT_SUPPORTED, code="steering_not_supported")

    @staticmethod
    def _call(message: SideMessage, running: Call | None, size_bytes: int) -> Call:
        """Return the input as a request that policies check. Raises RequestError for one that is not valid."""
        if running is None or message.items is None:
            raise RequestError(INVALID, code="invalid_input")
        return message.call(running.headers, running.query, size_bytes)

    async def _check(self, call: Call, context: Context) -> Call:
        """Return the input as the policies allow it. Raises HeadgateError."""
        context.trace.begin_step("policies")
        call = await self._pipeline.rules.admit(call, context)
        context.trace.begin_step("ownership")
        await self._pipeline.ownership.check(call, context)
        return call
