"""Slow calls, connections and bodies of one team leave room for the calls of every other team."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import pytest

from tests.conftest import tables_for
from tests.raw import RawConnection, no_tasks_left, post, until, wire  # noqa: F401
from tests.sockets import calling
from tests.timeouts import TIMEOUT_S
from tests.upstream import FakeUpstream, canonical, hang

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
PLACES = 8


def call(team: str, model: str = "m", more: bytes = b"") -> bytes:
    return post(b'{"model":"%b","input":"%b"}' % (model.encode(), more), authorization=f"Bearer {team}")


def teams(upstream: FakeUpstream, server: dict[str, Any], **backend: Any) -> dict[str, Any]:
    """Return the tables of a gateway of two teams; the model "slow" is never answered."""

    async def answer(request: Any) -> Any:
        return await (hang if (await request.json())["model"] == "slow" else canonical)(request)

    upstream.answer = answer
    own = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": True}
    callers = [{"name": name, "key_sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("slow", "quick")]
    return tables_for(upstream, caller=callers, cache=None, server=server, backend=[own | backend])


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as connections:
        yield connections


async def send(stack: AsyncExitStack, gateway: str, data: bytes) -> RawConnection:
    """Send bytes on a connection that stays open."""
    connection = await stack.enter_async_context(wire(gateway))
    await connection.send(data)
    return connection


async def answers(stack: AsyncExitStack, gateway: str, data: bytes, count: int) -> list[int]:
    """Return the statuses of calls on connections of their own, which stay open."""
    sent = [await send(stack, gateway, data) for _ in range(count)]
    return [(await connection.answer()).status for connection in sent]


async def hold_calls(stack: AsyncExitStack, gateway: str, count: int, more: bytes) -> tuple[int, str]:
    """Let calls wait for their answers; return what one more gets."""
    for _ in range(count):
        await send(stack, gateway, call("slow", "slow", more))
    refused = await (await send(stack, gateway, call("slow", "m", more))).answer()
    return refused.status, refused.error["code"]


async def hold_lanes(stack: AsyncExitStack, gateway: str, count: int, _more: bytes) -> tuple[int, str]:
    """Do the same on one WebSocket, which is a call itself."""
    socket = await stack.enter_async_context(calling(gateway, authorization="Bearer slow"))
    for lane in range(count + 1):
        await socket.create(model="slow", stream_id=f"lane_{lane}")
    message = await socket.read()
    return message["status"], message["error"]["code"]


class Case(NamedTuple):
    """The keys of a gateway, how many slow calls a team may have then, and what one more gets."""

    server: dict[str, Any]
    backend: dict[str, Any]
    count: int
    refusal: tuple[int, str]
    hold: Callable[[AsyncExitStack, str, int, bytes], Awaitable[tuple[int, str]]] = hold_calls
    more: bytes = b""


CASES = {
    "calls": Case({"max_connections": PLACES}, {}, 6, (429, "too_many_calls")),
    "lanes of a WebSocket": Case({"max_connections": PLACES}, {}, 5, (429, "too_many_calls"), hold_lanes),
    "memory of bodies": Case({"memory_bytes": 6_000_000}, {}, 8, (503, "memory_exhausted"), more=b"a" * 200_000),
    "places at an upstream": Case({}, {"max_concurrent": PLACES, "max_waiting": 0}, 6, (429, "upstream_queue_full")),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_slow_calls_of_one_team_leave_room_for_others(
    start_gateway, upstream: FakeUpstream, stack: AsyncExitStack, case: Case
):
    """The team itself gets a refusal beyond its share, and its share again when its calls have ended."""
    gateway = await start_gateway(teams(upstream, case.server, **case.backend))
    seen = await case.hold(stack, gateway, case.count, case.more)
    await until(lambda: len(upstream.requests) == case.count)
    quick = [(await answers(stack, gateway, call("quick", more=case.more), 1))[0] for _ in range(3)]
    await stack.aclose()
    async with asyncio.timeout(TIMEOUT_S):
        while (await answers(stack, gateway, call("slow", more=case.more), 1))[0] != 200:
            await stack.aclose()

    assert seen == case.refusal
    assert quick == [200] * 3


@pytest.mark.parametrize("sent", [b"", HEALTH, HEALTH[:20], call("slow")], ids=["new", "kept", "half a head", "a call"])
async def test_connections_without_a_request_make_room(
    start_gateway, upstream: FakeUpstream, stack: AsyncExitStack, logged, sent: bytes
):
    """One of the team that has the most is closed, or one without a team; a call that runs is not."""
    gateway = await start_gateway(teams(upstream, {"max_connections": PLACES}))
    slow = await send(stack, gateway, call("slow", "slow"))
    kept = await send(stack, gateway, call("quick"))
    assert (await kept.answer()).status == 200
    await upstream.arrived.wait()
    idle = [await send(stack, gateway, sent) for _ in range(PLACES - 2)]
    if sent.endswith(b"}") or sent == HEALTH:
        assert {(await connection.answer()).status for connection in idle} == {200}
    else:
        await answers(stack, gateway, HEALTH, 1)  # the others were accepted before it
    quick = await answers(stack, gateway, call("quick"), 3)
    closed = await idle[0].rest()
    await kept.send(call("quick"))
    quick.append((await kept.answer()).status)
    upstream.answer = None
    last = await answers(stack, gateway, call("quick"), PLACES)

    assert (quick, closed, last) == ([200] * 4, b"", [200] * PLACES)
    assert "connections.exhausted" not in [line["event"] for line in logged]
    assert not slow._reader.at_eof()


async def test_one_team_has_everything(start_gateway, upstream: FakeUpstream, stack: AsyncExitStack):
    """A share would only waste what no other team can use."""
    tables = teams(upstream, {"max_connections": PLACES})
    gateway = await start_gateway(tables | {"caller": tables["caller"][:1]})
    for _ in range(PLACES - 1):
        await send(stack, gateway, call("slow", "slow"))
    await until(lambda: len(upstream.requests) == PLACES - 1)

    assert await answers(stack, gateway, call("slow"), 1) == [200]
