"""Asks a child process for list prices. An idle process ends after a while."""

import asyncio
import os
import sys
from contextlib import suppress

import orjson
import structlog

from proxy.pricing.rates import Rates, rates_of
from proxy.wire.loggable import summarize_error

log = structlog.get_logger()

IDLE_S = 10.0
"""How long the idle process is kept, in seconds."""
ANSWER_S = 10.0
"""How long an answer may take, the start of the process included."""
PAUSE_S = 60.0
"""The pause after a failure, in seconds."""
COMMAND = (sys.executable, "-m", "proxy.pricing.lookup")


class LookupFailedError(Exception):
    """The process has not answered."""


class Catalog:
    """Answers one question at a time, and starts the process for the first one."""

    def __init__(self, command: tuple[str, ...] = COMMAND) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._ending: asyncio.TimerHandle | None = None
        self._ended: set[asyncio.Task[None]] = set()
        self._paused_until = 0.0

    async def find(self, price_list: str, model: str) -> Rates | None:
        """Return the list prices of a model; None if it has none. Raises LookupFailedError."""
        async with self._turn:
            loop = asyncio.get_running_loop()
            if loop.time() < self._paused_until:
                raise LookupFailedError
            try:
                async with asyncio.timeout(ANSWER_S):
                    answer = orjson.loads(await self._ask(orjson.dumps([price_list, model]) + b"\n"))
            except (OSError, TimeoutError, ValueError) as error:
                self._paused_until = loop.time() + PAUSE_S
                self._end()
                log.warning("prices.lookup_failed", error=summarize_error(error))
                raise LookupFailedError from error
            return None if answer is None else rates_of(answer)

    async def close(self) -> None:
        """End the process."""
        self._end()
        await asyncio.gather(*self._ended)

    async def _ask(self, question: bytes) -> bytes:
        if self._ending is not None:
            self._ending.cancel()
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL, env=_environment(),
            )  # fmt: skip
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("The process was started without pipes.")
        process.stdin.write(question)
        answer = await process.stdout.readline()
        self._ending = asyncio.get_running_loop().call_later(IDLE_S, self._end)
        return answer

    def _end(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            ended = asyncio.create_task(_reap(process))
            self._ended.add(ended)
            ended.add_done_callback(self._ended.discard)


async def _reap(process: asyncio.subprocess.Process) -> None:
    """Wait until a process has ended and its pipes are closed."""
    await process.communicate()


def _environment() -> dict[str, str]:
    """Return the variables that the process needs: the full environment contains the gateway's keys."""
    names = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "SYSTEMROOT", "LANG")
    return {name: os.environ[name] for name in names if name in os.environ}
