"""A model on this machine, run by CTranslate2 in a separate process.

Answers: a stream of reasoning, text and calls of the tools in the request, token by token.
Fails: 400 with the name of the parameter for anything that the model cannot read or do; 429 `local_model_busy` with
    Retry-After when too many calls wait; 502 `local_model_failed` when the model fails, and
    `local_model_constraint_failed` when it does not follow the requested format; 503 `local_model_unavailable` with
    Retry-After while it is restarted. A folder without a usable model fails the start.
Source: https://opennmt.net/CTranslate2/, https://platform.openai.com/docs/api-reference/responses
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import structlog
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, PrivateAttr, model_validator

from backends import Backend
from backends.local.answer import ResponseBuilder
from backends.local.decoding.grammar_matcher import GrammarCompiler
from backends.local.host.device import Placement, check_placement, count_cores
from backends.local.host.engine import ModelEngine
from backends.local.host.ipc import EngineSpec
from backends.local.host.memory import check_model_fits, free_bytes, shared_budget
from backends.local.host.process_engine import ProcessEngine
from backends.local.host.remote_engine import RemoteEngine, link_of_process
from backends.local.host.shared_messages import AdmissionLimits, EngineOrder, SupervisorSettings
from backends.local.host.thread_engine import ThreadEngine
from backends.local.model import Model, read_model
from backends.local.request import LocalRequest, read_request
from backends.local.request.parameters import GenerationParameters
from backends.local.request_executor import RequestExecutor
from backends.local.scheduling.admission import JobAdmission
from backends.local.work_budget import CONTEXT_TOKEN_UNITS, REQUEST_UNITS
from proxy.context import Context
from proxy.wire.call import Call, Operation
from proxy.wire.event import Reply, response_reply
from proxy.wire.ignored import ignored_header
from proxy.wire.large_bytes import find_text
from proxy.wire.query import query_pairs

log = structlog.get_logger()

# The part of the free memory that answers may take while they are made: one in so many.
KV_FRACTION = 4
# kv_bytes must suffice for an answer of so many tokens, or for one as long as the context.
MIN_KV_TOKENS = 512


class Local(Backend):
    operations: ClassVar[frozenset[Operation]] = frozenset({"create", "input_tokens"})

    keeps_state: bool = False
    """Always false: the gateway keeps responses and conversations in [state]."""
    enforces: tuple[str, ...] = ()
    """Always empty: a local model enforces no policy by itself."""
    path: Path
    """The model's folder, as CTranslate2's converters write it, with its tokenizer.json and chat_template.jinja."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; "auto" uses a GPU when a working one exists."""
    device_index: NonNegativeInt | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = 0
    """The index of the GPU, from 0; or a list: each of these GPUs gets a copy of the model and all workers."""
    compute_type: str = "default"
    """The type of computation: "default" is the stored type, on a GPU its best one; or "int8", "bfloat16" ..."""
    workers: Annotated[int, Field(ge=1, le=256)] | None = None
    """How many answers or batches are generated at the same time; left out: one per core, on a GPU 2."""
    intra_threads: PositiveInt = 1
    """How many threads each worker uses; more than 1 helps only very large models."""
    context_length: Annotated[int, Field(ge=64)] | None = None
    """How many tokens a prompt and its answer may have together; left out: the value in headgate.json, the maximum."""
    max_output_tokens: PositiveInt = 4096
    """How many tokens an answer may have at most; also the default of requests."""
    max_waiting: NonNegativeInt = 32
    """How many calls may wait; one more is answered 429. A quarter more may wait for teams without a call."""
    max_wait_s: PositiveFloat = 60.0
    """The longest wait, estimated from measured speed; a call that would wait longer is answered 429."""
    kv_bytes: PositiveInt | None = None
    """Memory for the key-value cache of all running answers; left out: a quarter of the memory free at the start.

    On a GPU at most half of what is free there when the model is loaded."""
    prefix_cache_bytes: NonNegativeInt = 268_435_456
    """Memory for beginnings of prompts that repeat and are then not processed again; 0: none are kept."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """The default of requests; 0 always selects the likeliest token, which small models need."""
    engine: Literal["process", "thread"] = "process"
    """A separate process protects the gateway from crashes of the model; "thread" is for tests."""
    preload: bool = True
    """Whether the model is loaded when the gateway starts, if memory_bytes allows; else the first call waits for it."""
    keep_alive_s: PositiveFloat | None = None
    """Seconds without a call after which the model is unloaded; left out: never. The next call loads it again."""
    memory_bytes: PositiveInt | None = None
    """Memory for all local models together; the lowest value applies. Idle models are unloaded to make room."""
    start_timeout_s: PositiveFloat = 10.0
    """Seconds that a call waits for a model that is loaded or restarted; then it is answered 503."""
    hang_timeout_s: PositiveFloat = 5.0
    """Seconds without progress after which the model's process is restarted."""
    process_bytes: PositiveInt | None = None
    """The address space of the model's process, on a CPU only; left out: unlimited."""
    ignore_unknown_tools: bool = False
    """Whether tools that a server would have to run are ignored and listed in x-headgate-ignored; else they are 400."""
    provider: str = "headgate"
    """The provider of the model in traces."""

    @model_validator(mode="after")
    def _check_stateless(self) -> Self:
        if self.keeps_state or self.enforces:
            raise ValueError("a local model keeps neither responses nor policies: leave out keeps_state and enforces")
        return self

    @model_validator(mode="after")
    def _check_thread(self) -> Self:
        process_only = self.keep_alive_s or self.memory_bytes or self.process_bytes or not self.preload
        if self.engine == "thread" and process_only:
            raise ValueError('keep_alive_s, memory_bytes, process_bytes and preload = false need engine = "process"')
        return self

    _engine: ModelEngine = PrivateAttr()
    _model: Model = PrivateAttr()
    _executor: RequestExecutor = PrivateAttr()

    @cached_property
    def _parts(self) -> tuple[Model, RequestExecutor, ModelEngine]:
        """What `start` has made, for the path of calls: each private attribute of pydantic's takes two exceptions."""
        return self._model, self._executor, self._engine

    def check(self) -> None:
        model = self._read_model()
        check_placement(self._placement())
        if self.memory_bytes is not None:
            check_model_fits(self._required_bytes(model, self._kv_bytes(model)), self.memory_bytes)

    async def start(self) -> None:
        self._model = await asyncio.to_thread(self._read_model)
        self._executor = RequestExecutor(
            self.max_waiting, REQUEST_UNITS + CONTEXT_TOKEN_UNITS * self._model.context_length
        )
        order = self.order(self._model)
        if self.engine == "thread":
            self._engine = await self._start_in_thread(order.limits.admission(), self._placement())
        elif (link := await link_of_process()) is not None:
            self._engine = await RemoteEngine.open(link, order)
        else:
            self._engine = await ProcessEngine.start(
                order.limits.admission(), order.spec, order.settings, shared_budget()
            )
        log.info(
            "backend.started", backend=self.name, device=self._engine.device or "not loaded yet",
            compute_type=self._engine.compute_type, workers=self._engine.workers,
            context_length=self._model.context_length,
        )  # fmt: skip

    def _read_model(self) -> Model:
        model = read_model(self.path, context_length=self.context_length)
        least = min(model.context_length, MIN_KV_TOKENS)
        if self.kv_bytes is not None and self.kv_bytes < least * model.kv_bytes_per_token:
            raise ValueError(
                f"kv_bytes is {self.kv_bytes}, but {least} tokens of the model in {self.path} take "
                f"{least * model.kv_bytes_per_token}."
            )
        return model

    def _placement(self) -> Placement:
        cards = (self.device_index,) if isinstance(self.device_index, int) else self.device_index
        return Placement(self.device, cards, self.compute_type, self.workers, self.intra_threads)

    def order(self, model: Model) -> EngineOrder:
        """Return what an engine in a process is started with. Equal tables share one if there are several workers."""
        kv_bytes, placement = self._kv_bytes(model), self._placement()
        spec = EngineSpec(
            path=str(model.path.absolute()), placement=asdict(placement), vocabulary_size=len(model.vocabulary),
            stop_ids=sorted(model.stop_ids), kv_bytes_per_token=model.kv_bytes_per_token,
            prefix_cache_bytes=self.prefix_cache_bytes, process_bytes=self.process_bytes,
        )  # fmt: skip
        settings = SupervisorSettings(
            backend=self.name, start_timeout_s=self.start_timeout_s, hang_timeout_s=self.hang_timeout_s,
            keep_alive_s=self.keep_alive_s, preload=self.preload, memory_bytes=self.memory_bytes,
            required_bytes=self._required_bytes(model, kv_bytes),
        )  # fmt: skip
        workers = placement.workers or count_cores()  # until the model is loaded
        limits = AdmissionLimits(self.max_waiting, workers, kv_bytes, self.max_wait_s, model.kv_bytes_per_token)
        return EngineOrder(self.model_dump_json(), spec, settings, limits)

    async def _start_in_thread(self, admission: JobAdmission, placement: Placement) -> ModelEngine:
        model = self._model
        tokenizer = (model.path / "tokenizer.json").read_text(encoding="utf-8")
        return await ThreadEngine.start(
            model.path, model.vocabulary, placement, admission, kv_bytes_per_token=model.kv_bytes_per_token,
            prefix_cache_bytes=self.prefix_cache_bytes,
            grammars=GrammarCompiler(tokenizer, len(model.vocabulary), model.stop_ids),
        )  # fmt: skip

    def _required_bytes(self, model: Model, kv_bytes: int) -> int:
        """Return the memory of a loaded model, with its running answers and the prompts that it keeps."""
        return (model.path / "model.bin").stat().st_size + kv_bytes + self.prefix_cache_bytes

    def _kv_bytes(self, model: Model) -> int:
        """Return the memory for running answers; unless configured, it suffices for one as long as the context."""
        full_context = model.context_length * model.kv_bytes_per_token
        return self.kv_bytes or max((self.memory_bytes or free_bytes()) // KV_FRACTION, full_context)

    async def close(self) -> None:
        self._executor.close()
        await self._engine.close()

    async def models(self) -> Sequence[str]:
        return (self.name,)

    async def describe(self, _model: str) -> Mapping[str, Any]:
        capabilities = {
            "tools": self._model.tool_format is not None,
            "json_schema": True,
            "reasoning": self._model.reasoning is not None,
            "images": False,
        }
        return {"context_length": self._model.context_length, "capabilities": capabilities}

    async def ready(self) -> bool:
        return self._engine.is_running

    async def preview(self, call: Call, context: Context) -> Mapping[str, str]:
        return _headers(call, await self._parse(call, context))

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        model, _, engine = self._parts
        team, request = context.caller.team, await self._parse(call, context)
        if call.operation == "input_tokens":
            counted = {"object": "response.input_tokens", "input_tokens": len(request.prompt)}
            yield response_reply(counted, _headers(call, request))
            return
        async with engine.generate(request.prompt, request.options, team=team) as generation:
            await asyncio.sleep(0)  # calls that came together are all with the engine before an answer is begun
            builder = ResponseBuilder(request, model.tokenizer, context.response_fields)
            yield Reply(200, _headers(call, request), batches=builder.batches(generation, context.followed))

    async def _parse(self, call: Call, context: Context) -> LocalRequest:
        """Return a call as the engine needs it. Raises RequestError, and BackendError while too many wait."""
        (model, executor, _), encoded = self._parts, await context.encode(call)
        team, has_tools = context.caller.team, call.body.get("tools") or find_text(encoded, b'"additional_tools"') >= 0
        plain = not has_tools and not call.body.get("text")
        read = partial(self._read, call, model, team, context.history_items)
        return await executor.run(read, len(encoded), team=team, plain=plain)

    def _read(self, call: Call, model: Model, team: str, history_items: int) -> LocalRequest:
        defaults = GenerationParameters(self.max_output_tokens, self.temperature)
        body = call.body
        if call.operation == "input_tokens" and body.get("input") is None:  # every field is optional there
            body = {**body, "input": ""}
        return read_request(
            body, model, defaults,
            team=team, ignore_unknown_tools=self.ignore_unknown_tools, history_items=history_items,
        )  # fmt: skip


def _headers(call: Call, request: LocalRequest) -> dict[str, str]:
    """Return the header that names what had no effect, parameters in the query included."""
    in_query = [f"query.{name}" for name, _ in query_pairs(call.query) if name] if call.query else []
    return ignored_header([*request.ignored, *in_query])
