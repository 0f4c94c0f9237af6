"""The load: connections that each ask again as soon as they are answered, and check what they get.

Lean, so that what is measured is the server: a request is one prepared write, an answer is searched, never parsed.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from tests.bench.processes import Server
from tests.bench.works import COUNTER, KEY, Work

END_OF_STREAM = b"data: [DONE]\n\n\r\n0\r\n\r\n"
HEAD = (
    "POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
    "Content-Type: application/json\r\nAccept: application/json\r\nUser-Agent: OpenAI/Python 3.51.0\r\n"
    "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 3.51.0\r\nx-stainless-retry-count: 0\r\n"
    "Content-Length: {length}\r\n\r\n"
)
WARM_UP_S = 0.4
PATIENCE_S = 20


class WrongAnswer(Exception):
    """An answer that is not what the work asks for; figures of such a run would mean nothing."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one server did in one round."""

    seconds: float
    answers: int
    events: int
    cpu_s: float
    latencies_s: list[float]  # sorted


class Load:
    """One work put on one server. `numbers` gives the counter of each request its value."""

    def __init__(self, work: Work, server: Server, *, gate: bool, numbers: Iterator[int]) -> None:
        self.work = work
        self.cache_status = work.cache_status if gate else b""
        head = HEAD.format(port=server.port, key=KEY, length=len(work.body)).encode()
        self._before, self._counter, self._after = (head + work.body).partition(COUNTER)
        self._server = server
        self._numbers = numbers
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asking = True
        self.measuring = False
        self.answers = self.events = 0
        self.latencies_s: list[float] = []

    def request(self) -> bytes:
        if not self._counter:
            return self._before
        return b"%b%08d%b" % (self._before, next(self._numbers), self._after)

    def fail(self, found: str) -> None:
        self.asking = False
        if not self._failure.done():
            self._failure.set_exception(WrongAnswer(f"{self.work.name}: {found}"))

    async def figures(self, seconds: float) -> Figures:
        """Warm up, measure, let running answers end. Raises WrongAnswer."""
        try:
            return await self._measured(seconds)
        finally:
            self.asking = False
            self._failure.cancel()  # nobody waits for it any more

    async def _measured(self, seconds: float) -> Figures:
        connections = await self._connected()
        await self._wait(WARM_UP_S)
        began, cpu_began = time.perf_counter(), self._server.cpu_s()
        self.answers, self.events, self.latencies_s = 0, 0, []
        self.measuring = True
        await self._wait(seconds)
        self.measuring = False
        took, cpu_s = time.perf_counter() - began, self._server.cpu_s() - cpu_began
        figures = Figures(took, self.answers, self.events, cpu_s, sorted(self.latencies_s))
        self.asking = False
        closed = asyncio.gather(*(connection.closed for connection in connections))
        ends: set[asyncio.Future[Any]] = {closed, self._failure}
        await asyncio.wait(ends, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if not closed.done() or not figures.answers:
            self.fail("no answer came, or one that does not end")
        if self._failure.done():
            self._failure.result()
        return figures

    async def _connected(self) -> "list[Connection]":
        """Connections that begin one after another, spread over the length of an answer, so that paces do not march."""
        loop = asyncio.get_running_loop()
        connections = []
        for _ in range(self.work.connections):
            _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._server.port)
            connections.append(connection)
            if self.work.pace_s:
                await self._wait(self.work.pace_s / self.work.connections)
        return connections

    async def _wait(self, seconds: float) -> None:
        done, _ = await asyncio.wait({self._failure}, timeout=seconds)
        for failure in done:
            failure.result()


class Connection(asyncio.Protocol):
    """Asks, reads the answer to its end, asks again."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._load.asking:
            self._load.fail(f"the connection was lost: {exc}")
        if not self.closed.done():
            self.closed.set_result(None)

    def _ask(self) -> None:
        self._head = b""
        self._last = b""
        self._left = -1  # bytes of the body; -1: the head is still to come
        self._events = 0
        self._asked = time.perf_counter()
        self._transport.write(self._load.request())

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._begin(head)
        if self._load.work.events:
            self._read_stream(data)
        else:
            self._left -= len(data)
            if self._left == 0:
                self._finish()

    def _begin(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 200 "):
            self._load.fail(f"not 200: {head!r}")
        if self._load.measuring and self._load.cache_status not in head:
            self._load.fail(f"{self._load.cache_status!r} is not told: {head!r}")
        at = head.find(b"Content-Length: ")
        self._left = int(head[at + 16 :].partition(b"\r\n")[0]) if at >= 0 else 0
        if (at < 0) != bool(self._load.work.events):
            self._load.fail(f"a stream for a body, or a body for a stream: {head!r}")

    def _read_stream(self, data: bytes) -> None:
        events = data.count(b"\n\n") + (self._last.endswith(b"\n") and data.startswith(b"\n"))
        self._events += events
        self._load.events += events
        size = len(END_OF_STREAM)
        self._last = data[-size:] if len(data) >= size else (self._last + data)[-size:]
        if self._last == END_OF_STREAM:
            if self._events != self._load.work.events:
                self._load.fail(f"{self._events} events came; {self._load.work.events} were sent")
            self._finish()

    def _finish(self) -> None:
        load = self._load
        load.answers += 1
        if load.measuring:
            load.latencies_s.append(time.perf_counter() - self._asked - load.work.pace_s)
        if load.asking:
            self._ask()
        else:
            self._transport.close()
