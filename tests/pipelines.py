"""Pipelines without a server: the whole path of a call to a backend whose replies a test chooses."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from pydantic import Field, PrivateAttr

from backends import Backend
from policies import PolicyState
from proxy.cache.cache import Cache
from proxy.config.schema import StateTable
from proxy.context import Context
from proxy.history import History
from proxy.pipeline import Pipeline
from proxy.routing.attempts import Attempts
from proxy.routing.routes import Route, Routes
from proxy.rules import Rules
from proxy.rules.rule import Rule
from proxy.state.background import Background
from proxy.state.compaction import Compaction
from proxy.state.conversations import Conversations
from proxy.state.journal import Journals
from proxy.state.local_resources import LocalResources
from proxy.state.ownership import TTL_S, Ownership
from proxy.state.resources import Resources
from proxy.state.responses import StoredResponses
from proxy.state.sealing import Sealing
from proxy.stores import Store
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from proxy.wire.event import Batch, Reply, response_reply
from proxy.wire.sse import SSEParser


class ScriptedBackend(Backend):
    """Answers every call with `answer`: the response object of a body, the bytes of a stream, or an exception."""

    name: str = "scripted"

    answer: Any = None
    headers: dict[str, str] = Field(default_factory=dict)

    _calls: list[Call] = PrivateAttr(default_factory=list)
    _closed: int = PrivateAttr(default=0)

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        self._calls.append(call)
        if isinstance(self.answer, Exception):
            raise self.answer
        try:
            yield self._reply(context)
        finally:
            self._closed += 1

    def _reply(self, context: Context) -> Reply:
        if isinstance(self.answer, Reply):
            return self.answer
        if not isinstance(self.answer, bytes):
            return response_reply(self.answer, self.headers)
        return Reply(200, self.headers, batches=batches_of(self.answer, context.followed))


async def batches_of(stream: bytes, followed: frozenset[str]) -> AsyncIterator[Batch]:
    parser = SSEParser(followed)
    for start in range(0, len(stream), 1000):
        yield parser.feed(stream[start : start + 1000])
    yield parser.close()


def make_pipeline(
    *backends: Backend,
    rules: Sequence[Rule] = (),
    cache: Cache | None = None,
    model: str = "*",
    store: Store | None = None,
    settings: StateTable | None = None,
) -> Pipeline:
    """Return a pipeline with one route from these models to these backends, and its state in a store."""
    store = MemoryStore() if store is None else store
    ownership = Ownership(store)
    routes, all_rules = Routes([Route("route", model, backends)]), Rules(rules, PolicyState(store, ownership))
    kept, conversations = StoredResponses(store, TTL_S), Conversations(store, TTL_S)
    cache = cache or Cache(None, None)
    settings = settings or StateTable()
    background = Background(store, Journals(store, settings.resume_window_s), settings, all_rules, kept)
    local = LocalResources(kept, conversations, background)
    named = {backend.name: backend for backend in backends}
    return Pipeline(
        rules=all_rules,
        ownership=ownership,
        routes=routes,
        cache=cache,
        history=History(kept, conversations),
        attempts=Attempts(),
        resources=Resources(all_rules, ownership, routes, named, local, cache.forget),
        compaction=Compaction(Sealing(None, store)),
        background=background,
    )


def make_background(store: Store, responses: StoredResponses, **settings: Any) -> Background:
    """Return background responses without policies."""
    table = StateTable(**settings)
    journals = Journals(store, table.resume_window_s)
    return Background(store, journals, table, Rules((), PolicyState(store, Ownership(store))), responses)


@asynccontextmanager
async def replying(pipeline: Pipeline, call: Call, context: Context) -> AsyncIterator[Reply]:
    """The reply to a call; what is behind it ends with the block."""
    async with context.cleanup:
        yield await pipeline.reply(call, context)


async def answer_of(pipeline: Pipeline, call: Call, context: Context) -> bytes:
    """Return the answer to a call: its body, or all frames of its stream."""
    async with replying(pipeline, call, context) as reply:
        if reply.batches is None:
            return reply.body or b""
        return b"".join([unit.sse async for batch in reply.batches for unit in batch])


async def object_of(pipeline: Pipeline, call: Call, context: Context) -> Any:
    """Return the response object of the answer to a call that is one body."""
    return orjson.loads(await answer_of(pipeline, call, context))
