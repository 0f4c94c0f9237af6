"""A fake upstream that costs next to nothing: `python -m tests.bench.upstream` prints its address and serves.

The model of a request selects the answer: "json", "large", "paced", "slow", or "burst" with a dialect. The upstream also accepts traces
on /v1/traces and metrics on /v1/metrics, in trouble below /hangs, /fails and /crawls, and GET /traces returns how many posts it got. After an upgrade it answers every message with a burst.
It speaks TLS at another port, which GET /tls returns, with the path of its certificate.
"""

import asyncio
import itertools
import re
import ssl
from pathlib import Path
from tempfile import TemporaryDirectory
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
from tests.certificates import make_certificate

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
    secure = b""
    """The port with TLS, and the path of its certificate."""

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
        if not head.startswith(b"post /v1/responses") and self._answer_telemetry(head):
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

    def _answer_telemetry(self, head: bytes) -> bool:
        """Answer what is no call, in trouble where that is asked for. Return whether it is none."""
        if head.startswith(b"post /hangs/"):
            return True
        if head.startswith(b"post /crawls/"):
            self._loop.call_later(CRAWL_S, self._transport.write, TELEMETRY_ACCEPTED)
            return True
        UpstreamConnection.trace_posts += head.startswith(b"post /v1/traces")
        answers = {
            b"post /fails/": TELEMETRY_REFUSED,
            b"post /v1/traces": TELEMETRY_ACCEPTED,
            b"post /v1/metrics": TELEMETRY_ACCEPTED,
            b"get /traces": with_content_length(b"%d" % self.trace_posts),
            b"get /tls": with_content_length(self.secure),
        }
        answer = next((answer for beginning, answer in answers.items() if head.startswith(beginning)), None)
        if answer is not None:
            self._transport.write(answer)
        return answer is not None

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
    loop = asyncio.get_running_loop()
    server = await loop.create_server(UpstreamConnection, "127.0.0.1", 0, backlog=1024)
    with TemporaryDirectory(prefix="headgate-bench-tls-") as folder:
        make_certificate(Path(folder), "upstream", subject="IP:127.0.0.1")
        certificate = Path(folder) / "upstream.pem"
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, certificate.with_suffix(".key"))
        secure = await loop.create_server(UpstreamConnection, "127.0.0.1", 0, ssl=tls, backlog=1024)
        UpstreamConnection.secure = f"{secure.sockets[0].getsockname()[1]} {certificate}".encode()
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201
        await server.serve_forever()


if __name__ == "__main__":
    run_until_signal(serve())
