"""An engine in a process of its own: started when it is wanted, watched, started again, unloaded when it is idle.

    unloaded --a call, or preload--> starting --ready--> up --idle, or others need the memory--> unloaded
                                        ^                 |
                                        '---- a pause <---'  it crashed, hung, or said what no engine says

Whatever becomes of it, the gate goes on: calls in flight fail, the next ones wait for the new process, or are told
when to come back.
"""  # fmt: skip

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import structlog

from backends.local.decoding.job import Job, Options
from backends.local.host.child_process import Spawned
from backends.local.host.engine import Engine, Generation
from backends.local.host.ipc import Order
from backends.local.host.memory import Memory
from backends.local.scheduling.admission import Admission
from proxy.wire.errors import BackendError

log = structlog.get_logger()

# How long until it is started again: longer each time, until it has been well for a while.
FIRST_PAUSE_S, LONGEST_PAUSE_S, WELL_S = 0.25, 30.0, 60.0
# How long until another look at a process that is gone, which who keeps it is about to learn.
LEARNS_S = 0.01


@dataclass(frozen=True, slots=True)
class Terms:
    """How an engine is kept."""

    backend: str  # whose engine it is, for the logs
    start_timeout_s: float
    hang_timeout_s: float
    keep_alive_s: float | None
    preload: bool
    memory_bytes: int | None  # what all models of this gate may take together
    needs_bytes: int  # what this one is thought to take


