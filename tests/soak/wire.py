"""Helpers of hostile clients: requests as bytes, answers read to their end, and actions repeated until cancelled."""

import asyncio
import re
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.soak.gateway import HOSTILE_KEY

SLICE_BYTES = 262_144
TAIL_BYTES = 4096
PAUSE_S = 0.01
TERMINAL = re.compile(rb"event: response\.(completed|incomplete|failed)")

Outcomes = Counter[str]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a hostile client sends its requests."""

    port: int
    hostile_port: int
    """Where the hostile upstream listens, which is an issuer as well."""
    outcomes: Outcomes


Client = Callable[[Target], Awaitable[None]]
Action = Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """The start and the end of an answer; status 0 when none came."""

    status: int
    start: bytes
    tail: bytes
    ending: str = ""
    """The terminal event of a stream, if there was one."""

    @property
    def outcome(self) -> str:
        """The status, and for a stream how it ended."""
        if b"text/event-stream" not in self.start:
            return str(self.status)
        if b"data: [DONE]" not in self.tail:
            return f"{self.status} cut"
        return f"{self.status} {self.ending or 'no terminal'}"


def build_head(length: int, *fields: str, method: str = "POST", target: str = "/v1/responses") -> bytes:
    """Return the head of a request with the hostile caller's key."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {HOSTILE_KEY}"]
    lines += ["Content-Type: application/json", f"Content-Length: {length}", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


async def call(port: int, body: bytes, *fields: str) -> Answer:
    """Send a request on a connection of its own and read its answer to the end, while the body is still being sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sending = asyncio.create_task(_send(writer, build_head(len(body), "Connection: close", *fields), body))
    try:
        return await read_answer(reader)
    finally:
        sending.cancel()
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> None:
    with suppress(ConnectionError):
        writer.write(head)
        for start in range(0, len(body), SLICE_BYTES):
            writer.write(body[start : start + SLICE_BYTES])
            await writer.drain()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read to the end of the connection, and keep only the start and the end."""
    start = tail = b""
    ending = ""
    with suppress(ConnectionError):
        while data := await reader.read(SLICE_BYTES):
            if len(start) < TAIL_BYTES:
                start += data[:TAIL_BYTES]
            if found := TERMINAL.findall(tail[-64:] + data):
                ending = found[-1].decode()
            tail = (tail + data)[-TAIL_BYTES:]
    status = start[9:12]
    return Answer(int(status) if status.isdigit() else 0, start, tail, ending)


async def repeat(workers: int, action: Action, outcomes: Outcomes) -> None:
    """Repeat an action in several tasks until cancelled, and count what it returns."""

    async def work() -> None:
        while True:
            try:
                outcomes[await action()] += 1
            except (OSError, EOFError, ValueError) as error:
                outcomes[type(error).__name__] += 1
            await asyncio.sleep(PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset instead of a regular end."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
