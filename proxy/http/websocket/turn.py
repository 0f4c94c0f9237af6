"""One turn: a message that creates a response -> the path of every call -> one message for each event."""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import orjson
import structlog

from proxy.context import Caller, Context
from proxy.http.dispatch import CLIENT_CLOSED_REQUEST
from proxy.http.exchange import Exchange
from proxy.http.ingress import Ingress
from proxy.http.websocket.socket import Socket
from proxy.lane import LANE_CALL, CallerConnection, LaneCall, UnsolicitedReply
from proxy.pipeline import Pipeline
from proxy.shutdown import shutdown_error
from proxy.state.held_responses import LANE_MEMORY, HeldResponses, LaneMemory
from proxy.wire.call import Call
from proxy.wire.client_message import ClientMessage, error_message, in_lane, lines_in_lane, refusal_message
from proxy.wire.ending import failure_events
from proxy.wire.errors import HeadgateError
from proxy.wire.event import TERMINALS, Batch, Event, MessageRun, Reply, Run, parse_leniently
from proxy.wire.large_json import dumps
from proxy.wire.lifting import add_contact
from proxy.wire.passage import forward_runs
from proxy.workers import LARGE_BYTES, MemoryLease

log = structlog.get_logger()
_OBJECT = re.compile(rb"\s*+\{")  # how an object begins


@dataclass(slots=True)
class Turn:
    """A message with its record and memory, and the state of its answer."""

    exchange: Exchange
    message: ClientMessage
    memory: MemoryLease
    reply: UnsolicitedReply | None = None  # of a turn that a backend began without a message
    begun_by: str | None = None  # its name
    response_id: str | None = None
    left_out: int = 0
    """How many events were left out; the numbers of later events continue without a gap."""
    is_begun: bool = False
    is_ended: bool = False
    is_finished: bool = False

    def refuse(self, refusal: HeadgateError) -> None:
        self.message = replace(self.message, refusal=refusal)

    def finish(self) -> None:
        """Release its memory and write its log line, once. Without a status the client has disconnected."""
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
        self._starts = ingress.workers.starts
        self._pipeline = pipeline

    async def run(self, turn: Turn) -> None:
        """Answer a turn, with exactly one last message, and write its log line."""
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
            if not self._starts.take():
                await self._starts.wait(self._caller.team)
            self._check_caller()
            exchange.count_call()
            call = self._call(turn.message)
            exchange.record.model, exchange.record.stream = call.model or None, True
            async with context.cleanup:
                await self._send_reply(await self._pipeline.reply(call, context), turn, context)
        except HeadgateError as error:
            refusal = error.with_traceback(None)
        except asyncio.CancelledError as cancelled:
            refusal = shutdown_error(cancelled)
        except ConnectionError:
            raise
        except Exception:
            log.exception("request.crashed", request_id=exchange.request_id)
            refusal = HeadgateError("The gateway failed to answer this request.", code="internal_error")
        else:
            return
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
        context = self._ingress.make_context(turn.exchange, self._caller, turn.memory)
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
            is_error = context.transcript.error and context.transcript.created is None
            if is_error:
                payloads = [in_lane(_first_error(batch, _headers(turn)), lane)]
            elif sum([unit.received_bytes for unit in batch]) < LARGE_BYTES:
                payloads = _payloads(batch, turn)
            else:
                payloads = await context.run_large(_payloads, batch, turn)
            if turn.response_id is None:
                turn.response_id = _created_id(batch)
            if payloads and not turn.is_ended:
                is_first, turn.is_begun = not turn.is_begun, True
                turn.is_ended = is_error or batch[-1].type in TERMINALS
                await self._socket.send(payloads)
                if is_first:
                    forward_runs(reply.batches, partial(self._send_run, turn))
            del batch, payloads  # or they would stay in memory until the next ones come
        record.status = 200

    def _send_run(self, turn: Turn, frames: bytes) -> bool:
        """Send a run that arrives between two batches, if that needs no waiting; return whether it was sent."""
        return not turn.is_ended and self._socket.send_now([*_unit_payloads(Run(frames), turn)])

    async def _send_refusal(self, refusal: HeadgateError, turn: Turn, context: Context) -> None:
        """End a turn: as an error while nothing was sent, as a failed response afterwards."""
        if turn.is_ended:
            return
        add_contact(refusal, self._ingress.server.contact)
        if turn.is_begun:
            events = failure_events(context.transcript, refusal)
            payloads = [payload for event in events for payload in _unit_payloads(event, turn)]
        else:
            payloads = [in_lane(error_message(refusal, _headers(turn)), turn.message.stream_id)]
        await self._socket.send(payloads)


def _created_id(batch: Batch) -> str | None:
    """Return the id of the response that begins in a batch, if one does.

    The transcript's event would be parsed for it, and kept so.
    """
    created = next((unit for unit in batch if isinstance(unit, Event) and unit.type == "response.created"), None)
    return None if created is None else str(created.response.get("id"))


def _headers(turn: Turn) -> dict[str, str]:
    return {"x-request-id": turn.exchange.request_id, **turn.exchange.answer_headers}


def _payloads(batch: Batch, turn: Turn) -> list[bytes]:
    """Return the JSON of each event to send, with its lane."""
    payloads: list[bytes] = []
    for unit in batch:
        if isinstance(unit, MessageRun) and not turn.left_out:
            payloads += lines_in_lane(unit.raw, turn.message.stream_id).split(b"\n")
        else:
            payloads += _unit_payloads(unit, turn)
    return payloads


def _unit_payloads(unit: Event | Run, turn: Turn) -> Iterator[bytes]:
    """Yield the JSON of each event but `error`: the failed response after that is the last message."""
    if isinstance(unit, Event) and unit.type == "error":
        turn.left_out += "sequence_number" in unit.data
        return
    for payload in unit.payloads():
        if _OBJECT.match(payload):
            numbered = _renumbered(payload, turn.left_out) if turn.left_out else payload
            yield in_lane(numbered, turn.message.stream_id)


def _renumbered(payload: bytes, left_out: int) -> bytes:
    """Return an event with the number that it has after `left_out` events that were not sent."""
    try:
        data = parse_leniently(payload)
    except ValueError:
        return payload
    number = data.get("sequence_number")
    if not isinstance(number, int):
        return payload
    return dumps({**data, "sequence_number": number - left_out}, len(payload))


def _first_error(batch: Batch, headers: Mapping[str, str]) -> bytes:
    """Return the message of an error with which a stream begins: there is no response that could fail."""
    data = next((unit.data for unit in batch if isinstance(unit, Event) and unit.type == "error"), {})
    inner = data.get("error")
    return refusal_message(Reply(502, {}, body=orjson.dumps({"error": inner or data})), headers)
