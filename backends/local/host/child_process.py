"""One process of an engine as the gate sees it, from its start to its end."""

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

from backends.local.decoding.job import Job, Step
from backends.local.host.ipc import MAX_BYTES, BrokenLink, Link, Order, Ready, job_message, message, ready_of, steps_of
from backends.local.host.watchdog import Progress
from proxy.wire.errors import RequestError

log = structlog.get_logger()

PROGRAM = "backends.local.host.child_main"
ROOT = Path(__file__).resolve().parents[3]  # where the package lies: the child runs the gate's own code
# All that the child gets of the gate's environment: none of its keys.
INHERITED = frozenset({"HOME", "LANG", "PATH", "TMPDIR", "TZ"})
INHERITED_PREFIXES = ("CT2_", "CUDA_", "KMP_", "LC_", "LD_", "MKL_", "NVIDIA_", "OMP_")
STDERR = 2
# How long a process may take until it says its first word, and to end once it was told to: on a busy machine.
FIRST_WORD_S = 60.0
GRACE_S = 2.0
PINGS = 5  # without an answer: then it hangs
OUT_OF_MEMORY = ("out of memory", "bad_alloc", "memoryerror", "failed to allocate memory")  # as libraries say it
OUT_OF_ROOM = (*OUT_OF_MEMORY, "resource temporarily unavailable", "cannot allocate memory", "can't start new thread")
LEVELS = frozenset({"debug", "info", "warning", "error"})


