"""One connection in WebSocket mode: reads messages, runs their turns, and ends."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from proxy.context import Caller
from proxy.http.exchange import Exchange
from proxy.http.ingress import Ingress
from proxy.http.request_id import new_request_id
from proxy.http.websocket.lanes import MAX_NAMES, Lanes
from proxy.http.websocket.side import SideMessages
from proxy.http.websocket.socket import Received, Socket
from proxy.http.websocket.turn import Turn, TurnRunner
from proxy.lane import CallerConnection, UnsolicitedReply
from proxy.pipeline import Pipeline
from proxy.shutdown import ShuttingDown, cancel_for_shutdown, shutdown_error
from proxy.state.held_responses import HeldResponses
from proxy.telemetry.http_methods import SOCKET
from proxy.wire.client_message import CREATE, ClientMessage, call_headers, error_message, in_lane, parse_message
from proxy.wire.errors import HeadgateError, RequestError, Unauthenticated, Unavailable
from proxy.wire.frames import GOING_AWAY, POLICY
from proxy.wire.headers import IDEMPOTENCY_KEY, forwarded_headers
from proxy.wire.large_bytes import join_pieces
from proxy.wire.lifting import add_contact
from proxy.wire.side_message import SideMessage
from proxy.workers import BodyMemory, MemoryLease

IDENTIFY_S = 30.0
"""How often a connection's key is checked again, in seconds: a revoked key ends it within a minute."""
MAX_NOTICES = 256
"""How many messages that belong to no turn may wait to be sent."""
MAX_AGE_S = 3600.0
"""The longest life of a connection, in seconds. Source: https://platform.openai.com/docs/guides/websocket-mode."""


