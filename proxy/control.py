"""The protocol between the supervisor and a worker process, over a pair of sockets.

A message is its length in four bytes, and a word and a value in JSON. The supervisor asks for "ping", "metrics" or
"ready", and the worker answers with the same word and what it is asked for; once it serves, it says "started" by
itself. Questions of the admin API and the steps of a reload ("ask") have a number, a word of their own and an argument;
the answer ("asked") has the number. The end of the connection is the end of the other process.
"""

import asyncio
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

LISTENER, CONTROL, NUMBER = "HEADGATE_LISTENER", "HEADGATE_CONTROL", "HEADGATE_WORKER"
SPOOL, TEXTS = "HEADGATE_SPOOL", "HEADGATE_CONFIG_TEXTS"
"""The environment variables by which a worker learns its file descriptors and its number, from 1."""
PREPARE, COMMIT, DISCARD = "prepare_reload", "commit_reload", "discard_reload"
"""The steps of a reload: build what a config needs, then serve it, or close it because another worker cannot."""
MAX_BYTES = 67_108_864
"""The longest message, in bytes."""
TOO_LONG = {"problem": (503, "answer_too_long", "The answer is too long for one process to send to another.")}
"""The answer in place of a message that is too long."""

Answer = Callable[[], Awaitable[Any]]
Respond = Callable[[str, Any], Awaitable[Any]]
"""Returns what a process answers to a question of the admin API: a word and an argument, both JSON."""


@dataclass(frozen=True, slots=True)
class ConfigTexts:
    """The text of the config with which the workers were started, and of the one that they serve now."""

    first: str
    served: str

    def to_file(self) -> int:
        """Write them to an unnamed file; return its descriptor."""
        with tempfile.TemporaryFile() as file:
            file.write(orjson.dumps((self.first, self.served)))
            file.flush()
            return os.dup(file.fileno())

    @staticmethod
    def of_file(descriptor: int) -> "ConfigTexts":
        """Read and close a file."""
        with os.fdopen(descriptor, "rb") as file:
            file.seek(0)
            return ConfigTexts(*orjson.loads(file.read()))


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker process was given: the socket that it listens on, that of the supervisor, its number, the files of
    its place in which it writes down what calls have used, and the config, unless that is in no file.
    """

    listener: socket.socket
    control: socket.socket
    number: int
    count: int
    spool: tuple[int, int]
    texts: ConfigTexts | None

    @staticmethod
    def of_environment() -> "Assignment | None":
        """Return the assignment of this process; None for one without a supervisor."""
        if NUMBER not in os.environ:
            return None
        number, _, count = os.environ.pop(NUMBER).partition("/")
        listener, control = (socket.socket(fileno=int(os.environ.pop(name))) for name in (LISTENER, CONTROL))
        one, other = map(int, os.environ.pop(SPOOL).split(","))
        texts = ConfigTexts.of_file(int(os.environ.pop(TEXTS))) if TEXTS in os.environ else None
        return Assignment(listener, control, int(number), int(count), (one, other), texts)


class Link:
    """One end of the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @staticmethod
    async def over(connected: socket.socket) -> "Link":
        return Link(*await asyncio.open_connection(sock=connected))

    def send(self, word: str, value: Any = None) -> bool:
        """Queue a message; return False if it is too long. Nothing is sent to a process that has ended."""
        message = orjson.dumps((word, value))
        if len(message) > MAX_BYTES:
            return False
        if not self._writer.is_closing():
            self._writer.write(len(message).to_bytes(4) + message)
        return True

    async def receive(self) -> tuple[str, Any]:
        """Return the next message. Raises EOFError when the other process has ended, or sends an invalid message."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4))
            if size > MAX_BYTES:
                raise EOFError
            word, value = orjson.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError, ValueError, TypeError) as error:
            raise EOFError from error
        return str(word), value

    def close(self) -> None:
        self._writer.close()


class Questions:
    """Sends questions of the admin API and steps of a reload to workers, and collects the answers."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._links: dict[int, Link] = {}
        self._last = 0

    async def ask(self, links: Sequence[Link], word: str, argument: Any, timeout_s: float) -> list[Any]:
        """Return the answers of the workers that answer in time, in the order of their links."""
        futures = []
        for link in links:
            self._last += 1
            future = self._waiting[self._last] = asyncio.get_running_loop().create_future()
            self._links[self._last] = link
            futures.append((self._last, future))
            link.send("ask", (self._last, word, argument))
        if futures:
            await asyncio.wait([future for _, future in futures], timeout=timeout_s)
        for number, _ in futures:
            self._waiting.pop(number, None)
            self._links.pop(number, None)
        return [future.result() for _, future in futures if future.done() and not future.cancelled()]

    def forget(self, link: Link) -> None:
        """Stop waiting for a worker that has ended."""
        for number, asked in self._links.items():
            if asked is link and number in self._waiting:
                self._waiting[number].cancel()

    def settle(self, number: int, value: Any) -> None:
        """Record an answer; a late one is dropped."""
        future = self._waiting.pop(number, None)
        if future is not None and not future.done():
            future.set_result(value)


async def answer_supervisor(
    link: Link, answers: Mapping[str, Answer], stop: Callable[[], None], respond: Respond | None = None
) -> None:
    """Answer the supervisor's questions, those of the admin API with `respond`; call `stop` when it ends."""
    tasks: set[asyncio.Task[None]] = set()

    async def reply(word: str, answer: Answer) -> None:
        link.send(word, await answer())

    async def reply_numbered(number: int, word: str, argument: Any) -> None:
        if respond is not None and not link.send("asked", (number, await respond(word, argument))):
            link.send("asked", (number, TOO_LONG))

    try:
        while True:
            word, value = await link.receive()
            answer = answers.get(word)
            if answer is not None or word == "ask":
                work = reply_numbered(*value) if answer is None else reply(word, answer)
                task = asyncio.create_task(work)  # in a task, so that a slow answer does not delay others
                tasks.add(task)
                task.add_done_callback(tasks.discard)
    except EOFError:
        stop()
