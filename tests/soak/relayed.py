"""Hostile clients of relayed paths: forms of every odd kind, and lists that are long."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress

from tests.soak.wire import Client, Target, build_head, read_answer, repeat

FORM_BYTES, PARTS = 30_000_000, 1_000_000
FILES_PATH = "/v1/files"
LIST = build_head(0, "Connection: close", method="GET", target=FILES_PATH)


def forms() -> Iterator[tuple[str, bytes, bytes]]:
    """Yield hostile forms: the boundary, how the body begins, and what is repeated then."""
    disposition = b'Content-Disposition: form-data; name="%b"\r\n'
    yield "b", b"", b"--b\r\n" + disposition % b"x" + b"\r\n1\r\n"
    yield "-" * 70, b"", b"-"
    yield "a" * 4000, b"", b"a"
    yield "b", b"--b\r\n", b"Content-Type: multipart/mixed; boundary=c\r\n"
    yield "b", b"--b\r\n" + disposition % b"file_ids" + b"\r\n", b"file-1,"
    yield "b", b'--b\r\nContent-Disposition: form-data; name="', b'\\"'
    yield "b", b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n', b"\r\n--"


async def send_forms(target: Target) -> None:
    """Send forms that the gateway reads while it passes them on."""
    kinds = [*forms()]
    sent = 0

    async def send() -> str:
        nonlocal sent
        boundary, start, piece = kinds[sent % len(kinds)]
        sent += 1
        count = min(PARTS, FORM_BYTES // len(piece))
        head = build_head(len(start) + count * len(piece), "Connection: close", target=FILES_PATH).replace(
            b"application/json", b"multipart/form-data; boundary=" + boundary.encode()
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        sending = asyncio.create_task(_send(writer, head + start, piece, count))
        try:
            return f"{boundary[:1]} {start[-8:]!r} {piece[:12]!r}: {(await read_answer(reader)).outcome}"
        finally:
            sending.cancel()
            writer.transport.abort()

    await repeat(7, send, target.outcomes)


async def _send(writer: asyncio.StreamWriter, start: bytes, piece: bytes, count: int) -> None:
    at_once = max(1, 100_000 // len(piece))
    with suppress(ConnectionError):
        writer.write(start)
        for _ in range(count // at_once):
            writer.write(piece * at_once)
            await writer.drain()
        writer.write(piece * (count % at_once))


async def trickle_fields(target: Target) -> None:
    """Send fields that never end, byte by byte, from many connections."""
    body = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n'
    head = build_head(FORM_BYTES, target=FILES_PATH).replace(b"application/json", b"multipart/form-data; boundary=b")

    async def send() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        reading = asyncio.create_task(read_answer(reader))
        try:
            writer.write(head + body)
            while not reading.done():
                writer.write(b"x")
                await asyncio.sleep(0.01)
            return reading.result().outcome
        finally:
            reading.cancel()
            writer.transport.abort()

    await repeat(200, send, target.outcomes)


async def list_files(target: Target) -> None:
    """Request lists of 100,000 objects, of which the owners are read."""

    async def send() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        try:
            writer.write(LIST)
            return (await read_answer(reader)).outcome
        finally:
            writer.transport.abort()

    await repeat(4, send, target.outcomes)


RELAYED: dict[str, Client] = {"forms": send_forms, "endless_fields": trickle_fields, "lists": list_files}
