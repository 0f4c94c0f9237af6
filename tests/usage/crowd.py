"""Many calls through two workers, a fifth of which their clients leave, while one worker is killed: does the sum hold?"""

import asyncio
import os
import re
import signal
from asyncio.subprocess import PIPE
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from tests.forked import ForkedProcess, start_proxy
from tests.test_accounting import BEGUN
from tests.upstream import CANONICAL, final_body

PARALLEL = 40
LEFT_SHARE = 5
"""One of so many clients leaves."""


@dataclass
class CountingUpstream:
    """Counts what it receives and answers. While `gate` is closed it answers nothing."""

    received: int = 0
    answered: int = 0
    waiting: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    is_full: asyncio.Event = field(default_factory=asyncio.Event)
    close_after: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.received += 1
        if self.received == self.close_after:
            self.gate.clear()
        self.waiting += 1
        if self.waiting == PARALLEL and not self.gate.is_set():
            self.is_full.set()
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        if not body.get("stream"):
            self.answered += 1
            return web.Response(body=final_body(), content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if body.get("user") == "leaves":
            await response.write(BEGUN)
            await asyncio.Event().wait()
        await response.write(CANONICAL)
        self.answered += 1
        return response


@dataclass
class Crowd:
    """What became of the calls, and what is counted of them."""

    ends: Counter[str] = field(default_factory=Counter)
    received: int = 0
    answered: int = 0
    in_flight: int = 0
    """How many calls the upstream had when the worker was killed."""
    usage: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)


async def run_crowd(calls: int, state: str, folder: Path) -> Crowd:
    """Make calls with a `[state]` table of this text; return what was counted where."""
    upstream, crowd = CountingUpstream(close_after=calls // 2), Crowd()
    upstream.gate.set()
    app = web.Application()
    app.router.add_post("/v1/responses", upstream.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    config = folder / "headgate.toml"
    config.write_text(f"""
[server]
port = 0
workers = 2
[usage]
flush_s = 0.5
[state]
{state}
[[backend]]
name = "up"
use = "upstream"
base_url = "http://127.0.0.1:{runner.addresses[0][1]}/v1"
[[route]]
model = "*"
backend = "up"
attempts = 1
""")
    process = await start_proxy("serve", "--config", str(config), stderr=PIPE)
    assert process.stdout is not None
    reading = asyncio.create_task(_read_lines(process, crowd.lines))
    address = re.findall(r"http://\S+/v1", (await process.stdout.readline()).decode())[0]
    killing = asyncio.create_task(_kill_one(process.pid, upstream, crowd, reading))
    await _call_all(address, calls, crowd)
    await killing
    while not any(line["event"] == "usage.recovered" for line in crowd.lines):  # each line that is read
        await asyncio.wait([reading], timeout=0.05)
    process.send_signal(signal.SIGTERM)
    await process.wait()
    await reading
    process.close()
    await runner.cleanup()
    asked = await start_proxy("usage", "--config", str(config), "--since", "2h", "--format", "json")
    printed, _ = await asked.communicate()
    crowd.usage = orjson.loads(printed or b"")["total"]
    crowd.received, crowd.answered = upstream.received, upstream.answered
    return crowd


async def _call_all(address: str, calls: int, crowd: Crowd) -> None:
    """Make the calls, each on a connection of its own: the kernel chooses the worker for each."""
    numbers = iter(range(calls))

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            crowd.ends[await _call(session, address, number)] += 1

    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:
        await asyncio.gather(*(client(session) for _ in range(PARALLEL)))


async def _call(session: aiohttp.ClientSession, address: str, number: int) -> str:
    is_stream, leaves = number % 2 == 0 or number % LEFT_SHARE == 0, number % LEFT_SHARE == 0
    body = {"model": "m", "input": "Hello there", "stream": is_stream} | ({"user": "leaves"} if leaves else {})
    try:
        async with session.post(f"{address}/responses", json=body) as answer:
            if leaves:
                while b"content_part.added" not in await answer.content.readline():
                    if answer.content.at_eof():
                        return "broken"
                return "left"
            await answer.read()
            return "answered" if answer.status == 200 else str(answer.status)
    except aiohttp.ClientError:
        return "broken"


async def _kill_one(supervisor: int, upstream: CountingUpstream, crowd: Crowd, reading: asyncio.Task[None]) -> None:
    """Kill a worker while the upstream has a call of each client, and the end of every other one is counted."""
    await upstream.is_full.wait()
    while sum(line["event"] == "request.finished" for line in crowd.lines) < upstream.received - PARALLEL:
        await asyncio.wait([reading], timeout=0.05)
    crowd.in_flight = upstream.waiting
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()  # noqa: ASYNC240  no disk
    os.kill(int(children[0]), signal.SIGKILL)
    while not any(line["event"] == "worker.ended" for line in crowd.lines):
        await asyncio.wait([reading], timeout=0.05)
    for _ in range(20):  # the ends of its connections are there, and are read now
        await asyncio.sleep(0)
    upstream.gate.set()


async def _read_lines(process: ForkedProcess, lines: list[dict[str, Any]]) -> None:
    assert process.stderr is not None
    async for line in process.stderr:
        lines += [orjson.loads(line)]
