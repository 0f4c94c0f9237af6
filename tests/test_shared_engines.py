"""The supervisor's side of engines that workers share; the engines have tests of their own."""

import asyncio
import socket

from proxy.shared_engines import SharedEngines


async def test_a_worker_that_asks_for_no_engine_loads_nothing(logged):
    """Its connection only ends."""
    engines, (own, other) = SharedEngines(), socket.socketpair()
    serving = asyncio.create_task(engines.serve(own))
    await asyncio.sleep(0)
    other.close()

    assert await serving
    assert (own.fileno(), engines._host, logged) == (-1, None, [])
    await engines.close()


async def test_a_worker_that_sends_what_is_no_message_has_to_be_replaced(logged):
    """The others are served as before."""
    engines, pairs = SharedEngines(), [socket.socketpair() for _ in range(2)]
    first, second = (asyncio.create_task(engines.serve(own)) for own, _ in pairs)
    pairs[0][1].sendall(b"\x00\x00\x00\x03[1]")
    is_sound = await first
    pairs[1][1].close()

    assert (is_sound, await second) == (False, True)
    assert [line["event"] for line in logged] == ["engine.link_lost"]
    pairs[0][1].close()
    await engines.close()
