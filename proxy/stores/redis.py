"""A store in Redis, shared by every process and machine that uses it.

Keeps: until an entry expires or Redis evicts it. A value is a string, a counter and a lease are hashes, a journal is a
    stream whose ids are `<position>-0`, each under the key itself. Time is the server's own.
    Values are read on one connection for all calls. With `sentinels` the primary is the one that they name whenever a
    connection is opened; with `cluster_nodes` each key is on the node of its slot, and no command has two keys.
Fails: with StoreError when Redis cannot be reached, answers with an error, or does not answer within `timeout_ms`. A
    command is sent once, because a repeated one could be carried out twice. A command that is cancelled or timed out
    closes its connection, so that its late answer cannot reach another command. Values that are put while others are on
    their way are sent together afterwards: the client's work for each command is most of the cost. After a write that a
    replica refuses connections are opened anew, to reach the new primary. After several commands without an answer
    none is sent for a while.
Source: https://redis.readthedocs.io/en/stable/asyncio_examples.html, https://redis.io/docs/latest/commands/eval/
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveInt, PrivateAttr, field_validator, model_validator
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as ServerTimeout

from proxy.config.secrets import Secret
from proxy.stores import PROBE_KEY, PROBE_TTL_S, Grant, Store, StoreError
from proxy.stores._breaker import StoreBreaker
from proxy.stores._redis_address import check_address, host_and_port
from proxy.stores._redis_answers import ODD_ANSWER, bytes_in, reading, unreadable, value_in
from proxy.stores._redis_client import (
    close_client,
    cluster_client,
    connection_options,
    drop_idle,
    open_connection,
    scans_of,
    sentinel_client,
    server_client,
)
from proxy.stores._redis_link import ReadOnlyServer, ScriptFailed
from proxy.stores._redis_numbers import amount_in_range, milliseconds
from proxy.stores._redis_puts import PutQueue
from proxy.stores._redis_scripts import APPEND, CLAIM, DIGESTS, GIVE, RELEASE, TAKE
from proxy.stores._redis_values import Changed, ValueReader
from proxy.wire.loggable import name_failure

SCAN_COUNT = 1000
"""How many keys Redis examines for one step of a scan."""

FIELD = b"v"
"""The field of an entry in a stream."""

UNANSWERED = (OSError, TimeoutError, NotConnected, ServerTimeout)
"""What a command fails with that reached no server, or got no answer."""


class RedisStore(Store):
    url: str = Field(default="redis://127.0.0.1:6379/0", pattern=r"^(rediss?|unix)://")
    """The address of Redis: redis://host:port/db, rediss:// for TLS, unix:///path."""
    user: Secret | None = None
    """The user of Redis, if it has users: "env:NAME" or "file:PATH"."""
    password: Secret | None = None
    """The password of Redis, if it has one."""
    timeout_ms: PositiveInt = 50
    """How long any one command may take, including the wait for a connection, in milliseconds."""
    max_connections: PositiveInt = 32
    """How many connections are open at most."""
    max_faults: PositiveInt = 5
    """How many commands in a row may get no answer before none is sent for 0.5 to 5 seconds at a time."""
    sentinels: tuple[str, ...] = ()
    """The Sentinels that know where the primary is, each "host:port". The host in `url` is then the name that they know
    it by. Default: none, `url` is the address of Redis."""
    sentinel_password: Secret | None = None
    """The password of the Sentinels, if they have one."""
    cluster_nodes: tuple[str, ...] = ()
    """Other nodes of the cluster that the server in `url` is a node of, each "host:port": one of them has to be up when
    the gateway starts. Default: none, it is no cluster."""

    _redis: Any = PrivateAttr()  # Redis or RedisCluster, which have the commands in common
    _values: ValueReader = PrivateAttr()
    _puts: PutQueue = PrivateAttr()
    _breaker: StoreBreaker = PrivateAttr()
    _watchers: list[Changed] = PrivateAttr(default_factory=list)
    _places: asyncio.Semaphore = PrivateAttr()

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        check_address(url)
        return url

    @model_validator(mode="after")
    def _check_nodes(self) -> Self:
        for address in (*self.sentinels, *self.cluster_nodes):
            host_and_port(address)
        parts = urlsplit(self.url)
        if self.sentinels and self.cluster_nodes:
            raise ValueError("give either sentinels or cluster_nodes")
        if (self.sentinels or self.cluster_nodes) and (parts.scheme == "unix" or not parts.hostname):
            raise ValueError("with sentinels or cluster_nodes, url has a host")
        if self.cluster_nodes and parts.path not in ("", "/", "/0"):
            raise ValueError("a cluster has the database 0 only")
        return self

    async def start(self) -> None:
        user, password, sentinel_password = (
            None if secret is None else secret.get_secret_value()
            for secret in (self.user, self.password, self.sentinel_password)
        )
        options, most = connection_options(self.timeout_ms / 1000, user, password), self.max_connections
        if self.cluster_nodes:
            self._redis = cluster_client(self.url, self.cluster_nodes, most, options)
        elif self.sentinels:
            self._redis = sentinel_client(self.url, self.sentinels, most, options, sentinel_password)
        else:
            self._redis = server_client(self.url, most, options)
        self._places = asyncio.Semaphore(most)
        connect, pipeline = partial(open_connection, self._redis), partial(self._redis.pipeline, transaction=False)
        self._values = ValueReader(connect, self._watchers)
        self._puts = PutQueue(self._ask, connect, pipeline, has_slots=bool(self.cluster_nodes))
        self._breaker = StoreBreaker(self.max_faults)

    async def close(self) -> None:
        await self._puts.close()
        await self._values.close()
        await close_client(self._redis)

    def watch(self, changed: Changed) -> None:
        """Call `changed` with what changes; a cluster does not say it."""
        self._watchers.append(changed)

    async def get(self, key: str) -> bytes | None:
        return (await self.get_many([key]))[0]

    async def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        if not keys:
            return []
        if self.cluster_nodes:
            return await self._get_from_nodes(keys)
        try:
            found: Sequence[bytes | None] = await self._ask(partial(self._values.read, keys))
        except StoreError as error:
            if isinstance(error.__cause__, TimeoutError):  # what comes late would delay all that follow
                self._values.reset()
            raise
        return found

    async def _get_from_nodes(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        """Return the value of each key, all nodes asked at the same time. Raises StoreError."""
        pipeline = self._redis.pipeline(transaction=False)  # MGET would hide that a key holds another kind
        for key in keys:
            pipeline.get(key)
        return [value_in(value) for value in await self._ask(pipeline.execute)]

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        del group  # it evicts nothing
        (is_kept,) = await self._enqueue([key], value, ttl_s, if_absent=if_absent)
        return is_kept

    async def put_many(self, values: Sequence[tuple[str, bytes]], *, ttl_s: float, group: str = "") -> None:
        del group  # it evicts nothing
        await asyncio.gather(*(self._enqueue([key], value, ttl_s, if_absent=False) for key, value in values))

    async def put_new(self, keys: Sequence[str], value: bytes, *, ttl_s: float, group: str = "") -> Sequence[bool]:
        del group  # it evicts nothing
        return await self._enqueue(keys, value, ttl_s, if_absent=True) if keys else []

    async def delete(self, key: str) -> None:
        await self._ask(partial(self._redis.unlink, key))

    async def take(
        self, key: str, amount: int, *, limit: int, window_s: float, whole: bool = False, group: str = ""
    ) -> Grant:
        del group  # it evicts nothing
        window = secrets.randbits(53) or 1  # becomes the window's id if this take begins one
        answer = await self._run(
            TAKE, key, amount_in_range(amount), amount_in_range(limit), int(whole), milliseconds(window_s), window
        )
        with reading():
            granted, used, found, resets_in_ms = answer
            return Grant(int(granted), int(used), int(found), resets_in_ms / 1000)

    async def give(self, key: str, amount: int, *, window: int) -> None:
        await self._run(GIVE, key, amount_in_range(amount), window)

    async def append(self, key: str, value: bytes, *, ttl_s: float, group: str = "") -> int:
        del group  # it evicts nothing
        answer = await self._run(APPEND, key, value, milliseconds(ttl_s))
        with reading():
            return int(answer)

    async def tail(self, key: str, *, after: int = 0, limit: int = 1000) -> Sequence[tuple[int, bytes]]:
        after = max(0, after)
        if limit <= 0:
            return []
        entries = await self._ask(partial(self._redis.xrange, key, min=f"{after}-1", count=limit))
        with reading():
            return [(int(position.partition(b"-")[0]), bytes_in(fields[FIELD])) for position, fields in entries]

    async def claim(self, key: str, owner: str, *, lease_s: float) -> bool:
        return bool(await self._run(CLAIM, key, owner, milliseconds(lease_s)))

    async def release(self, key: str, owner: str) -> None:
        await self._run(RELEASE, key, owner)

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        pattern = re.sub(r"[*?\[\]\\]", r"\\\g<0>", prefix) + "*"
        seen: set[bytes] = set()  # Redis may list a key twice
        scans = await self._ask(partial(scans_of, self._redis, match=pattern, count=SCAN_COUNT))
        for scan in scans:
            cursor: Any = None
            while cursor != 0:
                cursor, keys = await self._ask(partial(scan, cursor or 0))
                with reading():
                    found = {bytes_in(key) for key in keys} - seen
                for key in found:
                    yield key.decode(errors="replace")
                seen |= found

    async def check_durable(self) -> None:
        try:
            memory = await self._ask(partial(self._redis.info, "memory"))
        except StoreError:
            return
        if (policy := memory.get("maxmemory_policy", "noeviction")) != "noeviction":
            message = (
                f"this Redis evicts values when it is full (maxmemory-policy {str(policy)[:32]}); it must be noeviction"
            )
            raise ValueError(message)

    async def ready(self) -> bool:
        """Whether it takes writes: a replica answers reads, and is of no use."""
        try:
            return bool(await self._ask(partial(self._redis.set, PROBE_KEY, b"1", px=milliseconds(PROBE_TTL_S))))
        except StoreError:
            return False

    async def _run(self, script: str, key: str, *arguments: str | bytes | int) -> Any:
        """Run a script atomically in one round trip; a server that does not know it yet needs a second one."""

        async def run() -> Any:
            try:
                return await self._redis.evalsha(DIGESTS[script], 1, key, *arguments)
            except NoScriptError:
                return await self._redis.eval(script, 1, key, *arguments)

        return await self._ask(run)

    async def _enqueue(self, keys: Sequence[str], value: bytes, ttl_s: float, *, if_absent: bool) -> Sequence[bool]:
        """Set keys to a value with the next command, and return for each whether it was set. Raises StoreError."""
        kept: Sequence[bool] = await self._wait(self._puts.put(keys, value, milliseconds(ttl_s), if_absent=if_absent))
        return kept

    async def _ask(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """Send a command and return the answer, unless Redis has not answered for some time. Raises StoreError."""
        loop = asyncio.get_running_loop()
        if not self._breaker.begin(loop.time()):
            raise StoreError("Redis: not asked, because it has not answered")
        try:
            answer = await self._wait(self._in_turn(command) if self.cluster_nodes else command())
        except StoreError as error:
            if isinstance(error.__cause__, UNANSWERED):
                self._breaker.fail(loop.time())
            else:
                self._breaker.succeed()
            raise
        except BaseException:
            self._breaker.give_up()
            raise
        self._breaker.succeed()
        return answer

    async def _in_turn(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """Send a command when there is a connection: the client of a cluster refuses one too many."""
        async with self._places:
            return await command()

    async def _wait(self, answer: Any) -> Any:
        """Return an answer. Raises StoreError for a fault, and for one that takes too long."""
        try:
            async with asyncio.timeout(self.timeout_ms / 1000):
                return await answer
        except (RedisError, ScriptFailed, OSError, TimeoutError) as error:
            if isinstance(error, ReadOnlyError | ReadOnlyServer):  # its address may lead to another server by now
                await drop_idle(self._redis)
                self._puts.reset()
                self._values.reset()
            raise StoreError(f"Redis: {name_failure(error)}") from error
        except ODD_ANSWER as error:
            raise unreadable() from error
