"""Identical calls in flight: one call of the backend, and an answer of its own for each."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web
from pydantic import PrivateAttr

from proxy.context import Context
from proxy.stores.memory import MemoryStore
from proxy.wire.call import Call
from proxy.wire.errors import BackendError
from proxy.wire.event import FOLLOWED, Batch, Reply
from proxy.wire.passage import Outlet, Passage
from tests.cache.test_cache import ASKED, BEN, CAROL, STREAMED, cached
from tests.conftest import StartGateway, tables_for
from tests.examples import ANNA, make_call, make_context
from tests.pipelines import ScriptedBackend, answer_of, batches_of
from tests.rules.samples import RESPONSE
from tests.sockets import calling
from tests.upstream import FakeUpstream, streaming
from tests.wire.streams import events_in

COLLAPSED = "headgate; fwd=uri-miss; collapsed"


class GatedBackend(ScriptedBackend):
    """Answers when the test opens the gate."""

    _gate: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        self._calls.append(call)
        try:
            await self._gate.wait()
            if isinstance(self.answer, Exception):
                raise self.answer
            yield self._reply(context)
        finally:
            self._closed += 1


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def asking(pipeline: Any, caller: Any = ANNA, **fields: Any) -> tuple[Any, asyncio.Task[bytes]]:
    """Return the context of a call, and the call that is on its way."""
    context = make_context(caller)
    return context, asyncio.create_task(answer_of(pipeline, make_call(**ASKED | fields), context))


@pytest.mark.parametrize("stream", [True, False])
async def test_calls_in_flight_share_one_call_of_the_backend(stream: bool):
    """Whatever form each wants; calls of another team, or for something else, have their own."""
    backend = GatedBackend(answer=STREAMED if stream else RESPONSE)
    pipeline = cached(backend)
    calls = [asking(pipeline, caller, stream=form) for form in (stream, True, False) for caller in (ANNA, BEN)]
    others = [asking(pipeline, CAROL), asking(pipeline, input="Ho")]
    await settle()
    backend._gate.set()
    answers = [await task for _, task in calls]
    await asyncio.gather(*(task for _, task in others))

    assert len(backend._calls) == 3
    assert [context.answer_headers["Cache-Status"] for context, _ in calls] == ["headgate; fwd=uri-miss"] + [
        COLLAPSED
    ] * 5
    assert [context.record.cache for context, _ in calls] == ["miss"] + ["collapsed"] * 5
    for answer in answers:
        final = orjson.loads(answer) if answer.startswith(b"{") else events_in(answer)[-1]["response"]
        assert final == RESPONSE
    if stream:
        assert answers[:4] == [STREAMED] * 4


class HeldBatches(Passage):
    """Batches of a source that holds events back, and counts how often it is asked not to."""

    def __init__(self, batches: AsyncIterator[Batch]) -> None:
        self._batches = batches
        self.requests = 0

    def __anext__(self) -> Any:
        return self._batches.__anext__()

    def forward_runs(self, outlet: Outlet) -> None:
        pass

    def deliver_at_once(self) -> None:
        self.requests += 1


@pytest.mark.parametrize("collapse", ["process", "shared"])
@pytest.mark.parametrize(("streams", "requests"), [((False, True), 1), ((False, False), 0), ((True, True), 0)])
async def test_a_follower_that_streams_gets_events_as_they_come(
    streams: tuple[bool, bool], requests: int, collapse: str
):
    """Also if the reply was opened for a call without a stream, whose events may be held back."""
    batches = HeldBatches(batches_of(STREAMED, FOLLOWED))
    backend = GatedBackend(answer=Reply(200, {}, batches=batches))
    pipeline = cached(backend, collapse=collapse)
    calls = [asking(pipeline, stream=stream) for stream in streams]
    await settle()
    backend._gate.set()
    await asyncio.gather(*(task for _, task in calls))

    assert (len(backend._calls), batches.requests) == (1, requests)


async def test_each_has_its_own_echoed_fields():
    """Those of the first caller reach no other one."""
    backend = GatedBackend(answer=RESPONSE | {"user": "first", "metadata": {"who": "first"}})
    pipeline = cached(backend)
    first = asking(pipeline, user="first", metadata={"who": "first"})
    second = asking(pipeline, BEN, user="second")
    streamed = asking(pipeline, BEN, user="third", stream=True)
    await settle()
    backend._gate.set()

    assert orjson.loads(await first[1])["user"] == "first"
    assert orjson.loads(await second[1]) == RESPONSE | {"user": "second", "metadata": {}}
    assert b"first" not in await streamed[1]
    assert len(backend._calls) == 1


@pytest.mark.parametrize("failure", [BackendError("It failed."), Reply(400, {}, body=b"{}")])
async def test_followers_of_a_failure_are_released(failure: Any):
    """Each asks for itself, at once."""
    backend = GatedBackend(answer=failure)
    pipeline = cached(backend)
    calls = [asking(pipeline) for _ in range(3)]
    await settle()
    assert len(backend._calls) == 1
    backend._gate.set()
    results = await asyncio.gather(*(task for _, task in calls), return_exceptions=True)

    assert len(backend._calls) == 3
    assert [context.record.cache for context, _ in calls] == ["miss"] * 3
    assert [getattr(result, "message", result) for result in results] == [getattr(failure, "message", b"{}")] * 3


REFUSED = {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "change", [{"output": [REFUSED]}, {"output": []}, {"status": "incomplete"}, {"status": "failed"}]
)
@pytest.mark.parametrize("across", [False, True], ids=["one process", "two processes"])
async def test_followers_of_a_body_that_is_not_kept_are_released(change: dict[str, Any], *, stream: bool, across: bool):
    """It is known as soon as it is there: each asks for itself."""
    store, backends = MemoryStore(), [GatedBackend(answer=RESPONSE | change) for _ in range(2)]
    pipelines = [cached(backend, store=store, collapse="shared") for backend in backends]
    calls = [asking(pipelines[0])]
    await settle()
    calls += [asking(pipelines[1 if across else 0], stream=stream) for _ in range(2)]
    await settle()
    assert [len(backend._calls) for backend in backends] == [1, 0]
    for backend in backends:
        backend._gate.set()
    await asyncio.gather(*(task for _, task in calls))

    assert sum(len(backend._calls) for backend in backends) == 3
    assert [context.record.cache for context, _ in calls] == ["miss"] * 3


async def test_the_work_goes_on_without_the_first_caller():
    """It ends when the last one has left."""
    backend = GatedBackend(answer=STREAMED)
    pipeline = cached(backend)
    first, second, third = [asking(pipeline, stream=True)[1] for _ in range(3)]
    await settle()
    first.cancel()
    third.cancel()
    await asyncio.wait([first, third])
    assert backend._closed == 0
    backend._gate.set()

    assert await second == STREAMED
    assert (len(backend._calls), backend._closed) == (1, 1)
    again = asking(pipeline, stream=True)
    assert (await again[1], again[0].record.cache) == (STREAMED, "hit")  # the second one has kept it


async def test_the_work_ends_when_every_caller_has_left():
    """The upstream's connection is closed."""
    backend = GatedBackend(answer=STREAMED)
    pipeline = cached(backend)
    calls = [asking(pipeline, stream=True)[1] for _ in range(3)]
    await settle()
    for task in calls:
        task.cancel()
    await asyncio.wait(calls)

    assert backend._closed == 1


