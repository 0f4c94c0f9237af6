"""The polite caller: small requests at a fixed rate and a few paced streams, each answer checked and timed.

It sends the same small requests to the upstream itself, without the gateway. What these take longer than usual is due to
the machine, not to the gateway.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Self

import aiohttp
import orjson

from tests.soak.core_waits import CoreWaits
from tests.soak.gateway import POLITE_KEY
from tests.soak.polite_upstream import DELTAS

RATE, STREAMS, CONNECTIONS = 20, 5, 24
ANSWER_TIMEOUT_S = 60
HEADERS = {"Authorization": f"Bearer {POLITE_KEY}", "Content-Type": "application/json"}


@dataclass(slots=True)
class Figures:
    """The results of one period of polite traffic. A latency counts from the moment at which the request was due."""

    requests: int = 0
    streams: int = 0
    lost: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    own_latencies_s: list[float] = field(default_factory=list)  # without the gateway's wait for a core
    direct_s: list[float] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)  # of events, from their being written to their being read
    own_delays_s: list[float] = field(default_factory=list)


def build_body(model: str, number: int) -> bytes:
    """Return a small request whose answer is never in the cache."""
    return orjson.dumps({
        "model": model,
        "input": f"What is the weather in Bern? This is question {number}.",
        "stream": model.endswith("paced"),
        "prompt_cache_key": "soak",
        "metadata": {"project": "soak"},
    })  # fmt: skip


class PoliteCaller:
    """Measures periods, over connections that stay open in between."""

    def __init__(self, gateway_pid: int, gateway_port: int, upstream_port: int) -> None:
        self._waits = CoreWaits(gateway_pid)
        self._gateway = f"http://127.0.0.1:{gateway_port}/v1/responses"
        self._upstream = f"http://127.0.0.1:{upstream_port}/v1/responses"
        self._numbers: Iterator[int] = itertools.count(time.monotonic_ns())  # so that no answer is in the cache

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=3600),
            timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S),
        )
        warm_up = Figures()
        await self._waits.__aenter__()
        await asyncio.gather(*(self._request(time.monotonic(), warm_up) for _ in range(CONNECTIONS)))
        if warm_up.lost:
            raise RuntimeError(f"the gateway does not answer: {warm_up.lost[0]}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._waits.__aexit__(None, None, None)
        await self._session.close()

    async def measure(self, seconds: float) -> Figures:
        """Send polite traffic for this long, and wait for the last answers."""
        figures = Figures()
        started = time.monotonic()
        running = [asyncio.create_task(self._stream_until(started + seconds, figures)) for _ in range(STREAMS)]
        for index in range(int(seconds * RATE)):
            due = started + index / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            running.append(asyncio.create_task(self._request(due, figures)))
            running.append(asyncio.create_task(self._request_directly(due, figures)))
        await asyncio.gather(*running)
        return figures

    async def _request(self, due: float, figures: Figures) -> None:
        figures.requests += 1
        try:
            async with self._post(self._gateway, "polite-json") as answer:
                text = await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            figures.lost.append(type(error).__name__)
            return
        now = time.monotonic()
        figures.latencies_s.append(now - due)
        figures.own_latencies_s.append(now - due - self._waits.between(due, now))
        if answer.status != 200 or b'"completed"' not in text:
            figures.lost.append(f"{answer.status} {text[:100]!r}")

    async def _request_directly(self, due: float, figures: Figures) -> None:
        with suppress(aiohttp.ClientError, OSError):
            async with self._post(self._upstream, "polite-json") as answer:
                await answer.read()
            figures.direct_s.append(time.monotonic() - due)

    def _post(self, url: str, model: str) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._session.post(url, data=build_body(model, next(self._numbers)), headers=HEADERS)

    async def _stream_until(self, end: float, figures: Figures) -> None:
        while time.monotonic() < end:
            figures.streams += 1
            try:
                if problem := await self._stream(figures):
                    figures.lost.append(f"stream: {problem}")
            except (aiohttp.ClientError, OSError) as error:
                figures.lost.append(f"stream: {type(error).__name__}")
                await asyncio.sleep(0.1)

    async def _stream(self, figures: Figures) -> str:
        """Read one stream; return what is wrong with it."""
        rest, deltas = b"", 0
        async with self._post(self._gateway, "polite-paced") as answer:
            if answer.status != 200:
                return f"{answer.status} {(await answer.read())[:100]!r}"
            async for data in answer.content.iter_any():
                *frames, rest = (rest + data).split(b"\n\n")
                now = time.monotonic()
                for frame in frames:
                    if frame.startswith(b"event: response.output_text.delta"):
                        written = float(orjson.loads(frame.partition(b"data: ")[2])["delta"])
                        figures.delays_s.append(now - written)
                        figures.own_delays_s.append(now - written - self._waits.between(written, now))
                        deltas += 1
                if b"data: [DONE]" in frames:
                    return "" if deltas == DELTAS else f"{deltas} of {DELTAS} events"
        return f"cut after {deltas} events"
