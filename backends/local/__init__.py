"""Answers from a model on this machine, run by CTranslate2 in a process of its own.

Answers: a stream of its own making: a message token by token, calls of the functions that came with the request.
Fails: 400 for what the model cannot read or do, by name; 429 `local_model_busy` with Retry-After when too many wait,
    502 `local_model_failed` when it breaks down and `local_model_astray` when it cannot be held to the form that was
    asked for, 503 `local_model_unavailable` with Retry-After while it is started again. A folder that is no model fails
    the start.
Source: https://opennmt.net/CTranslate2/, https://platform.openai.com/docs/api-reference/responses
"""

import asyncio
import functools
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import structlog
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, PrivateAttr, model_validator

from backends import Backend
from backends.local.answer import Answer
from backends.local.decoding.grammar_matcher import GrammarCompiler as Grammars
from backends.local.host.device import Placement
from backends.local.host.device import check_placement as refuse
from backends.local.host.engine import Engine
from backends.local.host.ipc import EngineSpec as Order
from backends.local.host.memory import check_model_fits as refuse_too_large
from backends.local.host.memory import free_bytes
from backends.local.host.memory import shared_budget as of_this_gate
from backends.local.host.process_engine import ProcessEngine as InProcess
from backends.local.host.process_engine import SupervisorSettings as Terms
from backends.local.host.thread_engine import ThreadEngine as InThread
from backends.local.model import Model, read_model
from backends.local.readers import Readers
from backends.local.request import Request, read_request
from backends.local.request.parameters import Parameters
from backends.local.scheduling.admission import Admission
from proxy.wire.call import Call
from proxy.wire.event import Reply

log = structlog.get_logger()

# How many names of what was left out are told; who sends more will not read them.
MOST_TOLD = 32
# Which part of the free memory answers may take while they are made.
KV_PART = 4
# The least memory for answers that is of use: for one of so many tokens, or one as long as the context.
FEWEST_TOKENS = 512


