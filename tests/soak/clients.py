"""Hostile clients. Each is a function that runs until it is cancelled and counts the results of its requests in `outcomes`."""

import asyncio
import os
import random
import socket
from collections.abc import Callable
from contextlib import suppress

from tests.soak import bodies
from tests.soak.wire import Client, Target, build_head, call, read_answer, repeat, reset

GET_READYZ = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
GET_HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HALF_BODIES, HALF_BODY_BYTES = 200, 10_000_000
SLOW_HEADS, UNREAD_STREAMS, READYZ, CONNECTIONS = 1000, 40, 300, 1200
MANY_VALUES_CALLERS = 8
BURST_CONNECTIONS, BURST_BYTES, BURST_S = 400, 262_144, 0.5
HOLD_S = 4


async def send_gzipped_arrays(target: Target) -> None:
    await _repeat_call(target, 4, bodies.gzipped_arrays(), "Content-Encoding: gzip")


async def send_arrays(target: Target) -> None:
    await _repeat_call(target, 2, bodies.arrays())


async def send_one_escape(target: Target) -> None:
    await _repeat_call(target, 2, bodies.one_escape())


async def send_conversation(target: Target) -> None:
    await _repeat_call(target, 4, bodies.conversation())


async def send_many_values(target: Target) -> None:
    """Send eight bodies at once that have as many values as one may have: each holds the interpreter for long."""
    await _repeat_call(target, MANY_VALUES_CALLERS, bodies.many_values())


async def send_includes(target: Target) -> None:
    await _repeat_call(target, 4, bodies.includes())


async def send_bursts(target: Target) -> None:
    """Send the first part of a body on 400 connections at once, again and again."""
    head, part = build_head(HALF_BODY_BYTES), b"{" + b" " * (BURST_BYTES - 1)
    while True:
        opened = await asyncio.gather(*(_open(target.port, head) for _ in range(BURST_CONNECTIONS)))
        for writer in opened:
            writer.write(part)
        await asyncio.sleep(BURST_S)
        for writer in opened:
            writer.transport.abort()
        target.outcomes[f"{BURST_CONNECTIONS} parts"] += 1


async def _open(port: int, data: bytes) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    return writer


async def send_largest_bodies(target: Target) -> None:
    await _repeat_call(target, 64, bodies.largest())


async def _repeat_call(target: Target, workers: int, body: bytes, *fields: str) -> None:
    async def send() -> str:
        return (await call(target.port, body, *fields)).outcome

    await repeat(workers, send, target.outcomes)


async def send_half_bodies(target: Target) -> None:
    """Hold requests whose bodies stop in the middle."""
    head, half = build_head(HALF_BODY_BYTES), b" " * (HALF_BODY_BYTES // 2)

    async def send() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        try:
            writer.write(head + half)
            await writer.drain()
            return (await read_answer(reader)).outcome
        finally:
            writer.transport.abort()

    await repeat(HALF_BODIES, send, target.outcomes)


async def send_slow_heads(target: Target) -> None:
    """Send heads byte by byte."""

    async def send() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        reading = asyncio.create_task(reader.read(1))
        try:
            for byte in build_head(2):
                writer.write(bytes([byte]))
                done, _ = await asyncio.wait([reading], timeout=0.5)
                if done:
                    return "closed" if not reading.result() else "answered"
            return "not closed"
        finally:
            reading.cancel()
            writer.transport.abort()

    await repeat(SLOW_HEADS, send, target.outcomes)


async def never_read(target: Target) -> None:
    """Request endless streams and read nothing for HOLD_S seconds; then find out whether they were cut."""
    body = bodies.small("endless_item", stream=True)
    loop = asyncio.get_running_loop()

    async def hold() -> str:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            await loop.sock_connect(connection, ("127.0.0.1", target.port))
            await loop.sock_sendall(connection, build_head(len(body)) + body)
            await asyncio.sleep(HOLD_S)
            try:
                async with asyncio.timeout(HOLD_S):
                    received = 0
                    while (data := await loop.sock_recv(connection, 65_536)) and received < 20_000_000:
                        received += len(data)
                    return "not cut" if data else "cut"
            except ConnectionError:
                return "cut"
            except TimeoutError:
                return "not cut"

    await repeat(UNREAD_STREAMS, hold, target.outcomes)


async def reconnect(target: Target) -> None:
    """Open and close connections as fast as possible: half of them send a request and do not wait for its answer."""
    body = bodies.small("hello", stream=True)

    async def connect() -> str:
        _, writer = await asyncio.open_connection("127.0.0.1", target.port)
        if random.random() < 0.5:
            writer.write(build_head(len(body)) + body)
        writer.close()
        return "connected"

    await repeat(50, connect, target.outcomes)


async def send_garbage(target: Target) -> None:
    """Send bytes that are not HTTP: random ones, a TLS greeting, broken heads and chunks."""
    starts = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/responses HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/responses HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 50_000,
        b"",
    ]

    async def send() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        try:
            writer.write(random.choice(starts) + os.urandom(2000) + b"\r\n\r\n")
            async with asyncio.timeout(10):
                return (await read_answer(reader)).outcome
        except TimeoutError:
            return "no answer in 10 s"
        finally:
            writer.transport.abort()

    await repeat(20, send, target.outcomes)


