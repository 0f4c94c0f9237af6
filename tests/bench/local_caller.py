"""Callers of a local model over HTTP. A request is one write; of an answer only its times and its usage are read."""

import asyncio
import re
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

import orjson

from tests.bench.load import END_OF_STREAM, REQUEST_HEAD, TAIL_BYTES, UnexpectedAnswer
from tests.bench.servers import API_KEY

DELTA_TYPE = b"response.output_text.delta"
HEALTH_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HEALTH_INTERVAL_S = 0.005
HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """The times of one answer, counted from the request, and its usage."""

    first_text_s: float
    total_s: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int


class LocalCaller(asyncio.Protocol):
    """A connection that requests one answer after another, as streams by default."""

    def __init__(self, port: int) -> None:
        self.first_text: asyncio.Future[float]  # when the first text of the current answer arrived
        self._awaited: tuple[asyncio.Future[float], ...] = ()  # first_text, and the end of the answer
        self._port = port
        self._parts: list[bytes] = []
        self._streams = True

    @classmethod
    async def connect(cls, port: int) -> "LocalCaller":
        _, caller = await asyncio.get_running_loop().create_connection(lambda: cls(port), "127.0.0.1", port)
        return caller

    async def request(self, model: str, **fields: object) -> TimedAnswer:
        """Send one request and wait for the whole answer.

        Raises UnexpectedAnswer for a failed response or one without text, ConnectionError when the connection is lost.
        """
        body = orjson.dumps({"model": model, "stream": True, **fields})
        loop = asyncio.get_running_loop()
        self._parts, self.first_text, end = [], loop.create_future(), loop.create_future()
        self._streams = bool(fields.get("stream", True))
        self._awaited = self.first_text, end
        sent = time.perf_counter()
        head = REQUEST_HEAD.format(port=self._port, key=API_KEY, length=len(body)).encode()
        self._transport.write(head + body)
        first, ended = await self.first_text, await end
        answer = b"".join(self._parts)
        usage = _read_usage(answer) if self._streams else orjson.loads(answer.partition(HEAD_END)[2])["usage"]
        cached = usage["input_tokens_details"]["cached_tokens"]
        return TimedAnswer(first - sent, ended - sent, usage["input_tokens"], cached, usage["output_tokens"])

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionError(f"Headgate closed the connection: {exc}"))

    def data_received(self, data: bytes) -> None:
        parts = self._parts
        if not parts and not data.startswith(b"HTTP/1.1 200 "):
            self._fail(UnexpectedAnswer(f"the status is not 200: {data!r}"))
            return
        parts.append(data)
        if not self._streams:
            if _is_complete(b"".join(parts)):
                self.first_text.set_result(time.perf_counter())
                self._end()
            return
        if not self.first_text.done() and DELTA_TYPE in data:
            self.first_text.set_result(time.perf_counter())
        if (data if len(data) >= TAIL_BYTES else b"".join(parts[-3:])).endswith(END_OF_STREAM):
            self._end()

    def _end(self) -> None:
        if not self.first_text.done():
            self._fail(UnexpectedAnswer("the stream has no text"))
        elif not self._awaited[-1].done():
            self._awaited[-1].set_result(time.perf_counter())

    def _fail(self, error: Exception) -> None:
        """End every wait of the current request with this error."""
        for awaited in self._awaited:
            if not awaited.done():
                awaited.set_exception(error)


async def measure_health_s(port: int, until: Awaitable[object]) -> list[float]:
    """Request /healthz every 5 ms until `until` is done, and return the sorted times of the answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    loop, work, times_s = asyncio.get_running_loop(), asyncio.ensure_future(until), []
    due = loop.time()
    while not work.done():
        sent = time.perf_counter()
        writer.write(HEALTH_REQUEST)
        length = re.search(rb"(?i)content-length: (\d+)", await reader.readuntil(HEAD_END))
        await reader.readexactly(int(length[1]) if length else 0)
        times_s.append(time.perf_counter() - sent)
        due = max(due + HEALTH_INTERVAL_S, loop.time())
        await asyncio.sleep(due - loop.time())
    writer.close()
    await work
    return sorted(times_s)


def _is_complete(answer: bytes) -> bool:
    """Whether the whole body has arrived."""
    head, _, body = answer.partition(HEAD_END)
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return length is not None and len(body) >= int(length[1])


def _read_usage(stream: bytes) -> dict[str, Any]:
    """Return the usage in the last event. Raises UnexpectedAnswer unless the response is completed or incomplete."""
    line = stream[stream.rindex(b"\ndata: {") + 7 :].partition(b"\n")[0]
    event = orjson.loads(line)
    if event["type"] not in ("response.completed", "response.incomplete"):
        raise UnexpectedAnswer(f"the response did not complete: {line!r}")
    return event["response"]["usage"]
