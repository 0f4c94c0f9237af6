"""Connections in WebSocket mode: lanes, limits, and the end of a connection."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import pytest
from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from proxy.http.websocket import session as module
from proxy.http.websocket.lanes import MAX_ACTIVE, MAX_NAMES
from tests.conftest import tables_for
from tests.http.test_write_timeout import finished
from tests.raw import no_tasks_left, until  # noqa: F401
from tests.sockets import SocketCaller, calling, masked, raw_socket
from tests.stopping import StoppableGateway
from tests.upstream import CANONICAL, FakeUpstream, canonical, hang, streaming

FIRST = CANONICAL[: CANONICAL.index(b"\n\n") + 2]


class Gate:
    """An upstream's answer that waits until the test opens it, for each input; it counts what waits."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self._open: dict[str, asyncio.Event] = {}

    def event(self, name: str) -> asyncio.Event:
        return self._open.setdefault(name, asyncio.Event())

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        name = orjson.loads(await request.read())["input"]
        self.waiting.append(name)
        await self.event(name).wait()
        return await canonical(request)


@pytest.fixture
def gate(upstream: FakeUpstream) -> Gate:
    upstream.answer = Gate()
    return upstream.answer


async def test_turns_of_a_lane_run_one_after_the_other(gateway: str, upstream: FakeUpstream, gate: Gate):
    """An error waits for its turn as well: it must not look like the end of another."""
    async with calling(gateway) as caller:
        await caller.create(input="1")
        await caller.send({"type": "response.create", "input": "2"})
        await caller.create(input="3")
        await until(lambda: gate.waiting == ["1"])
        for name in ("3", "1"):
            gate.event(name).set()
        answers = [(await caller.turn())[-1]["type"] for _ in range(3)]

    assert answers == ["response.completed", "error", "response.completed"]
    assert gate.waiting == ["1", "3"]


async def test_lanes_run_side_by_side(gateway: str, gate: Gate):
    """Each message names its lane."""
    async with calling(gateway) as caller:
        for lane in ("a", "b", None):
            await caller.create(input=str(lane), stream_id=lane)
        await until(lambda: sorted(gate.waiting) == ["None", "a", "b"])
        seen = []
        for lane in ("b", "None", "a"):
            gate.event(lane).set()
            seen.append({message.get("stream_id") for message in await caller.turn()})

    assert seen == [{"b"}, {None}, {"a"}]


async def test_a_connection_has_a_limit_of_active_turns(gateway: str, gate: Gate):
    """One more waits until another has ended."""
    names = [str(number) for number in range(MAX_ACTIVE + 1)]
    async with calling(gateway) as caller:
        for name in names:
            await caller.create(input=name, stream_id=name)
        await until(lambda: len(gate.waiting) == MAX_ACTIVE)
        gate.event(gate.waiting[0]).set()
        await until(lambda: len(gate.waiting) == MAX_ACTIVE + 1)
        for name in names:
            gate.event(name).set()

    assert sorted(gate.waiting) == sorted(names)


async def test_a_connection_has_a_limit_of_lanes(gateway: str):
    async with calling(gateway) as caller:
        for number in range(MAX_NAMES):
            assert (await caller.ask(stream_id=f"lane.{number}"))["type"] == "response.completed"
        refused = await caller.ask(stream_id="one-more")
        again = await caller.ask(stream_id="lane.0")
        default = await caller.ask()

    assert (refused["error"]["code"], refused["stream_id"]) == ("websocket_stream_limit_reached", "one-more")
    assert [again["type"], default["type"]] == ["response.completed"] * 2


async def test_many_turns_may_wait(gateway: str, upstream: FakeUpstream):
    """More than are read at once: none is lost."""
    async with calling(gateway) as caller:
        sending = asyncio.create_task(_create(caller, 200))
        answers = [(await caller.turn())[-1]["type"] for _ in range(200)]
        await sending

    assert answers == ["response.completed"] * 200


async def _create(caller: SocketCaller, count: int) -> None:
    for _ in range(count):
        await caller.create()


async def test_an_idle_connection_ends_after_its_longest_time(gateway: str, monkeypatch: pytest.MonkeyPatch, logged):
    monkeypatch.setattr(module, "MAX_AGE_S", 0.1)
    async with calling(gateway) as caller:
        message = await caller.read()
        code = await caller.closed()
    await until(lambda: logged != [] and logged[-1]["event"] == "websocket.closed")

    assert (message["type"], message["error"]["code"]) == ("error", "websocket_connection_limit_reached")
    assert code == 1001
    assert logged[-1]["code"] == "websocket_connection_limit_reached"


async def test_a_turn_may_end_after_that(gateway: str, gate: Gate, monkeypatch: pytest.MonkeyPatch):
    """Those that come after it are refused."""
    monkeypatch.setattr(module, "MAX_AGE_S", 0.1)
    async with calling(gateway) as caller:
        await caller.create(input="1")
        await until(lambda: gate.waiting == ["1"])
        await asyncio.sleep(0.2)
        await caller.create(input="2", stream_id="b")
        refused = await caller.read()
        gate.event("1").set()
        ended = (await caller.turn())[-1]
        last = await caller.read()

        assert await caller.closed() == 1001
    assert (refused["error"]["code"], refused["stream_id"]) == ("websocket_connection_limit_reached", "b")
    assert ended["type"] == "response.completed"
    assert last["error"]["code"] == "websocket_connection_limit_reached"


