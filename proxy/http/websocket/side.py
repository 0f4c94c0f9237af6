"""Steering and injected input: checked by the policies, and passed on to the backend that generates the response."""

from proxy.context import Context
from proxy.lane import CallerConnection, ConnectionPart
from proxy.pipeline import Pipeline
from proxy.wire.call import Call
from proxy.wire.errors import HeadgateError, RequestError
from proxy.wire.side_message import INJECT, SideMessage

NOT_SUPPORTED = "This model does not support steering; send the input with the next response.create."
INVALID = "The input must have messages of the user, with text, images or files."
NOT_FOUND = "This connection has no response with this id that is being generated."


class SideMessages:
    """Those of one connection."""

    def __init__(self, connection: CallerConnection, pipeline: Pipeline) -> None:
        self._connection = connection
        self._pipeline = pipeline

    async def pass_on(self, message: SideMessage, running: Call | None, context: Context) -> bytes | None:
        """Return the answer to a message that is refused; None for one that its backend answers.

        `running` is the call whose response the message names, None if no turn generates it.
        """
        record = context.record
        try:
            part = self._part_of(message, running)
            record.model = running.model if running is not None else None
            async with context.cleanup:
                checked = await self._check(self._call(message, running), context)
        except HeadgateError as error:
            record.status, record.code = error.status, error.code
            return message.failed(error.code or error.type, error.message)
        await part.send(message.encode(checked.body.get("items")))
        record.status = 200
        return None

    def _part_of(self, message: SideMessage, running: Call | None) -> ConnectionPart:
        """Return where the response is generated. Raises RequestError."""
        part = self._connection.part_of(message.response_id)
        if part is not None and running is not None:
            return part
        speaks = any(target.speaks_websocket for target in self._pipeline.routes.targets)
        if speaks or message.kind == INJECT:
            raise RequestError(NOT_FOUND, code="response_not_found")
        raise RequestError(NOT_SUPPORTED, code="steering_not_supported")

    @staticmethod
    def _call(message: SideMessage, running: Call | None) -> Call:
        """Return the input as a request that policies check. Raises RequestError for one that is not valid."""
        if running is None or message.items is None:
            raise RequestError(INVALID, code="invalid_input")
        return message.call(running.headers, running.query)

    async def _check(self, call: Call, context: Context) -> Call:
        """Return the input as the policies allow it. Raises HeadgateError."""
        context.trace.begin("policies")
        call = await self._pipeline.rules.admit(call, context)
        context.trace.begin("ownership")
        await self._pipeline.ownership.check(call, context)
        return call
