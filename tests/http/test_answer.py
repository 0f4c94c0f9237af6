"""The bytes of an answer: head, body, chunks, and how the connection continues."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from proxy.http.answer import LARGE_BYTES, Answer
from proxy.http.request import Request
from proxy.http.server import Server
from tests.raw import until
from tests.timeouts import TIMEOUT_S

Sending = Callable[[Answer], Awaitable[None]]


@asynccontextmanager
async def serving(send: Sending, status: int = 200, headers: dict[str, str] | None = None):
    """A server whose every answer is sent by `send`. Gives its port, and the list of exceptions that it raised."""
    raised: list[Exception] = []

    async def handle(request: Request) -> web.StreamResponse:
        answer = Answer(request, status, {"Server": "test"} if headers is None else headers)
        try:
            await send(answer)
        except Exception as error:
            raised.append(error)
            raise
        return answer

    server = Server(
        handle,
        head_timeout_s=TIMEOUT_S,
        write_timeout_s=TIMEOUT_S,
        idle_timeout_s=TIMEOUT_S,
        max_connections=8,
        max_body_bytes=1024,
    )
    server.handler_cancellation = False  # a client that disconnects is noticed by what is written to it
    runner = web.ServerRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1], raised
    finally:
        await runner.cleanup()


async def exchange(port: int, *requests: bytes) -> bytes:
    """All that is received until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(requests))
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await reader.read()
    finally:
        writer.close()


def head_of(received: bytes) -> tuple[bytes, set[bytes], bytes]:
    """The status line, the fields without Date, and the rest."""
    head, _, rest = received.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    assert sum(field.startswith(b"Date: ") for field in fields) == 1
    return line, {field for field in fields if not field.startswith(b"Date: ")}, rest


async def whole(answer: Answer) -> None:
    if (unsent := answer.send(b"body")) is not None:
        await unsent


async def stream(answer: Answer) -> None:
    answer.begin_stream()
    await answer.write_chunk(b"one")
    answer.write_between(b": between\n\n")
    await answer.end_stream(b"two")


async def empty_stream(answer: Answer) -> None:
    answer.begin_stream()
    await answer.end_stream()


CLOSE = b"Host: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("send", "request_line", "fields", "body"),
    [
        (whole, b"GET / HTTP/1.1", {b"Content-Length: 4", b"Connection: close"}, b"body"),
        (whole, b"HEAD / HTTP/1.1", {b"Content-Length: 4", b"Connection: close"}, b""),
        (whole, b"GET / HTTP/1.0", {b"Content-Length: 4"}, b"body"),
        (
            stream, b"GET / HTTP/1.1", {b"Transfer-Encoding: chunked", b"Connection: close"},
            b"3\r\none\r\nb\r\n: between\n\n\r\n3\r\ntwo\r\n0\r\n\r\n",
        ),
        (stream, b"GET / HTTP/1.0", set(), b"one: between\n\ntwo"),
        (empty_stream, b"GET / HTTP/1.1", {b"Transfer-Encoding: chunked", b"Connection: close"}, b"0\r\n\r\n"),
        (empty_stream, b"HEAD / HTTP/1.1", {b"Connection: close"}, b""),
    ],
)  # fmt: skip
async def test_an_answer_is_framed_for_its_request(send: Sending, request_line: bytes, fields: set[bytes], body: bytes):
    """A client of HTTP/1.0 knows no chunks, and an answer to HEAD has no body."""
    async with serving(send) as (port, _):
        line, found, rest = head_of(await exchange(port, request_line + b"\r\n" + CLOSE))

    assert line == request_line[-8:] + b" 200 OK"
    assert found == fields | {b"Server: test"}
    assert rest == body


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_none(status: int):
    async with serving(whole, status) as (port, _):
        line, fields, rest = head_of(await exchange(port, b"GET / HTTP/1.1\r\n" + CLOSE))

    assert line.startswith(b"HTTP/1.1 %d " % status)
    assert (fields, rest) == ({b"Server: test", b"Connection: close"}, b"")


async def test_a_connection_serves_the_next_request():
    """The last one asks for its end. A client of HTTP/1.0 learns that the connection stays open."""
    async with serving(whole) as (port, _):
        received = await exchange(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\n" + CLOSE)
        kept = await exchange(
            port, b"GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", b"GET / HTTP/1.0\r\nHost: x\r\n\r\n"
        )

    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.count(b"Connection: close") == 1
    assert kept.count(b"HTTP/1.0 200 OK") == 2
    assert kept.count(b"Connection: keep-alive") == 1


async def test_a_large_body_arrives_whole():
    body = bytes(range(256)) * (LARGE_BYTES // 64)
    async with serving(lambda answer: answer.send(body)) as (port, _):
        *_, rest = head_of(await exchange(port, b"GET / HTTP/1.1\r\n" + CLOSE))

    assert rest == body


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b"])
async def test_a_value_with_a_line_end_is_never_sent(value: str):
    async with serving(whole, headers={"x-name": value}) as (port, raised):
        received = await exchange(port, b"GET / HTTP/1.1\r\n" + CLOSE)

    assert received.startswith(b"HTTP/1.1 500 ")
    assert b"x-name" not in received
    assert [type(error) for error in raised] == [ValueError]


async def test_an_unknown_status_has_no_reason():
    async with serving(whole, 529) as (port, _):
        line, *_ = head_of(await exchange(port, b"GET / HTTP/1.1\r\n" + CLOSE))

    assert line == b"HTTP/1.1 529 "


async def test_nothing_is_written_to_a_client_that_has_left():
    """It raises, so that the work behind the answer ends; a comment in between is dropped."""
    left = asyncio.Event()

    async def late(answer: Answer) -> None:
        answer.begin_stream()
        await answer.write_chunk(b"one")
        await left.wait()
        await until(lambda: answer._request.transport is None)
        answer.write_between(b"two")
        await answer.write_chunk(b"three")

    async with serving(late) as (port, raised):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n" + CLOSE)
        await reader.readuntil(b"one")
        writer.transport.abort()
        left.set()
        await until(lambda: raised)

    assert isinstance(raised[0], ConnectionResetError)


async def test_a_client_that_leaves_before_its_answer_is_no_crash(logged):
    """The connection ends, and no error is logged."""

    async def late(answer: Answer) -> None:
        await until(lambda: answer._request.transport is None)
        await whole(answer)

    async with serving(late) as (port, raised):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n" + CLOSE)
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.transport.abort()
        await until(lambda: raised)

    assert isinstance(raised[0], ConnectionResetError)
    assert logged == []
