"""One connection in WebSocket mode: reads messages, runs their turns, and ends."""

import asyncio
from collections.abc import Mapping
from functools import partial

from proxy.context import Caller
from proxy.http.exchange import Exchange
from proxy.http.ingress import Ingress
from proxy.http.websocket.lanes import MAX_NAMES, Lanes
from proxy.http.websocket.socket import Received, Socket
from proxy.http.websocket.turn import Turn, TurnRunner
from proxy.pipeline import Pipeline
from proxy.shutdown import ShuttingDown, cancel_for_shutdown, shutdown_error
from proxy.state.held_responses import HeldResponses
from proxy.wire.client_message import (
    STEER,
    ClientMessage,
    call_headers,
    error_message,
    in_lane,
    parse_message,
    steering_failed,
)
from proxy.wire.errors import HeadgateError, RequestError, Unavailable
from proxy.wire.frames import GOING_AWAY
from proxy.wire.headers import forwarded_headers
from proxy.workers import BodyMemory

MAX_AGE_S = 3600.0
"""How long one connection may last, in seconds. Source: https://platform.openai.com/docs/guides/websocket-mode."""


class Session:
    """The turns of one connection. Leaving `run` ends the work behind all of them."""

    def __init__(
        self,
        exchange: Exchange,
        caller: Caller,
        socket: Socket,
        ingress: Ingress,
        pipeline: Pipeline,
        *,
        held: BodyMemory,
    ) -> None:
        """`held` is the memory for responses that connections keep."""
        self._exchange = exchange
        self._socket = socket
        self._ingress = ingress
        self._routes = pipeline.routes
        self._headers: Mapping[str, str] = call_headers(
            forwarded_headers(exchange.request.headers, ingress.header_names)
        )
        self._held = HeldResponses(held)
        self._runner = TurnRunner(socket, caller, self._held, ingress, pipeline)
        self._lanes: Lanes[Turn] = Lanes(self._runner.run, Turn.finish, self._end_if_due)
        self._end: HeadgateError | None = None  # why no more turns are begun

    async def run(self) -> None:
        """Answer messages until the connection ends; say then why, if the client can still read it."""
        expiry = asyncio.get_running_loop().call_later(MAX_AGE_S, self.end_with, expired())
        try:
            try:
                while (received := await self._socket.receive()) is not None:
                    await self._accept(received)
            except asyncio.CancelledError as cancelled:
                self._end = self._runner.refusal = shutdown_error(cancelled)
                self._lanes.cancel(cancel_for_shutdown)
                await self._lanes.wait()
            await self._close()
        finally:
            expiry.cancel()
            self._lanes.cancel(asyncio.Task.cancel)
            await self._lanes.wait()
            self._socket.release()
            self._held.clear()

    def drain(self) -> None:
        """Begin no more turns, and end when those that there are have ended: the gateway shuts down."""
        self.end_with(ShuttingDown())

    def end_with(self, reason: HeadgateError) -> None:
        """Begin no more turns, and end when those that there are have ended."""
        self._end = self._end or reason
        self._end_if_due()

    def _end_if_due(self) -> None:
        if self._end is not None and self._lanes.is_idle:
            self._socket.end()

    async def _accept(self, received: Received) -> None:
        """Put a message in its lane, after the turns that came before it."""
        exchange = Exchange(self._exchange.request, self._exchange.trace.of_turn())
        exchange.record.method = "WEBSOCKET"
        exchange.record.path = self._exchange.record.path
        exchange.record.caller, exchange.record.team = self._exchange.record.caller, self._exchange.record.team
        try:
            message = await self._parse(received, exchange)
        except HeadgateError as error:  # no memory
            message = ClientMessage("", refusal=error.with_traceback(None))
        except BaseException:
            received.memory.release()
            raise
        if message.type == STEER:
            received.memory.release()
            await self._socket.send([in_lane(steering_failed(), message.stream_id)])
            exchange.record.status, exchange.record.code = 400, "steering_not_supported"
            exchange.finish()
            return
        turn = Turn(exchange, message, received.memory)
        if self._end is not None:
            turn.refuse(self._end)
        elif not self._lanes.admit(message.stream_id):
            turn.refuse(too_many_lanes())
        await self._lanes.add(message.stream_id, turn)

    async def _parse(self, received: Received, exchange: Exchange) -> ClientMessage:
        if received.message.kind != "text":
            refusal = RequestError("The message is binary; only text is supported.", code="invalid_message")
            return ClientMessage("", refusal=refusal)
        parse = partial(
            parse_message,
            headers=self._headers,
            query=exchange.query,
            needs_model=self._routes.default is None,
        )
        with exchange.trace.step("parse"):
            return await self._ingress.parse(received.message.data, exchange, received.memory, parse)

    async def _close(self) -> None:
        """Say why the connection ends. The turns of a client that has left end first."""
        socket = self._socket
        if socket.closed is not None or socket.fault is not None:
            self._lanes.cancel(asyncio.Task.cancel)
            await self._lanes.wait()
        record = self._exchange.record
        if socket.fault is not None:
            record.code = "invalid_frame"
            await socket.close(socket.fault.code, str(socket.fault))
        elif socket.closed is not None:
            await socket.close(socket.closed.code)
        elif self._end is not None:
            record.code = self._end.code
            if not isinstance(self._end, Unavailable):
                await socket.send([error_message(self._end, {})])
            await socket.close(GOING_AWAY)


def expired() -> RequestError:
    message = f"The connection has reached its limit of {MAX_AGE_S / 60:g} minutes; open a new one."
    return RequestError(message, code="websocket_connection_limit_reached")


def too_many_lanes() -> RequestError:
    message = f"The connection has too many lanes; the limit is {MAX_NAMES} values of stream_id."
    return RequestError(message, code="websocket_stream_limit_reached", param="stream_id")
