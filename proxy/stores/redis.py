"""A store in Redis, shared by every process of the gate.

Keeps: until an entry's time is over or Redis evicts it.
Fails: with StoreError when Redis is away, answers with an error, or is silent for `timeout_ms`. A command is sent once:
    repeating one that timed out could do it twice. A command that is cut off takes its connection with it, so that its
    late answer reaches nobody else.
Source: https://redis.readthedocs.io/en/stable/asyncio_examples.html
"""

import asyncio
from typing import Any

from pydantic import Field, PositiveInt, PrivateAttr
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from proxy.config.secrets import Secret
from proxy.stores import Store, StoreError

LONGEST_S = 10 * 365 * 86_400
"""How long anything is kept at the most: Redis takes no time that ends beyond what its clock counts."""


class RedisStore(Store):
    url: str = Field(default="redis://127.0.0.1:6379/0", pattern=r"^(rediss?|unix)://")
    """Where Redis is: redis://host:port/db, rediss:// for TLS, unix:///path."""
    password: Secret | None = None
    """Its password, if it has one."""
    timeout_ms: PositiveInt = 50
    """How long any one command may take, waiting for a connection included, in milliseconds."""
    max_connections: PositiveInt = 32
    """How many connections are kept at the most."""

    _redis: Redis = PrivateAttr()

    async def start(self) -> None:
        seconds = self.timeout_ms / 1000
        pool = BlockingConnectionPool.from_url(
            self.url,
            password=None if self.password is None else self.password.get_secret_value(),
            max_connections=self.max_connections,
            timeout=seconds,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._redis = Redis(connection_pool=pool)

    async def close(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def get(self, key: str) -> bytes | None:
        value: bytes | None = await self._ask(self._redis.get(key))
        return value

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False) -> bool:
        return bool(await self._ask(self._redis.set(key, value, px=_milliseconds(ttl_s), nx=if_absent)))

    async def add(self, key: str, amount: int, *, ttl_s: float) -> int:
        async with self._redis.pipeline(transaction=True) as both:
            both.incrby(key, amount)
            both.pexpire(key, _milliseconds(ttl_s))
            total, _ = await self._ask(both.execute())
        return int(total)

    async def delete(self, key: str) -> None:
        await self._ask(self._redis.delete(key))

    async def ready(self) -> bool:
        try:
            return bool(await self._ask(self._redis.ping()))
        except StoreError:
            return False

    async def _ask(self, command: Any) -> Any:
        try:
            async with asyncio.timeout(self.timeout_ms / 1000):
                return await command
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error


def _milliseconds(ttl_s: float) -> int:
    """A time that Redis takes."""
    return max(1, int(min(ttl_s, LONGEST_S) * 1000))
