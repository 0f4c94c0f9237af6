"""One connection to Redis on which values are read, and on which Redis says which of them have changed.

Reads of all calls share it: each is one write, and one wake-up when its values are there. If changes are watched, the
connection speaks RESP3 with tracking: Redis names each key that was read and has changed since, in the order in which
things happened, so that no late answer can follow the news of its change. A server without tracking only answers.

Source: https://redis.io/docs/latest/develop/reference/client-side-caching/
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import structlog

from proxy.stores._redis_answers import bytes_in, value_in
from proxy.stores._redis_link import END, KINDS, ScriptFailed, encode_command
from proxy.wire.loggable import name_failure

log = structlog.get_logger()

MAX_DEPTH = 4
"""How deeply lists may be in one another: none of ours is, but the answer to HELLO has some."""
Changed = Callable[[str | None], None]


class Unfinished(Exception):
    """The end of an answer has not come yet."""


class Push(list[Any]):
    """What the server sends of its own accord."""


class Read(NamedTuple):
    """How many answers are asked for together, those that have come, and the future that gets them."""

    number: int
    found: list[Any]
    answer: asyncio.Future[Sequence[Any]]


class ValueLink(asyncio.Protocol):
    """Asks for values, and passes them to their readers in order. Nothing is sent twice."""

    def __init__(self, transport: asyncio.Transport, opener: object, changed: Changed) -> None:
        """`opener` is what has opened the connection and would close it if it were dropped."""
        self._transport = transport
        self._opener = opener
        self._changed = changed
        self._reads: deque[Read] = deque()
        self._received = bytearray()
        self.closed = asyncio.Event()
        transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def get(self, keys: Sequence[str]) -> asyncio.Future[Sequence[Any]]:
        """Ask for the values of keys."""
        return self._send([encode_command(b"GET", key.encode()) for key in keys])

    def track(self) -> asyncio.Future[Sequence[Any]]:
        """Ask the server to say what changes."""
        return self._send([encode_command(b"HELLO", b"3"), encode_command(b"CLIENT", b"TRACKING", b"ON")])

    def _send(self, commands: Sequence[bytes]) -> asyncio.Future[Sequence[Any]]:
        """Send commands, and return their answers. Raises ScriptFailed, and ConnectionError if the link is closed."""
        read = Read(len(commands), [], asyncio.get_running_loop().create_future())
        self._reads.append(read)
        self._transport.write(b"".join(commands))
        if not self.is_open:
            self.connection_lost(None)
        return read.answer

    def close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        at = 0
        try:
            while at < len(received):
                answer, at = parse_answer(received, at)
                self._take(answer)
        except Unfinished:
            pass
        except (ValueError, IndexError):  # no answer to what was asked
            self.close()
        del received[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # an error of the network, and for a regular end none
        self.closed.set()
        self._changed(None)  # what changes from now on is not known
        while self._reads:
            settle(self._reads.popleft().answer, ConnectionResetError("the connection to Redis was closed"))

    def _take(self, answer: Any) -> None:
        """Take one answer, or the news that keys have changed. Raises IndexError for an answer to nothing."""
        if isinstance(answer, Push):
            kind, keys = answer[0], answer[1] if len(answer) > 1 else None
            if kind == b"invalidate":
                for key in [None] if keys is None else keys:
                    self._changed(None if key is None else bytes_in(key).decode(errors="replace"))
            return
        read = self._reads[0]
        read.found.append(answer)
        if len(read.found) == read.number:
            self._reads.popleft()
            failed = next((each for each in read.found if isinstance(each, Exception)), None)
            settle(read.answer, read.found if failed is None else failed)


class ValueReader:
    """Reads values on a link that is opened when it is needed."""

    def __init__(self, open_connection: Callable[[], Awaitable[Any]], watchers: Sequence[Changed] = ()) -> None:
        """`open_connection` returns a connection of redis-py. Raises RedisError, OSError.

        Each of the `watchers` gets the keys that have changed since they were read; None: any may have.
        """
        self._open_connection = open_connection
        self._opening = asyncio.Lock()
        self._link: ValueLink | None = None
        self._watchers = watchers

    async def read(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        """Return the value of each key. Raises RedisError, OSError, ScriptFailed."""
        link = self._link
        if link is None or not link.is_open:
            async with self._opening:
                link = self._link
                if link is None or not link.is_open:
                    link = self._link = await self._open()
        return [value_in(value) for value in await link.get(keys)]

    async def _open(self) -> ValueLink:
        link = ValueLink(*take_over(await self._open_connection()), self._change)
        try:
            if self._watchers:
                await link.track()
        except ScriptFailed as error:  # an old server, or a user that may not ask for it
            log.warning("store.changes_unknown", error=name_failure(error))
        except BaseException:
            link.close()
            raise
        return link

    def reset(self) -> None:
        """Close the link: the next read opens another one."""
        if self._link is not None:
            self._link.close()

    async def close(self) -> None:
        self.reset()
        if self._link is not None:
            await self._link.closed.wait()

    def _change(self, key: str | None) -> None:
        for watcher in self._watchers:
            watcher(key)


def take_over(connection: Any) -> tuple[asyncio.Transport, object]:
    """Return the transport of a connection of redis-py, which no longer knows it, and what owns it."""
    writer = connection._writer  # noqa: SLF001  it has no other name
    connection._reader = connection._writer = None  # noqa: SLF001  or it would close what it no longer has
    return writer.transport, writer


def settle(answer: asyncio.Future[Any], found: Any) -> None:
    """Pass on what was found, unless its reader has left or waited long enough."""
    if answer.done():
        return
    if isinstance(found, Exception):
        answer.set_exception(found)
    else:
        answer.set_result(found)


def parse_answer(received: bytearray, at: int, depth: int = 0) -> tuple[Any, int]:
    """Return the answer that begins at a position, and where the next one begins.

    An error is returned as a ScriptFailed. Raises Unfinished, and ValueError for what is no answer.
    Source: https://redis.io/docs/latest/develop/reference/protocol-spec/
    """
    end = received.find(END, at)
    if end < 0:
        raise Unfinished
    kind, text, after = received[at : at + 1], bytes(received[at + 1 : end]), end + len(END)
    match kind:
        case b"$":
            return _parse_bytes(received, int(text), after)
        case b"_":
            return None, after
        case b":":
            return int(text), after
        case b"+":
            return text, after
        case b"-":
            return KINDS.get(text.partition(b" ")[0], ScriptFailed)(text.decode(errors="replace")), after
        case b"*" | b">" | b"%" if depth < MAX_DEPTH:
            found: list[Any] = Push() if kind == b">" else []
            for _ in range(int(text) * (2 if kind == b"%" else 1)):  # a map has names and values
                value, after = parse_answer(received, after, depth + 1)
                found.append(value)
            return found, after
    raise ValueError(kind)


def _parse_bytes(received: bytearray, size: int, at: int) -> tuple[bytes | None, int]:
    if size < 0:
        return None, at
    end = at + size
    if len(received) < end + len(END):
        raise Unfinished
    if received[end : end + len(END)] != END:
        raise ValueError("a value is longer than it says")
    return bytes(received[at:end]), end + len(END)
