"""Clients and upstreams on raw sockets."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import orjson
import pytest
from yarl import URL

from tests.timeouts import TIMEOUT_S


@pytest.fixture(autouse=True)
async def no_tasks_left() -> AsyncIterator[None]:
    """Check, in files that import it, that no task is left when a test and its gateways have ended."""
    yield
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


@dataclass(frozen=True)
class RawAnswer:
    """One answer as received; header names in lower case, repeated values joined by a comma."""

    version: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> Any:
        """The error object. Raises AssertionError if the body is not a complete envelope in JSON."""
        assert self.headers["content-type"] == "application/json"
        error = orjson.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


class RawConnection:
    """One connection to a gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def exactly(self, size: int) -> bytes:
        """Return so many bytes. Raises IncompleteReadError if the gateway closes the connection before."""
        return await self._reader.readexactly(size)

    async def some(self) -> bytes:
        """Return what has arrived, once there is something."""
        return await self._reader.read(65_536)

    async def line(self) -> bytes:
        return await self._reader.readline()

    async def answer(self) -> RawAnswer:
        """Return the next answer. Raises IncompleteReadError if the gateway closes the connection before its end."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        version, status, *_ = first.split(" ")
        headers: dict[str, str] = {}
        for name, _, value in (line.partition(":") for line in lines):
            headers[name.lower()] = (
                f"{headers[name.lower()]}, {value.strip()}" if name.lower() in headers else value.strip()
            )
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join([chunk async for chunk in self._chunks()])
        else:
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return RawAnswer(version, int(status), headers, body)

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readline(), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()

    async def close(self) -> None:
        """Close the connection in the regular way."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def rest(self) -> bytes:
        """Return everything until the gateway closes the connection."""
        with suppress(ConnectionError):
            return await self._reader.read()
        return b""


@asynccontextmanager
async def wire(address: str) -> AsyncIterator[RawConnection]:
    """Connect to the gateway at `address`. Raises TimeoutError in a `with` block that hangs."""
    url = URL(address)
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=2**20)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield RawConnection(reader, writer)
    finally:
        writer.transport.abort()


def post(
    body: bytes = b'{"model":"m"}', *, target: str = "/v1/responses", host: str = "localhost", **more: str
) -> bytes:
    """Return the bytes of a call. `more` adds headers; `_` in their names becomes `-`."""
    lines = [f"POST {target} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *(f"{name.replace('_', '-')}: {value}" for name, value in more.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def ask(address: str, data: bytes) -> RawAnswer:
    """Send these bytes on a new connection and return the answer."""
    async with wire(address) as connection:
        await connection.send(data)
        return await connection.answer()


async def serves(address: str) -> bool:
    """Return whether the gateway answers a usual call."""
    return (await ask(address, post())).status == 200


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that cannot be awaited. Raises TimeoutError."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0.001)


Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawUpstream:
    """A server that reads each request and then runs `play`. Counts its connections."""

    def __init__(self, play: Play, *, tls: ssl.SSLContext | None = None) -> None:
        self.play = play
        self._tls = tls
        self.opened = 0
        self.open = 0
        self.requests: list[bytes] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.address = f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for serving in self._serving:
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        self._serving.add(serving)
        self.opened += 1
        self.open += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while not writer.is_closing():
                    head = await reader.readuntil(b"\r\n\r\n")
                    size = next(
                        (line[16:] for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")), b"0"
                    )
                    self.requests.append(head + await reader.readexactly(int(size)))
                    await self.play(reader, writer)
        finally:
            self.open -= 1
            self._serving.discard(serving)
            writer.close()


def events(body: bytes) -> list[Any]:
    """Return the data of each frame of a stream, in order; the sentinel as a string."""
    datas = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [data.decode() if data == b"[DONE]" else orjson.loads(data) for data in datas]


def whole(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return the bytes of an answer with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode(errors="surrogateescape") + body


def playing(*pieces: bytes, end: str = "stay") -> Play:
    """Return a play that writes these pieces; `end` decides what follows.

    It keeps ("stay"), closes ("close") or resets ("reset") the connection, or waits until the client disconnects ("hang").
    """

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if end == "close":
            writer.close()
        elif end == "reset":
            writer.transport.abort()
        elif end == "hang":
            await reader.read()

    return play
