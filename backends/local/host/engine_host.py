"""The engines of several worker processes: each model is loaded once, and one queue admits the jobs of all workers.

A worker has a connection of its own. When it ends, the worker's jobs end with it. An engine is closed when no worker
uses it any more; one that a killed worker used waits for the process that takes that worker's place.
"""

import asyncio
import socket
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from backends.local.decoding.job import DecodingStep, Token
from backends.local.host.engine import Generation, model_failed
from backends.local.host.ipc import Channel, IpcError, decode_job, encode_message, encode_shared_steps
from backends.local.host.memory import shared_budget
from backends.local.host.process_engine import ProcessEngine
from backends.local.host.shared_messages import EngineOrder, OpenedEngine, decode_order, encode_error
from proxy.wire.errors import HeadgateError
from proxy.wire.loggable import summarize_error

log = structlog.get_logger()

LINGER_S = 30.0
"""How long an engine stays loaded after the last worker that used it was lost, in seconds."""


@dataclass(slots=True, eq=False)
class HostedEngine:
    """An engine, and the connections that use it."""

    order: EngineOrder
    starting: asyncio.Task[ProcessEngine]
    users: int = 0
    watchers: set["_WorkerConnection"] = field(default_factory=set)

    @property
    def engine(self) -> ProcessEngine:
        """The engine, once it is started."""
        return self.starting.result()

    def report_state(self) -> None:
        """Say to all workers whether it answers calls."""
        for watcher in self.watchers:
            watcher.send_state(self)


class EngineHost:
    """Starts what workers order, and closes what none of them uses."""

    def __init__(self) -> None:
        self._engines: dict[str, HostedEngine] = {}
        self._lingering: set[asyncio.Task[None]] = set()

    async def serve(self, end: socket.socket) -> None:
        """Serve a worker until its connection ends. Raises IpcError for a message that is none."""
        connection = _WorkerConnection(await Channel.open(end), self)
        try:
            await connection.run()
        finally:
            connection.end()

    async def attach(self, order: EngineOrder) -> HostedEngine:
        """Return an engine that is started, and is used once more. Raises OSError or ValueError if it cannot start."""
        hosted = self._engines.get(order.key)
        if hosted is None:
            hosted = self._engines[order.key] = HostedEngine(order, asyncio.create_task(_start(order)))
        elif hosted.order.spec != order.spec:
            raise OSError(f"The model in {order.spec.path} has changed since it was loaded; restart the gateway.")
        hosted.users += 1
        try:
            engine = await asyncio.shield(hosted.starting)
        except BaseException:
            await self.detach(hosted)
            raise
        engine.on_state = hosted.report_state
        return hosted

    async def detach(self, hosted: HostedEngine) -> None:
        """Use an engine once less."""
        hosted.users -= 1
        if hosted.users == 0:
            self._engines.pop(hosted.order.key, None)
            await _close(hosted)

    def lose(self, hosted: HostedEngine) -> None:
        """Use an engine once less, a while later."""
        task = asyncio.create_task(self._detach_later(hosted))
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    async def _detach_later(self, hosted: HostedEngine) -> None:
        await asyncio.sleep(LINGER_S)
        await self.detach(hosted)

    async def close(self) -> None:
        """Close all engines."""
        for task in self._lingering:
            task.cancel()
        engines, self._engines = self._engines, {}
        await asyncio.gather(*map(_close, engines.values()))


async def _start(order: EngineOrder) -> ProcessEngine:
    return await ProcessEngine.start(order.limits.admission(), order.spec, order.settings, shared_budget())


async def _close(hosted: HostedEngine) -> None:
    hosted.starting.cancel()
    with suppress(OSError, ValueError, asyncio.CancelledError):
        await hosted.starting
    if not hosted.starting.cancelled() and hosted.starting.exception() is None:
        await hosted.engine.close()


