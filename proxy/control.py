"""What the supervisor and a worker process say to each other, over a pair of sockets.

A message is its length in four bytes, and a word and a value in JSON. The supervisor asks for "ping", "metrics",
"ready" or "reload", and the worker answers with the same word and what it is asked for; once it serves, it says
"started" by itself. The end of the connection is the end of the other process.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

LISTENER, CONTROL, NUMBER = "HEADGATE_LISTENER", "HEADGATE_CONTROL", "HEADGATE_WORKER"
"""The environment variables by which a worker learns its file descriptors and its number, from 1."""
MAX_BYTES = 67_108_864

Answer = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker process was given: the socket that it listens on, that of the supervisor, and its number."""

    listener: socket.socket
    control: socket.socket
    number: int
    count: int

    @staticmethod
    def of_environment() -> "Assignment | None":
        """Return the assignment of this process; None for one without a supervisor."""
        if NUMBER not in os.environ:
            return None
        number, _, count = os.environ.pop(NUMBER).partition("/")
        listener, control = (socket.socket(fileno=int(os.environ.pop(name))) for name in (LISTENER, CONTROL))
        return Assignment(listener, control, int(number), int(count))


class Link:
    """One end of the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @staticmethod
    async def over(connected: socket.socket) -> "Link":
        return Link(*await asyncio.open_connection(sock=connected))

    def send(self, word: str, value: Any = None) -> None:
        """Queue a message; nothing is sent to a process that has ended."""
        message = orjson.dumps((word, value))
        if not self._writer.is_closing():
            self._writer.write(len(message).to_bytes(4) + message)

    async def receive(self) -> tuple[str, Any]:
        """Return the next message. Raises EOFError when the other process has ended."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4))
            if size > MAX_BYTES:
                raise EOFError
            word, value = orjson.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EOFError from error
        return str(word), value

    def close(self) -> None:
        self._writer.close()


async def answer_supervisor(link: Link, answers: Mapping[str, Answer], stop: Callable[[], None]) -> None:
    """Answer the supervisor's questions; when it has ended, `stop` this process too."""
    tasks: set[asyncio.Task[None]] = set()

    async def reply(word: str, answer: Answer) -> None:
        link.send(word, await answer())

    try:
        while True:
            word, _ = await link.receive()
            if (answer := answers.get(word)) is not None:
                task = asyncio.create_task(reply(word, answer))  # one that takes long does not delay the others
                tasks.add(task)
                task.add_done_callback(tasks.discard)
    except EOFError:
        stop()
