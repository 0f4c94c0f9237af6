"""How often a call waits for Redis: counted between the gateway and a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.raw import ask
from tests.redis_server import RedisServer
from tests.stores.test_redis import HIT, MISS, outcome, question, tables
from tests.upstream import FakeUpstream

TIMEOUT_MS = 30_000


class CountingProxy:
    """Forwards connections to a Redis, and counts the times that it is asked after it has answered everything."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self.round_trips = 0

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, commands = await asyncio.open_connection("127.0.0.1", self._server.port)
        is_asked = False

        async def pass_commands() -> None:
            nonlocal is_asked
            with suppress(ConnectionError):
                while data := await reader.read(2**20):
                    self.round_trips += not is_asked
                    is_asked = True
                    commands.write(data)
            commands.close()

        async def pass_answers() -> None:
            nonlocal is_asked
            with suppress(ConnectionError):
                while data := await answers.read(2**20):
                    is_asked = False
                    writer.write(data)
            writer.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(pass_commands())
            group.create_task(pass_answers())


@pytest.fixture
async def counted(redis_server: RedisServer) -> AsyncIterator[tuple[CountingProxy, str]]:
    proxy = CountingProxy(redis_server)
    server = await asyncio.start_server(proxy.forward, "127.0.0.1", 0)
    yield proxy, f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    server.close()


@pytest.mark.parametrize(
    "settings", [{}, {"local_ttl_s": 0.0}, {"secret": "env:CACHE_SECRET"}, {"secrets": ["env:CACHE_SECRET", "env:OLD"]}]
)
async def test_a_lookup_is_one_round_trip_and_so_is_keeping_an_answer(
    settings: dict[str, Any], counted: tuple[CountingProxy, str], start_gateway: StartGateway, upstream: FakeUpstream,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Of a team that has entries; a hit in the process asks nothing."""
    for name in ("CACHE_SECRET", "OLD"):
        monkeypatch.setenv(name, f"{name}: a secret of 32 characters or more")
    proxy, url = counted
    gateway = await start_gateway(tables(upstream, url, timeout_ms=TIMEOUT_MS, **settings))
    await ask(gateway, question())  # opens the connection, and begins the team's generation
    data, found = question(), []
    for _ in range(3):
        before = proxy.round_trips
        found.append((outcome(await ask(gateway, data)), proxy.round_trips - before))

    again = 1 if settings.get("local_ttl_s") == 0 else 0
    assert found == [((200, MISS), 2), ((200, HIT), 1), ((200, HIT), again)]
