"""An engine in a child process, which it supervises: starts it on demand, watches, restarts and unloads it.

    unloaded --a call, or preload--> starting --ready--> up --idle, or other models need the memory--> unloaded
                                        ^                 |
                                        '--- back-off <---'  it crashed, hung, or sent an invalid message

The gateway survives any failure of the child: calls in flight fail, and later calls wait for the next child, or get
a 503 with the time until then.
"""  # fmt: skip

import asyncio
import math
import time
from collections.abc import Callable, Iterable

import structlog

from backends.local.decoding.job import Job
from backends.local.host.child_process import ChildProcess
from backends.local.host.engine import Engine, model_failed
from backends.local.host.ipc import EngineSpec
from backends.local.host.memory import ModelMemoryBudget
from backends.local.host.shared_messages import SupervisorSettings
from backends.local.scheduling.admission import JobAdmission
from proxy.wire.errors import BackendError
from proxy.wire.loggable import summarize_error

log = structlog.get_logger()

# The pause before a restart doubles up to a maximum; it starts again after the engine has run for STABLE_S.
FIRST_BACKOFF_S, MAX_BACKOFF_S, STABLE_S = 0.25, 30.0, 60.0
# How long a call waits before it looks again at a child that has exited; the supervising task is about to notice.
RETRY_S = 0.01


