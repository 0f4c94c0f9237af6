"""Answers of Redis that arrive after their command was abandoned."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Self

import pytest
import redis

from proxy.stores import StoreError
from proxy.stores.redis import RedisStore
from tests.raw import no_tasks_left  # noqa: F401
from tests.redis_server import RedisServer

LONG_TIMEOUT_MS = 5000  # longer than any command of these tests


class DelayingProxy:
    """A proxy in front of Redis that delays each answer by some milliseconds."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            answers, commands = await asyncio.open_connection("127.0.0.1", self._port)
            back = asyncio.create_task(self._pump(answers, writer, late=True))
            try:
                await self._pump(reader, commands, late=False)
            finally:
                back.cancel()
                commands.transport.abort()
        finally:
            writer.transport.abort()
            self._connections.discard(connection)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if late:
                    await asyncio.sleep(self._random.uniform(0, 0.01))
                writer.write(data)
                await writer.drain()


@pytest.fixture(params=["cancelled by its caller", "timed out"])
async def delayed_store(request: pytest.FixtureRequest, redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    """A store with few connections behind a slow proxy, and 200 values, entries and windows that contain the number of their key."""
    async with DelayingProxy(redis_server.port, seed=7) as proxy:
        short = request.param == "timed out"
        store = RedisStore(
            url=proxy.url, timeout_ms=25 if short else LONG_TIMEOUT_MS, max_connections=8, max_faults=10**6
        )
        await store.start()
        with redis.Redis(port=redis_server.port) as direct, direct.pipeline() as filling:
            for i in range(200):
                filling.set(f"own{i}", i)
                filling.delete(f"journal{i}")
                filling.xadd(f"journal{i}", {"v": i}, id="1-0")
                filling.hset(f"counter{i}", mapping={"used": 0, "window": i})
            filling.execute()
        yield store
        await store.close()


async def read_own(store: RedisStore, number: int) -> int:
    """Return the number that this numbered key contains, with a command that depends on the number."""
    if number % 3 == 0:
        return int(await store.get(f"own{number}") or b"-1")
    if number % 3 == 1:
        ((_, entry),) = await store.tail(f"journal{number}")
        return int(entry)
    return (await store.take(f"counter{number}", 0, limit=1, window_s=60)).window


async def test_the_late_answer_to_an_abandoned_command_reaches_no_other_command(delayed_store: RedisStore):
    """In the OpenAI incident of March 2023 a late answer on a pooled connection went to its next user."""
    dice = random.Random(11)
    wrong: list[tuple[int, int]] = []
    whole = 0

    async def read(number: int) -> None:
        nonlocal whole
        with suppress(StoreError):
            found = await read_own(delayed_store, number)
            whole += 1
            if found != number:
                wrong.append((number, found))

    async def read_with_timeout(number: int, timeout_s: float) -> None:
        reading = asyncio.create_task(read(number))
        await asyncio.wait([reading], timeout=timeout_s)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    for _ in range(40):
        numbers = [dice.randrange(200) for _ in range(40)]
        await asyncio.gather(*(read_with_timeout(number, dice.choice([0, 0.002, 0.005, 5, 5])) for number in numbers))

    if delayed_store.timeout_ms == LONG_TIMEOUT_MS:  # the pool has lost no connection either
        before = whole
        await asyncio.gather(*(read(number) for number in range(50)))
        assert whole == before + 50
    assert wrong == []
    assert whole > 0
