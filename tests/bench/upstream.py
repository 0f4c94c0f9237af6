"""A fake upstream that costs next to nothing: `python -m tests.bench.upstream` prints its address and serves.

The model of a request selects the answer: "json", "large", "paced", "slow", or "burst" with a dialect. The upstream also accepts traces
on /v1/traces and metrics on /v1/metrics, in trouble below /hangs, /fails and /crawls, and GET /traces returns how many posts it got. After an upgrade it answers every message with a burst.
"""

import asyncio
import itertools
import re
from typing import cast

from proxy.wire.upgrade import accept_key
from tests.bench.answers import (
    DIALECTS,
    SLOW_TICK_S,
    TICK_S,
    Template,
    build_burst_answer,
    build_burst_messages,
    build_json_answer,
    build_large_answer,
    build_paced_answer,
    with_content_length,
)
from tests.bench.event_loop import run_until_signal

MODEL = re.compile(rb'"model":"([^"]*)"')
PACED = [Template(part) for part in build_paced_answer()]
ANSWERS = {
    b"json": Template(build_json_answer()),
    b"large": Template(build_large_answer()),
    **{f"burst {dialect}".encode(): Template(build_burst_answer(dialect)) for dialect in DIALECTS},
}
MESSAGES = Template(build_burst_messages())
UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
)
KEY = re.compile(rb"\r\nsec-websocket-key: *(\S+)", re.IGNORECASE)
TEXT, CLOSE = 0x81, 0x88
TICKS_S = {b"paced": TICK_S, b"slow": SLOW_TICK_S}
NUMBERS = itertools.count()
TELEMETRY_ACCEPTED = with_content_length(b"")
TELEMETRY_REFUSED = TELEMETRY_ACCEPTED.replace(b"200 OK", b"503 Service Unavailable")
CRAWL_S = 3.0


class UpstreamConnection(asyncio.Protocol):
    """Reads one request after another, each with a Content-Length, and answers it."""

    trace_posts = 0

    def __init__(self) -> None:
        self._received = b""
        self._is_upgraded = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        if self._is_upgraded:
            self._received = received[self._answer_messages(received) :]
            return
        end = received.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        if (key := KEY.search(received, 0, end)) is not None:
            self._received, self._is_upgraded = received[end:], True
            self._transport.write(UPGRADED % accept_key(key[1].decode()).encode())
            return
        head = received[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 : head.index(b"\r\n", at)]) if at >= 0 else 0
        if len(received) >= end + length:
            self._received = received[end + length :]
            self._answer(head, received[end : end + length])

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"post /hangs/"):
            return
        if head.startswith(b"post /fails/"):
            self._transport.write(TELEMETRY_REFUSED)
            return
        if head.startswith(b"post /crawls/"):
            self._loop.call_later(CRAWL_S, self._transport.write, TELEMETRY_ACCEPTED)
            return
        if head.startswith(b"post /v1/traces"):
            UpstreamConnection.trace_posts += 1
            self._transport.write(TELEMETRY_ACCEPTED)
            return
        if head.startswith(b"post /v1/metrics"):
            self._transport.write(TELEMETRY_ACCEPTED)
            return
        if head.startswith(b"get /traces"):
            self._transport.write(with_content_length(b"%d" % self.trace_posts))
            return
        found = MODEL.search(body)
        model = found[1] if found else b""
        self._number = next(NUMBERS)
        if (tick_s := TICKS_S.get(model)) is not None:
            self._tick_s = tick_s
            self._transport.write(PACED[0].with_id(self._number))
            self._schedule(1, self._loop.time())
        else:
            self._transport.write(ANSWERS[model].with_id(self._number))

    def _answer_messages(self, received: bytes) -> int:
        """Answer each text frame; return where the first incomplete frame begins. All are masked and below 64 KiB."""
        position = 0
        while position + 4 <= len(received):
            kind, length, start = received[position], received[position + 1] & 0x7F, position + 6
            if length == 126:
                length, start = int.from_bytes(received[position + 2 : position + 4]), position + 8
            if start + length > len(received):
                break
            position = start + length
            if kind == TEXT:
                self._transport.write(MESSAGES.with_id(next(NUMBERS)))
            elif kind == CLOSE:
                self._transport.close()
        return position

    def _schedule(self, index: int, started: float) -> None:
        """Schedule the write of part `index`. Its time counts from the start, so that one late write delays no other."""
        self._timer = self._loop.call_at(started + index * self._tick_s, self._write, index, started)

    def _write(self, index: int, started: float) -> None:
        self._transport.write(PACED[index].with_id(self._number))
        if index + 2 < len(PACED):
            self._schedule(index + 1, started)
        else:  # the closing events follow the last delta at once
            self._transport.write(PACED[-1].with_id(self._number))


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(UpstreamConnection, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201
    await server.serve_forever()


if __name__ == "__main__":
    run_until_signal(serve())
