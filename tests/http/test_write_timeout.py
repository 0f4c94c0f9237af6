"""Clients that read slowly or not at all."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest
from yarl import URL

from tests.conftest import tables_for
from tests.raw import no_tasks_left, post, serves, until  # noqa: F401
from tests.upstream import CANONICAL, FakeUpstream, streaming

STREAM = post(b'{"model":"m","stream":true}')
FIRST = CANONICAL[: CANONICAL.index(b"\n\n") + 2]
BODY = orjson.dumps(
    {"id": "resp_1", "object": "response", "status": "completed", "output": [], "text": "a" * 12_000_000}
)


@pytest.fixture
async def gateway(start_gateway, upstream: FakeUpstream) -> str:
    """A gateway with a write timeout of 0.3 s."""
    return await start_gateway(tables_for(upstream, server={"write_timeout_s": 0.3}, cache=None))


@asynccontextmanager
async def slow_client(address: str) -> AsyncIterator[socket.socket]:
    """Yield a connected socket with a small buffer, so that unread data stays in the gateway."""
    url = URL(address)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (url.host, url.port))
        yield client


async def send_without_end(response: aiohttp.web.StreamResponse) -> None:
    while True:
        await response.write(b": %b\n\n" % (b"a" * 65_536))


async def large_body(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    return aiohttp.web.Response(body=BODY, content_type="application/json")


def finished(logged: list[dict]) -> list[tuple[int, str | None]]:
    return [(line["status"], line.get("code")) for line in logged if line["event"] == "request.finished"]


async def test_a_client_that_never_reads_its_stream_is_disconnected(gateway: str, upstream: FakeUpstream, logged):
    """The upstream's stream ends as well, and the log line has the reason."""
    upstream.answer = streaming(FIRST, then=send_without_end)
    async with slow_client(gateway) as client:
        await asyncio.get_running_loop().sock_sendall(client, STREAM)
        async with asyncio.timeout(10):
            await upstream.disconnected.wait()
        await until(lambda: finished(logged) != [])

    assert finished(logged) == [(499, "write_timeout")]
    upstream.answer = None
    assert await serves(gateway)


async def test_a_client_that_never_reads_its_body_is_disconnected(gateway: str, upstream: FakeUpstream, logged):
    """A body is held in memory like the rest of a stream."""
    upstream.answer = large_body
    async with slow_client(gateway) as client:
        await asyncio.get_running_loop().sock_sendall(client, post())
        await until(lambda: finished(logged) != [])

    assert finished(logged) == [(499, "write_timeout")]
    upstream.answer = None
    assert await serves(gateway)


async def read_slowly(gateway: str, request: bytes) -> bytes:
    """Return everything that a client receives which reads 12 MB in about two seconds."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    async with slow_client(gateway) as client, asyncio.timeout(60):
        await loop.sock_sendall(client, request)
        while part := await loop.sock_recv(client, 65_536):
            received += part
            await asyncio.sleep(0.01)
    return bytes(received)


async def test_a_client_that_reads_slowly_receives_its_whole_body(gateway: str, upstream: FakeUpstream, logged):
    """One write takes several write timeouts, but each of them sees progress."""
    upstream.answer = large_body

    assert (await read_slowly(gateway, post(connection="close"))).endswith(BODY)
    assert finished(logged) == [(200, None)]


async def test_a_client_that_reads_slowly_receives_its_whole_stream(gateway: str, upstream: FakeUpstream, logged):
    """The upstream sends faster than the client reads."""
    filler = b": %b\n\n" % (b"a" * 65_536) * 160

    async def rest(response: aiohttp.web.StreamResponse) -> None:
        await response.write(filler)
        await response.write(CANONICAL[len(FIRST) :])

    upstream.answer = streaming(FIRST, then=rest)
    received = await read_slowly(gateway, STREAM.replace(b"HTTP/1.1", b"HTTP/1.0"))

    assert received.endswith(b"data: [DONE]\n\n")
    assert received.count(b"a" * 65_536) == 160
    assert finished(logged) == [(200, None)]


async def test_a_client_that_stops_in_the_middle_is_disconnected(gateway: str, upstream: FakeUpstream, logged):
    """Earlier progress does not extend the timeout."""
    upstream.answer = large_body
    loop = asyncio.get_running_loop()
    async with slow_client(gateway) as client:
        await loop.sock_sendall(client, post())
        for _ in range(20):
            assert await loop.sock_recv(client, 65_536)
            await asyncio.sleep(0.02)
        await until(lambda: finished(logged) != [])

    assert finished(logged) == [(499, "write_timeout")]


async def test_a_client_that_rarely_reads_a_few_bytes_is_disconnected(gateway: str, upstream: FakeUpstream, logged):
    """Less than 16 KiB within a write timeout does not count as progress."""
    upstream.answer = large_body
    loop = asyncio.get_running_loop()
    async with slow_client(gateway) as client:
        await loop.sock_sendall(client, post())
        async with asyncio.timeout(20):
            while finished(logged) == []:
                await loop.sock_recv(client, 100)
                await asyncio.sleep(0.02)

    assert finished(logged) == [(499, "write_timeout")]