class Session:
    """Runs the turns of one connection. Leaving `run` ends the work behind all of them."""

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
        self._timers = exchange.request.protocol.timers
        self._caller = caller
        self._socket = socket
        self._ingress = ingress
        self._routes = pipeline.routes
        received = forwarded_headers(exchange.request.headers, ingress.header_names)
        self._headers: Mapping[str, str] = call_headers(received)
        received.pop(IDEMPOTENCY_KEY, None)
        self._connection = CallerConnection(received, self._notify, self._adopt)
        self._side = SideMessages(self._connection, pipeline, ingress.server.contact)
        self._notices: set[asyncio.Task[None]] = set()
        self._held = HeldResponses(held, caller.team)
        self._runner = TurnRunner(
            socket, caller, self._connection, self._held, ingress, pipeline, check_caller=self._check_caller
        )
        self._lanes: Lanes[Turn] = Lanes(self._runner.run, Turn.finish, self._end_if_due)
        self._end: HeadgateError | None = None  # why no new turns begin

    async def run(self) -> None:
        """Answer messages until the connection ends; then send the reason, if the client can still read it."""
        self._expires = asyncio.get_running_loop().time() + MAX_AGE_S
        self._check_later()
        try:
            try:
                while (received := await self._socket.receive()) is not None:
                    await self._accept(received)
                    received = None  # its bytes would stay in memory until the next message comes
                    if self._socket.has_messages:  # others are served between those of a flood, or of several
                        async with self._ingress.workers.floods:
                            await asyncio.sleep(0)
            except asyncio.CancelledError as cancelled:
                self._end = self._runner.refusal = shutdown_error(cancelled)
                self._lanes.cancel(cancel_for_shutdown)
                await self._lanes.wait()
            await self._close()
        finally:
            self._timers.cancel(self._timer)
            self._lanes.cancel(asyncio.Task.cancel)
            try:
                await self._lanes.wait()
            finally:
                self._connection.end()
                self._socket.release()
                self._held.clear()
                self._side.release()
                del self._lanes, self._runner  # they have methods of this session: a cycle

    def drain(self) -> None:
        """Begin no more turns, and end after the current ones: the gateway shuts down."""
        self.end_with(ShuttingDown())

    def end_with(self, reason: HeadgateError) -> None:
        """Begin no more turns, and end after the current ones."""
        self._end = self._end or reason
        self._end_if_due()

    def _end_if_due(self) -> None:
        if self._end is not None and self._lanes.is_idle:
            self._socket.end()

    async def _accept(self, received: Received) -> None:
        """Queue a message in its lane."""
        exchange = self._new_exchange()
        try:
            message = await self._parse(received, exchange)
        except HeadgateError as error:  # no memory
            message = ClientMessage("", refusal=error.with_traceback(None))
        except BaseException:
            received.memory.release()
            raise
        turn = Turn(exchange, message, received.memory)
        if message.side is not None:
            await self._pass_on(message.side, turn)
            return
        if self._end is not None:
            turn.refuse(self._end)
        elif not self._lanes.admit(message.stream_id):
            turn.refuse(too_many_lanes())
        await self._lanes.add(message.stream_id, turn)

    def _new_exchange(self) -> Exchange:
        """Return the exchange of one message."""
        connection = self._exchange
        exchange = Exchange(
            connection.request, connection.head, new_request_id(), connection.trace.of_turn(), connection.finished,
            connection.calls, connection.usage,
        )  # fmt: skip
        exchange.record.method = SOCKET
        exchange.record.path = self._exchange.record.path
        record, of_connection = exchange.record, self._exchange.record
        record.caller, record.team = of_connection.caller, of_connection.team
        record.key_id, record.issuer, record.tags = of_connection.key_id, of_connection.issuer, of_connection.tags
        record.key_fingerprint, record.client_address = of_connection.key_fingerprint, of_connection.client_address
        return exchange

    async def _pass_on(self, message: SideMessage, turn: Turn) -> None:
        """Handle a message that begins no turn: answer it, or pass it to the backend that generates the response."""
        running = next((other for other in self._lanes.running if other.response_id == message.response_id), None)
        call = None if running is None else running.message.call
        try:
            self._check_caller()
            failure = await self._side.pass_on(message, call, self._runner.context(turn))
            if failure is not None:
                await self._socket.send([in_lane(failure, turn.message.stream_id)])
        except (Unauthenticated, Unavailable) as error:
            turn.exchange.record.status, turn.exchange.record.code = error.status, error.code
        finally:
            turn.finish()

    def _notify(self, payload: bytes, lane: str | None) -> None:
        """Queue a message that belongs to no turn. A backend that sends too many unread ones is disconnected."""
        memory = self._ingress.lease(self._caller)
        try:
            memory.grow(len(payload))
        except Unavailable:
            self._connection.close()
            return
        if len(self._notices) >= MAX_NOTICES:
            memory.release()
            self._connection.close()
            return
        task = asyncio.create_task(self._send_notice(in_lane(payload, lane), memory))  # in order
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)

    async def _send_notice(self, payload: bytes, memory: MemoryLease) -> None:
        with memory, suppress(ConnectionError):
            await self._socket.send([payload])

    def _adopt(self, reply: UnsolicitedReply, backend: str, steered: object) -> None:
        """Begin a turn for a response that continues a steered one: its settings with the new input."""
        kept = self._side.take(steered)
        message = ClientMessage(CREATE, reply.lane, refusal=self._end)
        if kept is not None:
            message = replace(message, call=kept.call.with_fields(previous_response_id=steered, input=kept.items))
        memory = self._ingress.lease(self._caller) if kept is None else kept.memory
        turn = Turn(self._new_exchange(), message, memory, reply=reply, begun_by=backend)
        running = next((other for other in self._lanes.running if other.response_id == steered), None)
        self._lanes.add_next(reply.lane, turn, running)

    def _check_caller(self) -> None:
        """Raises Unauthenticated, and ends the connection, if its key no longer belongs to its caller."""
        try:
            self._exchange.identify_as(self._caller, self._ingress.directory)
        except Unauthenticated as error:
            self._end = error.with_traceback(None)
            self._socket.end()
            raise

    def _check_later(self) -> None:
        """Schedule the next check of the caller, or the end of the connection's life."""
        now = asyncio.get_running_loop().time()
        due = now + IDENTIFY_S
        self._timer = self._timers.start(min(due, self._expires) if now < self._expires else due, self)

    def on_due(self) -> None:
        """Check the caller's key and the age of the connection."""
        if asyncio.get_running_loop().time() >= self._expires:
            self.end_with(expired())
        self._check_later()
        with suppress(Unauthenticated, Unavailable):
            self._check_caller()

    async def _parse(self, received: Received, exchange: Exchange) -> ClientMessage:
        """Return a parsed message; the kept one if the team has sent it recently. Raises Unavailable."""
        if received.message.kind != "text":
            refusal = RequestError("The message is binary; only text is supported.", code="invalid_message")
            return ClientMessage("", refusal=refusal)
        parse = partial(
            parse_message,
            headers=self._headers,
            query=exchange.head.query,
            needs_model=self._routes.default is None,
        )
        exchange.trace.begin_step("parse")
        message, data = received.message, received.message.data
        if message.parts:
            data = await self._ingress.workers.run(message.size_bytes, join_pieces, message.parts)
        recent, team = self._ingress.messages, self._caller.team
        if not exchange.head.query and (found := recent.find(team, data)) is not None:
            received.memory.grow(found.parsed_bytes)
            exchange.values = found.values
            return found.parsed.with_headers(self._headers)
        parsed = await self._ingress.parse(data, exchange, received.memory, parse)
        if not exchange.head.query and parsed.call is not None:
            recent.note(team, data, parsed, exchange.values)
        return parsed

    async def _close(self) -> None:
        """Send the reason why the connection ends. The turns of a disconnected client end first."""
        socket = self._socket
        is_revoked = isinstance(self._end, Unauthenticated)
        if socket.closed is not None or socket.fault is not None or is_revoked:
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
                add_contact(self._end, self._ingress.server.contact)
                await socket.send([error_message(self._end, {})])
            await socket.close(POLICY if is_revoked else GOING_AWAY)


def expired() -> RequestError:
    message = f"The connection has reached its limit of {MAX_AGE_S / 60:g} minutes; open a new one."
    return RequestError(message, code="websocket_connection_limit_reached")


def too_many_lanes() -> RequestError:
    message = f"The connection has too many lanes; the limit is {MAX_NAMES} values of stream_id."
    return RequestError(message, code="websocket_stream_limit_reached", param="stream_id")
