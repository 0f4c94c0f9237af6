"""Calls that open their replies in their own tasks: they go on without their clients while other calls wait for them."""

import asyncio
import gc
from collections.abc import Coroutine
from functools import partial
from typing import Any

import orjson
import pytest
from aiohttp import web

from proxy.cache import flights
from proxy.cache.shared_call import SharedCall
from proxy.cache.single_flight import Flight
from proxy.http.server import Connection
from proxy.wire.errors import BackendError
from tests.cache.test_cache import ASKED, STREAMED, cached
from tests.cache.test_flights import GatedBackend, asking, settle
from tests.conftest import StartGateway, tables_for
from tests.examples import ANNA, make_call, make_context
from tests.pipelines import answer_of
from tests.raw import RawConnection, no_tasks_left, post, until, wire  # noqa: F401
from tests.rules.samples import RESPONSE
from tests.sockets import calling
from tests.stopping import StoppableGateway
from tests.test_accounting import ASKED as ESTIMATED
from tests.test_accounting import BODY, KEY, SAVED, SENT, answering, lines_of
from tests.upstream import FakeUpstream, final_body, hang
from tests.wire.streams import events_in


class ClientOfTask:
    """A client, whose call is this task."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None
        self.is_held = self.is_connected = False

    def hold_call(self) -> bool:
        self.is_held = True
        return self.is_connected

    def release_call(self, *, is_needed: bool = False) -> asyncio.Task[Any] | None:
        self.is_held = False
        if self.is_connected or is_needed or self.task is None:
            return None
        self.task.cancel()
        return self.task

    def disconnect(self) -> None:
        self.is_connected = False
        if not self.is_held and self.task is not None:
            self.task.cancel()


def leading(
    pipeline: Any, deadline: float | None = None, **fields: Any
) -> tuple[Any, ClientOfTask, asyncio.Task[bytes]]:
    """Return the context, the client and the task of a call over HTTP that wants no stream."""
    client = ClientOfTask()
    context = make_context(ANNA, deadline=deadline)
    context.client, client.is_connected = client, True
    client.task = asyncio.create_task(answer_of(pipeline, make_call(**ASKED | fields), context))
    return context, client, client.task


def final(answer: bytes) -> Any:
    """Return the response object in an answer."""
    return orjson.loads(answer) if answer.startswith(b"{") else events_in(answer)[-1]["response"]


FORMS = pytest.mark.parametrize("form", [RESPONSE, STREAMED], ids=["a body", "a stream"])


@FORMS
async def test_a_call_that_nobody_joins_has_no_flight(form: Any, monkeypatch):
    """A backend that sends a stream needs one: it is read for calls that join later."""
    made: list[Flight] = []
    monkeypatch.setattr(flights, "Flight", lambda *settings: made.append(Flight(*settings)) or made[-1])
    backend = GatedBackend(answer=form)
    backend._gate.set()
    _, client, task = leading(cached(backend))

    assert final(await task) == RESPONSE
    assert (len(made), client.is_held) == (0 if form is RESPONSE else 1, False)


@FORMS
async def test_every_call_gets_the_reply(form: Any):
    """Whatever form it wants, and also if it joins when the reply is there."""
    backend = GatedBackend(answer=form)
    pipeline = cached(backend)
    released = asyncio.Event()
    context, client, first = leading(pipeline)
    context.on_end(released.wait)
    await settle()
    others = [asking(pipeline, stream=stream) for stream in (False, True)] + [leading(pipeline)[::2]]
    await settle()
    assert client.is_held
    backend._gate.set()
    await settle()
    late = asking(pipeline)
    answers = [await task for _, task in [*others, late]]
    released.set()

    assert [final(answer) for answer in [await first, *answers]] == [RESPONSE] * 5
    assert [other.record.cache for other, _ in others] == ["collapsed"] * 3
    assert (len(backend._calls), backend._closed, client.is_held) == (1, 1, False)


@FORMS
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_goes_on_without_its_client(form: Any, *, stream: bool):
    """While another one waits; it accounts for the tokens, which it knows."""
    backend = GatedBackend(answer=form)
    pipeline = cached(backend)
    context, client, first = leading(pipeline)
    await settle()
    second = asking(pipeline, stream=stream)
    await settle()
    client.disconnect()
    await settle()
    assert (first.done(), backend._closed) == (False, 0)
    backend._gate.set()

    assert final(await second[1]) == RESPONSE
    await asyncio.wait([first])
    assert (len(backend._calls), backend._closed) == (1, 1)
    assert first.cancelled() == (form is STREAMED)
    assert [each.sent_call is not None for each in (context, second[0])] == [True, False]
    assert context.transcript.terminal is not None
    again = asking(pipeline)
    assert (final(await again[1]), again[0].record.cache) == (RESPONSE, "hit")


async def test_the_work_ends_with_the_last_call_that_waits():
    """Which has left when the work has ended; what asks then does not join it."""
    backend = GatedBackend(answer=RESPONSE)
    pipeline = cached(backend)
    _, client, first = leading(pipeline)
    await settle()
    others = [asking(pipeline)[1] for _ in range(2)]
    await settle()
    client.disconnect()
    others[0].cancel()
    await settle()
    assert backend._closed == 0
    others[1].cancel()
    await asyncio.sleep(0)
    late = asking(pipeline)[1]
    await asyncio.wait([others[1]])

    assert (first.cancelled(), backend._closed) == (True, 1)
    backend._gate.set()
    assert final(await late) == RESPONSE
    assert len(backend._calls) == 2


async def test_a_call_ends_with_its_client_when_others_have_left():
    """It can be joined again until then."""
    backend = GatedBackend(answer=RESPONSE)
    pipeline = cached(backend)
    _, client, first = leading(pipeline)
    await settle()
    for _ in range(2):
        other = asking(pipeline)[1]
        await settle()
        assert client.is_held
        other.cancel()
        await asyncio.wait([other])
        assert not client.is_held
    client.disconnect()
    await asyncio.wait([first])

    assert (first.cancelled(), len(backend._calls), backend._closed) == (True, 1, 1)


async def test_another_call_leads_when_the_first_one_is_cancelled():
    """As by a shutdown of its connection: one for all that wait."""
    backend = GatedBackend(answer=RESPONSE)
    pipeline = cached(backend)
    first = leading(pipeline)[2]
    await settle()
    others = [asking(pipeline) for _ in range(3)]
    await settle()
    first.cancel()
    await settle()
    assert (len(backend._calls), backend._closed) == (2, 1)
    backend._gate.set()

    assert [final(await task) for _, task in others] == [RESPONSE] * 3
    assert [context.record.cache for context, _ in others] == ["miss", "collapsed", "collapsed"]
    assert (len(backend._calls), first.cancelled()) == (2, True)


async def test_a_call_whose_client_has_left_is_not_joined():
    """It is being cancelled."""
    backend = GatedBackend(answer=RESPONSE)
    pipeline = cached(backend)
    _, client, first = leading(pipeline)
    await settle()
    client.disconnect()
    second = asking(pipeline)
    await settle()
    backend._gate.set()

    assert (final(await second[1]), second[0].record.cache) == (RESPONSE, "miss")
    assert first.cancelled()


async def test_each_asks_for_itself_when_the_first_call_fails():
    """And so does a call that comes then: the client of the first one may hold it no more."""
    backend = GatedBackend(answer=BackendError("It failed."))
    pipeline = cached(backend)
    _, client, first = leading(pipeline)
    await settle()
    others = [asking(pipeline)[1] for _ in range(2)]
    await settle()
    backend._gate.set()
    results = await asyncio.gather(first, *others, asking(pipeline)[1], return_exceptions=True)

    assert [getattr(result, "message", result) for result in results] == ["It failed."] * 4
    assert (len(backend._calls), client.is_held) == (4, False)


async def test_the_deadline_is_that_of_the_call_that_began():
    """Another one may wait longer: it asks for itself."""
    backend = GatedBackend(answer=RESPONSE)
    pipeline = cached(backend)
    _, client, first = leading(pipeline, deadline=asyncio.get_running_loop().time() + 0.05)
    await settle()
    second = asking(pipeline)
    await settle()
    client.disconnect()
    await asyncio.wait([first])
    await settle()
    assert (len(backend._calls), backend._closed) == (2, 1)
    backend._gate.set()

    assert (final(await second[1]), second[0].record.cache) == (RESPONSE, "miss")
    assert getattr(first.exception(), "code", None) == "deadline_exceeded"


@pytest.mark.parametrize("ended", [1, 3])
async def test_what_ended_since_the_lookup_is_looked_up_again(ended: int, monkeypatch):
    """By its key, or if more have ended than are remembered."""
    monkeypatch.setattr(flights, "MAX_ENDED", 2)
    backend = GatedBackend(answer=RESPONSE)
    backend._gate.set()
    pipeline = cached(backend)
    context, call = make_context(ANNA), make_call(**ASKED)
    slot: Any = pipeline.cache.slot(call, pipeline.routes.match(call), context)
    for number in range(ended):
        await leading(pipeline, **({"input": f"{number}"} if number else {}))[2]
    async with context.cleanup:
        reply = await pipeline.cache.fill(slot, backend.respond(call, context), call, context)

    assert (reply.response, context.record.cache, len(backend._calls)) == (RESPONSE, "hit", ended)


async def test_what_others_keep_when_the_first_call_has_left_is_looked_up_again():
    """By a call that was looked up before, and begins when they have the answer."""
    backend = GatedBackend(answer=STREAMED)
    pipeline = cached(backend)
    _, client, first = leading(pipeline)
    await settle()
    second = asking(pipeline, stream=True)
    await settle()
    context, call = make_context(ANNA), make_call(**ASKED)
    slot: Any = pipeline.cache.slot(call, pipeline.routes.match(call), context)
    backend._gate.set()
    client.disconnect()
    await asyncio.wait([first, second[1]])
    async with context.cleanup:
        reply = await pipeline.cache.fill(slot, backend.respond(call, context), call, context)

    assert first.cancelled()
    assert (reply.response, context.record.cache, len(backend._calls)) == (RESPONSE, "hit", 1)


async def test_a_call_whose_answer_is_not_kept_is_forgotten_at_its_end():
    """A call that joins later finds nothing more than when it was looked up."""
    backend = GatedBackend(answer=RESPONSE | {"status": "incomplete"})
    backend._gate.set()
    pipeline = cached(backend)
    found: list[int] = []
    for answer in (RESPONSE | {"status": "incomplete"}, RESPONSE):
        backend.__dict__["answer"] = answer
        await leading(pipeline)[2]
        found.append(pipeline.cache._flights.ended)

    assert found == [0, 1]


def ends_of(logged: list[dict[str, Any]]) -> list[tuple[int, str | None, str | None]]:
    """Return the status, the code and the outcome of the cache in the log line of each request."""
    return [
        (line["status"], line.get("code"), line.get("cache")) for line in logged if line["event"] == "request.finished"
    ]


REQUEST = post(orjson.dumps(BODY | KEY))


def joined_calls(count: int) -> list[SharedCall]:
    """Return the calls that open their replies in their own tasks, and that so many others have joined."""
    calls = [each for each in gc.get_objects() if type(each) is SharedCall]
    return [each for each in calls if each.flight is not None and each.flight.readers == count]


def has_lost_client() -> bool:
    """Whether the client of a call that another one has joined has disconnected."""
    clients = [each.client for each in joined_calls(1)]
    return any(isinstance(client, Connection) and client.transport is None for client in clients)


async def ask_by_socket(address: str, _: object) -> Any:
    async with calling(address) as socket:
        return (await socket.ask(**BODY | KEY))["response"]


async def ask_by_post(address: str, http: Any, *, stream: bool = False) -> Any:
    async with http.post(f"{address}/v1/responses", json=BODY | KEY | {"stream": stream}) as answer:
        return final(await answer.read())


WAYS = {"JSON": ask_by_post, "a stream": partial(ask_by_post, stream=True), "WebSocket": ask_by_socket}


@pytest.fixture
def released(upstream: FakeUpstream) -> asyncio.Event:
    """What lets the upstream answer."""
    released = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        await released.wait()
        return await answering()(request)

    upstream.answer = answer
    return released


@pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS)
async def test_the_client_that_began_disconnects(
    start_gateway: StartGateway, http, upstream: FakeUpstream, released: asyncio.Event, logged, ask: Any
):
    """Its line is written when the answer is there, with the tokens; those who waited have saved them."""
    address = await start_gateway(tables_for(upstream, policy=[]))
    async with wire(address) as first:
        waiting = await begin_shared(first, upstream, ask(address, http))
    await until(has_lost_client)
    assert ends_of(logged) == []
    released.set()

    assert await waiting == orjson.loads(final_body())
    await until(lambda: len(lines_of(logged)) == 2)
    assert len(upstream.requests) == 1
    assert sorted(ends_of(logged), key=str) == [(200, None, "collapsed"), (499, None, "miss")]
    assert sorted(lines_of(logged), key=str) == sorted([SENT, SAVED], key=str)


async def test_every_client_disconnects(start_gateway: StartGateway, http, upstream: FakeUpstream, logged):
    """The work ends then, and is in the line of the call that was sent."""
    upstream.answer = hang
    address = await start_gateway(tables_for(upstream, policy=[]))
    async with wire(address) as first:
        await first.send(REQUEST)
        await upstream.arrived.wait()
        waiting = [asyncio.create_task(ask(address, http)) for ask in WAYS.values()]
        await until(lambda: bool(joined_calls(3)))
    await settle()
    assert not upstream.disconnected.is_set()
    for each in waiting:
        each.cancel()
    await upstream.disconnected.wait()
    await until(lambda: len(lines_of(logged)) == 4)

    assert {status for status, *_ in ends_of(logged)} == {499}
    assert [line for line in lines_of(logged) if line] == [ESTIMATED]


async def begin_shared(
    first: RawConnection, upstream: FakeUpstream, other: Coroutine[Any, Any, Any], *, data: bytes = REQUEST
) -> asyncio.Task[Any]:
    """Send a call, and another one that waits for its answer; return the task of that one."""
    await first.send(data)
    await upstream.arrived.wait()
    waiting = asyncio.create_task(other)
    await until(lambda: bool(joined_calls(1)))
    return waiting


async def begin_call(first: RawConnection, upstream: FakeUpstream) -> Connection:
    """Send a call that never ends; return its connection in the gateway."""
    upstream.answer = hang
    await first.send(REQUEST)
    await upstream.arrived.wait()
    (client,) = [each for each in gc.get_objects() if type(each) is Connection and each.active_method is not None]
    return client


async def test_a_call_is_not_held_once_its_connection_is_being_closed(
    start_gateway: StartGateway, upstream: FakeUpstream
):
    """As for a head that is too large, which the client sends meanwhile: the call is cancelled a moment later."""
    address = await start_gateway(tables_for(upstream, policy=[]))
    async with wire(address) as first:
        client = await begin_call(first, upstream)
        client.force_close()

        assert not client.hold_call()
        await upstream.disconnected.wait()


async def test_a_held_call_is_joined_while_its_connection_is_being_closed(
    start_gateway: StartGateway, http, upstream: FakeUpstream
):
    """It goes on, and ends with the last one that waits."""
    address = await start_gateway(tables_for(upstream, policy=[]))
    async with wire(address) as first:
        client = await begin_call(first, upstream)
        waiting = asyncio.create_task(ask_by_post(address, http))
        await until(lambda: bool(joined_calls(1)))
        client.force_close()
        assert client.hold_call()
        waiting.cancel()

        await upstream.disconnected.wait()


async def test_the_connection_of_a_call_that_others_waited_for_is_used_again(
    start_gateway: StartGateway, http, upstream: FakeUpstream, released: asyncio.Event
):
    """Its next call ends with the client."""
    address = await start_gateway(tables_for(upstream, policy=[]))
    async with wire(address) as first:
        waiting = await begin_shared(first, upstream, ask_by_post(address, http))
        released.set()
        assert (await first.answer()).status == 200
        await waiting
        upstream.answer = hang
        await first.send(post(b'{"model":"m"}'))
        await until(lambda: len(upstream.requests) == 2)

    await upstream.disconnected.wait()


async def test_what_follows_a_call_whose_client_has_disconnected_is_not_begun(
    start_gateway: StartGateway, http, upstream: FakeUpstream, released: asyncio.Event, logged
):
    """Although it has arrived, and the call before it goes on to its end."""
    address = await start_gateway(tables_for(upstream, policy=[]))
    async with wire(address) as first:
        waiting = await begin_shared(first, upstream, ask_by_post(address, http), data=REQUEST + post(b'{"model":"m"}'))
    await until(has_lost_client)
    released.set()
    await waiting
    await until(lambda: len(lines_of(logged)) == 2)
    await settle()

    assert len(upstream.requests) == 1
    assert sorted(ends_of(logged), key=str) == [(200, None, "collapsed"), (499, None, "miss")]


async def test_the_gateway_shuts_down_while_a_call_goes_on_without_its_client(upstream: FakeUpstream, http, logged):
    """Those who wait are refused, and it ends with them."""
    upstream.answer = hang
    async with StoppableGateway(upstream, drain_s=0.1) as gateway:
        async with wire(gateway.address) as first:
            other = http.post(f"{gateway.address}/v1/responses", json=BODY | KEY)
            waiting = await begin_shared(first, upstream, other)
        await until(has_lost_client)
        await gateway.stop()
        answer = await waiting

    assert (answer.status, (await answer.json())["error"]["code"]) == (503, "server_shutdown")
    await upstream.disconnected.wait()
    assert ends_of(logged) == [(499, None, "miss"), (503, "server_shutdown", "miss")]
    assert lines_of(logged) == [ESTIMATED, {}]
