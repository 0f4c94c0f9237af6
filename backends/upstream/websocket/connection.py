"""One WebSocket connection to an upstream: sends messages, gives each lane its events, pings, and ends.

An upstream that names lanes in its events answers several turns side by side. One that has not named any yet has one
turn at a time: the Open Responses specification has no lanes, and events without a name could belong to any turn.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp import WSMsgType

from backends.upstream.errors import invalid_answer, stalled, timed_out, was_reset
from backends.upstream.websocket.answers import TurnAnswer
from backends.upstream.websocket.dial import CLOSE_S, Socket, SocketDialer
from backends.upstream.websocket.messages import LAST, SIDE, UpstreamMessage, read_message
from backends.upstream.websocket.steering import Steering
from proxy.wire.errors import HeadgateError
from proxy.workers import LARGE_BYTES, MemoryLease

PING_S = 30.0
"""How long an upstream may be silent before it is pinged, and then before it is given up, in seconds."""
GOING_AWAY = 1001
FOLLOWED = LAST | {"response.created"}
RunLarge = Callable[..., Awaitable[Any]]
CONTINUABLE = frozenset({"response.completed", "response.incomplete"})


class UpstreamSocket:
    """A connection, and the task that reads it."""

    def __init__(
        self, socket: Socket, dialer: SocketDialer, steering: Steering, run_large: RunLarge, *, first_s: float,
        between_s: float,
    ) -> None:  # fmt: skip
        """`run_large` calls a function that works on so many bytes, in a thread."""
        self._socket = socket
        self._dialer = dialer
        self._steering = steering
        self._run_large = run_large
        self._first_s, self._between_s = first_s, between_s
        self._turns: dict[str | None, TurnAnswer] = {}  # those whose last message has not arrived
        self._current: dict[str | None, TurnAnswer] = {}  # the last one of each lane
        self._last: dict[str | None, object] = {}  # the last response of each lane
        self._names_lanes = False
        self._is_retired = False
        self._is_heard = True  # whether something has arrived since the last check
        self._is_delivering = False  # then the upstream is not read, because a caller is slow
        self._is_pinged = False
        self._waiters: list[asyncio.Future[None]] = []
        self._closing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(PING_S, self._check)
        self._reading = dialer.start(self._read())

    @property
    def is_usable(self) -> bool:
        """Whether a turn can begin here."""
        return not (self._is_retired or self._reading.done() or self._socket.closed)

    @property
    def is_closed(self) -> bool:
        return self._reading.done()

    def keeps(self, response_id: object) -> bool:
        """Whether the upstream has this response as the last one of a lane of this connection."""
        return response_id in self._last.values()

    def forget(self, response_id: object) -> None:
        """The upstream says that it does not have a response any more."""
        self._last = {lane: known for lane, known in self._last.items() if known != response_id}

    def generates(self, response_id: object) -> bool:
        """Whether a response is the last one of a lane of this connection, finished or not."""
        return any(turn.response_id == response_id for turn in self._current.values())

    async def begin(self, lane: str | None, previous: object, message: bytes, memory: MemoryLease) -> TurnAnswer | None:
        """Ask for a response. None if the connection ended before anything was sent. Raises BackendError."""
        while self.is_usable and self._must_wait(lane):
            await self._wait_for_change()
        if not self.is_usable:
            return None
        turn = self._start(lane, previous, memory)
        try:
            async with asyncio.timeout(self._first_s):
                await self._socket.send_frame(message, WSMsgType.TEXT)
        except TimeoutError as error:
            turn.close()
            raise timed_out(self._first_s) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            turn.close()
            raise was_reset() from error
        except BaseException:
            turn.close()
            raise
        return turn

    async def send(self, message: bytes) -> None:
        """Send a message that begins no turn. One to a connection that has ended is lost, as the turn it concerns."""
        try:
            async with asyncio.timeout(self._first_s):
                await self._socket.send_frame(message, WSMsgType.TEXT)
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            self.retire()

    def retire(self) -> None:
        """Begin no more turns, and close when those that run have ended."""
        self._is_retired = True
        self._note_change()
        if not self._turns and self._closing is None:
            self._closing = self._dialer.start(self._close())

    def abandon(self, turn: TurnAnswer) -> None:
        """The protocol has no message that ends a turn: the connection ends, once no other turn runs on it."""
        if self._turns.get(turn.lane) is turn:
            del self._turns[turn.lane]
        self.retire()

    def close(self) -> None:
        """End the connection, and all turns on it."""
        self._fail_all(was_reset())
        self.retire()

    def _must_wait(self, lane: str | None) -> bool:
        """Whether a turn waits for others: for those of its lane, and for all if the upstream names no lanes."""
        if lane in self._turns or self._steering.is_expected(lane):
            return True
        return bool(self._turns) and not self._names_lanes

    def _start(self, lane: str | None, previous: object, memory: MemoryLease) -> TurnAnswer:
        turn = TurnAnswer(self, lane, previous, first_s=self._first_s, between_s=self._between_s, memory=memory)
        self._turns[lane] = self._current[lane] = turn
        return turn

    async def _wait_for_change(self) -> None:
        """Wait until a turn has ended or the connection has changed. Raises BackendError if that takes too long."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._first_s):
                await waiter
        except TimeoutError as error:
            raise timed_out(self._first_s, sent=False) from error

    async def _close(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._socket.close(code=GOING_AWAY)
        self._socket._response.close()  # noqa: SLF001  aiohttp does not release a connection that was lost
        self._reading.cancel()
        await asyncio.wait([self._reading])

    async def _read(self) -> None:
        """Give every message to its lane until the connection ends."""
        error: HeadgateError = was_reset()
        try:
            while (payload := await self._receive()) is not None:
                if len(payload) < LARGE_BYTES:
                    message = read_message(payload, self._steering.scrub)
                else:
                    self._is_delivering = True
                    message = await self._run_large(len(payload), read_message, payload, self._steering.scrub)
                    self._is_delivering = False
                turn = self._deliver(message)
                if turn is not None and turn.is_full:
                    self._is_delivering = True
                    await turn.wait_for_room()
                    self._is_delivering = False
        except HeadgateError as fault:
            error = fault
        except (aiohttp.ClientError, ConnectionError):
            pass
        finally:
            self._timer.cancel()
            self._fail_all(error)
            self.retire()

    async def _receive(self) -> bytes | None:
        """Return the next message; None at the end. Raises BackendError for what is no message of the protocol."""
        while True:
            received = await self._socket.receive()
            self._is_heard = True
            if received.type is WSMsgType.TEXT:
                return bytes(received.data)
            if received.type is WSMsgType.PING:
                await self._socket.pong(received.data)
            elif received.type is WSMsgType.BINARY:
                raise invalid_answer("a binary message")
            elif received.type is WSMsgType.ERROR:
                raise invalid_answer("a frame that is not valid")
            elif received.type is not WSMsgType.PONG:
                return None

    def _check(self) -> None:
        """Ping a silent upstream, and give up one that does not answer."""
        self._timer = self._loop.call_later(PING_S, self._check)
        is_heard, self._is_heard = self._is_heard or self._is_delivering, False
        if is_heard:
            self._is_pinged = False
        elif self._is_pinged:
            self._fail_all(stalled(PING_S))
            self.retire()
        else:
            self._is_pinged = True
            self._dialer.start(self._ping())

    async def _ping(self) -> None:
        with suppress(aiohttp.ClientError, ConnectionError):
            await self._socket.ping()

    def _deliver(self, message: UpstreamMessage) -> TurnAnswer | None:
        """Give a message to its turn, and return that."""
        kind, lane = message.kind, message.lane
        if kind.startswith(SIDE):
            self._steering.answer(message, self._current)
            self._note_change()
            return None
        turn = self._turn_of(lane, kind)
        if turn is None:
            if kind == "error":  # it concerns the connection
                self.retire()
            return None
        if lane is not None and not self._names_lanes:
            self._names_lanes = True
            self._note_change()
        if kind in FOLLOWED:
            self._follow(turn, message)
        turn.put(message)
        return turn

    def _turn_of(self, lane: str | None, kind: str) -> TurnAnswer | None:
        """Return the turn that an event belongs to: a response that nothing asked for continues a steered one."""
        turn = self._turns.get(lane)
        if turn is None and lane is None and len(self._turns) == 1 and (kind == "error" or not self._names_lanes):
            return next(iter(self._turns.values()))
        if turn is None and kind == "response.created" and self._steering.is_expected(lane):
            before = self._current[lane]
            turn = self._start(lane, before.response_id, MemoryLease())
            self._steering.adopt(turn, before)
        return turn

    def _follow(self, turn: TurnAnswer, message: UpstreamMessage) -> None:
        """Note which response a turn has, and whether the upstream keeps it for the next one."""
        kind = message.kind
        if kind == "response.created":
            response = message.fields.get("response")
            turn.response_id = response.get("id") if isinstance(response, dict) else None
        if kind not in LAST:
            return
        if self._turns.get(turn.lane) is turn:
            del self._turns[turn.lane]
        if kind in CONTINUABLE:
            self._last[turn.lane] = turn.response_id
            self._steering.expect(turn)
        elif self._last.get(turn.lane) == turn.previous:
            self._last.pop(turn.lane, None)
        self._note_change()
        if self._is_retired:
            self.retire()

    def _fail_all(self, error: HeadgateError) -> None:
        for turn in [*self._turns.values()]:
            turn.fail(error)
        self._turns.clear()

    def _note_change(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
