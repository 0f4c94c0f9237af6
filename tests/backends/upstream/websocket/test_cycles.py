"""What a connection to an upstream took is freed when it ends: nothing waits for the garbage collector."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.http.test_cycles import collected, traces_of_a_call
from tests.raw import no_tasks_left, until  # noqa: F401
from tests.socket_upstream import Peer, SocketUpstream
from tests.sockets import SocketCaller, calling
from tests.stateful_upstream import JSON
from tests.test_websocket_upstream import StartFront, front, native  # noqa: F401

LARGE = "a" * 200_000
End = Callable[[SocketCaller, SocketUpstream], Awaitable[object]]


async def close(_: SocketUpstream, peer: Peer, __: JSON) -> bool:
    """Close the connection in place of an answer."""
    await peer.socket.close()
    return True


async def wait(_: SocketUpstream, __: Peer, ___: JSON) -> bool:
    """Give no answer."""
    return True


async def answered(caller: SocketCaller, _: SocketUpstream) -> None:
    await caller.turn_of(input=LARGE)


async def cut_off(caller: SocketCaller, upstream: SocketUpstream) -> None:
    upstream.script = close
    await caller.turn_of(input=LARGE)


async def left(caller: SocketCaller, upstream: SocketUpstream) -> None:
    """The caller disconnects while the upstream works."""
    upstream.script = wait
    known = len(upstream.messages)
    await caller.create(input=LARGE)
    await until(lambda: len(upstream.messages) > known)


@pytest.mark.parametrize("end", [answered, cut_off, left])
async def test_no_cycle_keeps_a_connection(front: StartFront, native: SocketUpstream, logged, end: End):  # noqa: F811
    """The first time loads modules."""
    gateway = await front(cache=None)
    for _ in range(2):
        logged.clear()
        with collected() as found:
            async with calling(gateway) as caller:
                await end(caller, native)
            await until(lambda: "websocket.closed" in [line["event"] for line in logged])
            await until(lambda: not any(peer.is_open for peer in native.peers))
            await asyncio.sleep(0.05)  # the gateway sees the end of its connection in a later turn of the loop

    assert [*traces_of_a_call(found)] == []
