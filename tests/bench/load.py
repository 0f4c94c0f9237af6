"""The load: connections that send the next request as soon as the last one is answered, and check every answer.

It must cost little, so that the figures are those of the server: a request is one prepared write, and an answer is
searched but not parsed.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from tests.bench.processes import ServerProcess
from tests.bench.servers import API_KEY
from tests.bench.workloads import COUNTER, Workload

DATA_LINE = b"\ndata: "  # once in every frame of every dialect; JSON contains no raw line end
END_OF_STREAM = (b"data: [DONE]\n\n\r\n0\r\n\r\n", b"data: [DONE]\r\n\r\n\r\n0\r\n\r\n")
LAST_CHUNK = (b"\r\n0\r\n\r\n",)
TAIL_BYTES = max(map(len, END_OF_STREAM))
REQUEST_HEAD = (
    "POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
    "Content-Type: application/json\r\nAccept: application/json\r\nUser-Agent: OpenAI/Python 3.51.0\r\n"
    "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 3.51.0\r\nx-stainless-retry-count: 0\r\n"
    "Content-Length: {length}\r\n\r\n"
)
UPGRADE = (
    "GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: bm9uY2Vub25jZW5vbmNlMQ==\r\n\r\n"
)
LAST_EVENT = b'{"type":"response.completed"'
WARM_UP_S = 0.4
ANSWER_TIMEOUT_S = 20


class UnexpectedAnswer(Exception):
    """An answer that the workload does not allow; the figures of such a run would mean nothing."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one server did in one round."""

    seconds: float
    answers: int
    events: int
    cpu_s: float
    latencies_s: list[float]  # sorted
    grown_kib: float = 0.0  # how much memory the server had more than before its connections, for each of them


class LoadRun:
    """One workload on one server, measured once. `numbers` yields the value of the counter in each request.

    A rival may write other events than its upstream, and end a stream without a sentinel.
    """

    def __init__(
        self, workload: Workload, server: ServerProcess, *, is_headgate: bool, numbers: Iterator[int],
        is_rival: bool = False,
    ) -> None:  # fmt: skip
        self.workload = workload
        self.is_rival = is_rival
        self.end_of_stream = LAST_CHUNK if is_rival else END_OF_STREAM
        self.cache_status = workload.cache_status if is_headgate else b""
        self.upgrade = UPGRADE.format(port=server.port, key=API_KEY).encode()
        size = len(workload.body)
        head = REQUEST_HEAD.format(port=server.port, key=API_KEY, length=size).encode()
        if workload.is_socket:
            head = b"\x81\xfe" + size.to_bytes(2) + bytes(4)  # masked with zeros: the body as it is
        self._before, self._counter, self._after = (head + workload.body).partition(COUNTER)
        self._server = server
        self._numbers = numbers
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sending = True
        self.measuring = False
        self.answers = self.events = 0
        self.latencies_s: list[float] = []
        self._connections: list[LoadConnection] = []

    def next_request(self) -> bytes:
        if not self._counter:
            return self._before
        return b"%b%08d%b" % (self._before, next(self._numbers), self._after)

    def fail(self, found: str) -> None:
        self.sending = False
        if not self._failure.done():
            self._failure.set_exception(UnexpectedAnswer(f"{self.workload.label}: {found}"))

    async def measure(self, seconds: float) -> Measurement:
        """Warm up, measure, and wait for the answers still running. Raises UnexpectedAnswer."""
        try:
            return await self._measure(seconds)
        finally:
            self.sending = False
            self._failure.cancel()  # asyncio would report an exception that is never read
            for connection in self._connections:
                connection.abort()
            await self._wait_closed()

    async def _measure(self, seconds: float) -> Measurement:
        before_kib = self._server.memory_kib()
        await self._connect()
        await self._wait(WARM_UP_S)
        started, cpu_started = time.perf_counter(), self._server.cpu_s()
        self.answers, self.events, self.latencies_s = 0, 0, []
        self.measuring = True
        await self._wait(seconds)
        self.measuring = False
        elapsed, cpu_s = time.perf_counter() - started, self._server.cpu_s() - cpu_started
        grown_kib = (self._server.memory_kib() - before_kib) / self.workload.connections
        measurement = Measurement(elapsed, self.answers, self.events, cpu_s, sorted(self.latencies_s), grown_kib)
        self.sending = False
        closed = asyncio.ensure_future(self._wait_closed())
        ends: set[asyncio.Future[Any]] = {closed, self._failure}
        await asyncio.wait(ends, timeout=ANSWER_TIMEOUT_S + self.workload.pace_s, return_when=asyncio.FIRST_COMPLETED)
        if not closed.done() or not measurement.answers:
            self.fail("no answer arrived, or one does not end")
        if self._failure.done():
            self._failure.result()
        return measurement

    async def _connect(self) -> None:
        """Open the connections spread over the length of a paced answer, so that their ticks do not coincide."""
        loop = asyncio.get_running_loop()
        for _ in range(self.workload.connections):
            kind = SocketConnection if self.workload.is_socket else LoadConnection
            _, connection = await loop.create_connection(lambda kind=kind: kind(self), "127.0.0.1", self._server.port)
            self._connections.append(connection)
            if self.workload.pace_s:
                await self._wait(self.workload.pace_s / self.workload.connections)

    async def _wait_closed(self) -> None:
        for connection in self._connections:
            await connection.closed

    async def _wait(self, seconds: float) -> None:
        done, _ = await asyncio.wait({self._failure}, timeout=seconds)
        for failure in done:
            failure.result()


