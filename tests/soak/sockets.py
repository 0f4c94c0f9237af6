"""Hostile clients in WebSocket mode, and floods of request heads."""

import asyncio
import itertools

import orjson

from tests.soak.clients import GET_HEALTHZ
from tests.soak.gateway import HOSTILE_KEY
from tests.soak.wire import Client, Target, build_head, read_answer, repeat

UPGRADE = (
    "GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {'a' * 22}==\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {HOSTILE_KEY}\r\n\r\n"
).encode()
MASK = b"\0\0\0\0"  # masking changes nothing then
LARGE_BYTES, FLOOD_S = 32_000_000, 4
FIELDS, FIELD_BYTES, HEADS_AT_ONCE = 100, 8_000, 10
END = b'"type":"response.completed"'


def frame(payload: bytes, opcode: int = 1, *, is_last: bool = True) -> bytes:
    """Return a frame of a client."""
    size, first = len(payload), (0x80 if is_last else 0) | opcode
    if size < 126:
        return bytes((first, 0x80 | size)) + MASK + payload
    if size < 65_536:
        return bytes((first, 0xFE)) + size.to_bytes(2) + MASK + payload
    return bytes((first, 0xFF)) + size.to_bytes(8) + MASK + payload


def create(model: str, lane: int = 0, text: str = "Hi") -> bytes:
    fields = {"type": "response.create", "model": model, "input": text, "stream_id": f"lane_{lane}"}
    return frame(orjson.dumps(fields))


async def _open(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    writer.write(UPGRADE)
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def send_messages(target: Target) -> None:
    """Send floods of tiny messages, of fragments without end, and of calls in more lanes than there may be."""
    floods = [
        frame(b"{}") * 5000,
        frame(b"1" * 100) * 5000,
        frame(b"x", is_last=False) + frame(b"x", 0, is_last=False) * 20_000,
        b"".join(create("hello", lane) for lane in range(5000)),
        b"".join(create("stall_head", lane) for lane in range(40)) * 10,
        frame(b'{"type":"response.inject","response_id":"resp_1","input":[]}') * 5000,
    ]
    numbers = itertools.count()

    async def flood() -> str:
        reader, writer = await _open(target.port)
        data = floods[next(numbers) % len(floods)]
        reading = asyncio.create_task(read_answer(reader))
        try:
            async with asyncio.timeout(FLOOD_S):
                while not reading.done():
                    writer.write(data)
                    await writer.drain()
        except TimeoutError:
            return "not closed"
        else:
            return "closed"
        finally:
            reading.cancel()
            writer.transport.abort()

    await repeat(12, flood, target.outcomes)


async def send_large_messages(target: Target) -> None:
    """Send messages of 32 MB, and ask for events as long."""
    large = create("hello", text="a" * LARGE_BYTES)
    numbers = itertools.count()

    async def exchange() -> str:
        reader, writer = await _open(target.port)
        is_sender = next(numbers) % 2 == 0
        try:
            writer.write(large if is_sender else create("long_json"))
            tail, received = b"", 0
            async with asyncio.timeout(20):
                while data := await reader.read(262_144):
                    received += len(data)
                    if END in tail + data or b'"type":"error"' in tail + data:
                        break
                    tail = data[-64:]
            return f"{'sent' if is_sender else 'asked'}, {received // 10_000_000}0 MB received"
        except TimeoutError:
            return "not answered in 20 s"
        finally:
            writer.transport.abort()

    await repeat(4, exchange, target.outcomes)


async def send_large_heads(target: Target) -> None:
    """Send heads of 100 fields with 8 KB each, one after the other without waiting."""
    fields = "".join(f"x-field-{number}: {'y' * FIELD_BYTES}\r\n" for number in range(FIELDS)).encode()
    head = GET_HEALTHZ.replace(b"\r\n\r\n", b"\r\n" + fields + b"\r\n")
    call = build_head(2).replace(b"\r\n\r\n", b"\r\n" + fields + b"\r\n") + b"{}"

    async def send() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        reading = asyncio.create_task(read_answer(reader))
        try:
            for _ in range(HEADS_AT_ONCE):
                writer.write(head + call)
                await writer.drain()
            return (await reading).outcome
        finally:
            reading.cancel()
            writer.transport.abort()

    await repeat(20, send, target.outcomes)


SOCKETS: dict[str, Client] = {
    "messages": send_messages,
    "large_messages": send_large_messages,
    "large_heads": send_large_heads,
}
