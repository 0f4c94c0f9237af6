"""A store in Redis, shared by every process and machine that uses it.

Keeps: until an entry expires or Redis evicts it. A value is a string, a counter, a tally and a lease are hashes, a
    journal is a stream whose ids are `<position>-0`, each under the key itself; a value of more than 255 KiB is in
    pieces. Time is the server's own.
    All calls share one connection for what is small. With `sentinels` the primary is the one that they name whenever a
    connection is opened; with `cluster_nodes` each key is on the node of its slot, and no command has two keys.
Fails: with StoreError when Redis cannot be reached, answers with an error, or does not answer within `timeout_ms`. A
    command is sent once, because a repeated one could be carried out twice. Answers are matched to commands by their
    order: one whose sender has left is dropped, and one that is late closes the connection, so that it cannot reach
    another command. After a write that a replica refuses connections are reopened, to reach the new primary. After
    several commands without an answer none is sent for a while.
Source: https://redis.readthedocs.io/en/stable/asyncio_examples.html, https://redis.io/docs/latest/commands/eval/
"""

import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveInt, field_validator, model_validator

from proxy.config.secrets import Secret
from proxy.stores import PROBE_KEY, Grant, Holder, HoldRequest, Store
from proxy.stores._breaker import StoreBreaker
from proxy.stores._redis_address import check_address, host_and_port
from proxy.stores._redis_answers import bytes_in, join_value, reading, rows_in, value_in
from proxy.stores._redis_client import (
    close_client,
    cluster_client,
    connection_options,
    scans_of,
    sentinel_client,
    server_client,
    spread_key,
)
from proxy.stores._redis_cluster import RedisNodes
from proxy.stores._redis_eviction import check_eviction
from proxy.stores._redis_link import Changed
from proxy.stores._redis_numbers import amount_in_range, milliseconds
from proxy.stores._redis_parser import ValuePieces
from proxy.stores._redis_pieces import PIECE_BYTES, START, LargeValues, is_large, pieces_key
from proxy.stores._redis_scripts import ADD, APPEND, CLAIM, GIVE, HOLD, RELEASE, TAKE
from proxy.stores._redis_server import RedisServer

SCAN_COUNT = 1000
"""How many keys Redis examines for one step of a scan."""