class LoadConnection(asyncio.Protocol):
    """Sends a request, reads the answer to its end, and sends the next request."""

    def __init__(self, load: LoadRun) -> None:
        self._load = load
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._load.sending:
            self._load.fail(f"the connection was lost: {exc}")
        if not self.closed.done():
            self.closed.set_result(None)

    def _send(self) -> None:
        self._head = b""
        self._tail = b""
        self._left = -1  # bytes of the body still to come; -1: the head is incomplete
        self._events = 0
        self._sent = time.perf_counter()
        self._transport.write(self._load.next_request())

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._read_head(head)
        if self._load.workload.events:
            self._read_stream(data)
        else:
            self._left -= len(data)
            if self._left == 0:
                self._finish()

    def _read_head(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 200 "):
            self._load.fail(f"the status is not 200: {head!r}")
        if self._load.measuring and self._load.cache_status not in head:
            self._load.fail(f"{self._load.cache_status!r} is not in the head: {head!r}")
        at = head.lower().find(b"content-length: ")
        self._left = int(head[at + 16 :].partition(b"\r\n")[0]) if at >= 0 else 0
        if (at < 0) != bool(self._load.workload.events):
            self._load.fail(f"a stream instead of a body, or a body instead of a stream: {head!r}")

    def _read_stream(self, data: bytes) -> None:
        received = self._tail + data
        events = received.count(DATA_LINE) - self._tail.count(DATA_LINE)
        self._events += events
        self._load.events += events
        self._tail = received[-TAIL_BYTES:]
        if received.endswith(self._load.end_of_stream):
            if self._events != self._load.workload.events and not self._load.is_rival:
                self._load.fail(f"{self._events} events arrived; {self._load.workload.events} were sent")
            self._finish()

    def _finish(self) -> None:
        load = self._load
        load.answers += 1
        if load.measuring:
            load.latencies_s.append(time.perf_counter() - self._sent - load.workload.pace_s)
        if load.sending:
            self._send()
        else:
            self._transport.close()


class SocketConnection(LoadConnection):
    """Sends a message, reads one message for each event, and sends the next message."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._received = b""
        self._is_upgraded = False
        self._transport.write(self._load.upgrade)

    def data_received(self, data: bytes) -> None:
        received = self._received + data
        if not self._is_upgraded:
            head, end, received = received.partition(b"\r\n\r\n")
            if not end:
                self._received = head
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._load.fail(f"the connection is not upgraded: {head!r}")
            self._is_upgraded = True
            self._send()
        self._received = received[self._read_frames(received) :]

    def _read_frames(self, received: bytes) -> int:
        """Count the frames in what was received; return where the first incomplete one begins."""
        position, size = 0, len(received)
        while position + 4 <= size:
            length, start = received[position + 1], position + 2
            if length >= 126:
                start = position + (4 if length == 126 else 10)
                length = int.from_bytes(received[position + 2 : start])
            if start + length > size:
                break
            position = start + length
            self._events += 1
            self._load.events += 1
            if received.startswith(LAST_EVENT, start):
                if self._events != self._load.workload.events:
                    self._load.fail(f"{self._events} messages arrived; {self._load.workload.events} were sent")
                self._finish()
        return position