class _WorkerConnection:
    """One worker: its engines by their handles, and its jobs."""

    def __init__(self, channel: Channel, host: EngineHost) -> None:
        self._channel = channel
        self._host = host
        self._engines: dict[int, HostedEngine] = {}
        self._jobs: dict[int, asyncio.Task[None]] = {}
        self._generations: dict[int, Generation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._steps: dict[int, list[DecodingStep]] = {}

    async def run(self) -> None:
        """Do what the worker asks for until it is gone. Raises IpcError."""
        while (message := await self._channel.receive()) is not None:
            match message:
                case ["job", int(job_id), int(handle), *content] if handle in self._engines:
                    self._jobs[job_id] = self._do(self._run_job(job_id, handle, content))
                case ["cancel", int(job_id)]:
                    if (job := self._jobs.pop(job_id, None)) is not None:
                        job.cancel()
                case ["deliver_at_once", int(job_id)]:
                    if (generation := self._generations.get(job_id)) is not None:
                        generation.deliver_at_once()
                case ["open", int(handle), dict(content)]:
                    self._do(self._open(handle, decode_order(content)))
                case ["close", int(handle)] if handle in self._engines:
                    self._do(self._close(handle))
                case _:
                    raise IpcError("a message of an unknown kind")

    def end(self) -> None:
        """End the worker's jobs, and use its engines no more."""
        for task in self._tasks:
            task.cancel()
        for hosted in self._engines.values():
            hosted.watchers.discard(self)
            self._host.lose(hosted)
        self._channel.close()

    def send_state(self, hosted: HostedEngine) -> None:
        for handle, each in self._engines.items():
            if each is hosted:
                self._channel.send(encode_message("state", handle, hosted.engine.is_running))

    def _add_tokens(self, handle: int, job_id: int, tokens: Sequence[Token]) -> bool:
        """Send tokens at once; return that the task of the job need not wake up for them."""
        self._add_step(handle, DecodingStep(job_id, tokens))
        return True

    def _add_step(self, handle: int, step: DecodingStep) -> None:
        """Send a step together with those of other jobs that come in the same turn of the loop."""
        if not self._steps:
            asyncio.get_running_loop().call_soon(self._send_steps)
        self._steps.setdefault(handle, []).append(step)

    def _send_steps(self) -> None:
        for handle, steps in self._steps.items():
            self._channel.send(encode_shared_steps(handle, steps))
        self._steps.clear()

    def _do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _open(self, handle: int, order: EngineOrder) -> None:
        try:
            hosted = await self._host.attach(order)
        except (OSError, ValueError) as error:
            self._channel.send(encode_message("refused", handle, isinstance(error, OSError), str(error)))
            return
        self._engines[handle] = hosted
        hosted.watchers.add(self)
        engine = hosted.engine
        opened = OpenedEngine(engine.device, engine.compute_type, engine.workers, engine.is_running)
        self._channel.send(encode_message("opened", handle, opened))

    async def _close(self, handle: int) -> None:
        hosted = self._engines.pop(handle)
        if hosted not in self._engines.values():
            hosted.watchers.discard(self)
        await self._host.detach(hosted)

    async def _run_job(self, job_id: int, handle: int, content: Sequence[Any]) -> None:
        """Send the steps of one answer, and how it ended."""
        channel = self._channel
        error: HeadgateError = model_failed()
        try:
            job, engine = decode_job([job_id, *content]), self._engines[handle].engine
            async with engine.generate(job.prompt, job.options, team=job.team) as generation:
                self._generations[job_id] = generation
                channel.send(encode_message("admitted", handle, job_id))
                cached: int | None = None
                async for tokens in generation:
                    first, cached = cached is None, generation.cached_tokens
                    step = DecodingStep(job_id, tokens, cached_tokens=cached if first else None)
                    self._add_step(handle, step)
                    generation.forward_tokens(partial(self._add_tokens, handle, job_id))
                self._add_step(handle, DecodingStep(job_id, finish=generation.finish))
                return
        except HeadgateError as found:
            error = found
        except Exception as found:  # noqa: BLE001  the worker waits for an end of the job
            log.warning("generation.failed", error=summarize_error(found))
        finally:
            self._jobs.pop(job_id, None)
            self._generations.pop(job_id, None)
        self._send_steps()
        channel.send(encode_message("failed", handle, job_id, encode_error(error)))
