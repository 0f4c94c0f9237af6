"""The limit on connections, and requests that arrive during shutdown."""

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import pytest

from backends.upstream.errors import RESERVED_FILES
from proxy.http import admission
from tests.conftest import tables_for
from tests.raw import RawAnswer, RawConnection, ask, no_tasks_left, post, serves, wire  # noqa: F401
from tests.stopping import StoppableGateway
from tests.upstream import FakeUpstream, canonical

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
async def two_connection_gateway(start_gateway, upstream: FakeUpstream) -> str:
    """A gateway that serves at most two connections at once."""
    return await start_gateway(tables_for(upstream, server={"max_connections": 2}))


async def connect(stack: AsyncExitStack, address: str, count: int) -> list[RawConnection]:
    """Return connections that the gateway serves; retry, because a connection that was just closed may still count."""
    connections: list[RawConnection] = []
    async with asyncio.timeout(10):
        while len(connections) < count:
            connection = await stack.enter_async_context(wire(address))
            await connection.send(HEALTH)
            if (await connection.answer()).status == 200:
                connections.append(connection)
    return connections


async def test_a_connection_beyond_the_limit_is_refused_until_another_one_closes(two_connection_gateway: str, logged):
    """It gets a 503 in the envelope and is closed; the log records once that the limit was reached."""
    async with AsyncExitStack() as stack:
        first, second = await connect(stack, two_connection_gateway, 2)
        refused = [await ask(two_connection_gateway, post()) for _ in range(3)]
        await first.send(HEALTH)
        served = await first.answer()
        await second.close()
        again = await connect(stack, two_connection_gateway, 1)
        refused_again = await ask(two_connection_gateway, post())

    assert {
        (answer.status, answer.error["code"], answer.headers["connection"]) for answer in (*refused, refused_again)
    } == {(503, "connections_exhausted", "close")}
    assert refused[0].headers["retry-after"] == "1"
    assert (served.status, len(again)) == (200, 1)
    warnings = [line for line in logged if line["event"] == "connections.exhausted"]
    assert {(line["limit"], line["log_level"]) for line in warnings} == {(2, "warning")}
    assert len(warnings) == 2


async def test_connections_far_beyond_the_limit_are_closed_without_an_answer(two_connection_gateway: str, logged):
    """Each refusal needs an open file as well, so the number of connections waiting for a refusal is limited too."""
    async with AsyncExitStack() as stack:
        await connect(stack, two_connection_gateway, 2)
        waiting = [
            await stack.enter_async_context(wire(two_connection_gateway)) for _ in range(admission.REFUSED_CONNECTIONS)
        ]
        beyond = await stack.enter_async_context(wire(two_connection_gateway))

        assert await beyond.rest() == b""
        await waiting[-1].send(post())
        assert (await waiting[-1].answer()).status == 503
    async with AsyncExitStack() as stack:
        assert await connect(stack, two_connection_gateway, 2)


@contextmanager
def files_left(number: int) -> Iterator[None]:
    """Let the process have this many files left to open, whatever has opened the others."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = 512
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    opened = [os.dup(0)]
    try:
        while opened[-1] < soft - number - 1:
            opened.append(os.dup(0))
        yield
    finally:
        for file in opened:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_the_last_files_are_kept_for_callers_and_their_refusals(start_gateway, upstream: FakeUpstream, logged):
    """Turns of WebSockets and background responses open connections to upstreams, and have none of a caller."""
    backend = {"name": "fake", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": True}
    gateway = await start_gateway(tables_for(upstream, backend=[backend], server={"max_connections": 1000}))
    async with AsyncExitStack() as stack:  # none is closed before the end: its number would be free again

        async def ask_on_new_connection(data: bytes) -> RawAnswer:
            connection = await stack.enter_async_context(wire(gateway))
            await connection.send(data)
            return await connection.answer()

        with files_left(RESERVED_FILES):
            call, health = await ask_on_new_connection(post()), await ask_on_new_connection(HEALTH)
        with files_left(admission.REFUSED_FILES):
            refused = [await ask_on_new_connection(HEALTH) for _ in range(2)]
        with files_left(admission.LAST_FILES):
            closed = await (await stack.enter_async_context(wire(gateway))).rest()
    again = await ask(gateway, post())

    assert [(answer.status, answer.error["code"]) for answer in (call, *refused)] == [
        (503, "connections_exhausted")
    ] * 3
    assert (health.status, closed, again.status) == (200, b"", 200)
    assert [line["event"] for line in logged].count("connections.exhausted") == 1


def test_the_limit_on_connections_leaves_open_files_for_upstreams():
    """Each call may need a connection to its upstream, and some files are reserved."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)

    assert 2 * admission.connection_limit() + admission.RESERVED_FILES <= max(
        soft, 2 * admission.MIN_CONNECTIONS + admission.RESERVED_FILES
    )


async def test_requests_that_arrive_during_shutdown_are_answered(upstream: FakeUpstream):
    """In 20 shutdowns, kept-alive connections get an answer with `Connection: close` and no reset."""
    answers: list[RawAnswer] = []
    for _ in range(20):
        async with StoppableGateway(upstream, drain_s=20) as gateway, AsyncExitStack() as stack:
            connections = await connect(stack, gateway.address, 5)
            await gateway.stop()
            for connection in connections:
                await connection.send(post())
            for connection in connections:
                answers.append(await connection.answer())
                assert await connection.rest() == b""

    assert [(answer.status, answer.headers["connection"]) for answer in answers] == [(200, "close")] * 100


async def test_an_answer_that_starts_during_shutdown_closes_its_connection(upstream: FakeUpstream):
    """The header keeps its client from sending another request on it."""
    proceed = asyncio.Event()

    async def wait(request):
        await proceed.wait()
        return await canonical(request)

    upstream.answer = wait
    async with StoppableGateway(upstream, drain_s=20) as gateway, wire(gateway.address) as connection:
        await connection.send(post())
        await upstream.arrived.wait()
        await gateway.stop()
        proceed.set()
        answer = await connection.answer()

    assert (answer.status, answer.headers["connection"]) == (200, "close")
