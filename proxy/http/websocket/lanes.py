"""Turns of one connection: in the order of their messages within a lane, lanes side by side."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")

MAX_ACTIVE, MAX_NAMES = 16, 32
"""Source: https://platform.openai.com/docs/guides/websocket-mode (limits of one connection)."""
MAX_WAITING = 64
"""How many turns of one connection may wait before no more messages are read."""


class Lanes(Generic[T]):
    """Runs turns: one at a time in each lane, and at most MAX_ACTIVE together."""

    def __init__(
        self, run: Callable[[T], Awaitable[None]], drop: Callable[[T], None], on_idle: Callable[[], None]
    ) -> None:
        """`drop` is called for turns that do not run to their end, `on_idle` when the last turn has ended."""
        self._run = run
        self._drop = drop
        self._on_idle = on_idle
        self._waiting: dict[str | None, list[T]] = {}  # of the lanes that have a turn
        self._tasks: set[asyncio.Task[None]] = set()
        self._names: set[str] = set()
        self._places = asyncio.Semaphore(MAX_ACTIVE)
        self._room: asyncio.Future[None] | None = None  # while a message waits for turns to end
        self._count = 0

    @property
    def is_idle(self) -> bool:
        return not self._count

    def admit(self, lane: str | None) -> bool:
        """Return whether a lane may be used: a connection has a limit of lane names."""
        if lane is None or lane in self._names:
            return True
        if len(self._names) >= MAX_NAMES:
            return False
        self._names.add(lane)
        return True

    async def add(self, lane: str | None, turn: T) -> None:
        """Run a turn after those of its lane. Waits while too many wait."""
        self._count += 1
        if lane in self._waiting:
            self._waiting[lane].append(turn)
        else:
            self._waiting[lane] = [turn]  # an empty deque has room for 64
            self._start(self._serve(lane))
        if self._count >= MAX_WAITING:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def add_next(self, lane: str | None, turn: T, after: T | None) -> None:
        """Run a turn that a backend began: before those that wait for `after`, or at once if that has ended."""
        self._count += 1
        waiting = self._waiting.get(lane)
        if waiting and waiting[0] is after:
            waiting.insert(1, turn)
        elif waiting:
            self._start(self._run_alone(turn))
        else:
            self._waiting[lane] = [turn]  # an empty deque has room for 64
            self._start(self._serve(lane))

    @property
    def running(self) -> list[T]:
        """The turns that run, or wait for a place."""
        return [turns[0] for turns in self._waiting.values() if turns]

    def cancel(self, cancel: Callable[[asyncio.Task[None]], object]) -> None:
        """Cancel all turns that run."""
        for task in [*self._tasks]:
            cancel(task)

    async def wait(self) -> None:
        """Wait until all turns have ended."""
        if self._tasks:
            await asyncio.wait([*self._tasks])

    async def _serve(self, lane: str | None) -> None:
        turns = self._waiting[lane]
        try:
            while turns:
                async with self._places:
                    await self._run(turns[0])
                del turns[0]
                self._count -= 1
                self._note_end()
                if turns:  # refused ones would follow each other without a pause
                    await asyncio.sleep(0)
        finally:
            del self._waiting[lane]
            self._count -= len(turns)
            for turn in turns:
                self._drop(turn)
            self._note_end()

    async def _run_alone(self, turn: T) -> None:
        try:
            await self._run(turn)
        finally:
            self._count -= 1
            self._note_end()

    def _start(self, serving: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(serving)
        self._tasks.add(task)
        task.add_done_callback(self._note_done)

    def _note_done(self, task: asyncio.Task[None]) -> None:
        """Forget a lane that has no more turns. One that has lost its client ends with a ConnectionError."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ConnectionError):
            log.error("request.crashed", exc_info=error)

    def _note_end(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if not self._count:
            self._on_idle()
