"""One WebSocket connection to an upstream: sends messages, gives each lane its events, pings, and ends.

An upstream that names lanes in its events answers several turns side by side. One that has not named any yet has one
turn at a time: the Open Responses specification has no lanes, and events without a name could belong to any turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from backends.upstream.errors import timed_out, was_reset
from backends.upstream.websocket.answers import TurnAnswer
from backends.upstream.websocket.frame_socket import FrameSocket
from backends.upstream.websocket.messages import SIDE, MessageReader
from backends.upstream.websocket.steering import Steering
from proxy.wire.bounds import has_more_values
from proxy.wire.errors import BackendError, HeadgateError
from proxy.wire.event import Event, Run
from proxy.wire.large_bytes import join_pieces
from proxy.workers import LARGE_BYTES, MANY_VALUES, MemoryLease

Start = Callable[[Coroutine[Any, Any, None]], object]
RunLarge = Callable[..., Awaitable[Any]]
CONTINUABLE = frozenset({"response.completed", "response.incomplete"})


class UpstreamSocket:
    """Runs the turns of a connection, and receives its messages."""

    def __init__(  # noqa: PLR0913  each a part of its own
        self, socket: FrameSocket, reader: MessageReader, steering: Steering, memory: MemoryLease, run_large: RunLarge,
        start: Start, *, first_s: float, between_s: float,
    ) -> None:  # fmt: skip
        """`memory` is an empty lease, `run_large` calls a function that works on so many bytes in a thread, `start`
        runs work that may outlast the connection of the caller.
        """
        self._socket = socket
        self._reader = reader
        self._steering = steering
        self._memory = memory
        self._run_large = run_large
        self._start_work = start
        self._first_s, self._between_s = first_s, between_s
        self._turns: dict[str | None, TurnAnswer] = {}  # those whose last message has not arrived
        self._current: dict[str | None, TurnAnswer] = {}  # the last one of each lane
        self._last: dict[str | None, object] = {}  # the last response of each lane
        self._names_lanes = False
        self._is_retired = False
        self._is_reading_parts = False  # while a long message is read in a thread
        self._waiters: list[asyncio.Future[None]] = []
        self._loop = asyncio.get_running_loop()
        socket.start(self, memory.begin_another())

    @property
    def is_usable(self) -> bool:
        """Whether a turn can begin on this connection."""
        return not self._is_retired and self._socket.is_open

    @property
    def is_closed(self) -> bool:
        return self._socket.closed.done()

    def keeps(self, response_id: object) -> bool:
        """Whether the upstream has this response as the last one of a lane of this connection."""
        return response_id in self._last.values()

    def forget(self, response_id: object) -> None:
        """Forget a response that the upstream no longer has."""
        self._last = {lane: known for lane, known in self._last.items() if known != response_id}

    def generates(self, response_id: object) -> bool:
        """Whether a response is the last one of a lane of this connection, finished or not."""
        return any(turn.response_id == response_id for turn in self._current.values())

    async def begin(self, lane: str | None, previous: object, message: bytes, memory: MemoryLease) -> TurnAnswer | None:
        """Begin a turn; return None if the connection ended before anything was sent. Raises BackendError."""
        while self.is_usable and self._must_wait(lane):
            await self._wait_for_change()
        if not self.is_usable:
            return None
        turn = self._start(lane, previous, memory)
        try:
            async with asyncio.timeout(self._first_s):
                await self._socket.send(message)
        except TimeoutError as error:
            turn.close()
            raise timed_out(self._first_s) from error
        except ConnectionError as error:
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
                await self._socket.send(message)
        except (ConnectionError, TimeoutError):
            self.retire()

    def retire(self) -> None:
        """Begin no more turns, and close after the running ones."""
        self._is_retired = True
        self._note_change()
        if not self._turns:
            self._socket.close()

    def abandon(self, turn: TurnAnswer) -> None:
        """The protocol has no message that ends a turn: the connection ends, once no other turn runs on it."""
        if self._turns.get(turn.lane) is turn:
            del self._turns[turn.lane]
        self.retire()

    def close(self) -> None:
        """End the connection, and all turns on it."""
        self._fail_all(was_reset())
        self.retire()

    def note_room(self) -> None:
        """Resume receiving, unless another turn is full, or a long message is being read."""
        if not self._is_reading_parts and not any(turn.is_full() for turn in self._current.values()):
            self._socket.resume()

    def receive(self, payloads: list[bytes]) -> None:
        """Give messages to their turns. Raises BackendError for those that are not valid."""
        try:
            units = self._reader.read(payloads)
        except BackendError:
            if len(payloads) == 1:
                raise
            for payload in payloads:  # those before the invalid one have arrived
                self.receive([payload])
            return
        self._deliver(units)

    def receive_parts(self, parts: list[bytes]) -> None:
        """Give a long message to its turn; one that is read in a thread keeps those after it waiting."""
        size = sum(map(len, parts))
        if size < LARGE_BYTES and not has_more_values(payload := b"".join(parts), MANY_VALUES):
            self.receive([payload])
            return
        self._is_reading_parts = True
        self._socket.pause()
        self._start_work(self._read_parts(size, parts))

    def lose(self, error: HeadgateError) -> None:
        """End all turns: no more messages arrive."""
        self._fail_all(error)
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

    async def _read_parts(self, size: int, parts: list[bytes]) -> None:
        try:
            self._deliver(await self._run_large(size, _read_joined, self._reader, parts))
        except HeadgateError as error:
            self._fail_all(error)
            self.retire()
        finally:
            self._is_reading_parts = False
            self.note_room()

    def _deliver(self, units: list[tuple[str | None, Event | Run]]) -> None:
        """Give events to their turns, and receive no more while one of those has too much unread."""
        for lane, unit in units:
            turn = self._receive_unit(lane, unit)
            if turn is not None and turn.is_full():
                self._socket.pause()

    def _receive_unit(self, lane: str | None, unit: Event | Run) -> TurnAnswer | None:
        """Give an event to its turn, and return that."""
        kind = unit.type
        if kind.startswith(SIDE) and isinstance(unit, Event):
            self._steering.answer(unit, self._current)
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
        is_last = kind in self._reader.ends
        if isinstance(unit, Event) and (is_last or kind == "response.created"):
            self._follow(turn, unit, is_last=is_last)
        turn.put(unit, is_last=is_last)
        return turn

    def _turn_of(self, lane: str | None, kind: str) -> TurnAnswer | None:
        """Return the turn that an event belongs to: a response that nothing asked for continues a steered one."""
        turn = self._turns.get(lane)
        if turn is None and lane is None and len(self._turns) == 1 and (kind == "error" or not self._names_lanes):
            return next(iter(self._turns.values()))
        if turn is None and kind == "response.created" and self._steering.is_expected(lane):
            before = self._current[lane]
            memory = self._memory.begin_another()
            turn = self._start(lane, before.response_id, memory)
            turn.after.append(memory.release)
            self._steering.adopt(turn, before)
        return turn

    def _follow(self, turn: TurnAnswer, event: Event, *, is_last: bool) -> None:
        """Record which response a turn generates, and whether the upstream keeps it for the next turn."""
        kind = event.type
        if kind == "response.created":
            turn.response_id = event.response.get("id")
        if not is_last:
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


def _read_joined(reader: MessageReader, parts: list[bytes]) -> list[tuple[str | None, Event | Run]]:
    return reader.read([join_pieces(parts)])
