"""Sends commands to the nodes of a Redis Cluster, by redis-py, which knows where each key is.

Each node has a breaker of its own: one that is silent costs its timeout once in a while, whatever the others answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from operator import methodcaller
from typing import Any

from proxy.stores._breaker import StoreBreaker
from proxy.stores._redis_client import node_of, run_script
from proxy.stores._redis_faults import RedisFaults
from proxy.stores._redis_pieces import WHOLE, pieces_key

Command = Callable[[Any], object]
"""Adds a command to a pipeline."""


class RedisNodes:
    """The nodes of a cluster. Its methods raise StoreError."""

    def __init__(
        self, client: Any, timeout_s: float, make_breaker: Callable[[str], StoreBreaker], max_connections: int
    ) -> None:  # fmt: skip
        """`make_breaker` returns a breaker, given the address of a node; "" stands for those that are not known.

        At most `max_connections` commands are sent at a time: the client refuses one too many.
        """
        self._client = client
        self._timeout_s = timeout_s
        self._make_breaker = make_breaker
        self._faults: dict[str, RedisFaults] = {}
        self._places = asyncio.Semaphore(max_connections)

    async def get(self, keys: Sequence[str]) -> Sequence[Any]:
        """Return the value of each key, or None; all nodes are asked at the same time."""
        # MGET would hide that a key holds another kind.
        return await self._together([(key, methodcaller("get", key)) for key in keys])

    async def replace(self, keys: Sequence[str], values: Sequence[bytes], ttl_ms: int) -> Sequence[Any]:
        """Set each key to its value. The answers to that are followed by one for each that has pieces, or None."""
        sets = [(key, methodcaller("set", key, value, px=ttl_ms)) for key, value in zip(keys, values, strict=True)]
        return await self._together([*sets, *((key, methodcaller("hget", pieces_key(key), WHOLE)) for key in keys)])

    async def put_new(self, keys: Sequence[str], value: bytes, ttl_ms: int) -> Sequence[Any]:
        """Set each key that is free to one value; the answer is None for each other one."""
        return await self._together([(key, methodcaller("set", key, value, px=ttl_ms, nx=True)) for key in keys])

    async def run(self, script: str, key: str, *arguments: bytes) -> Any:
        """Return the answer of a script."""
        return await self.wait(partial(run_script, self._client, script, key, *arguments), key=key)

    async def command(self, *parts: bytes) -> Sequence[Any]:
        """Return the answer to a command, whose first argument is its key, as the only one of a list."""
        name, *arguments = parts
        return [await self.wait(partial(self._client.execute_command, name.decode(), *arguments), key=arguments[0])]

    async def wait(self, command: Callable[[], Awaitable[Any]], *, key: str | bytes = "") -> Any:
        """Return the answer to a command of redis-py for a key, sent when there is a connection."""
        return await self._ask(node_of(self._client, key), command)

    async def close(self) -> None:
        """Do nothing: the client is closed by its owner."""

    async def _together(self, commands: Sequence[tuple[str, Command]]) -> Sequence[Any]:
        """Return the answers to commands, each for a key, in their order. A node gets all of its own at once."""
        by_node: dict[str, list[int]] = {}
        for number, (key, _) in enumerate(commands):
            by_node.setdefault(node_of(self._client, key), []).append(number)
        answers: list[Any] = [None] * len(commands)

        async def send(node: str, numbers: Sequence[int]) -> None:
            pipeline = self._client.pipeline(transaction=False)
            for number in numbers:
                commands[number][1](pipeline)
            for number, answer in zip(numbers, await self._ask(node, pipeline.execute), strict=True):
                answers[number] = answer

        for outcome in await asyncio.gather(*(send(*each) for each in by_node.items()), return_exceptions=True):
            if outcome is not None:
                raise outcome
        return answers

    async def _ask(self, node: str, command: Callable[[], Awaitable[Any]]) -> Any:
        if node not in self._faults:
            self._faults[node] = RedisFaults(self._make_breaker(node), self._timeout_s, _find_again)

        async def send() -> Any:
            async with self._places:
                return await command()

        return await self._faults[node].ask(send)


def _find_again() -> None:
    """Do nothing: the client finds the node that takes writes itself."""