class InProcess(Engine):
    """The engine's side in the gate. One task keeps the process; calls wait until it is up."""

    def __init__(self, admission: Admission, order: Order, terms: Terms, memory: Memory) -> None:
        super().__init__(admission, order.vocabulary_size)
        self._order = order
        self._terms = terms
        self._memory = memory
        self._most_bytes = terms.needs_bytes
        self._spawned: Spawned | None = None
        self._wanted = asyncio.Event()
        self._up = asyncio.Event()
        self._broken = self._closed = False
        self._failures = 0
        self._next_start = self._up_at = self._used_at = time.monotonic()
        self._keeping: asyncio.Task[None]

    @classmethod
    async def started(cls, admission: Admission, order: Order, terms: Terms, memory: Memory) -> Self:
        """An engine that is up, or that will be at the first call. Raises OSError when its model cannot be loaded,
        ValueError when there can never be room for it."""
        engine = cls(admission, order, terms, memory)
        memory.join(engine, terms.memory_bytes)
        try:
            if terms.preload and memory.fits(engine):
                engine._wanted.set()
                await engine._start()
        except BaseException:
            memory.leave(engine)
            raise
        engine._keeping = asyncio.create_task(engine._keep())
        return engine

    @property
    def running(self) -> bool:
        """Also while it is unloaded because nobody asks."""
        return not self._closed and not self._broken

    @property
    def needs_bytes(self) -> int:
        """What it is thought to take, or what it was seen to take when that is more."""
        if self._spawned is not None:
            self._most_bytes = max(self._most_bytes, self._spawned.resident_bytes)
        return self._most_bytes

    @property
    def idle_since(self) -> float | None:
        return self._used_at if self._up.is_set() and not self._live else None

    @asynccontextmanager
    async def generate(self, prompt: Sequence[int], options: Options) -> AsyncIterator[Generation]:
        try:
            async with super().generate(prompt, options) as generation:
                yield generation
        finally:
            self._used_at = time.monotonic()
            self._memory.tell()

    async def unload(self) -> None:
        """End the process, unless somebody waits for it; the next call starts it again."""
        if self.idle_since is not None and self._spawned is not None:
            self._up.clear()
            self._wanted.clear()
            await self._spawned.stop()

    async def close(self) -> None:
        """End what still runs, the process too."""
        self._closed = True
        self.fail_all(_unavailable("The local model was stopped.", 1))
        if self._spawned is not None:
            await self._spawned.stop()
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        self._up.set()  # who waits for it learns that it is closed
        self._memory.leave(self)

    async def _begin(self, job: Job) -> None:
        self._wanted.set()
        try:
            async with asyncio.timeout(self._terms.start_timeout_s):
                while not await self._handed_over(job):
                    pass
        except TimeoutError as error:
            raise _unavailable("The local model is not there yet.", self._starts_in_s) from error

    async def _handed_over(self, job: Job) -> bool:
        if self._closed:
            raise _unavailable("The local model is closing.", 1)
        if self._starts_in_s > self._terms.start_timeout_s:
            raise _unavailable("The local model broke down and is started again later.", self._starts_in_s)
        await self._up.wait()
        if self._spawned is not None and await self._spawned.begin(job):
            return True
        await asyncio.sleep(LEARNS_S)
        return False

    def _cancel(self, job: Job) -> None:
        if self._spawned is not None:
            self._spawned.cancel(job.id)

    @property
    def _starts_in_s(self) -> float:
        return self._next_start - time.monotonic()

    async def _keep(self) -> None:
        """Have a process whenever one is wanted."""
        while not self._closed:
            try:
                why = await self._life(self._spawned or await self._start())
            except Exception as error:  # noqa: BLE001  whatever it is: without this task nobody would ever be answered
                known = isinstance(error, OSError)
                why, self._broken = str(error) if known else f"{type(error).__name__}: {error}", True
            if why:
                await self._pause(why)

    async def _start(self) -> Spawned:
        """A process, once it is wanted and there is room for it. Raises OSError when the model cannot be loaded."""
        await self._wanted.wait()
        await self._memory.claim(self)
        try:
            spawned = await Spawned.started(self._order, hang_timeout_s=self._terms.hang_timeout_s)
        except BaseException:
            self._memory.release(self)
            raise
        self.device, self.compute_type = spawned.ready.device, spawned.ready.compute_type
        self._admission.calibrated(spawned.ready.costs)
        self._spawned = spawned
        self._used_at = self._up_at = time.monotonic()
        self._up.set()
        if self._broken:
            log.warning("local.engine_restarted", backend=self._terms.backend)
        self._broken = False
        return spawned

    async def _life(self, spawned: Spawned) -> str:
        """Until a process ends; why it did, "" when it was told to."""
        tiring = asyncio.create_task(self._tire())
        try:
            await spawned.live(self.take)
        finally:
            tiring.cancel()
            self._up.clear()
            self._spawned = None
            self._broken = not spawned.asked_to_end
            self._lose(spawned.jobs)
            why = await spawned.end()
            self._memory.release(self)
        if not spawned.asked_to_end:
            return why
        log.info("local.unloaded", backend=self._terms.backend)
        return ""

    def _lose(self, jobs: Iterable[int]) -> None:
        """Tell who waits for them that they will never end."""
        for number in jobs:
            if number in self._live:
                self._live[number].fail(BackendError("The local model broke down.", code="local_model_failed"))

    async def _tire(self) -> None:
        """Unload it once nobody has used it for so long."""
        keep_alive_s = self._terms.keep_alive_s
        while keep_alive_s is not None:
            since = self.idle_since
            left_s = keep_alive_s if since is None else since + keep_alive_s - time.monotonic()
            if left_s <= 0:
                await self.unload()
            await asyncio.sleep(max(left_s, 0))

    async def _pause(self, why: str) -> None:
        """Wait before it is started again."""
        if time.monotonic() - self._up_at > WELL_S:
            self._failures = 0
        pause_s = min(FIRST_PAUSE_S * 2**self._failures, LONGEST_PAUSE_S)
        self._failures += 1
        self._next_start = time.monotonic() + pause_s
        log.error("local.engine_ended", backend=self._terms.backend, reason=why, starts_in_s=pause_s)
        await asyncio.sleep(pause_s)


def _unavailable(message: str, again_in_s: float) -> BackendError:
    again = {"Retry-After": str(max(1, math.ceil(again_in_s)))}
    return BackendError(message, status=503, code="local_model_unavailable", headers=again)
