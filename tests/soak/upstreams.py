"""The hostile upstream: `python -m tests.soak.upstreams` prints its address and serves.

The model of a request is the name of what it does. Each behaviour writes an answer and ends; an answer is bounded, save
the endless ones, which end when the gateway closes the connection.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import orjson

from proxy.wire.compose import new_id
from tests.bench.event_loop import run_until_signal
from tests.soak.polite_upstream import JSON_HEAD, STREAM_HEAD, read_request, serve, write_chunk
from tests.soak.streams import delta, ending, frame, opening, write, write_stream

FRAMES_AT_ONCE = 200
FRAME_BYTES = 60_000_000
BLANK_BYTES = 9_000_000
OPEN_ITEMS, DELTAS, TINY_FRAMES, OUTPUT_DELTAS = 3_000, 500, 1_000_000, 50_000
ITEM_VALUES = 90_000
STALL_S = 30
MEDIUM_BYTES, FILES = 12_000_000, 100_000
KEPT = "kept-"
"""How models begin whose responses the gateway keeps itself."""

Behaviour = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]


async def endless_item(writer: asyncio.StreamWriter, _head: bytes) -> None:
    writer.write(STREAM_HEAD)
    await write_chunk(writer, opening())
    piece = delta("x" * 1000) * FRAMES_AT_ONCE
    while True:
        await write_chunk(writer, piece)


async def open_items(writer: asyncio.StreamWriter, _head: bytes) -> None:
    """Send 3,000 open items, then 500 deltas, then the end of the connection."""

    async def pieces() -> AsyncIterator[bytes]:
        yield opening()
        for start in range(1, OPEN_ITEMS, 100):
            yield b"".join(
                frame(
                    "response.output_item.added",
                    output_index=i,
                    item={"type": "message", "id": f"msg_{i}", "content": []},
                )
                for i in range(start, start + 100)
            )
        for index in range(DELTAS):
            yield delta("x" * 2000, index)

    await write_stream(writer, pieces())


async def blank_lines(writer: asyncio.StreamWriter, _head: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield opening()
        for _ in range(BLANK_BYTES // 100_000):
            yield b"\n" * 100_000
        yield ending()

    await write_stream(writer, pieces())


async def continues(writer: asyncio.StreamWriter, _head: bytes) -> None:
    """Send interim answers without end."""
    piece = b"HTTP/1.1 100 Continue\r\n\r\n" * 2000
    while True:
        writer.write(piece)
        await writer.drain()


async def crlf_frame(writer: asyncio.StreamWriter, _head: bytes) -> None:
    """Send one frame of 60 MB with CRLF line ends, in pieces of 8 KiB."""
    line = b"data: " + b"x" * 74 + b"\r\n"

    async def pieces() -> AsyncIterator[bytes]:
        yield opening().replace(b"\n", b"\r\n")
        for _ in range(FRAME_BYTES // (100 * len(line))):
            yield line * 100
        yield b"\r\n" + ending()

    await write_stream(writer, pieces())


async def big_json(writer: asyncio.StreamWriter, _head: bytes) -> None:
    """Send 60 MB of JSON with 10 million values."""
    body = b'{"id":"resp_1","object":"response","status":"completed","output":[' + b"{}, [], " * 7_500_000 + b"{}]}"
    await write(writer, JSON_HEAD % len(body) + body)


async def medium_json(writer: asyncio.StreamWriter, _head: bytes) -> None:
    """Send a correct response with 12 MB of text: as a stream it has 60 MB."""
    await _write_text(writer, MEDIUM_BYTES)


async def file_list(writer: asyncio.StreamWriter, _head: bytes) -> None:
    """Send a list of 100,000 files."""
    files = b",".join(b'{"id":"file-%07d","object":"file"}' % number for number in range(FILES))
    body = b'{"object":"list","has_more":false,"data":[' + files + b"]}"
    await write(writer, JSON_HEAD % len(body) + body)


async def long_json(writer: asyncio.StreamWriter, _head: bytes) -> None:
    """Send a correct response with 60 MB of text."""
    await _write_text(writer, FRAME_BYTES)


async def _write_text(writer: asyncio.StreamWriter, size: int) -> None:
    content = [{"type": "output_text", "text": "a" * size, "annotations": []}]
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
    response = {"id": new_id("resp"), "object": "response", "status": "completed", "output": [message]}
    body = orjson.dumps(response)
    await write(writer, JSON_HEAD % len(body) + body)


async def endless_headers(writer: asyncio.StreamWriter, _head: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    number = 0
    while True:
        piece = b"".join(b"x-header-%d: %b\r\n" % (number + i, b"y" * 200) for i in range(200))
        number += 200
        await write(writer, piece)


async def stall_head(_writer: asyncio.StreamWriter, _head: bytes) -> None:
    await asyncio.sleep(STALL_S)


async def stall_middle(writer: asyncio.StreamWriter, _head: bytes) -> None:
    writer.write(STREAM_HEAD)
    await write_chunk(writer, opening() + delta("x"))
    await asyncio.sleep(STALL_S)


async def tiny_frames(writer: asyncio.StreamWriter, _head: bytes) -> None:
    piece = delta("x") * FRAMES_AT_ONCE

    async def pieces() -> AsyncIterator[bytes]:
        yield opening()
        for _ in range(TINY_FRAMES // FRAMES_AT_ONCE):
            yield piece
        yield ending()

    await write_stream(writer, pieces())


async def many_values_in_items(writer: asyncio.StreamWriter, _head: bytes) -> None:
    """Send finished items without end, each of as many values as a frame may have."""
    item = b'{"type":"response.output_item.done","output_index":%d,"item":{"type":"x","id":"i%d","values":[%b0]}}'
    values = b"{}," * ITEM_VALUES
    writer.write(STREAM_HEAD)
    await write_chunk(writer, opening())
    for number in itertools.count(1):
        await write_chunk(writer, b"data: " + item % (number, number, values) + b"\n\n")


async def no_output(writer: asyncio.StreamWriter, _head: bytes) -> None:
    """Send many deltas of an open item, of which the last event has nothing."""
    response = {"id": new_id("resp"), "object": "response", "status": "completed", "output": []}

    async def pieces() -> AsyncIterator[bytes]:
        yield opening()
        for _ in range(OUTPUT_DELTAS // FRAMES_AT_ONCE):
            yield delta("x") * FRAMES_AT_ONCE
        yield frame("response.completed", response=response)

    await write_stream(writer, pieces())


async def no_terminal(writer: asyncio.StreamWriter, _head: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield opening() + delta("x") * 100

    await write_stream(writer, pieces())


async def invalid_json(writer: asyncio.StreamWriter, _head: bytes) -> None:
    """Send frames that are not JSON, or not objects, and one of a followed type that breaks off."""

    async def pieces() -> AsyncIterator[bytes]:
        yield opening()
        yield b"data: {\n\ndata: 17\n\ndata: \xff\xfe\n\ndata: [[[[\n\n" * 2000
        yield b'event: response.output_item.done\ndata: {"type":"response.output_item.done","item":\n\n' * 200
        yield ending()

    await write_stream(writer, pieces())


async def reset_middle(writer: asyncio.StreamWriter, _head: bytes) -> None:
    writer.write(STREAM_HEAD)
    await write_chunk(writer, opening() + delta("x") * 10)
    writer.transport.abort()


async def key_echo(writer: asyncio.StreamWriter, head: bytes) -> None:
    """Send a refusal that quotes the request's own Authorization header, in its body and in a header."""
    line = next((line for line in head.decode().split("\r\n") if line.lower().startswith("authorization:")), "")
    body = orjson.dumps({"error": {"message": f"No access: {line}", "type": "invalid_request_error", "code": "x"}})
    fields = f"Content-Type: application/json\r\nX-Debug: {line[:500]}\r\nContent-Length: {len(body)}"
    await write(writer, f"HTTP/1.1 403 Forbidden\r\n{fields}\r\n\r\n".encode() + body)


