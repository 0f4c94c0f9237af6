"""Answers from a model on this machine, run by CTranslate2 in the gate's own process.

Answers: a stream of its own making: a message token by token, calls of the functions that came with the request.
Fails: 400 for what the model cannot read or do, by name; 429 `local_model_busy` with Retry-After when too many wait,
    502 `local_model_failed`, 503 `local_model_unavailable` while it closes. A folder that is no model fails the start.
Source: https://opennmt.net/CTranslate2/, https://platform.openai.com/docs/api-reference/responses
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import Field, NonNegativeInt, PositiveInt, PrivateAttr

from backends import Backend
from backends.local.answer import Answer
from backends.local.device import Placement
from backends.local.engine import Engine
from backends.local.model import Model, read_model
from backends.local.parameters import Parameters
from backends.local.request import Request, read_request
from proxy.wire.call import Call
from proxy.wire.event import Reply

log = structlog.get_logger()

# A request of this size takes longer to read and cut into tokens than other callers should have to wait.
LONG_BYTES = 32_768


class Local(Backend):
    path: Path
    """The model's folder, as CTranslate2's converters write it, with its tokenizer.json and chat_template.jinja."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; "auto" takes a graphics card when there is one that works."""
    device_index: NonNegativeInt = 0
    """Which graphics card, counted from 0."""
    compute_type: str = "default"
    """How it calculates: "default" is as the model was stored, on a card the best it has; or "int8", "bfloat16" ..."""
    workers: PositiveInt | None = None
    """How many answers are made at the same time; left out: one per core."""
    intra_threads: PositiveInt = 1
    """How many threads make one answer; more than 1 pays for very large models only."""
    context_length: PositiveInt | None = None
    """How many tokens a prompt and its answer may have together; left out: what headgate.json says."""
    max_output_tokens: PositiveInt = 4096
    """How many tokens an answer may have at most; also what a request gets that names no number."""
    max_waiting: NonNegativeInt = 32
    """How many calls may wait for a free worker; one more is answered 429."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """For requests that name none; 0 always takes the likeliest token, which small models need."""
    provider: str = "headgate"
    """Whose models these are in traces."""

    _engine: Engine = PrivateAttr()
    _model: Model = PrivateAttr()

    async def start(self) -> None:
        self._model = await asyncio.to_thread(read_model, self.path, context_length=self.context_length)
        workers = self.workers or _cores()
        placement = Placement(self.device, self.device_index, self.compute_type, workers, self.intra_threads)
        self._engine = await Engine.started(self._model, placement, max_waiting=self.max_waiting)
        engine = self._engine
        log.info(
            "local.started", backend=self.name, device=engine.device, compute_type=engine.compute_type, workers=workers,
            context_length=self._model.context_length,
        )  # fmt: skip

    async def close(self) -> None:
        await self._engine.close()

    async def models(self) -> Sequence[str]:
        return (self.name,)

    async def ready(self) -> bool:
        return self._engine.running

    @asynccontextmanager
    async def respond(self, call: Call) -> AsyncIterator[Reply]:
        long = len(call.encoded) > LONG_BYTES
        request = await asyncio.to_thread(self._read, call) if long else self._read(call)
        answer = Answer(request, self._model.tokens)
        async with self._engine.generate(request.prompt, request.options) as generation:
            yield Reply(200, {}, answer.batches(generation), streamed=True)

    def _read(self, call: Call) -> Request:
        return read_request(call.body, self._model, Parameters(self.max_output_tokens, self.temperature))


def _cores() -> int:
    """How many cores this process may use: in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
