"""A worker's side of an engine that the supervisor hosts for all workers."""

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import structlog

from backends import ENGINES
from backends.local.decoding.job import DecodingOptions, Job
from backends.local.host.engine import Generation, check_prompt
from backends.local.host.ipc import MAX_BYTES, Channel, IpcError, decode_steps, encode_message
from backends.local.host.shared_messages import EngineOrder, OpenedEngine, decode_error
from proxy.wire.errors import BackendError, HeadgateError, RequestError
from proxy.wire.loggable import short_message

log = structlog.get_logger()


class EngineLink:
    """The connection of a worker to the host, and what is open on it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.numbers = itertools.count(1)
        self.engines: dict[int, RemoteEngine] = {}
        self.opening: dict[int, asyncio.Future[OpenedEngine]] = {}
        self._reading = asyncio.create_task(self._read())
        channel.forward_messages(self._handle)

    async def _read(self) -> None:
        try:
            while (message := await self.channel.receive()) is not None:  # what came before messages were forwarded
                self._handle(message)
        except IpcError as error:
            log.error("engine.link_lost", reason=short_message(error))  # noqa: TRY400  the place says nothing
        self.channel.close()
        for engine in self.engines.values():
            engine.lose()
        for opening in self.opening.values():
            opening.cancel()

    def _handle(self, message: Any) -> bool:
        """Pass a message on to the engine that it is for, and return True. Raises IpcError."""
        match message:
            case ["opened", handle, dict(content)] if handle in self.opening:
                if (opening := self.opening.pop(handle)).done():  # it was cancelled meanwhile
                    self.channel.send(encode_message("close", handle))
                else:
                    opening.set_result(OpenedEngine(**content))
            case ["refused", handle, is_os_error, str(text)] if handle in self.opening:
                if not (opening := self.opening.pop(handle)).done():
                    opening.set_exception(OSError(text) if is_os_error else ValueError(text))
            case ["steps" | "state" | "admitted" | "failed" as kind, int(handle), *content]:
                if (engine := self.engines.get(handle)) is not None:
                    engine.handle(kind, content)
            case _:
                raise IpcError("a message of an unknown kind")
        return True


class RemoteEngine:
    """One engine. Its jobs share the engine's queue with those of all other workers."""

    def __init__(self, link: EngineLink, handle: int, vocabulary_size: int, opened: OpenedEngine) -> None:
        self.device, self.compute_type, self.workers = opened.device, opened.compute_type, opened.workers
        self._link = link
        self._handle = handle
        self._vocabulary_size = vocabulary_size
        self._is_running = opened.is_running
        self._is_closed = False
        self._generations: dict[int, Generation] = {}
        self._admitting: dict[int, asyncio.Future[None]] = {}

    @classmethod
    async def open(cls, link: EngineLink, order: EngineOrder) -> "RemoteEngine":
        """Return an engine of the host, which is started if no worker uses it yet. Raises OSError, ValueError."""
        handle = next(link.numbers)
        opening = link.opening[handle] = asyncio.get_running_loop().create_future()
        link.channel.send(encode_message("open", handle, order))
        engine = link.engines[handle] = cls(link, handle, order.spec.vocabulary_size, await opening)
        return engine

    @property
    def is_running(self) -> bool:
        """Whether calls can be answered; also while the idle model is unloaded."""
        return self._is_running and not self._is_closed

    @asynccontextmanager
    async def generate(
        self, prompt: Sequence[int], options: DecodingOptions, *, team: str = ""
    ) -> AsyncIterator[Generation]:
        """Start an answer for a team's caller. Leaving the block cancels it within one step, whether it waits or runs.

        Raises BackendError when too many jobs wait or the model cannot be used, ValueError for an invalid prompt.
        """
        check_prompt(prompt, self._vocabulary_size)
        job = Job(next(self._link.numbers), prompt, options, team=team)
        generation = self._generations[job.id] = Generation(partial(self._deliver_at_once, job.id))
        admitting = self._admitting[job.id] = asyncio.get_running_loop().create_future()
        try:
            await self._submit(job)
            await admitting
            yield generation
        finally:
            del self._generations[job.id]
            generation.forward_tokens(None)  # as in Engine.generate
            self._admitting.pop(job.id, None)
            if not generation.is_over:
                self._link.channel.send(encode_message("cancel", job.id))

    def _deliver_at_once(self, job_id: int) -> None:
        self._link.channel.send(encode_message("deliver_at_once", job_id))

    async def _submit(self, job: Job) -> None:
        if self._is_closed:
            raise _closed()
        message = encode_message("job", job.id, self._handle, job.team, job.prompt, job.options)
        if len(message) > MAX_BYTES:
            raise RequestError(f"The request needs {len(message)} bytes for the model; the limit is {MAX_BYTES}.")
        try:
            await self._link.channel.drain()
        except OSError as error:
            raise _closed() from error
        self._link.channel.send(message)

    def handle(self, kind: str, content: Sequence[Any]) -> None:
        """Do what a message of the host says. Raises IpcError."""
        match kind, content:
            case "steps", [rows]:
                for step in decode_steps([rows], self._vocabulary_size):
                    if (generation := self._generations.get(step.job)) is not None:
                        generation.add_step(step)
            case "admitted", [job_id]:
                if (admitting := self._admitting.pop(job_id, None)) is not None and not admitting.done():
                    admitting.set_result(None)
            case "failed", [job_id, dict(error)]:
                self._fail(job_id, decode_error(error))
            case "state", [bool(is_running)]:
                self._is_running = is_running
            case _:
                raise IpcError("a message of an unknown kind")

    def _fail(self, job_id: int, error: HeadgateError) -> None:
        if (generation := self._generations.get(job_id)) is not None:
            generation.fail(error)
        if (admitting := self._admitting.pop(job_id, None)) is not None and not admitting.done():
            admitting.set_exception(error)

    def lose(self) -> None:
        """End all answers, because the host is gone."""
        self._is_running, self._is_closed = False, True
        for job_id in [*self._generations]:
            self._fail(job_id, _closed())

    async def close(self) -> None:
        """End all answers; the host closes the engine if no other worker uses it."""
        if not self._is_closed:
            self.lose()
            del self._link.engines[self._handle]
            self._link.channel.send(encode_message("close", self._handle))


_LINKS: dict[asyncio.AbstractEventLoop, EngineLink] = {}


async def link_of_process() -> EngineLink | None:
    """Return the connection of this process to the host; None for one that has no supervisor."""
    loop = asyncio.get_running_loop()
    if loop not in _LINKS and ENGINES in os.environ:
        _LINKS[loop] = EngineLink(await Channel.open(socket.socket(fileno=int(os.environ.pop(ENGINES)))))
    return _LINKS.get(loop)


def _closed() -> BackendError:
    return BackendError(
        "The local model was stopped.", status=503, code="local_model_unavailable", headers={"Retry-After": "1"},
        source="gateway", retryable=True, sent=False,
    )  # fmt: skip