@asynccontextmanager
async def stopping(upstream: FakeUpstream, drain_s: float) -> AsyncIterator[tuple[StoppableGateway, SocketCaller]]:
    async with StoppableGateway(upstream, drain_s=drain_s) as gateway, calling(gateway.address) as caller:
        yield gateway, caller


async def test_an_idle_connection_is_closed_at_shutdown(upstream: FakeUpstream):
    """At once, with a code after which clients connect again."""
    async with stopping(upstream, 60) as (gateway, caller):
        assert (await caller.ask())["type"] == "response.completed"
        await gateway.stop()

        assert await caller.closed() == 1001


async def test_a_turn_may_end_during_the_drain(upstream: FakeUpstream, gate: Gate):
    async with stopping(upstream, 60) as (gateway, caller):
        await caller.create(input="1")
        await until(lambda: gate.waiting == ["1"])
        await gateway.stop()
        gate.event("1").set()

        assert (await caller.turn())[-1]["type"] == "response.completed"
        assert await caller.closed() == 1001


async def test_turns_that_outlast_the_drain_end_with_one_last_message(upstream: FakeUpstream, logged):
    """One that has begun fails, one that has not is refused; those that wait are refused as well."""
    upstream.answer = streaming(FIRST, then=hang)
    async with stopping(upstream, 0.2) as (gateway, caller):
        await caller.create()
        await caller.create()
        assert (await caller.read())["type"] == "response.created"
        await gateway.stop()
        messages = [(await caller.turn())[-1], (await caller.turn())[-1]]

        assert await caller.closed() == 1001
    assert [message["type"] for message in messages] == ["response.failed", "error"]
    assert (messages[1]["status"], messages[1]["error"]["code"]) == (503, "server_shutdown")
    assert [code for _, code in finished(logged)] == ["server_shutdown"] * 2


async def test_a_turn_that_has_not_begun_is_refused_when_the_drain_ends(upstream: FakeUpstream):
    upstream.answer = hang
    async with stopping(upstream, 0.2) as (gateway, caller):
        await caller.create()
        await upstream.arrived.wait()
        await gateway.stop()

        assert (await caller.read())["error"]["code"] == "server_shutdown"
        assert await caller.closed() == 1001


async def test_each_turn_has_a_span_that_is_linked_to_the_connection(start_gateway, upstream: FakeUpstream):
    """All of them continue the client's trace."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    gateway = await start_gateway(tables_for(upstream), tracer=provider.get_tracer("test"))
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    async with calling(gateway, traceparent=f"00-{trace_id}-b7ad6b7169203331-01") as caller:
        await caller.ask()
        await caller.ask(metadata=[])
    await until(lambda: len([span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]) == 3)
    *turns, connection = [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]

    assert [span.name for span in turns] == ["WEBSOCKET /v1/responses"] * 2
    assert [link.context.span_id for span in turns for link in span.links] == [connection.context.span_id] * 2
    assert {span.context.trace_id for span in (*turns, connection)} == {int(trace_id, 16)}
    assert [span.attributes["http.response.status_code"] for span in turns] == [200, 400]


async def test_a_crash_of_the_connection_resets_it(gateway: str, monkeypatch: pytest.MonkeyPatch, logged):
    """An answer in HTTP would be read as frames."""
    monkeypatch.setattr(module.Session, "_accept", lambda *_: 1 / 0)
    async with raw_socket(gateway) as connection:
        await connection.send(masked(1, b"{}"))

        assert await connection.rest() == b""
    await until(lambda: any(line["event"] == "websocket.closed" for line in logged))
    assert any(line["event"] == "request.crashed" for line in logged)


async def test_floods_of_several_connections_take_turns(gateway: str, monkeypatch: pytest.MonkeyPatch):
    """However many there are, one message of all of them is read between two steps of other requests."""
    connections, messages = 8, 40
    loop = asyncio.get_running_loop()
    accepted: list[int] = []
    step = 0

    def count_step() -> None:
        nonlocal step, counting
        step += 1
        counting = loop.call_soon(count_step)

    accept = module.Session._accept

    async def record(session: module.Session, received: object) -> None:
        accepted.append(step)
        await accept(session, received)  # type: ignore[arg-type]

    monkeypatch.setattr(module.Session, "_accept", record)
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(raw_socket(gateway)) for _ in range(connections)]
        counting = loop.call_soon(count_step)
        for connection in opened:
            await connection.send(masked(1, b"{}") * messages)
        await until(lambda: len(accepted) == connections * messages)
        counting.cancel()
    crowded = [number for number in Counter(accepted).values() if number > 1]

    assert sum(crowded) <= 2 * connections  # the first message of each waits for nothing
