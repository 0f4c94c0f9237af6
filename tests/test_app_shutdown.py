"""Calls that run while the gateway shuts down, in this process."""

import asyncio

import aiohttp

from tests.raw import no_tasks_left, post, wire  # noqa: F401
from tests.stopping import StoppableGateway
from tests.timeouts import TIMEOUT_S
from tests.upstream import CANONICAL, FakeUpstream, canonical, hang, streaming

STREAM = post(b'{"model":"m","stream":true}')


async def test_a_body_is_received_during_the_shutdown(upstream: FakeUpstream):
    """A long upload counts as a running call."""
    async with StoppableGateway(upstream, drain_s=20) as gateway, wire(gateway.address) as connection:
        body = b'{"model":"m","input":"%b"}' % (b"a" * 300_000)
        await connection.send(post(body, expect="100-continue").removesuffix(body))
        assert await connection.line() == b"HTTP/1.1 100 Continue\r\n"
        await connection.line()
        await connection.send(body[:1000])
        await gateway.stop()
        await connection.send(body[1000:])

        assert (await connection.answer()).status == 200
        assert await connection.rest() == b""
        assert len(upstream.requests[0].body["input"]) == 300_000


async def test_a_body_that_never_ends_does_not_delay_the_shutdown(upstream: FakeUpstream):
    """It is ended like any call that takes longer than the drain."""
    async with StoppableGateway(upstream, drain_s=0.3) as gateway, wire(gateway.address) as connection:
        await connection.send(post(expect="100-continue")[:-3])
        assert await connection.line() == b"HTTP/1.1 100 Continue\r\n"
        await gateway.stop()

        assert b"HTTP/1.1 503 " in await connection.rest()
    assert upstream.requests == []


async def test_a_body_that_was_refused_does_not_delay_the_shutdown(upstream: FakeUpstream):
    """The rest of it is not awaited once its connection has ended."""
    async with (
        StoppableGateway(upstream, drain_s=60, body_timeout_s=0.2) as gateway,
        wire(gateway.address) as connection,
    ):
        await connection.send(post(expect="100-continue")[:-3])
        assert await connection.line() == b"HTTP/1.1 100 Continue\r\n"
        await connection.line()
        await gateway.stop()

        assert (await connection.answer()).status == 408


async def test_the_shutdown_waits_for_an_answer_that_has_not_started(upstream: FakeUpstream):
    """A call whose model still generates the body counts as running."""
    proceed = asyncio.Event()

    async def slowly(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        await proceed.wait()
        return await canonical(request)

    upstream.answer = slowly
    async with StoppableGateway(upstream, drain_s=20) as gateway, wire(gateway.address) as connection:
        await connection.send(post() + post())
        await upstream.arrived.wait()
        await gateway.stop()
        proceed.set()

        assert (await connection.answer()).status == 200
        assert await connection.rest() == b""  # a request pipelined after it is not answered
    assert len(upstream.requests) == 1


async def test_a_drain_of_zero_ends_running_calls(upstream: FakeUpstream):
    """Otherwise aiohttp would wait forever, and the upstream's stream would stay open."""
    upstream.answer = streaming(CANONICAL[:2000], then=hang)
    async with StoppableGateway(upstream, drain_s=0) as gateway, wire(gateway.address) as connection:
        await connection.send(STREAM)
        assert b"200" in await connection.line()
        await gateway.stop()

        assert b"event: response.failed" in await connection.rest()
        async with asyncio.timeout(TIMEOUT_S):
            await upstream.disconnected.wait()