async def pipeline(target: Target) -> None:
    """Send 100 requests at once on one connection, and count whether all are answered."""
    many = GET_HEALTHZ * 99 + GET_HEALTHZ.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    async def send() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        try:
            writer.write(many)
            answers = (await reader.read(-1)).count(b"HTTP/1.1 200")
            return "all answered" if answers == 100 else f"{answers} of 100 answered"
        finally:
            writer.transport.abort()

    await repeat(4, send, target.outcomes)


async def reset_in_the_middle(target: Target) -> None:
    """Reset connections in the middle of heads, bodies and answers."""
    body = bodies.small("polite-paced", stream=True)
    request = build_head(len(body)) + body

    async def send() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        part = random.choice([40, len(request) - 5, len(request)])
        writer.write(request[:part])
        await writer.drain()
        if part == len(request):
            await reader.read(200)
        reset(writer)
        return "reset"

    await repeat(20, send, target.outcomes)


async def request_readyz(target: Target) -> None:
    """Request the readiness report without a key, by 300 connections at once."""
    await repeat(READYZ, lambda: _get(target.port, GET_READYZ), target.outcomes)


async def _get(port: int, request: bytes) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return (await read_answer(reader)).outcome
    finally:
        writer.transport.abort()


async def open_connections(target: Target) -> None:
    """Open more connections than the gateway may have files, hold them, and open them again."""
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        writers.append(writer)
        writer.write(GET_HEALTHZ)
        with suppress(EOFError, ConnectionError):
            target.outcomes[(await reader.readuntil(b"\r\n"))[9:12].decode()] += 1

    while True:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(connect())
        await asyncio.sleep(HOLD_S / 2)
        for writer in writers:
            writer.transport.abort()
        writers.clear()


BODIES: dict[str, Callable[[], bytes]] = {
    "gzipped_arrays": bodies.gzipped_arrays,
    "plain_arrays": bodies.arrays,
    "one_escape": bodies.one_escape,
    "conversation": bodies.conversation,
    "largest_bodies": bodies.largest,
    "many_values": bodies.many_values,
    "includes": bodies.includes,
}
"""The bodies that take time to build; they are cached."""
CLIENTS: dict[str, Client] = {
    "gzipped_arrays": send_gzipped_arrays,
    "plain_arrays": send_arrays,
    "one_escape": send_one_escape,
    "conversation": send_conversation,
    "half_bodies": send_half_bodies,
    "bursts": send_bursts,
    "largest_bodies": send_largest_bodies,
    "many_values": send_many_values,
    "includes": send_includes,
    "slow_heads": send_slow_heads,
    "never_read": never_read,
    "reconnect": reconnect,
    "garbage": send_garbage,
    "pipelined": pipeline,
    "resets": reset_in_the_middle,
    "readyz": request_readyz,
    "connections": open_connections,
}
