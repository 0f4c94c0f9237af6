"""What a call took is freed when the gateway shuts down during it, wherever the call is then."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.http.test_cycles import (
    BEGUN,
    KEEPING_NOTHING,
    LONG_EVENT,
    MESSAGE,
    SHORT_MESSAGE,
    Then,
    collected,
    leave,
    reading,
    stall,
    traces_of_a_call,
)
from tests.http.test_memory_budget import LARGE_INPUT, LARGE_STREAM, LARGEST
from tests.raw import RawConnection, no_tasks_left, post, wire  # noqa: F401
from tests.sockets import upgrade
from tests.stopping import StoppableGateway
from tests.upstream import CANONICAL, Answer, FakeUpstream, hang, streaming

SOCKET = upgrade() + MESSAGE
IN_STREAM = streaming(CANONICAL[:2000], then=hang)
CREATED = b"response.created"
Begin = Callable[[str, FakeUpstream, AsyncExitStack], Awaitable[None]]


async def settle(_: RawConnection, __: FakeUpstream) -> None:
    """Wait until the gateway has received what was sent, of which nothing else can be seen."""
    await asyncio.sleep(0.1)


def calls(*data: bytes, answer: Answer | None = hang, then: Then = leave) -> Begin:
    """Send each of these on a connection of its own, and go on after `then`. The stack closes the connections."""

    async def begin(gateway: str, upstream: FakeUpstream, stack: AsyncExitStack) -> None:
        upstream.answer = answer
        upstream.arrived.clear()
        for each in data:
            connection = await stack.enter_async_context(wire(gateway))
            await connection.send(each)
            await then(connection, upstream)

    return begin


STATES = {
    "waits": calls(LARGEST),
    "waits for a body of which a stream has begun": calls(LARGEST, answer=IN_STREAM),
    "waits for a stream": calls(LARGE_STREAM),
    "has begun to stream": calls(LARGE_STREAM, answer=IN_STREAM, then=reading(CREATED)),
    "has a client that does not read": calls(LARGE_STREAM, answer=streaming(BEGUN, LONG_EVENT, then=hang), then=stall),
    "is received": calls(LARGEST[:150_000], then=settle),
    "has other requests behind it": calls(LARGEST * 3),
    "runs in the background": calls(post(b'{"model":"m","background":true,%b}' % LARGE_INPUT)),
    "is joined by one for a body": calls(LARGEST, LARGEST, then=settle),
    "is joined by one for a stream": calls(LARGE_STREAM, LARGE_STREAM, then=settle),
    "WebSocket: waits": calls(SOCKET),
    "WebSocket: has other turns behind it": calls(SOCKET + SHORT_MESSAGE * 3),
    "WebSocket: has begun to stream": calls(SOCKET, answer=IN_STREAM, then=reading(CREATED)),
    "WebSocket: has ended": calls(SOCKET, answer=None, then=reading(b"response.completed")),
    "WebSocket: is received": calls(SOCKET[:150_000], then=settle),
}
CACHE = {"use": "memory", "when": "always"}


def keeping_state(upstream: FakeUpstream) -> dict[str, Any]:
    """Return tables of a gateway that keeps the state."""
    return {"cache": None, "backend": [{**KEEPING_NOTHING, "base_url": f"{upstream.address}/v1"}]}


GATEWAYS: dict[str, Callable[[FakeUpstream], dict[str, Any]]] = {
    "that keeps the state": keeping_state,
    "that shares calls": lambda _: {"cache": CACHE},
    "that shares calls with other processes": lambda _: {"cache": {**CACHE, "collapse": "shared"}},
}


@pytest.mark.parametrize("tables", GATEWAYS.values(), ids=GATEWAYS)
@pytest.mark.parametrize("begin", STATES.values(), ids=STATES)
async def test_no_cycle_keeps_a_call_that_a_shutdown_ends(upstream: FakeUpstream, tables, begin: Begin):
    """The first time loads modules."""
    for _ in range(2):
        async with AsyncExitStack() as stack, StoppableGateway(upstream, 0.02, tables(upstream)) as gateway:
            with collected() as found:
                await begin(gateway.address, upstream, stack)
                await gateway.stop()
                await gateway.wait()

    assert [*traces_of_a_call(found)] == []
