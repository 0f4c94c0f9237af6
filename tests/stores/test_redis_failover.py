"""A Redis that another one replaces at the same address: connections to the old one answer READONLY."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from proxy.stores import StoreError
from proxy.stores.redis import RedisStore
from tests.redis_server import RedisServer


class MovingAddress:
    """Forwards connections to one server at a time, as a name in DNS or a virtual address does."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self.server.port)
        async with asyncio.TaskGroup() as group:
            group.create_task(pass_on(reader, there[1]))
            group.create_task(pass_on(there[0], writer))


async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65_536):
            target.write(data)
    target.close()


@pytest.fixture
def replacement(tmp_path: Path) -> Iterator[RedisServer]:
    """The server that becomes the primary."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def primary(redis_server: RedisServer) -> Iterator[RedisServer]:
    """The session's Redis, which is a primary again after the test."""
    yield redis_server
    redis.Redis.from_url(redis_server.url).execute_command("REPLICAOF", "NO", "ONE")


@pytest.fixture
async def address(primary: RedisServer) -> AsyncIterator[tuple[MovingAddress, str]]:
    moving = MovingAddress(primary)
    server = await asyncio.start_server(moving.forward, "127.0.0.1", 0)
    yield moving, f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    server.close()


@pytest.mark.parametrize("command", ["put", "put_new", "append"])
async def test_connections_to_a_server_that_became_a_replica_are_replaced(
    command: str, address: tuple[MovingAddress, str], replacement: RedisServer
):
    """One command fails for each connection at most; reads and writes then reach the new primary."""
    moving, url = address
    store, key = RedisStore(url=url, timeout_ms=5000), f"failover:{secrets.token_hex(8)}"

    async def write() -> None:
        match command:
            case "put":
                await store.put(key, b"1", ttl_s=60)
            case "put_new":
                await store.put_new([key], b"1", ttl_s=60)
            case "append":
                await store.append(key, b"1", ttl_s=60)

    await store.start()
    await asyncio.gather(*(store.tail(key) for _ in range(4)))  # several connections are open
    await store.put(f"{key}before", b"1", ttl_s=60)  # and the one of puts, and that of reads
    await store.get(f"{key}before")
    old = redis.Redis.from_url(moving.server.url)
    old.execute_command("REPLICAOF", "127.0.0.1", str(replacement.port))
    moving.server = replacement
    with pytest.raises(StoreError, match="ReadOnly"):
        await write()
    await write()
    found = redis.Redis.from_url(replacement.url).exists(key)
    redis.Redis.from_url(replacement.url).set(f"{key}before", b"2")
    read = await store.get(f"{key}before")
    await store.close()

    assert (found, read) == (1, b"2")


async def test_a_replica_is_not_ready(primary: RedisServer, replacement: RedisServer):
    """It answers reads, but refuses what has to be written."""
    store = RedisStore(url=primary.url, timeout_ms=5000)
    await store.start()
    server = redis.Redis.from_url(primary.url)
    before = await store.ready()
    server.execute_command("REPLICAOF", "127.0.0.1", str(replacement.port))
    as_replica = await store.ready()
    server.execute_command("REPLICAOF", "NO", "ONE")
    after = await store.ready()
    await store.close()

    assert (before, as_replica, after) == (True, False, True)
