"""A connection to Redis for scripts that answer with a list of integers, or with an error.

The client of redis-py takes some 300 us of CPU for one command, whatever it does: it takes a connection out of its
pool, looks for late answers, and reads through a stream. Owners are written with every answer, so this connection does
nothing but write and read lines. It is opened by redis-py, with its TLS, names and passwords.

Source: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from proxy.stores._redis_scripts import DIGESTS

END = b"\r\n"


class ScriptFailed(Exception):
    """Redis answered with an error; the text begins with its name in capitals."""


class ReadOnlyServer(ScriptFailed):
    """It takes no writes: it has become a replica."""


class UnknownScript(ScriptFailed):
    """It does not have the script of a digest."""


KINDS: Mapping[bytes, type[ScriptFailed]] = {b"READONLY": ReadOnlyServer, b"NOSCRIPT": UnknownScript}


class ScriptLink(asyncio.Protocol):
    """Sends commands, and passes each answer to its sender, in their order. Nothing is sent twice."""

    def __init__(self, transport: asyncio.Transport, opener: object) -> None:
        """`opener` is what has opened the connection and would close it if it were dropped."""
        self._transport = transport
        self._opener = opener
        self._answers: deque[asyncio.Future[Sequence[int]]] = deque()
        self._received = b""
        self._values: list[int] = []
        self._left = 0  # of the list that is being read
        self.closed = asyncio.Event()
        transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def ask(self, *arguments: bytes) -> asyncio.Future[Sequence[int]]:
        """Send a command, and return its answer; it raises ScriptFailed, and ConnectionError if the link is closed."""
        answer: asyncio.Future[Sequence[int]] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self._transport.write(encode_command(*arguments))
        if not self.is_open:
            self.connection_lost(None)
        return answer

    async def run(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Sequence[int]:
        """Return the answer of a script, whose text is sent only to a server that does not have it.

        Raises like `ask`. A cancellation closes the link.
        """
        parts = (b"%d" % len(keys), *keys, *arguments)
        try:
            try:
                return await self.ask(b"EVALSHA", DIGESTS[script].encode(), *parts)
            except UnknownScript:
                return await self.ask(b"EVAL", script.encode(), *parts)
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection at once: an answer that is late must not reach another call."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(END)
        try:
            for line in lines:
                self._read(line[:1], line[1:])
        except (ValueError, IndexError):  # no answer to a script of ours
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        del exc  # an error of the network, and for a regular end none
        while self._answers:
            self._settle(ConnectionResetError("the connection to Redis was closed"))

    def _read(self, kind: bytes, text: bytes) -> None:
        """Read one line: of a list, its length, or an error. Raises ValueError, IndexError for anything else."""
        if kind == b":" and self._left:
            self._values.append(int(text))
            self._left -= 1
        elif kind == b"*" and not self._left:
            self._left = int(text)
            self._values = []
        elif kind == b"-" and not self._left:
            kind_of_error = KINDS.get(text.partition(b" ")[0], ScriptFailed)
            self._settle(kind_of_error(text.decode(errors="replace")))
            return
        else:
            raise ValueError(kind)
        if not self._left:
            self._settle(self._values)

    def _settle(self, found: Sequence[int] | Exception) -> None:
        answer = self._answers.popleft()
        if answer.done():  # its sender waited long enough
            return
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)


def encode_command(*arguments: bytes) -> bytes:
    """Return a command as it is sent, each part with its length before it."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        parts += b"$%d\r\n" % len(argument), argument, END
    return b"".join(parts)


class Waiting(NamedTuple):
    """Keys that wait to be set to a value, and the future that gets whether each was set."""

    keys: Sequence[str]
    value: bytes
    ttl_ms: int
    if_absent: bool
    answer: asyncio.Future[Any]

    def settle(self, kept: Sequence[Any]) -> None:
        """Pass on whether each key was set, or the first error."""
        error = next((each for each in kept if isinstance(each, Exception)), None)
        if error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result([bool(each) for each in kept])