@pytest.mark.parametrize(("cost", "answered"), [("leader", [True, False]), ("each", [True, True])])
async def test_a_shared_call_is_charged_as_the_config_says(cost: str, answered: list[bool]):
    """Budgets count a call that a backend has answered."""
    backend = GatedBackend(answer=RESPONSE)
    pipeline = cached(backend, collapsed_cost=cost)
    calls = [asking(pipeline) for _ in range(2)]
    await settle()
    backend._gate.set()
    await asyncio.gather(*(task for _, task in calls))

    assert [context.is_answered for context, _ in calls] == answered


async def test_calls_can_be_kept_apart():
    """`collapse = "off"`."""
    backend = GatedBackend(answer=RESPONSE)
    pipeline = cached(backend, collapse="off")
    calls = [asking(pipeline)[1] for _ in range(3)]
    await settle()
    backend._gate.set()
    await asyncio.gather(*calls)

    assert len(backend._calls) == 3


async def test_a_call_that_asks_for_a_new_answer_joins_none():
    """That one may have begun before the caller knew of a change."""
    backend = GatedBackend(answer=RESPONSE)
    pipeline = cached(backend)
    first = asking(pipeline)[1]
    await settle()
    context = make_context(received={"cache-control": "no-cache"})
    second = asyncio.create_task(answer_of(pipeline, make_call(**ASKED), context))
    await settle()
    backend._gate.set()
    await asyncio.gather(first, second)

    assert len(backend._calls) == 2


async def test_a_follower_waits_no_longer_than_its_own_deadline():
    """The first caller may wait longer."""
    backend = GatedBackend(answer=RESPONSE)
    pipeline = cached(backend)
    first = asking(pipeline)[1]
    await settle()
    context = make_context(deadline=asyncio.get_running_loop().time())
    with pytest.raises(BackendError) as caught:
        await answer_of(pipeline, make_call(**ASKED), context)
    backend._gate.set()
    await first

    assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")


async def test_a_crowd_of_every_transport_makes_one_call(start_gateway: StartGateway, http, upstream: FakeUpstream):
    """A hundred at once, through real connections, and all answers are equal."""
    arrived, release = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        arrived.set()
        await release.wait()
        if (await request.json()).get("stream"):
            return await streaming(STREAMED)(request)
        return web.json_response(RESPONSE)

    async def by_post(stream: bool) -> Any:
        async with http.post(f"{address}/v1/responses", json={"model": "m", "stream": stream, **ASKED}) as got:
            body = await got.read()
        return events_in(body)[-1]["response"] if stream else orjson.loads(body)

    async def by_socket() -> Any:
        async with calling(address) as socket:
            return (await socket.ask(**ASKED))["response"]

    upstream.answer = answer
    address = await start_gateway(tables_for(upstream, policy=[]))
    calls = [asyncio.create_task(work) for _ in range(33) for work in (by_post(True), by_post(False), by_socket())]
    await arrived.wait()
    release.set()

    assert await asyncio.gather(*calls) == [RESPONSE] * 99
    assert len(upstream.requests) == 1
