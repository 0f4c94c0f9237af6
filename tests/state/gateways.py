"""Gateways without a server whose backend waits for a test: what background responses do, step by step."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from pydantic import PrivateAttr

from backends import Backend
from proxy.config.schema import StateTable
from proxy.context import Caller, Context
from proxy.stores import Store, StoreError
from proxy.wire.call import Call
from proxy.wire.compose import Composer, new_id, response_object, usage
from proxy.wire.event import Batch, Reply
from proxy.wire.resource import ResourceRequest
from tests.examples import ANNA, make_call, make_context
from tests.pipelines import make_pipeline, replying
from tests.stores.one_by_one import OneByOneStore
from tests.wire.streams import events_in

TIMEOUT_S = 20


class GatedBackend(Backend):
    """Streams `Hel`, and `lo` when a test opens its gate. `faults` are raised, or are the replies, of its first calls."""

    name: str = "gated"
    with_progress: bool = True

    _faults: list[Exception | Reply] = PrivateAttr(default_factory=list)
    _break: Exception | None = PrivateAttr(default=None)
    _calls: list[Call] = PrivateAttr(default_factory=list)
    _gate: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)
    _started: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)
    _closed: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        self._calls.append(call)
        fault = self._faults.pop(0) if self._faults else None
        if isinstance(fault, Exception):
            raise fault
        try:
            yield fault or Reply(200, {}, batches=self._batches(call))
        finally:
            self._closed.set()

    async def _batches(self, call: Call) -> AsyncIterator[Batch]:
        composer = Composer(response_object(call.body, response_id=new_id("resp"), created_at=int(time.time())))
        yield composer.start() if self.with_progress else composer.start()[:1]
        yield [*composer.open_message(), *composer.delta("Hel")]
        self._started.set()
        await self._gate.wait()
        if self._break is not None:
            raise self._break
        yield composer.delta("lo")
        yield composer.finish(usage(input_tokens=1, output_tokens=2))


class FlakyStore(OneByOneStore):
    """A store in memory that cannot write values, or read any, while a test says so."""

    async def get(self, key: str) -> bytes | None:
        if vars(self).get("is_unreadable"):
            raise StoreError("no answer")
        return await super().get(key)

    async def put(self, key: str, value: bytes, **options: Any) -> bool:
        if vars(self).get("is_down"):
            raise StoreError("no space left on device")
        return await super().put(key, value, **options)

    async def put_new(self, keys: Sequence[str], value: bytes, **options: Any) -> Sequence[bool]:
        if vars(self).get("is_down"):
            raise StoreError("no space left on device")
        return await super().put_new(keys, value, **options)


class BrokenStore(OneByOneStore):
    """A store in memory of which a test breaks single verbs: `store.break_verbs("claim")`."""

    def break_verbs(self, *verbs: str) -> None:
        """Let these verbs fail from now on, and no others."""
        vars(self)["broken"] = verbs

    def _check(self, verb: str) -> None:
        if verb in vars(self).get("broken", ()):
            raise StoreError("no answer")

    async def get(self, key: str) -> bytes | None:
        self._check("get")
        return await super().get(key)

    async def put(self, key: str, value: bytes, **options: Any) -> bool:
        self._check("put")
        return await super().put(key, value, **options)

    async def put_new(self, keys: Sequence[str], value: bytes, **options: Any) -> Sequence[bool]:
        self._check("put")
        return await super().put_new(keys, value, **options)

    async def delete(self, key: str) -> None:
        self._check("delete")
        await super().delete(key)

    async def append(self, key: str, value: bytes, **options: Any) -> int:
        self._check("append")
        return await super().append(key, value, **options)

    async def tail(self, key: str, **options: Any) -> Sequence[tuple[int, bytes]]:
        self._check("tail")
        return await super().tail(key, **options)

    async def claim(self, key: str, owner: str, **options: Any) -> bool:
        self._check("claim")
        return await super().claim(key, owner, **options)


class GatewayProcess:
    """One process of a gateway: what it answers, with the store that it shares with others."""

    def __init__(self, store: Store, backend: Backend | None = None, **options: Any) -> None:
        self.backend = GatedBackend() if backend is None else backend
        settings = StateTable(**options.pop("settings", {}))
        self.pipeline = make_pipeline(self.backend, store=store, settings=settings, **options)
        self.contexts: list[Context] = []

    async def create(self, caller: Caller = ANNA, **fields: Any) -> Any:
        """Return the response object of a call in the background."""
        async with self.reply(caller, **fields) as reply:
            return orjson.loads(reply.body or b"")

    @asynccontextmanager
    async def reply(self, caller: Caller = ANNA, **fields: Any) -> AsyncIterator[Reply]:
        context = make_context(caller, **fields.pop("options", {}))
        self.contexts.append(context)
        call = make_call(**{"input": "Hi", "background": True} | fields)
        async with replying(self.pipeline, call, context) as reply:
            yield reply

    async def ask(self, method: str, name: str, *rest: str, query: str = "", caller: Caller = ANNA) -> Reply:
        request = ResourceRequest(method, "responses", name, rest, query)
        async with self.pipeline.resources.reply_to(request, make_context(caller)) as reply:
            return reply

    async def get(self, name: str, caller: Caller = ANNA) -> Any:
        return orjson.loads((await self.ask("GET", name, caller=caller)).body or b"")

    async def cancel(self, name: str) -> Any:
        async with asyncio.timeout(TIMEOUT_S):
            return orjson.loads((await self.ask("POST", name, "cancel")).body or b"")

    async def events(self, name: str, after: int | None = None) -> list[Any]:
        """Return the events of a response until its end."""
        query = "stream=true" if after is None else f"stream=true&starting_after={after}"
        reply = await self.ask("GET", name, query=query)
        assert reply.batches is not None
        async with asyncio.timeout(TIMEOUT_S):
            return events_in(b"".join([unit.sse async for batch in reply.batches for unit in batch]))

    async def events_seen(self, name: str, number: int) -> None:
        """Return when the event with this number can be read."""
        reply = await self.ask("GET", name, query=f"stream=true&starting_after={number - 1}")
        assert reply.batches is not None
        async with asyncio.timeout(TIMEOUT_S):
            async for batch in reply.batches:
                if any(list(unit.payloads()) for unit in batch):
                    return

    async def end(self, name: str) -> Any:
        """Return a response when it has ended."""
        await self.events(name)
        return await self.get(name)

    async def started(self) -> None:
        """Return when the backend has sent the beginning of its answer."""
        async with asyncio.timeout(TIMEOUT_S):
            await self.backend._started.wait()  # type: ignore[attr-defined]

    async def closed(self) -> None:
        """Return when the backend no longer works."""
        async with asyncio.timeout(TIMEOUT_S):
            await self.backend._closed.wait()  # type: ignore[attr-defined]

    def open_gate(self) -> None:
        self.backend._gate.set()  # type: ignore[attr-defined]
