"""The gateway's handle on one child process of an engine, from its start to its exit."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import structlog

from backends.local.decoding.failure import OUT_OF_MEMORY
from backends.local.decoding.job import DecodingStep, Job
from backends.local.host.ipc import (
    MAX_BYTES,
    Channel,
    EngineReady,
    EngineSpec,
    IpcError,
    decode_ready,
    decode_steps,
    encode_job,
    encode_message,
)
from backends.local.host.watchdog import Watchdog
from proxy.wire.errors import RequestError

log = structlog.get_logger()

PROGRAM = Path(__file__).with_name("child_start.py")
ROOT = Path(__file__).resolve().parents[3]  # the folder of the package: the child runs the gateway's own code
# The parts of the gateway's environment that the child inherits; secrets are not among them.
INHERITED = frozenset({"HOME", "LANG", "PATH", "TMPDIR", "TZ"})
INHERITED_PREFIXES = ("CT2_", "CUDA_", "KMP_", "LC_", "LD_", "MKL_", "NVIDIA_", "OMP_")
STDERR = 2
# How long a child may take to send its first message, and to exit after `stop`; generous because machines are busy.
FIRST_MESSAGE_S = 60.0
GRACE_S = 2.0
PINGS_PER_TIMEOUT = 5
LOADING_LIMITS = (
    *OUT_OF_MEMORY,
    "resource temporarily unavailable",
    "cannot allocate memory",
    "can't start new thread",
)
LEVELS = frozenset({"debug", "info", "warning", "error"})


class ChildProcess:
    """A process that loads the model of an `EngineSpec` and then generates tokens."""

    def __init__(
        self, process: asyncio.subprocess.Process, channel: Channel, spec: EngineSpec, hang_timeout_s: float
    ) -> None:
        self.ready: EngineReady
        self.resident_bytes = 0
        self.stop_requested = False
        self.jobs: dict[int, int] = {}  # running job -> how many tokens it may still send
        self._process = process
        self._channel = channel
        self._spec = spec
        self._hang_timeout_s = hang_timeout_s
        self._watchdog = Watchdog(FIRST_MESSAGE_S)
        self._kill_reason = ""
        self._deliver: Callable[[Sequence[DecodingStep]], None] = lambda _steps: None
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, spec: EngineSpec, *, hang_timeout_s: float) -> Self:
        """Start a child and wait until it is ready for jobs; call `receive` next.

        Raises OSError when it cannot load its model.
        """
        began = time.monotonic()
        child = cls(*await _spawn(spec), spec, hang_timeout_s)
        try:
            child.ready = await child._load()
            child._watchdog.set_costs(time.monotonic() - began, child.ready.costs.prefill_s_per_token)
        except BaseException:
            child._kill("it was not ready")
            await child.wait()
            raise
        return child

    async def _load(self) -> EngineReady:
        self._channel.send(encode_message("start", self._spec))
        try:
            while (message := await self._receive_message()) is not None:
                match message:
                    case ["ready", content]:
                        return decode_ready(content)
                    case ["failed", reason]:
                        raise OSError(f"{reason}{self._memory_hint(str(reason))}")
                    case _:
                        self._handle_common(message)
        except IpcError as error:
            self._kill(f"it sent {error}")
        reason = await self.wait()
        hint = self._memory_hint(LOADING_LIMITS[0])  # a process that dies of it cannot report it
        raise OSError(f"The engine of the model in {self._spec.path} exited while it was loading: {reason}.{hint}")

    def _memory_hint(self, reason: str) -> str:
        """Return a sentence about process_bytes when the reason may be that it is too small."""
        limit = self._spec.process_bytes
        if limit is None or not any(text in reason.lower() for text in LOADING_LIMITS):
            return ""
        return f" process_bytes is {limit}, which may be too small; threads and libraries need memory, too."

    async def receive(self, deliver: Callable[[Sequence[DecodingStep]], None]) -> None:
        """Deliver steps until the connection ends; the jobs that are left in `jobs` are lost. Call `wait` next."""
        self._deliver = deliver
        self._channel.forward_messages(self._forward_steps)
        try:
            while (message := await self._receive_message()) is not None:
                if not self._forward_steps(message):
                    self._handle_common(message)
        except IpcError as error:
            self._kill(f"it sent {error}")

    def _forward_steps(self, message: object) -> bool:
        """Deliver a message of steps; return whether it is one. Raises IpcError for an invalid one."""
        match message:
            case ["steps", *content]:
                self._watchdog.record_message()
                steps = decode_steps(content, self._spec.vocabulary_size)
                self._watchdog.record_steps(steps, self.jobs)
                self._deliver(self._check_steps(steps))
                return True
        return False

    async def stop(self) -> None:
        """Ask the child to exit, and kill it if it does not."""
        self.stop_requested = True
        self._channel.send(encode_message("close"))
        await self._wait_or_kill()

    async def wait(self) -> str:
        """Close the connection and wait until the child has exited; return why it did."""
        self._watching.cancel()
        self._channel.close()
        await self._wait_or_kill()
        return self._kill_reason or _describe_exit(self._process.returncode)

    @property
    def is_writable(self) -> bool:
        """Whether `submit` need not wait."""
        return self._channel.is_writable

    async def submit(self, job: Job) -> bool:
        """Send a job once the child has read most of the earlier messages; return False when the child has exited.

        Raises RequestError for a job that is larger than a message may be: the channel would fail for all jobs.
        """
        message = encode_job(job)
        if len(message) > MAX_BYTES:
            raise RequestError(f"The request needs {len(message)} bytes for the model; the limit is {MAX_BYTES}.")
        try:
            await self._channel.drain()
        except OSError:
            return False
        if self._kill_reason:
            return False
        self.jobs[job.id] = job.options.max_tokens
        self._watchdog.record_job(job)
        self._channel.send(message)
        return True

    def cancel(self, job_id: int) -> None:
        """Cancel a job; its further steps are dropped."""
        if self.jobs.pop(job_id, None) is not None:
            self._channel.send(encode_message("cancel", job_id))

    def deliver_at_once(self, job_id: int) -> None:
        """Deliver each token of a job as it is there."""
        if job_id in self.jobs:
            self._channel.send(encode_message("deliver_at_once", job_id))

    async def _receive_message(self) -> Any | None:
        message = await self._channel.receive()
        self._watchdog.record_message()
        self._watchdog.max_silence_s = self._hang_timeout_s
        return message

    def _handle_common(self, message: object) -> None:
        """Handle a message that may come at any time. Raises IpcError for all others."""
        match message:
            case ["pong", int(resident_bytes)]:
                self.resident_bytes = resident_bytes
            case ["log", str(level), str(event), dict(fields)] if level in LEVELS and "event" not in fields:
                getattr(log, level)(event, **fields)
            case _:
                raise IpcError("a message of an unknown kind")

    def _check_steps(self, steps: Sequence[DecodingStep]) -> list[DecodingStep]:
        """Return the steps of live jobs. Raises IpcError when a job has more tokens than its limit."""
        live = [step for step in steps if step.job in self.jobs]
        for step in live:
            remaining = self.jobs[step.job] = self.jobs[step.job] - len(step.tokens)
            if remaining < 0:
                raise IpcError("more tokens than a job's limit")
            if step.finish is not None:
                del self.jobs[step.job]
            if step.finish == "failed" and any(text in step.message.lower() for text in OUT_OF_MEMORY):
                self._kill("it was out of memory")  # the process may not recover
        return live

    async def _watch(self) -> None:
        """Send pings until the watchdog finds that the child hangs."""
        pause_s = self._hang_timeout_s / PINGS_PER_TIMEOUT
        reason = ""
        while not reason:
            self._channel.send(encode_message("ping"))
            await asyncio.sleep(pause_s)
            reason = self._watchdog.tick(pause_s, has_jobs=bool(self.jobs))
        self._kill(reason)

    def _kill(self, reason: str) -> None:
        self._kill_reason = self._kill_reason or reason
        self._channel.close()
        with suppress(ProcessLookupError):
            self._process.kill()

    async def _wait_or_kill(self) -> None:
        """Wait until the child has exited; kill it after the grace period or when this task is cancelled."""
        with suppress(TimeoutError):
            try:
                async with asyncio.timeout(GRACE_S):
                    await self._process.wait()
            finally:
                if self._process.returncode is None:
                    self._kill("it did not exit")
                    await self._process.wait()


async def _spawn(spec: EngineSpec) -> tuple[asyncio.subprocess.Process, Channel]:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = await Channel.open(ours)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", str(PROGRAM), str(theirs.fileno()), pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL, stdout=STDERR,
                start_new_session=True,  # Ctrl-C in the terminal stops the gateway, which then stops the child
                env=child_environment(spec.placement["intra_threads"]),
            )  # fmt: skip
        except BaseException:
            channel.close()
            raise
    return process, channel


def child_environment(threads: int) -> dict[str, str]:
    """Return the child's environment: where libraries are and how they work, and none of the gateway's secrets."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }  # fmt: skip
    return {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"} | inherited | {"PYTHONPATH": str(ROOT)}


def _describe_exit(code: int | None) -> str:
    """Return how a process exited: "SIGKILL" or "exit 1"."""
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"