class Local(Backend):
    keeps_state: bool = False
    """Always false: a model on this machine keeps no responses; Headgate's own store can."""
    enforces: tuple[str, ...] = ()
    """Always empty: a model on this machine keeps no policy by itself."""
    path: Path
    """The model's folder, as CTranslate2's converters write it, with its tokenizer.json and chat_template.jinja."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; "auto" takes a graphics card when there is one that works."""
    device_index: NonNegativeInt | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = 0
    """Which graphics card, counted from 0; or a list of them: each gets a copy of the model and all workers."""
    compute_type: str = "default"
    """How it calculates: "default" is as the model was stored, on a card the best it has; or "int8", "bfloat16" ..."""
    workers: Annotated[int, Field(ge=1, le=256)] | None = None
    """How many answers are made at the same time; left out: one per core."""
    intra_threads: PositiveInt = 1
    """How many threads make one answer; more than 1 pays for very large models only."""
    context_length: Annotated[int, Field(ge=64)] | None = None
    """How many tokens a prompt and its answer may have together; left out, and at most: what headgate.json says."""
    max_output_tokens: PositiveInt = 4096
    """How many tokens an answer may have at most; also what a request gets that names no number."""
    max_waiting: NonNegativeInt = 32
    """How many calls may wait for a free worker, how many long ones to be read; one more is answered 429."""
    max_wait_s: PositiveFloat = 60.0
    """How long a call may have to wait by what the model costs here; one that would wait longer is answered 429."""
    kv_bytes: PositiveInt | None = None
    """How much memory all answers may take while they are made; left out: a quarter of what is free at the start."""
    prefix_cache_bytes: NonNegativeInt = 268_435_456
    """How much memory the beginnings of prompts may take that came before and are not read again; 0: none are kept."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """For requests that name none; 0 always takes the likeliest token, which small models need."""
    engine: Literal["process", "thread"] = "process"
    """Where the model runs: a crash in a process of its own never takes the gate along; "thread" is for tests."""
    preload: bool = True
    """Whether the model is loaded when the gate starts, as far as memory_bytes allows; else the first call waits."""
    keep_alive_s: PositiveFloat | None = None
    """How many seconds without a call until the model is unloaded; left out: never. The next call loads it again."""
    memory_bytes: PositiveInt | None = None
    """What all local models of this gate may take together, the lowest one named: idle ones make room for others."""
    start_timeout_s: PositiveFloat = 10.0
    """How many seconds a call waits for a model that is being loaded or started again; then it is answered 503."""
    hang_timeout_s: PositiveFloat = 5.0
    """After how many seconds of silence the model's process is ended and started again."""
    process_bytes: PositiveInt | None = None
    """How much address space the model's process may take, on the processor only; left out: all that there is."""
    ignore_unknown_tools: bool = False
    """Whether tools that a server would have to run are left out, and told in x-headgate-ignored; else they are 400."""
    provider: str = "headgate"
    """Whose models these are in traces."""

    @model_validator(mode="after")
    def _keeps_nothing(self) -> Self:
        if self.keeps_state or self.enforces:
            raise ValueError("a local model keeps neither responses nor policies: leave out keeps_state and enforces")
        return self

    @model_validator(mode="after")
    def _thread_is_plain(self) -> Self:
        kept = self.keep_alive_s or self.memory_bytes or self.process_bytes or not self.preload
        if self.engine == "thread" and kept:
            raise ValueError('keep_alive_s, memory_bytes, process_bytes and preload = false need engine = "process"')
        return self

    _engine: Engine = PrivateAttr()
    _model: Model = PrivateAttr()
    _readers: Readers = PrivateAttr()

    def check(self) -> None:
        model = self._read_model()
        refuse(self._placement())
        if self.memory_bytes is not None:
            refuse_too_large(self._needs_bytes(model, self._kv_bytes(model)), self.memory_bytes)

    async def start(self) -> None:
        self._model = await asyncio.to_thread(self._read_model)
        self._readers = Readers(self.max_waiting)
        kv_bytes = self._kv_bytes(self._model)
        placement, token_bytes = self._placement(), self._model.kv_bytes_per_token
        workers = placement.workers
        admission = Admission(self.max_waiting, workers, kv_bytes, self.max_wait_s, kv_bytes_per_token=token_bytes)
        if self.engine == "process":
            self._engine = await self._in_process(admission, placement, kv_bytes)
        else:
            self._engine = await self._in_thread(admission, placement)
        log.info(
            "local.started", backend=self.name, device=self._engine.device or "not loaded yet",
            compute_type=self._engine.compute_type, workers=workers, context_length=self._model.context_length,
        )  # fmt: skip

    def _read_model(self) -> Model:
        model = read_model(self.path, context_length=self.context_length)
        least = min(model.context_length, FEWEST_TOKENS)
        if self.kv_bytes is not None and self.kv_bytes < least * model.kv_bytes_per_token:
            raise ValueError(
                f"kv_bytes is {self.kv_bytes}, but {least} tokens of the model in {self.path} take "
                f"{least * model.kv_bytes_per_token}."
            )
        return model

    def _placement(self) -> Placement:
        cards = (self.device_index,) if isinstance(self.device_index, int) else self.device_index
        return Placement(self.device, cards, self.compute_type, self.workers or _cores(), self.intra_threads)

    async def _in_process(self, admission: Admission, placement: Placement, kv_bytes: int) -> Engine:
        model = self._model
        order = Order(
            path=str(model.path.absolute()), placement=asdict(placement), vocabulary_size=len(model.vocabulary),
            stop_ids=sorted(model.stop_ids), kv_bytes_per_token=model.kv_bytes_per_token,
            prefix_cache_bytes=self.prefix_cache_bytes, process_bytes=self.process_bytes,
        )  # fmt: skip
        terms = Terms(
            backend=self.name, start_timeout_s=self.start_timeout_s, hang_timeout_s=self.hang_timeout_s,
            keep_alive_s=self.keep_alive_s, preload=self.preload, memory_bytes=self.memory_bytes,
            needs_bytes=self._needs_bytes(model, kv_bytes),
        )  # fmt: skip
        return await InProcess.started(admission, order, terms, of_this_gate())

    async def _in_thread(self, admission: Admission, placement: Placement) -> Engine:
        model = self._model
        tokenizer = (model.path / "tokenizer.json").read_text(encoding="utf-8")
        return await InThread.started(
            model.path, model.vocabulary, placement, admission, kv_bytes_per_token=model.kv_bytes_per_token,
            prefix_cache_bytes=self.prefix_cache_bytes,
            grammars=Grammars(tokenizer, len(model.vocabulary), model.stop_ids),
        )  # fmt: skip

    def _needs_bytes(self, model: Model, kv_bytes: int) -> int:
        """What a loaded model takes, with the answers that it makes and the prompts that it keeps."""
        return (model.path / "model.bin").stat().st_size + kv_bytes + self.prefix_cache_bytes

    def _kv_bytes(self, model: Model) -> int:
        """Never less than what one answer as long as the context takes, unless the config says so."""
        one = model.context_length * model.kv_bytes_per_token
        return self.kv_bytes or max((self.memory_bytes or free_bytes()) // KV_PART, one)

    async def close(self) -> None:
        self._readers.close()
        await self._engine.close()

    async def models(self) -> Sequence[str]:
        return (self.name,)

    async def described(self, _model: str) -> Mapping[str, Any]:
        able = {
            "tools": self._model.tool_format is not None,
            "json_schema": True,
            "reasoning": self._model.reasoning is not None,
            "images": False,
        }
        return {"context_length": self._model.context_length, "capabilities": able}

    async def ready(self) -> bool:
        return self._engine.running

    @asynccontextmanager
    async def respond(self, call: Call) -> AsyncIterator[Reply]:
        plain = not call.body.get("tools") and not call.body.get("text")
        request = await self._readers.read(functools.partial(self._read, call), len(call.encoded), plain=plain)
        answer = Answer(request, self._model.tokens)
        async with self._engine.generate(request.prompt, request.options) as generation:
            yield Reply(200, _told(request), answer.batches(generation), streamed=True)

    def _read(self, call: Call) -> Request:
        return read_request(
            call.body, self._model, Parameters(self.max_output_tokens, self.temperature), team=call.caller.team,
            ignore_unknown_tools=self.ignore_unknown_tools,
        )  # fmt: skip


def _told(request: Request) -> dict[str, str]:
    """What a caller must know beside the answer: names that it wrote, fit for a header."""
    names = [name[:64].encode("ascii", "backslashreplace").decode() for name in request.ignored[:MOST_TOLD]]
    printable = [re.sub(r"[^!-+\--~]", "_", name) for name in names]
    return {"x-headgate-ignored": ", ".join(printable)} if printable else {}


def _cores() -> int:
    """How many cores this process may use: in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