FLAKY_CALLS = 20
"""Of how many calls one fails at the flaky target of a pool: fewer than a route may repeat."""
_calls = itertools.count(1)


async def flaky(writer: asyncio.StreamWriter, head: bytes) -> None:
    """Send a correct response, and now and then a fault that is safe to repeat, of each kind in turn."""
    number, rest = divmod(next(_calls), FLAKY_CALLS)
    if rest:
        await hello(writer, head)
    elif number % 3 == 0:
        writer.transport.abort()
    elif number % 3 == 1:
        await write(writer, b"HTTP/1.1 503 Busy\r\nRetry-After-Ms: 1\r\nContent-Length: 0\r\n\r\n")
    else:
        await write(writer, JSON_HEAD % 49 + b'{"error":{"code":"server_error","message":"No."}}')


async def hello(writer: asyncio.StreamWriter, _head: bytes) -> None:
    """Send a correct small response."""

    async def pieces() -> AsyncIterator[bytes]:
        yield ending()

    await write_stream(writer, pieces())


BEHAVIOURS: dict[str, Behaviour] = {
    behaviour.__name__: behaviour
    for behaviour in (
        endless_item, many_values_in_items, open_items, blank_lines, continues, crlf_frame, big_json, long_json, medium_json, file_list, endless_headers, stall_head,
        stall_middle, tiny_frames, no_terminal, invalid_json, no_output, reset_middle, key_echo, flaky, hello,
    )
}  # fmt: skip


def _behaviour_of(head: bytes, body: bytes) -> str:
    """Return the name of a behaviour: as the path says, a list for requests of files, else what the model says."""
    if b" /flaky/" in head:
        return "flaky"
    if b" /issuer/" in head:
        return "continues"
    if b" /v1/files" in head:
        return "file_list" if head.startswith(b"GET") else "hello"
    model: str = orjson.loads(body)["model"] if body else "hello"
    return model.removeprefix(KEPT)


async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection until it ends."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while not writer.is_closing():
            head, body = await read_request(reader)
            await BEHAVIOURS.get(_behaviour_of(head, body), hello)(writer, head)
    writer.close()


if __name__ == "__main__":
    run_until_signal(serve(serve_connection))
