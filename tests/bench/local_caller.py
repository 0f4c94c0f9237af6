"""Callers of a local model over HTTP: what they ask is one write, and of what comes only the time and the end is read."""

import asyncio
import re
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

import orjson

from tests.bench.load import END_OF_STREAM, HEAD, WrongAnswer
from tests.bench.works import KEY

FIRST = b"response.output_text.delta"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HEAD_END = b"\r\n\r\n"
EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer: when the first of its text came, and its end, since it was asked for."""

    first_s: float
    seconds: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int


class Caller(asyncio.Protocol):
    """A connection that asks for one answer after another, streams unless it is told otherwise."""

    def __init__(self, port: int) -> None:
        self.first: asyncio.Future[float]  # when the first text of the last answer came
        self._awaited: tuple[asyncio.Future[float], ...] = ()  # that, and its end
        self._port = port
        self._parts: list[bytes] = []
        self._streams = True

    @classmethod
    async def connected(cls, port: int) -> "Caller":
        _, caller = await asyncio.get_running_loop().create_connection(lambda: cls(port), "127.0.0.1", port)
        return caller

    async def ask(self, model: str, **more: object) -> Heard:
        """Raises WrongAnswer for one that is no stream of text, ConnectionError when the gate is gone."""
        body = orjson.dumps({"model": model, "stream": True, **more})
        loop = asyncio.get_running_loop()
        self._parts, self.first, end = [], loop.create_future(), loop.create_future()
        self._streams = bool(more.get("stream", True))
        self._awaited = self.first, end
        asked = time.perf_counter()
        self._transport.write(HEAD.format(port=self._port, key=KEY, length=len(body)).encode() + body)
        first, ended = await self.first, await end
        whole = b"".join(self._parts)
        usage = _usage(whole) if self._streams else orjson.loads(whole.partition(HEAD_END)[2])["usage"]
        cached = usage["input_tokens_details"]["cached_tokens"]
        return Heard(first - asked, ended - asked, usage["input_tokens"], cached, usage["output_tokens"])

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionError(f"The gate hung up: {exc}"))

    def data_received(self, data: bytes) -> None:
        parts = self._parts
        if not parts and not data.startswith(b"HTTP/1.1 200 "):
            self._fail(WrongAnswer(f"not 200: {data!r}"))
            return
        parts.append(data)
        if not self._streams:
            if _is_whole(b"".join(parts)):
                self.first.set_result(time.perf_counter())
                self._end()
            return
        if not self.first.done() and FIRST in data:
            self.first.set_result(time.perf_counter())
        if (data if len(data) >= len(END_OF_STREAM) else b"".join(parts[-3:])).endswith(END_OF_STREAM):
            self._end()

    def _end(self) -> None:
        if not self.first.done():
            self._fail(WrongAnswer("there was no text"))
        elif not self._awaited[-1].done():
            self._awaited[-1].set_result(time.perf_counter())

    def _fail(self, error: Exception) -> None:
        """Whatever is still awaited will not come."""
        for awaited in self._awaited:
            if not awaited.done():
                awaited.set_exception(error)


async def health_s(port: int, until: Awaitable[object]) -> list[float]:
    """How long the gate takes to say that it is up, every 5 ms until something is over; sorted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    loop, work, late_s = asyncio.get_running_loop(), asyncio.ensure_future(until), []
    due = loop.time()
    while not work.done():
        began = time.perf_counter()
        writer.write(HEALTH)
        length = re.search(rb"(?i)content-length: (\d+)", await reader.readuntil(b"\r\n\r\n"))
        await reader.readexactly(int(length[1]) if length else 0)
        late_s.append(time.perf_counter() - began)
        due = max(due + EVERY_S, loop.time())
        await asyncio.sleep(due - loop.time())
    writer.close()
    await work
    return sorted(late_s)


def _is_whole(answer: bytes) -> bool:
    """Whether all of a body is there."""
    head, _, body = answer.partition(HEAD_END)
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return length is not None and len(body) >= int(length[1])


def _usage(stream: bytes) -> dict[str, Any]:
    """What the last event says of its response. Raises WrongAnswer unless it came to its end, or to its limit."""
    line = stream[stream.rindex(b"\ndata: {") + 7 :].partition(b"\n")[0]
    event = orjson.loads(line)
    if event["type"] not in ("response.completed", "response.incomplete"):
        raise WrongAnswer(f"it failed: {line!r}")
    return event["response"]["usage"]
