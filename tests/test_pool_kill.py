"""One of two upstreams is killed while calls are made: no caller sees it. Counted, not timed."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import aiohttp
import pytest

from tests.conftest import StartGateway
from tests.sockets import SocketCaller, calling
from tests.timeouts import TIMEOUT_S

CALLS, AT_ONCE, KILLED_AFTER = 600, 20, 200
# Answers each call after 20 ms, as a stream or as a body, and prints its port.
SERVER = """
import asyncio, sys
from aiohttp import web
from tests.upstream import canonical

async def answer(request):
    await asyncio.sleep(0.02)
    return await canonical(request)

async def main():
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def upstream_process() -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """An upstream in a process of its own, and its address."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, stdout=pipe)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            port = int(await process.stdout.readline())
        yield process, f"http://127.0.0.1:{port}/v1"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("way", ["json", "stream", "websocket"])
async def test_a_killed_upstream_is_not_seen(start_gateway: StartGateway, logged, way: str):
    """Calls that it had received move to the other one, and no more are sent to it."""
    async with (
        upstream_process() as (victim, first),
        upstream_process() as (_, second),
        aiohttp.ClientSession() as http,
    ):
        backends = [
            {"use": "upstream", "name": name, "base_url": url} for name, url in (("first", first), ("second", second))
        ]
        route = {"model": "*", "backends": ["first", "second"], "strategy": "least_inflight"}
        address = await start_gateway({"backend": backends, "route": [route]})
        statuses: list[int] = []
        left = iter(range(CALLS))

        async def ask(caller: SocketCaller | None) -> int:
            if caller is not None:
                return 200 if (await caller.ask())["type"] == "response.completed" else 500
            body = {"model": "m", "input": "Hi", "stream": way == "stream"}
            async with http.post(f"{address}/v1/responses", json=body) as answer:
                await answer.read()
                return answer.status

        async def call_all() -> None:
            async with calling(address) if way == "websocket" else nullcontext() as caller:
                for _ in left:
                    statuses.append(await ask(caller))
                    if len(statuses) == KILLED_AFTER:
                        victim.kill()

        await asyncio.gather(*(call_all() for _ in range(AT_ONCE)))
    finished = [line for line in logged if line["event"] == "request.finished"]

    assert statuses == [200] * CALLS
    assert {line["backend"] for line in finished[:KILLED_AFTER]} == {"first", "second"}
    assert {line["backend"] for line in finished[-KILLED_AFTER:]} == {"second"}
    assert any(line.get("attempts") == 2 for line in finished)
    assert {line["backend"] for line in logged if line["event"] == "backend.ejected"} == {"first"}
