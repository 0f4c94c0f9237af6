"""The connection to an upstream that belongs to one connection of a caller."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from backends.upstream.credentials import Credentials
from backends.upstream.errors import was_reset
from backends.upstream.websocket.answers import FixedAnswer, TurnAnswer
from backends.upstream.websocket.connection import RunLarge, UpstreamSocket
from backends.upstream.websocket.dial import HAS_NONE, SocketDialer, UpgradeRefused
from backends.upstream.websocket.messages import MessageReader, create_message, refusal_of
from backends.upstream.websocket.steering import Steering
from proxy.context import Context
from proxy.lane import CallerConnection, LaneCall
from proxy.wire.call import Call
from proxy.wire.event import Event, Run

Headers = Callable[[], Mapping[str, str]]

ATTEMPTS = 3
"""How often a call is sent that an upstream refuses for what its connection has lost, or has become too old for, or
for a key that has expired meanwhile."""
TOO_OLD = "websocket_connection_limit_reached"
LOST = "previous_response_not_found"


class UpstreamLink:
    """Opens a connection for the first turn, and another one when it was lost. A refused one is not tried again."""

    def __init__(
        self,
        caller: CallerConnection,
        dialer: SocketDialer,
        credentials: Credentials,
        *,
        ends: frozenset[str],
        first_s: float,
        between_s: float,
    ) -> None:
        self._caller = caller
        self._dialer = dialer
        self._credentials = credentials
        self._key: Mapping[str, str] = {}  # the headers with the key that the last connection was opened with
        self._ends = ends
        self._first_s, self._between_s = first_s, between_s
        self._socket: UpstreamSocket | None = None
        self._former: set[UpstreamSocket] = set()  # that may still have turns
        self._opening = asyncio.Lock()
        self._is_refused = False
        self._is_closed = False

    async def ask(
        self, call: Call, lane_call: LaneCall, headers: Headers, context: Context
    ) -> TurnAnswer | FixedAnswer | None:
        """Return what the upstream answers to a call; None if it has no WebSocket mode. Raises BackendError.

        `headers` are those of a new connection, beside the gateway's own.
        """
        for attempt in range(ATTEMPTS):
            socket = await self._connected(call, headers, context)
            if socket is None:
                return None
            brief = lane_call.brief
            if brief is not None and not _fits(brief, call, socket):
                brief = None
            turn = await self._begin(socket, brief or call, lane_call, context)
            if turn is None:
                continue
            first = await _first_of(turn)
            if first.type != "error" or not isinstance(first, Event):
                return turn
            turn.close()
            status, fields, error = refusal_of(first.json)
            if attempt < ATTEMPTS - 1 and await self._is_repeated(socket, status, error.get("code"), brief):
                continue
            return FixedAnswer(status, fields, {"error": error})
        raise was_reset(sent=False)

    def generates(self, response_id: object) -> bool:
        return self._socket is not None and self._socket.is_usable and self._socket.generates(response_id)

    async def send(self, message: bytes) -> None:
        if self._socket is not None:
            await self._socket.send(message)

    def close(self) -> None:
        self._is_closed = True
        for socket in (*self._former, *([] if self._socket is None else [self._socket])):
            socket.close()

    async def _connected(self, call: Call, headers: Headers, context: Context) -> UpstreamSocket | None:
        """Return a connection on which a turn can begin; None if the upstream refuses one. Raises BackendError."""
        async with self._opening:
            if self._socket is not None and self._socket.is_usable:
                return self._socket
            if self._socket is not None:
                self._former = {former for former in (*self._former, self._socket) if not former.is_closed}
                self._socket = None
            if self._is_refused or self._dialer.is_refused:
                return None
            key = self._credentials.current
            self._key = await self._credentials.read() if key is None else key
            try:
                opened = await self._dialer.connect(call.query.partition("#")[0], {**headers(), **self._key})
            except UpgradeRefused as refusal:
                self._is_refused = refusal.status in HAS_NONE
                return None
            if self._is_closed:  # the caller has left meanwhile
                opened.close()
                raise was_reset(sent=False)
            self._socket = UpstreamSocket(
                opened, MessageReader(context.followed, self._credentials.scrubber, self._ends),
                Steering(self._caller, self._dialer.name), context.memory.begin_another(), _worker_for(context),
                self._dialer.start, first_s=self._first_s, between_s=self._between_s,
            )  # fmt: skip
            return self._socket

    async def _begin(
        self, socket: UpstreamSocket, call: Call, lane_call: LaneCall, context: Context
    ) -> TurnAnswer | None:
        def encode() -> bytes:
            return create_message(call, lane_call.lane, generates=lane_call.generates)

        message = await context.run(max(call.received_bytes, call.size_bytes), encode)
        return await socket.begin(lane_call.lane, call.body.get("previous_response_id"), message, context.memory)

    async def _is_repeated(self, socket: UpstreamSocket, status: int, code: object, brief: Call | None) -> bool:
        """Whether a refusal leads to another attempt: nothing was run, and the next one is not refused for this."""
        if code == TOO_OLD or (status == 401 and await self._credentials.renew(self._key) is not None):
            socket.retire()
            return True
        if code == LOST and brief is not None:
            socket.forget(brief.body.get("previous_response_id"))
            return True
        return False


def _worker_for(context: Context) -> RunLarge:
    """Return a function that runs work on a number of bytes for this caller, and reserves their memory meanwhile."""
    memory, workers, caller = context.memory.begin_another(), context.workers, context.caller.name

    async def run(size_bytes: int, function: Callable[..., Any], *args: Any) -> Any:
        if workers is None:
            return function(*args)
        with memory.begin_another() as taken:
            taken.grow(size_bytes)
            return await workers.run_for(caller, size_bytes, function, *args)

    return run


def _fits(brief: Call, call: Call, socket: UpstreamSocket) -> bool:
    """Return whether the brief form can be sent: a fallback may have changed the model."""
    return brief.model == call.model and socket.keeps(brief.body.get("previous_response_id"))


async def _first_of(turn: TurnAnswer) -> Event | Run:
    """Return the first event of a turn, or run of others; a turn without one is given up."""
    try:
        return await turn.wait_for_first()
    except BaseException:
        turn.close()
        raise
