"""What calls that share an answer took is freed when they end, also if the answer fails or a client has disconnected."""

import asyncio
import gc

import pytest
from aiohttp import web

from proxy.cache.shared_call import SharedCall
from tests.conftest import tables_for
from tests.http.test_cycles import collected, traces_of_a_call
from tests.http.test_memory_budget import LARGE_INPUT, break_off
from tests.raw import no_tasks_left, post, until, wire  # noqa: F401
from tests.upstream import Answer, FakeUpstream, canonical

BODY = post(b'{"model":"m",%b}' % LARGE_INPUT)
STREAM = post(b'{"model":"m","stream":true,%b}' % LARGE_INPUT)


def is_joined() -> bool:
    """Whether there is a call that another one has joined."""
    calls = [each for each in gc.get_objects() if type(each) is SharedCall and each.flight is not None]
    return any(each.flight.readers == (2 if each.client is None else 1) for each in calls)


async def share(gateway: str, upstream: FakeUpstream, call: bytes, answer: Answer, *, leaves: bool) -> None:
    """Make two identical calls. The client of the first one disconnects before the answer is there if it `leaves`."""
    released = asyncio.Event()

    async def gated(request: web.Request) -> web.StreamResponse:
        await released.wait()
        return await answer(request)

    upstream.answer = gated
    upstream.arrived.clear()
    async with wire(gateway) as second:
        async with wire(gateway) as first:
            await first.send(call)
            await upstream.arrived.wait()
            await second.send(call)
            await until(is_joined)
            if not leaves:
                released.set()
                await first.answer()
        released.set()
        await second.answer()


@pytest.fixture(params=["process", "shared"])
async def sharing_gateway(request: pytest.FixtureRequest, start_gateway, upstream: FakeUpstream) -> str:
    cache = {"use": "memory", "when": "always", "ttl_s": 0.001, "collapse": request.param}
    return await start_gateway(tables_for(upstream, cache=cache))


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("answer", [canonical, break_off])
@pytest.mark.parametrize("call", [BODY, STREAM], ids=["a body", "a stream"])
async def test_no_cycle_keeps_a_call_that_was_shared(
    sharing_gateway: str, upstream: FakeUpstream, logged, call: bytes, answer: Answer, *, leaves: bool
):
    """The first time loads modules."""
    for _ in range(2):
        logged.clear()
        with collected() as found:
            await share(sharing_gateway, upstream, call, answer, leaves=leaves)
            await until(lambda: [line["event"] for line in logged].count("request.finished") == 2)

    assert [*traces_of_a_call(found)] == []