class Spawned:
    """A process that loads what it is ordered to, and then makes tokens."""

    def __init__(self, process: asyncio.subprocess.Process, link: Link, order: Order, hang_timeout_s: float) -> None:
        self.ready: Ready
        self.resident_bytes = 0
        self.asked_to_end = False
        self.jobs: dict[int, int] = {}  # those it works on -> how many tokens they may still have
        self._process = process
        self._link = link
        self._order = order
        self._hang_timeout_s = hang_timeout_s
        self._allowed_silence_s = FIRST_WORD_S
        self._silent_s = 0.0
        self._progress = Progress(0.0, 0.0)
        self._why = ""  # it was killed, once it was
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def started(cls, order: Order, *, hang_timeout_s: float) -> Self:
        """A process that is ready for jobs; `live` must follow. Raises OSError when it cannot load its model."""
        began = time.monotonic()
        spawned = cls(*await _born(order), order, hang_timeout_s)
        try:
            spawned.ready = await spawned._loaded()
            spawned._progress = Progress(time.monotonic() - began, spawned.ready.costs.prefill_s_per_token)
        except BaseException:
            spawned._kill("it was not ready")
            await spawned.end()
            raise
        return spawned

    async def _loaded(self) -> Ready:
        self._link.send(message("start", self._order))
        try:
            while (said := await self._heard()) is not None:
                match said:
                    case ["ready", given]:
                        return ready_of(given)
                    case ["failed", why]:
                        raise OSError(f"{why}{self._too_little(str(why))}")
                    case _:
                        self._note(said)
        except BrokenLink as error:
            self._kill(f"it sent {error}")
        why = await self.end()
        hint = self._too_little(OUT_OF_ROOM[0])  # who dies of it cannot say so
        raise OSError(f"The engine of the model in {self._order.path} ended while it was loading: {why}.{hint}")

    def _too_little(self, why: str) -> str:
        """What a failure may have to do with what the config gives it."""
        least = self._order.process_bytes
        if least is None or not any(words in why.lower() for words in OUT_OF_ROOM):
            return ""
        return f" process_bytes is {least}, which may be too small; loading also takes room for threads and libraries."

    async def live(self, take: Callable[[Sequence[Step]], None]) -> None:
        """Hear what it says until it says no more. What is in `jobs` then is lost; `end` must follow."""
        try:
            while (said := await self._heard()) is not None:
                match said:
                    case ["steps", *content]:
                        steps = steps_of(content, self._order.vocabulary_size)
                        self._progress.see(steps, self.jobs)
                        take(self._known(steps))
                    case _:
                        self._note(said)
        except BrokenLink as error:
            self._kill(f"it sent {error}")

    async def stop(self) -> None:
        """Let it end in good order, or else by force."""
        self.asked_to_end = True
        self._link.send(message("close"))
        await self._ended()

    async def end(self) -> str:
        """Let go of it; why it ended."""
        self._watching.cancel()
        self._link.close()
        await self._ended()
        return self._why or _exit(self._process.returncode)

    async def begin(self, job: Job) -> bool:
        """Hand it a job once it has read most of what it was sent; False when it is gone.

        Raises RequestError for one that is too large to be sent: it would break the link, and others' jobs with it.
        """
        told = job_message(job)
        if len(told) > MAX_BYTES:
            raise RequestError(f"The request makes {len(told)} bytes for the model; at most {MAX_BYTES} are read.")
        try:
            await self._link.room()
        except OSError:
            return False
        if self._why:
            return False
        self.jobs[job.id] = job.options.max_tokens
        self._progress.give(job)
        self._link.send(told)
        return True

    def cancel(self, job: int) -> None:
        if self.jobs.pop(job, None) is not None:
            self._link.send(message("cancel", job))

    async def _heard(self) -> Any | None:
        said = await self._link.receive()
        self._silent_s, self._allowed_silence_s = 0.0, self._hang_timeout_s
        return said

    def _note(self, said: object) -> None:
        """What it may say at any time. Raises BrokenLink."""
        match said:
            case ["pong", int(resident_bytes)]:
                self.resident_bytes = resident_bytes
            case ["log", str(level), str(event), dict(fields)] if level in LEVELS and "event" not in fields:
                getattr(log, level)(event, **fields)
            case _:
                raise BrokenLink("a message of no kind that is known here")

    def _known(self, steps: Sequence[Step]) -> list[Step]:
        """Those of jobs that somebody still waits for. Raises BrokenLink for more tokens than were asked for."""
        known = [step for step in steps if step.job in self.jobs]
        for step in known:
            left = self.jobs[step.job] = self.jobs[step.job] - len(step.tokens)
            if left < 0:
                raise BrokenLink("more tokens than a job may have")
            if step.finish is not None:
                del self.jobs[step.job]
            if step.finish == "failed" and any(words in step.message.lower() for words in OUT_OF_MEMORY):
                self._kill("it was out of memory")  # what is left of it cannot be trusted to get well
        return known

    async def _watch(self) -> None:
        """Ask whether it lives, all the time. Silence is counted in turns of this loop: a gate that was busy itself
        has not heard the answers either."""
        pause_s = self._hang_timeout_s / PINGS
        while self._silent_s < self._allowed_silence_s:
            self._link.send(message("ping"))
            await asyncio.sleep(pause_s)
            self._silent_s += pause_s
            if not self._progress.wait(pause_s, somebody=bool(self.jobs)):
                self._kill(f"nothing came of its jobs for {self._progress.stuck_s:.0f} s")
                return
        self._kill(f"it was silent for {self._silent_s:.0f} s")

    def _kill(self, why: str) -> None:
        self._why = self._why or why
        self._link.close()  # nobody listens to it any more
        with suppress(ProcessLookupError):
            self._process.kill()

    async def _ended(self) -> None:
        """Wait until it has, and make it when that takes too long, or nobody wants to wait."""
        with suppress(TimeoutError):
            try:
                async with asyncio.timeout(GRACE_S):
                    await self._process.wait()
            finally:
                if self._process.returncode is None:
                    self._kill("it did not end")
                    await self._process.wait()


async def _born(order: Order) -> tuple[asyncio.subprocess.Process, Link]:
    ours, theirs = socket.socketpair()
    with theirs:
        link = await Link.over(ours)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", PROGRAM, str(theirs.fileno()), pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL, stdout=STDERR,
                start_new_session=True,  # Ctrl-C in the gate's terminal is the gate's business
                env=environment(order.placement["intra_threads"]),
            )  # fmt: skip
        except BaseException:
            link.close()
            raise
    return process, link


def environment(threads: int) -> dict[str, str]:
    """What a child gets to know of this process's environment: where libraries are and how they are to work."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }  # fmt: skip
    return {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"} | kept | {"PYTHONPATH": str(ROOT)}


def _exit(code: int | None) -> str:
    """How a process ended, in a word: SIGKILL, or "exit 1"."""
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"
