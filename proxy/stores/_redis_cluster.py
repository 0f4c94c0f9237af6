"""Sends commands to the nodes of a Redis Cluster, by redis-py, which knows where each key is."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from proxy.stores._breaker import StoreBreaker
from proxy.stores._redis_client import run_script
from proxy.stores._redis_faults import RedisFaults
from proxy.stores._redis_pieces import WHOLE, pieces_key


class RedisNodes:
    """The nodes of a cluster. Its methods raise StoreError."""

    def __init__(self, client: Any, timeout_s: float, breaker: StoreBreaker, max_connections: int) -> None:
        """At most `max_connections` commands are sent at a time: the client refuses one too many."""
        self._client = client
        self._faults = RedisFaults(breaker, timeout_s, lambda: None)  # the client finds another node itself
        self._places = asyncio.Semaphore(max_connections)

    async def get(self, keys: Sequence[str]) -> Sequence[Any]:
        """Return the value of each key, or None; all nodes are asked at the same time."""
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:  # MGET would hide that a key holds another kind
            pipeline.get(key)
        found: Sequence[Any] = await self.wait(pipeline.execute)
        return found

    async def replace(self, keys: Sequence[str], values: Sequence[bytes], ttl_ms: int) -> Sequence[Any]:
        """Set each key to its value. The answers to that are followed by one for each that has pieces, or None."""
        pipeline = self._client.pipeline(transaction=False)
        for key, value in zip(keys, values, strict=True):
            pipeline.set(key, value, px=ttl_ms)
        for key in keys:
            pipeline.hget(pieces_key(key), WHOLE)
        answers: Sequence[Any] = await self.wait(pipeline.execute)
        return answers

    async def put_new(self, keys: Sequence[str], value: bytes, ttl_ms: int) -> Sequence[Any]:
        """Set each key that is free to one value; the answer is None for each other one."""
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.set(key, value, px=ttl_ms, nx=True)
        kept: Sequence[Any] = await self.wait(pipeline.execute)
        return kept

    async def run(self, script: str, key: str, *arguments: bytes) -> Any:
        """Return the answer of a script."""
        return await self.wait(partial(run_script, self._client, script, key, *arguments))

    async def command(self, *parts: bytes) -> Sequence[Any]:
        """Return the answer to a command, as the only one of a list."""
        name, *arguments = parts
        return [await self.wait(partial(self._client.execute_command, name.decode(), *arguments))]

    async def wait(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """Return the answer to a command of redis-py, sent when there is a connection."""

        async def send() -> Any:
            async with self._places:
                return await command()

        return await self._faults.ask(send)

    async def close(self) -> None:
        """Do nothing: the client is closed by its owner."""
