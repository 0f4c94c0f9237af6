"""The upstream of the polite caller: `python -m tests.soak.polite_upstream` prints its address and serves.

A model that ends in "paced" gets a stream with an event every 50 ms, whose text is the moment at which it was written,
by the clock that all processes of the machine share. Any other model gets a small answer at once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import orjson

from proxy.wire.compose import Composer, new_id, response_object, usage
from proxy.wire.event import Event
from tests.bench.event_loop import run_until_signal

ServeConnection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

PACE_S, DELTAS = 0.05, 20
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return head and body of a request. Raises IncompleteReadError at the end of the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    at = lower.find(b"content-length:")
    length = int(lower[at + 15 : lower.index(b"\r\n", at)]) if at >= 0 else 0
    return head, await reader.readexactly(length)


async def write_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write one chunk of an answer; an empty one is its end."""
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()


def write_frames(events: list[Event]) -> bytes:
    return b"".join(event.sse for event in events)


async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection until it ends."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            _, body = await read_request(reader)
            await _answer(orjson.loads(body) if body else {"model": ""}, writer)
    writer.close()


async def _answer(request: dict[str, object], writer: asyncio.StreamWriter) -> None:
    model = str(request.get("model"))
    composer = Composer(response_object({"model": model}, response_id=new_id("resp"), created_at=1_700_000_000))
    opening = [*composer.start(), *composer.open_message()]
    pace_s = PACE_S if model.endswith("paced") else 0.0
    if not request.get("stream"):
        composer.delta("Hello.")
        composer.finish(usage(input_tokens=8, output_tokens=2))
        body = orjson.dumps(composer.response)
        writer.write(JSON_HEAD % len(body) + body)
        return
    writer.write(STREAM_HEAD)
    await write_chunk(writer, write_frames(opening))
    started = time.monotonic()
    for index in range(1, DELTAS + 1 if pace_s else 2):
        await asyncio.sleep(max(0.0, started + index * pace_s - time.monotonic()))
        await write_chunk(writer, write_frames(composer.delta(f"{time.monotonic():.6f} ")))
    await write_chunk(writer, write_frames(composer.finish(usage(input_tokens=8, output_tokens=DELTAS))))
    await write_chunk(writer, b"")


async def serve(connection: ServeConnection) -> None:
    """Serve connections on a free port until cancelled, and print the address."""
    server = await asyncio.start_server(connection, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201
    await server.serve_forever()


if __name__ == "__main__":
    run_until_signal(serve(serve_connection))
