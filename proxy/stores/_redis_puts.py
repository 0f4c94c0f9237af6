"""Values that are put while others are on their way are sent together afterwards.

The client's work for each command is most of the cost, and owners are written with every answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from proxy.stores import StoreError
from proxy.stores._redis_answers import unreadable
from proxy.stores._redis_link import ScriptLink, Waiting
from proxy.stores._redis_scripts import PUT
from proxy.stores._redis_values import take_over

AT_ONCE = 256
"""How many puts are sent together at most."""
SCRIPT_BYTES = 262_144
"""How large values may be together that one script sets: larger ones would be copied once more by Redis."""

Command = Callable[[], Awaitable[Any]]


class PutQueue:
    """Sends puts one command at a time, by a task that lives while there are any."""

    def __init__(
        self, ask: Callable[[Command], Awaitable[Any]], open_connection: Command, pipeline: Callable[[], Any],
        *, has_slots: bool,
    ) -> None:  # fmt: skip
        """`ask` sends a command, `open_connection` opens the connection of the script, `pipeline` begins a pipeline.

        `has_slots`: the server is a cluster, whose scripts set keys of one slot only, so each key has its command.
        """
        self._ask = ask
        self._open_connection = open_connection
        self._pipeline = pipeline
        self._has_slots = has_slots
        self._waiting: list[Waiting] = []
        self.writing: asyncio.Task[None] | None = None
        self.link: ScriptLink | None = None

    def put(self, keys: Sequence[str], value: bytes, ttl_ms: int, *, if_absent: bool) -> asyncio.Future[Any]:
        """Set keys to a value with the next command; the answer says for each whether it was. It raises StoreError."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(keys, value, ttl_ms, if_absent, answer))
        if self.writing is None:
            self.writing = asyncio.create_task(self._write())
        return answer

    async def close(self) -> None:
        if self.writing is not None:
            await self.writing
        if self.link is not None:
            self.link.close()
            await self.link.closed.wait()

    def reset(self) -> None:
        """Close the link: the next puts open another one."""
        if self.link is not None:
            self.link.close()
            self.link = None

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
            self.writing = None

    async def _put_all(self, puts: Sequence[Waiting]) -> Sequence[Any]:
        """Return what Redis answers for each key: small values are set by one command, whose answers are one list."""
        each = [(key, put) for put in puts for key in put.keys]
        if not self._has_slots and sum(len(put.value) for _, put in each) <= SCRIPT_BYTES:
            arguments = [part for _, put in each for part in (put.value, b"%d" % put.ttl_ms, b"%d" % put.if_absent)]
            answers: Sequence[Any] = await self._ask(partial(self._set, [key.encode() for key, _ in each], arguments))
            if len(answers) != len(each):
                raise unreadable()
            return answers
        pipeline = self._pipeline()
        for key, put in each:
            pipeline.set(key, put.value, px=put.ttl_ms, nx=put.if_absent)
        found: Sequence[Any] = await self._ask(partial(pipeline.execute, raise_on_error=False))
        return found

    async def _set(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Sequence[int]:
        """Run the script that sets values. Raises RedisError, OSError, ScriptFailed."""
        link = self.link
        if link is None or not link.is_open:
            link = self.link = ScriptLink(*take_over(await self._open_connection()))
        return await link.run(PUT, keys, arguments)
