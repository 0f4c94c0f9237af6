"""Connections that look idle although a request has arrived: the event loop has not read it yet."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from proxy.http.server import Server
from tests.raw import until

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
IDLE_S = 0.05


async def answer(_request: web.BaseRequest) -> web.Response:
    return web.Response(text="answered")


class SmallServer:
    """A server for two connections, and clients that send without letting it read."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.server = Server(
            answer, head_timeout_s=9, write_timeout_s=9, idle_timeout_s=IDLE_S, max_connections=2, max_body_bytes=99,
            evicts_idle=True,
        )  # fmt: skip
        self.clients: list[socket.socket] = []
        self._stack = stack

    async def start(self, clients: int) -> None:
        runner = web.ServerRunner(self.server)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        for _ in range(clients):
            client = self._stack.enter_context(socket.create_connection(runner.addresses[0]))
            client.setblocking(False)
            self.clients.append(client)
            await until(lambda: all(each.idle_since is not None for each in self.connections))
            await until(lambda: len(self.connections) == len(self.clients))

    @property
    def connections(self) -> list:
        return self.server.connections

    def admit_one_more(self) -> bool:
        """Ask for room, as the third connection would, before the loop reads."""
        both = [*self.connections]
        return self.server.admission.admit([*both, both[0]], both[0].transport.get_extra_info("socket").fileno(), 0.0)

    async def read(self, client: int) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self.clients[client], 4096)
        except ConnectionResetError:
            return b""


@pytest.fixture
async def start() -> AsyncIterator[Callable]:
    async with AsyncExitStack() as stack:

        async def start(clients: int) -> SmallServer:
            server = SmallServer(stack)
            await server.start(clients)
            return server

        yield start


async def test_a_connection_with_an_unread_request_makes_no_room(start):
    """The newer one without a request is closed in its place."""
    server = await start(2)
    server.clients[0].sendall(REQUEST)

    assert server.admit_one_more()
    assert (await server.read(0)).endswith(b"answered")
    assert await server.read(1) == b""


async def test_the_oldest_makes_room_where_all_have_unread_requests(start):
    """The new connection is not worth less than those."""
    server = await start(2)
    for client in server.clients:
        client.sendall(REQUEST)

    assert server.admit_one_more()
    assert await server.read(0) == b""
    assert (await server.read(1)).endswith(b"answered")


async def test_a_connection_with_an_unread_request_is_not_idle(start):
    """Its idle time has passed, but the event loop was busy when the request came."""
    server = await start(1)
    server.clients[0].sendall(REQUEST)
    first = await server.read(0)
    (connection,) = server.connections
    server.clients[0].sendall(REQUEST)
    connection._waits_since -= 2 * IDLE_S
    connection.on_due()

    assert first.endswith(b"answered")
    assert (await server.read(0)).endswith(b"answered")
    assert await server.read(0) == b""  # later it is closed as idle
