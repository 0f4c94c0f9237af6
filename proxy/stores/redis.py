"""A store in Redis, shared by every process and machine that uses it.

Keeps: until an entry expires or Redis evicts it. A value is a string, a counter and a lease are hashes, a journal is a
    stream whose ids are `<position>-0`, each under the key itself. Time is the server's own.
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
from typing import Any

from pydantic import Field, PositiveInt, PrivateAttr, field_validator
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as ServerTimeout

from proxy.config.secrets import Secret
from proxy.stores import PROBE_KEY, PROBE_TTL_S, Grant, Store, StoreError
from proxy.stores._breaker import StoreBreaker
from proxy.stores._redis_address import check_address
from proxy.stores._redis_answers import ODD_ANSWER, bytes_in, reading, unreadable, value_in
from proxy.stores._redis_link import ReadOnlyServer, ScriptFailed, ScriptLink, Waiting
from proxy.stores._redis_numbers import amount_in_range, milliseconds
from proxy.stores._redis_scripts import APPEND, CLAIM, DIGESTS, GIVE, PUT, RELEASE, TAKE
from proxy.wire.loggable import name_failure

AT_ONCE = 256
"""How many puts are sent together at most."""
SCRIPT_BYTES = 262_144
"""How large values may be together that one script sets: larger ones would be copied once more by Redis."""
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

    _redis: Redis = PrivateAttr()
    _link: ScriptLink | None = PrivateAttr(default=None)
    _waiting: list[Waiting] = PrivateAttr(default_factory=list)
    _writing: asyncio.Task[None] | None = PrivateAttr(default=None)
    _breaker: StoreBreaker = PrivateAttr()

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        check_address(url)
        return url

    async def start(self) -> None:
        seconds = self.timeout_ms / 1000
        pool = BlockingConnectionPool.from_url(
            self.url,
            username=None if self.user is None else self.user.get_secret_value(),
            password=None if self.password is None else self.password.get_secret_value(),
            max_connections=self.max_connections,
            timeout=seconds,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._redis = Redis(connection_pool=pool)
        self._breaker = StoreBreaker(self.max_faults)

    async def close(self) -> None:
        if self._writing is not None:
            await self._writing
        if self._link is not None:
            self._link.close()
            await self._link.closed.wait()
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def get(self, key: str) -> bytes | None:
        return value_in(await self._ask(partial(self._redis.get, key)))

    async def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
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
        streams = await self._ask(partial(self._redis.xread, {key: f"{after}-0"}, count=limit))
        with reading():
            entries = streams[0][1] if streams else []
            return [(int(position.partition(b"-")[0]), bytes_in(fields[FIELD])) for position, fields in entries]

    async def claim(self, key: str, owner: str, *, lease_s: float) -> bool:
        return bool(await self._run(CLAIM, key, owner, milliseconds(lease_s)))

    async def release(self, key: str, owner: str) -> None:
        await self._run(RELEASE, key, owner)

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        pattern = re.sub(r"[*?\[\]\\]", r"\\\g<0>", prefix) + "*"
        seen: set[bytes] = set()  # Redis may list a key twice
        cursor = None
        while cursor != 0:
            cursor, keys = await self._ask(partial(self._redis.scan, cursor or 0, match=pattern, count=SCAN_COUNT))
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
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(keys, value, milliseconds(ttl_s), if_absent, answer))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        kept: Sequence[bool] = await self._wait(answer)
        return kept

    async def _write(self) -> None:
        """Send the values that wait, and those that came meanwhile, until there are none."""
        try:
            while self._waiting:
                puts, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
                try:
                    answers = iter(await self._put_all(puts))
                except StoreError as error:
                    answers = iter([error] * sum(len(put.keys) for put in puts))
                for put in puts:
                    kept = [next(answers) for _ in put.keys]
                    if not put.answer.done():  # its caller may have left, or waited long enough
                        put.settle(kept)
        finally:
            self._writing = None

    async def _open_link(self) -> ScriptLink:
        """Return a connection that redis-py has opened, and no longer knows. Raises RedisError, OSError."""
        connection: Any = self._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        writer = connection._writer  # noqa: SLF001  it has no other name
        connection._reader = connection._writer = None  # noqa: SLF001  or it would close what it no longer has
        return ScriptLink(writer.transport, writer)

    def _close_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _put_all(self, puts: Sequence[Waiting]) -> Sequence[Any]:
        """Return what Redis answers for each key: small values are set by one command, whose answers are one list."""
        each = [(key, put) for put in puts for key in put.keys]
        if sum(len(put.value) for _, put in each) <= SCRIPT_BYTES:
            arguments = [part for _, put in each for part in (put.value, b"%d" % put.ttl_ms, b"%d" % put.if_absent)]
            answers: Sequence[Any] = await self._ask(partial(self._set, [key.encode() for key, _ in each], arguments))
            if len(answers) != len(each):
                raise unreadable()
            return answers
        pipeline = self._redis.pipeline(transaction=False)
        for key, put in each:
            pipeline.set(key, put.value, px=put.ttl_ms, nx=put.if_absent)
        found: Sequence[Any] = await self._ask(partial(pipeline.execute, raise_on_error=False))
        return found

    async def _set(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Sequence[int]:
        """Run the script that sets values. Raises RedisError, OSError, ScriptFailed."""
        link = self._link
        if link is None or not link.is_open:
            link = self._link = await self._open_link()
        return await link.run(PUT, keys, arguments)

    async def _ask(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """Send a command and return the answer, unless Redis has not answered for some time. Raises StoreError."""
        loop = asyncio.get_running_loop()
        if not self._breaker.begin(loop.time()):
            raise StoreError("Redis: not asked, because it has not answered")
        try:
            answer = await self._wait(command())
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

    async def _wait(self, answer: Any) -> Any:
        """Return an answer. Raises StoreError for a fault, and for one that takes too long."""
        try:
            async with asyncio.timeout(self.timeout_ms / 1000):
                return await answer
        except (RedisError, ScriptFailed, OSError, TimeoutError) as error:
            if isinstance(error, ReadOnlyError | ReadOnlyServer):  # its address may lead to another server by now
                await self._redis.connection_pool.disconnect(inuse_connections=False)
                self._close_link()
            raise StoreError(f"Redis: {name_failure(error)}") from error
        except ODD_ANSWER as error:
            raise unreadable() from error
