"""Callers in WebSocket mode."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from tests.raw import RawConnection, wire
from tests.timeouts import TIMEOUT_S

MASK = b"\x01\x82\xfd\x00"
KEY = "bm9uY2Vub25jZW5vbmNlMQ=="
LAST = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})


class SocketCaller:
    """One connection. Frames are JSON objects."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def create(self, **fields: Any) -> None:
        """Ask for a response."""
        await self.send({"type": "response.create", "model": "m", "input": "Hi", **fields})

    async def send(self, message: Any) -> None:
        await self.socket.send_str(orjson.dumps(message).decode())

    async def read(self) -> Any:
        """Return the next message. Raises AssertionError if it is not one JSON object in a text frame."""
        async with asyncio.timeout(TIMEOUT_S):
            frame = await self.socket.receive()
        assert frame.type is aiohttp.WSMsgType.TEXT, frame
        message = orjson.loads(frame.data)
        assert isinstance(message, dict)
        return message

    async def turn(self) -> list[Any]:
        """Return the messages up to the last one of a turn."""
        messages = [await self.read()]
        while messages[-1]["type"] not in LAST:
            messages.append(await self.read())
        return messages

    async def turn_of(self, **fields: Any) -> list[Any]:
        """Ask for a response and return the messages of the turn."""
        await self.create(**fields)
        return await self.turn()

    async def ask(self, **fields: Any) -> Any:
        """Return the last message of a turn."""
        await self.create(**fields)
        return (await self.turn())[-1]

    async def closed(self) -> int | None:
        """Return the code with which the gateway closes."""
        async with asyncio.timeout(TIMEOUT_S):
            while (frame := await self.socket.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        assert frame.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED), frame
        return self.socket.close_code


@asynccontextmanager
async def calling(address: str, **headers: str) -> AsyncIterator[SocketCaller]:
    """Connect to the gateway at `address`; `_` in the names of headers becomes `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{address}/v1/responses", headers=named, max_msg_size=0, compress=0) as socket,
    ):
        yield SocketCaller(socket)


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes = MASK) -> bytes:
    """Return a frame of a client."""
    size = len(payload)
    length = (
        bytes((0x80 | size,)) if size < 126
        else b"\xfe" + size.to_bytes(2) if size < 65_536
        else b"\xff" + size.to_bytes(8)
    )  # fmt: skip
    whole = (mask * (size // 4 + 1))[:size]
    body = (int.from_bytes(payload) ^ int.from_bytes(whole)).to_bytes(size)
    return bytes(((0x80 if fin else 0) | opcode,)) + length + mask + body


def upgrade(*more: str, key: str = KEY, version: str = "13") -> bytes:
    """Return the head of a request for a WebSocket; `more` are header lines."""
    lines = ["GET /v1/responses HTTP/1.1", "Host: localhost", "Connection: keep-alive, Upgrade", "Upgrade: WebSocket"]
    return "\r\n".join([
        *lines, f"Sec-WebSocket-Version: {version}", f"Sec-WebSocket-Key: {key}", *more, "", ""
    ]).encode()  # fmt: skip


def frames_in(data: bytes) -> list[tuple[int, bytes]]:
    """Return the opcode and the payload of each frame of a server."""
    found = []
    while data:
        size, start = data[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start])
        found.append((data[0], data[start : start + size]))
        data = data[start + size :]
    return found


@asynccontextmanager
async def raw_socket(address: str, *more: str) -> AsyncIterator[RawConnection]:
    """Connect to the gateway on a raw socket, and read the answer to the upgrade."""
    async with wire(address) as connection:
        await connection.send(upgrade(*more))
        assert (await connection.answer()).status == 101
        yield connection