FIELD = b"v"
"""The field of an entry in a stream."""


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

    @cached_property
    def _client(self) -> Any:
        """The client of redis-py: Redis or RedisCluster, which have the commands in common."""
        user, password, sentinel_password = (
            None if secret is None else secret.get_secret_value()
            for secret in (self.user, self.password, self.sentinel_password)
        )
        options, most = connection_options(self.timeout_ms / 1000, user, password), self.max_connections
        if self.cluster_nodes:
            return cluster_client(self.url, self.cluster_nodes, most, options)
        if self.sentinels:
            return sentinel_client(self.url, self.sentinels, most, options, sentinel_password)
        return server_client(self.url, most, options)

    @cached_property
    def _server(self) -> RedisServer | RedisNodes:
        timeout_s = self.timeout_ms / 1000
        if self.cluster_nodes:
            return RedisNodes(self._client, timeout_s, self._breaker, self.max_connections)
        return RedisServer(self._client, timeout_s, self._breaker(), self._watchers)

    def _breaker(self, address: str = "") -> StoreBreaker:
        return StoreBreaker(self.max_faults, address or self.url)

    @cached_property
    def _large_values(self) -> LargeValues:
        return LargeValues()

    @cached_property
    def _watchers(self) -> list[Changed]:
        return []

    async def start(self) -> None:
        _ = self._server

    async def close(self) -> None:
        await self._server.close()
        await close_client(self._client)

    def watch(self, changed: Changed) -> None:
        """Call `changed` with what changes; a cluster does not say it."""
        self._watchers.append(changed)

    async def get(self, key: str) -> bytes | None:
        (value,) = await self._server.get([key])
        return await self._whole(key, value)

    async def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        values = await self._server.get(keys) if keys else ()
        return [await self._whole(key, value) for key, value in zip(keys, values, strict=True)]

    async def _whole(self, key: str, answer: object) -> bytes | None:
        """Return the value that a key has, given what Redis holds under it."""
        value = await join_value(answer) if isinstance(answer, ValuePieces) else value_in(answer)
        if value is None or not value.startswith(START):
            return value
        return await self._large_values.get(self._server, key, value)

    async def put(self, key: str, value: bytes, *, ttl_s: float, if_absent: bool = False, group: str = "") -> bool:
        del group  # it evicts nothing
        if is_large(value):
            return await self._large_values.put(self._server, key, value, milliseconds(ttl_s), if_absent=if_absent)
        if not if_absent:
            await self._replace([key], [value], milliseconds(ttl_s))
            return True
        (kept,) = await self._server.put_new([key], value, milliseconds(ttl_s))
        return kept is not None

    async def put_many(self, values: Sequence[tuple[str, bytes]], *, ttl_s: float, group: str = "") -> None:
        del group  # it evicts nothing
        small = [each for each in values if not is_large(each[1])]
        for key, value in values if len(small) < len(values) else ():
            if is_large(value):
                await self.put(key, value, ttl_s=ttl_s)
        if small:
            keys, contents = [key for key, _ in small], [value for _, value in small]
            await self._replace(keys, contents, milliseconds(ttl_s))

    async def _replace(self, keys: Sequence[str], values: Sequence[bytes], ttl_ms: int) -> None:
        """Set keys to small values, and remove the pieces of large ones that they replace."""
        answers = await self._server.replace(keys, values, ttl_ms)
        for key, pieces in zip(keys, answers[len(keys) :], strict=True):
            if pieces is not None:
                await self._large_values.remove(self._server, key)

    async def put_new(self, keys: Sequence[str], value: bytes, *, ttl_s: float, group: str = "") -> Sequence[bool]:
        del group  # it evicts nothing
        if len(value) > PIECE_BYTES or value[:1] == START[:1] or not keys:
            return [await self.put(key, value, ttl_s=ttl_s, if_absent=True) for key in keys]
        kept = await self._server.put_new(keys, value, milliseconds(ttl_s))
        return [*map(bool, kept)]

    async def delete(self, key: str) -> None:
        await self._server.command(b"UNLINK", key.encode(), pieces_key(key))

    async def take(
        self, key: str, amount: int, *, limit: int, window_s: float, whole: bool = False, group: str = ""
    ) -> Grant:
        del group  # it evicts nothing
        window = secrets.randbits(53) or 1  # becomes the window's id if this take begins one
        return _grant_in(
            await self._run(
                TAKE, key, amount_in_range(amount), amount_in_range(limit), int(whole), milliseconds(window_s), window
            )
        )

    async def give(self, key: str, amount: int, *, window: int) -> None:
        await self._run(GIVE, key, amount_in_range(amount), window)

    async def hold(
        self, key: str, asked: HoldRequest, *, limit: int, window_s: float, holder: Holder, group: str = ""
    ) -> Grant:
        del group  # it evicts nothing
        amounts = asked.kept, asked.spent, asked.owed, asked.more, asked.spare, asked.parts, limit
        window = milliseconds(window_s), secrets.randbits(53) or 1
        lease_ms = max(0, round(holder.lease_s * 1000))
        return _grant_in(
            await self._run(
                HOLD, key, asked.number, asked.window, *map(amount_in_range, amounts), *window, holder.name.encode(),
                lease_ms,
            )
        )  # fmt: skip

    async def append(self, key: str, value: bytes, *, ttl_s: float, group: str = "") -> int:
        del group  # it evicts nothing
        answer = await self._run(APPEND, key, value, milliseconds(ttl_s))
        with reading():
            return int(answer)

    async def tail(self, key: str, *, after: int = 0, limit: int = 1000) -> Sequence[tuple[int, bytes]]:
        if limit <= 0:
            return []
        read = partial(self._client.xrange, key, min=f"{max(0, after)}-1", count=limit)
        entries = await self._server.wait(read, key=key)
        with reading():
            return [(int(position.partition(b"-")[0]), bytes_in(fields[FIELD])) for position, fields in entries]

    async def add(
        self, key: str, rows: Mapping[str, Sequence[int]], *, ttl_s: float, source: str, number: int, group: str = ""
    ) -> bool:
        del group  # it evicts nothing
        added = [part.encode() for name, row in rows.items() for part in (name, " ".join(map(str, row)))]
        return bool(await self._run(ADD, key, source.encode(), number, milliseconds(ttl_s), *added))

    async def rows(self, key: str) -> Mapping[str, Sequence[int]]:
        fields = await self._server.wait(partial(self._client.hgetall, key), key=key)  # it may be long
        with reading():
            return rows_in(fields)

    async def claim(self, key: str, owner: str, *, lease_s: float) -> bool:
        return bool(await self._run(CLAIM, key, owner.encode(), milliseconds(lease_s)))

    async def release(self, key: str, owner: str) -> None:
        await self._run(RELEASE, key, owner.encode())

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        pattern = re.sub(r"[*?\[\]\\]", r"\\\g<0>", prefix) + "*"
        seen: set[bytes] = set()  # Redis may list a key twice
        scans = await self._server.wait(partial(scans_of, self._client, match=pattern, count=SCAN_COUNT))
        for scan in scans:
            cursor: Any = None
            while cursor != 0:
                cursor, keys = await self._server.wait(partial(scan, cursor or 0))
                with reading():
                    found = {bytes_in(key) for key in keys} - seen
                for key in found:
                    yield key.decode(errors="replace")
                seen |= found

    async def check_durable(self) -> None:
        await check_eviction(self._client, self._server.wait, self.url)

    async def probe_keys(self) -> Sequence[str]:
        keys: Sequence[str] = await self._server.wait(partial(spread_key, self._client, PROBE_KEY))
        return keys

    async def _run(self, script: str, key: str, *arguments: bytes | int) -> Any:
        """Run a script atomically in one round trip; a server that does not know it yet needs a second one."""
        parts = [part if isinstance(part, bytes) else b"%d" % part for part in arguments]
        return await self._server.run(script, key, *parts)


def _grant_in(answer: Any) -> Grant:
    """Return what a take or a reservation got. Raises StoreError."""
    with reading():
        granted, used, window, resets_in_ms = answer
        return Grant(int(granted), int(used), int(window), resets_in_ms / 1000)