class ProcessEngine(Engine):
    """The gateway's side of an engine. One task supervises the child process; calls wait until it is up."""

    def __init__(
        self, admission: JobAdmission, spec: EngineSpec, settings: SupervisorSettings, memory: ModelMemoryBudget
    ) -> None:
        super().__init__(admission, spec.vocabulary_size)
        self._spec = spec
        self._settings = settings
        self._memory = memory
        self._peak_bytes = settings.required_bytes
        self._child: ChildProcess | None = None
        self._wanted = asyncio.Event()
        self._up = asyncio.Event()
        self._has_failed = self._closed = False
        self.on_state: Callable[[], None] = lambda: None
        """Called when `is_running` has changed."""
        self._failures = 0
        self._next_start = self._up_since = self._used_at = time.monotonic()
        self._supervision: asyncio.Task[None]

    @classmethod
    async def start(
        cls, admission: JobAdmission, spec: EngineSpec, settings: SupervisorSettings, memory: ModelMemoryBudget
    ) -> "ProcessEngine":
        """Return an engine that is up, or that starts at the first call.

        Raises OSError when its model cannot be loaded, ValueError when the memory budget can never hold it.
        """
        engine = cls(admission, spec, settings, memory)
        memory.join(engine, settings.memory_bytes)
        try:
            if settings.preload and memory.has_room_for(engine):
                engine._wanted.set()
                await engine._start_child()
        except BaseException:
            memory.leave(engine)
            raise
        engine._supervision = asyncio.create_task(engine._supervise())
        return engine

    @property
    def is_running(self) -> bool:
        """Whether calls can be answered; also while the idle model is unloaded."""
        return not self._closed and not self._has_failed

    @property
    def required_bytes(self) -> int:
        """The estimate of its memory, or the largest measured value when that is more."""
        if self._child is not None:
            self._peak_bytes = max(self._peak_bytes, self._child.resident_bytes)
        return self._peak_bytes

    @property
    def idle_since(self) -> float | None:
        """Since when it is loaded and unused; None while it is used or not loaded."""
        return self._used_at if self._up.is_set() and not self._generations else None

    async def unload(self) -> None:
        """End the child process unless it is in use; the next call starts another one."""
        if self.idle_since is not None and self._child is not None:
            self._up.clear()
            self._wanted.clear()
            await self._child.stop()

    async def close(self) -> None:
        """End all answers and the child process."""
        self._closed = True
        self.fail_all(_unavailable("The local model was stopped.", 1))
        if self._child is not None:
            await self._child.stop()
        self._supervision.cancel()
        await asyncio.gather(self._supervision, return_exceptions=True)
        self._up.set()  # waiting calls see that the engine is closed
        self._memory.leave(self)

    async def _submit(self, job: Job) -> None:
        self._wanted.set()
        can_send = self._up.is_set() and self._child is not None and self._child.is_writable
        if can_send and await self._try_submit(job):  # almost always, and without a timer
            return
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                while not await self._try_submit(job):
                    pass
        except TimeoutError as error:
            raise _unavailable("The local model is not loaded yet.", self._starts_in_s) from error

    async def _try_submit(self, job: Job) -> bool:
        if self._closed:
            raise _unavailable("The local model is closing.", 1)
        if self._starts_in_s > self._settings.start_timeout_s:
            raise _unavailable("The local model failed and will be restarted.", self._starts_in_s)
        await self._up.wait()
        if self._child is not None and await self._child.submit(job):
            return True
        await asyncio.sleep(RETRY_S)
        return False

    def _cancel(self, job: Job) -> None:
        if self._child is not None:
            self._child.cancel(job.id)

    def _deliver_at_once(self, job: Job) -> None:
        if self._child is not None:
            self._child.deliver_at_once(job.id)

    def _note_end(self) -> None:
        self._used_at = time.monotonic()
        self._memory.notify()

    @property
    def _starts_in_s(self) -> float:
        return self._next_start - time.monotonic()

    async def _supervise(self) -> None:
        """Run one child after another, each as soon as one is wanted."""
        while not self._closed:
            try:
                reason = await self._run_child(self._child or await self._start_child())
            except Exception as error:  # noqa: BLE001  without this task no call would ever be answered again
                is_known = isinstance(error, OSError)
                reason = str(error) if is_known else summarize_error(error)
                self._set_failed(True)
            if reason:
                await self._back_off(reason)

    async def _start_child(self) -> ChildProcess:
        """Start a child once one is wanted and memory is free. Raises OSError when its model cannot be loaded."""
        await self._wanted.wait()
        await self._memory.acquire(self)
        try:
            child = await ChildProcess.start(self._spec, hang_timeout_s=self._settings.hang_timeout_s)
        except BaseException:
            self._memory.release(self)
            raise
        self.device, self.compute_type = child.ready.device, child.ready.compute_type
        self._admission.set_costs(child.ready.costs)
        self._child = child
        self._used_at = self._up_since = time.monotonic()
        self._up.set()
        if self._has_failed:
            log.warning("engine.restarted", backend=self._settings.backend)
        self._set_failed(False)
        return child

    async def _run_child(self, child: ChildProcess) -> str:
        """Receive steps until the child exits; return why it did, or "" when it was stopped."""
        idle_check = asyncio.create_task(self._unload_when_idle())
        try:
            await child.receive(self.receive)
        finally:
            idle_check.cancel()
            self._up.clear()
            self._child = None
            self._set_failed(not child.stop_requested)
            self._fail_jobs(child.jobs)
            reason = await child.wait()
            self._memory.release(self)
        if not child.stop_requested:
            return reason
        log.info("model.unloaded", backend=self._settings.backend)
        return ""

    def _set_failed(self, has_failed: bool) -> None:  # noqa: FBT001  it is what is set
        if has_failed != self._has_failed:
            self._has_failed = has_failed
            self.on_state()

    def _fail_jobs(self, job_ids: Iterable[int]) -> None:
        for job_id in job_ids:
            if job_id in self._generations:
                self._generations[job_id].fail(model_failed())

    async def _unload_when_idle(self) -> None:
        keep_alive_s = self._settings.keep_alive_s
        while keep_alive_s is not None:
            since = self.idle_since
            remaining_s = keep_alive_s if since is None else since + keep_alive_s - time.monotonic()
            if remaining_s <= 0:
                await self.unload()
            await asyncio.sleep(max(remaining_s, 0))

    async def _back_off(self, reason: str) -> None:
        """Wait before the next start."""
        if time.monotonic() - self._up_since > STABLE_S:
            self._failures = 0
        pause_s = min(FIRST_BACKOFF_S * 2**self._failures, MAX_BACKOFF_S)
        self._failures += 1
        self._next_start = time.monotonic() + pause_s
        log.error("engine.exited", backend=self._settings.backend, reason=reason, starts_in_s=pause_s)
        await asyncio.sleep(pause_s)


def _unavailable(message: str, retry_after_s: float) -> BackendError:
    headers = {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
    return BackendError(
        message, status=503, code="local_model_unavailable", headers=headers, source="gateway", retryable=True,
        sent=False,
    )  # fmt: skip
