"""One turn: a message that creates a response -> the path of every call -> one message for each event."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import orjson
import structlog

from proxy.context import Caller, Context
from proxy.http.dispatch import CLIENT_CLOSED_REQUEST
from proxy.http.exchange import Exchange
from proxy.http.ingress import Ingress
from proxy.http.websocket.socket import Socket
from proxy.lane import LANE_CALL, CallerConnection, LaneCall, UnaskedReply
from proxy.pipeline import Pipeline
from proxy.shutdown import shutdown_error
from proxy.state.held_responses import LANE_MEMORY, HeldResponses, LaneMemory
from proxy.wire.call import Call
from proxy.wire.client_message import ClientMessage, error_message, in_lane, refusal_message
from proxy.wire.ending import failure_events
from proxy.wire.errors import HeadgateError
from proxy.wire.event import TERMINALS, Batch, Event, Reply
from proxy.workers import LARGE_BYTES, MemoryLease

log = structlog.get_logger()


@dataclass(slots=True)
class Turn:
    """A message, what is recorded of it, the memory that it takes, and how far its answer was sent."""

    exchange: Exchange
    message: ClientMessage
    memory: MemoryLease
    reply: UnaskedReply | None = None  # of a turn that a backend has begun by itself
    begun_by: str | None = None  # its name
    response_id: str | None = None
    is_begun: bool = False
    is_ended: bool = False
    is_finished: bool = False

    def refuse(self, refusal: HeadgateError) -> None:
        self.message = replace(self.message, refusal=refusal)

    def finish(self) -> None:
        """Give its memory back and write its log line, once. Without a status the client has disconnected."""
        if self.is_finished:
            return
        self.is_finished = True
        if self.reply is not None:
            self.reply.close()
        self.memory.release()
        self.exchange.record.status = self.exchange.record.status or CLIENT_CLOSED_REQUEST
        self.exchange.finish()


class TurnRunner:
    """Answers the turns of one connection. With a `refusal` those that have not begun are refused.

    `check_caller` raises Unauthenticated for a caller that is not known any more.
    """

    def __init__(  # noqa: PLR0913  each a part of its own
        self,
        socket: Socket,
        caller: Caller,
        connection: CallerConnection,
        held: HeldResponses,
        ingress: Ingress,
        pipeline: Pipeline,
        *,
        check_caller: Callable[[], None],
    ) -> None:
        self.refusal: HeadgateError | None = None
        self._socket = socket
        self._caller = caller
        self._connection = connection
        self._check_caller = check_caller
        self._held = held
        self._ingress = ingress
        self._pipeline = pipeline

    async def run(self, turn: Turn) -> None:
        """Answer a turn with exactly one last message, and write its log line."""
        record = turn.exchange.record
        try:
            await self._answer(turn)
        except (asyncio.CancelledError, ConnectionError):
            record.status = CLIENT_CLOSED_REQUEST
            record.code = "write_timeout" if self._socket.is_stalled else record.code
            raise
        finally:
            if turn.message.call is not None and (record.status != 200 or record.finish_reason == "failed"):
                self._held.evict(turn.message.stream_id, turn.message.call.body.get("previous_response_id"))
            turn.finish()

    async def _answer(self, turn: Turn) -> None:
        exchange = turn.exchange
        context = self.context(turn)
        try:
            self._check_caller()
            call = self._call(turn.message)
            exchange.record.model, exchange.record.stream = call.model or None, True
            try:
                async with self._pipeline.reply_to(call, context) as reply:
                    await self._send_reply(reply, turn, context)
                return
            finally:
                exchange.record.read(context.transcript)
        except HeadgateError as error:
            refusal = error.with_traceback(None)
        except asyncio.CancelledError as cancelled:
            refusal = shutdown_error(cancelled)
        except ConnectionError:
            raise
        except Exception:
            log.exception("request.crashed", request_id=exchange.request_id)
            refusal = HeadgateError("The gateway failed to answer this request.", code="internal_error")
        exchange.record.status, exchange.record.code = refusal.status, refusal.code
        await self._send_refusal(refusal, turn, context)

    def _call(self, message: ClientMessage) -> Call:
        """Return the call of a message. Raises HeadgateError for one that is refused."""
        refusal = message.refusal or self.refusal
        if refusal is not None or message.call is None:
            raise refusal or HeadgateError("The message has no call.", code="internal_error")
        return self._pipeline.routes.with_model(message.call)

    def context(self, turn: Turn) -> Context:
        """Return the context of a turn."""
        context = self._ingress.context(turn.exchange, self._caller, turn.memory)
        deadline_s = self._ingress.server.deadline_s
        if deadline_s is not None:  # a turn waits for those before it
            context.deadline = asyncio.get_running_loop().time() + deadline_s
        lane, generates = turn.message.stream_id, turn.message.generates
        context.set(LANE_MEMORY, LaneMemory(self._held, lane))
        context.set(LANE_CALL, LaneCall(self._connection, lane, generates, reply=turn.reply, begun_by=turn.begun_by))
        return context

    async def _send_reply(self, reply: Reply, turn: Turn, context: Context) -> None:
        record, lane = turn.exchange.record, turn.message.stream_id
        if reply.batches is None:
            record.status = reply.status
            turn.is_ended = True
            await self._socket.send([in_lane(refusal_message(reply, _headers(turn)), lane)])
            return
        async for batch in reply.batches:
            is_error = context.transcript.has_error and context.transcript.created is None
            if is_error:
                payloads = [in_lane(_first_error(batch, _headers(turn)), lane)]
            elif sum([unit.received_bytes for unit in batch]) < LARGE_BYTES:
                payloads = _payloads(batch, lane)
            else:
                payloads = await context.run_large(_payloads, batch, lane)
            if context.transcript.created is not None and turn.response_id is None:
                turn.response_id = str(context.transcript.created.response.get("id"))
            if payloads and not turn.is_ended:
                turn.is_begun, turn.is_ended = True, is_error or batch[-1].type in TERMINALS
                await self._socket.send(payloads)
        record.status = 200

    async def _send_refusal(self, refusal: HeadgateError, turn: Turn, context: Context) -> None:
        """End a turn: as an error while nothing was sent, as a failed response afterwards."""
        if turn.is_ended:
            return
        if turn.is_begun:
            payload = failure_events(context.transcript, refusal)[-1].json
        else:
            payload = error_message(refusal, _headers(turn))
        await self._socket.send([in_lane(payload, turn.message.stream_id)])


def _headers(turn: Turn) -> dict[str, str]:
    return {"x-request-id": turn.exchange.request_id, **turn.exchange.answer_headers}


def _payloads(batch: Batch, lane: str | None) -> list[bytes]:
    """Return the JSON of each event but `error`: the failed response after that is the last message."""
    return [
        in_lane(payload, lane)
        for unit in batch
        if unit.type != "error"
        for payload in unit.payloads()
        if payload.lstrip().startswith(b"{")
    ]


def _first_error(batch: Batch, headers: Mapping[str, str]) -> bytes:
    """Return the message of an error with which a stream begins: there is no response that could fail."""
    data = next((unit.data for unit in batch if isinstance(unit, Event) and unit.type == "error"), {})
    inner = data.get("error")
    return refusal_message(Reply(502, {}, body=orjson.dumps({"error": inner or data})), headers)
