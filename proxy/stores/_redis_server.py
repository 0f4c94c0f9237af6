"""Sends commands to one Redis server, or to the primary that Sentinels name, on a link that is opened when needed.

Values above LARGE_BYTES, journals that are read, and what is rare have connections of their own, of redis-py, so that
no other command waits for them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import structlog

from proxy.stores import StoreError
from proxy.stores._breaker import StoreBreaker
from proxy.stores._redis_client import drop_idle, open_connection
from proxy.stores._redis_commands import encode_command, encode_field_gets, encode_gets, encode_new, encode_sets
from proxy.stores._redis_faults import RedisFaults
from proxy.stores._redis_link import Changed, RedisLink, take_over
from proxy.stores._redis_parser import UnknownScript
from proxy.stores._redis_pieces import WHOLE, pieces_key
from proxy.stores._redis_scripts import DIGESTS
from proxy.wire.loggable import name_failure

log = structlog.get_logger()

LARGE_BYTES = 262_144
"""The largest values together that are written on the link."""
OPENING_SHARE = 0.9
"""The part of a command's time in which a connection is opened: it ends before the first call that waits for it."""
Answers = Awaitable[Sequence[Any]]


class RedisServer:
    """One server. What its methods return raises StoreError."""

    def __init__(self, client: Any, timeout_s: float, breaker: StoreBreaker, watchers: Sequence[Changed]) -> None:
        """Each of the `watchers` gets the keys that have changed since they were read; None: any may have."""
        self._client = client
        self._timeout_s = timeout_s
        self._faults = RedisFaults(breaker, timeout_s, self._renew)
        self._breaker = breaker
        self._watchers = watchers
        self._opening: asyncio.Task[RedisLink] | None = None
        self._has_moved = False
        self.link: RedisLink | None = None

    def get(self, keys: Sequence[str]) -> Answers:
        """Return the value of each key, or None."""
        return self._send(encode_gets(keys), len(keys))

    def replace(self, keys: Sequence[str], values: Sequence[bytes], ttl_ms: int) -> Answers:
        """Set each key to its value. The answers to that are followed by one for each that has pieces, or None."""
        hashes = [*map(pieces_key, keys)]
        if (size := sum(map(len, values))) > LARGE_BYTES:
            pipeline = self._client.pipeline(transaction=False)
            for key, value in zip(keys, values, strict=True):
                pipeline.set(key, value, px=ttl_ms)
            for name in hashes:
                pipeline.hget(name, WHOLE)
            return self.wait(pipeline.execute, size)
        return self._send(encode_sets(keys, values, ttl_ms) + encode_field_gets(hashes, WHOLE), 2 * len(keys))

    def put_new(self, keys: Sequence[str], value: bytes, ttl_ms: int) -> Answers:
        """Set each key that is free to one value; the answer is None for each other one."""
        number = len(keys)
        if number * len(value) > LARGE_BYTES:
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.set(key, value, px=ttl_ms, nx=True)
            return self.wait(pipeline.execute, number * len(value))
        return self._send(encode_new(keys, value, ttl_ms), number)

    async def run(self, script: str, key: str, *arguments: bytes) -> Any:
        """Return the answer of a script, whose text is sent to a server that does not have it, or with large values."""
        if (size := sum(map(len, arguments))) > LARGE_BYTES:
            return await self.wait(partial(self._client.eval, script, 1, key, *arguments), size)
        parts = (b"1", key.encode(), *arguments)
        try:
            (answer,) = await self._send(encode_command(b"EVALSHA", DIGESTS[script].encode(), *parts), 1)
        except StoreError as error:
            if not isinstance(error.__cause__, UnknownScript):
                raise
            (answer,) = await self._send(encode_command(b"EVAL", script.encode(), *parts), 1)
        return answer

    def command(self, *parts: bytes) -> Answers:
        """Return the answer to a command, as the only one of a list."""
        return self._send(encode_command(*parts), 1)

    async def wait(self, command: Callable[[], Awaitable[Any]], sent_bytes: int = 0, *, key: str = "") -> Any:
        """Return the answer to a command of redis-py, which may have large values."""
        del key  # all keys are here
        if self._has_moved:
            self._has_moved = False
            await drop_idle(self._client)
        return await self._faults.ask(command, sent_bytes)

    async def close(self) -> None:
        """Close the link when what was sent is answered."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self.link is not None:
            self.link.retire()
            await self.link.closed.wait()

    def _send(self, commands: bytes, number: int) -> Answers:
        """Send so many commands at once if the link is open and nothing is wrong, as almost always."""
        link = self.link
        if link is not None and link.is_open and self._breaker.is_calm:
            return link.ask(commands, number)
        return self._faults.ask(partial(self._send_when_open, commands, number), None)

    async def _send_when_open(self, commands: bytes, number: int) -> Sequence[Any]:
        link = self.link
        if link is None or not link.is_open:
            if self._opening is None:  # one task for all calls that wait for it: each of them may leave
                self._opening = asyncio.create_task(self._open())
                self._opening.add_done_callback(_ignore_failure)
            link = await asyncio.shield(self._opening)
        return await link.ask(commands, number)

    async def _open(self) -> RedisLink:
        try:
            async with asyncio.timeout(OPENING_SHARE * self._timeout_s):
                connection = await open_connection(self._client)
                link = RedisLink(*take_over(connection), self._timeout_s, self._faults.note, self._change)
                await self._track(link)
        finally:
            self._opening = None
        self.link = link
        return link

    async def _track(self, link: RedisLink) -> None:
        """Ask a server to say what changes, if that is watched."""
        try:
            if self._watchers:
                await link.track()
        except StoreError as error:
            if error.__cause__ is None or not link.is_open:
                raise
            # An old server, or a user that may not ask for it.
            log.warning("store.changes_unknown", error=name_failure(error.__cause__))
        except BaseException:
            link.close()
            raise

    def _renew(self) -> None:
        """Reopen connections."""
        link, self.link, self._has_moved = self.link, None, True
        if link is not None:
            link.retire()

    def _change(self, key: str | None) -> None:
        for watcher in self._watchers:
            watcher(key)


def _ignore_failure(opening: "asyncio.Task[RedisLink]") -> None:
    """Read the error of a task, which every call that waited for it may have left."""
    if not opening.cancelled():
        opening.exception()
