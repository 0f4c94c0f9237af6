"""Identical calls in flight at three gateway processes that share a Redis."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis
from aiohttp import web

from proxy.cache.vault_keys import PREFIX
from tests.cache.test_cache import ASKED, STREAMED
from tests.redis_server import RedisServer
from tests.rules.samples import RESPONSE
from tests.sockets import calling
from tests.test_background_processes import Gateway
from tests.upstream import FakeUpstream, streaming
from tests.wire.streams import events_in

TIMEOUT_MS = 30_000


@pytest.fixture
async def gateways(
    redis_server: RedisServer, upstream: FakeUpstream, tmp_path: Path
) -> AsyncIterator[list[Gateway]]:  # fmt: skip
    config = tmp_path / "headgate.toml"
    config.write_text(
        f'[server]\nport = 0\n[cache]\nuse = "redis"\nurl = "{redis_server.url}"\ntimeout_ms = {TIMEOUT_MS}\n'
        f'collapse = "shared"\n[[backend]]\nuse = "upstream"\nname = "fake"\nbase_url = "{upstream.address}/v1"\n'
        'keeps_state = true\n[[route]]\nmodel = "*"\nbackend = "fake"\n'
    )
    async with AsyncExitStack() as stack:
        started = []
        for _ in range(3):
            started.append(await Gateway.start(config))
            stack.push_async_callback(started[-1].close)
        yield started


@pytest.fixture
def fields() -> dict[str, Any]:
    """The fields of a call that no other test makes."""
    return {**ASKED, "model": "m", "input": secrets.token_hex(8)}


async def as_body(http: aiohttp.ClientSession, address: str, fields: dict[str, Any]) -> Any:
    """Return the response object."""
    async with http.post(f"{address}/responses", json=fields) as got:
        return await got.json()


async def as_stream(http: aiohttp.ClientSession, address: str, fields: dict[str, Any]) -> Any:
    """Return the response object of the last event."""
    return events_in(await frames(http, address, fields))[-1]["response"]


async def frames(http: aiohttp.ClientSession, address: str, fields: dict[str, Any]) -> bytes:
    """Return a whole stream."""
    async with http.post(f"{address}/responses", json=fields | {"stream": True}) as got:
        return await got.read()


async def by_socket(_: aiohttp.ClientSession, address: str, fields: dict[str, Any]) -> Any:
    """Return the response object of the last message."""
    async with calling(address.removesuffix("/v1")) as socket:
        return (await socket.ask(**fields))["response"]


async def answer_stream(request: web.Request) -> web.StreamResponse:
    if (await request.json()).get("stream"):
        return await streaming(STREAMED)(request)
    return web.json_response(RESPONSE)


async def test_200_calls_over_three_processes_make_one_call_of_the_upstream(
    gateways: list[Gateway], upstream: FakeUpstream, http, fields: dict[str, Any]
):
    """Streamed, in one body and by WebSocket, at once; all answers are equal."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1)  # the others are on their way; no less is one call because they come later
        return await answer_stream(request)

    upstream.answer = answer
    forms = (frames, as_body, by_socket)
    calls = [forms[number // 3 % 3](http, gateways[number % 3].address, fields) for number in range(200)]
    answers = await asyncio.gather(*calls)
    streams = [each for each in answers if isinstance(each, bytes)]

    assert len(upstream.requests) == 1
    assert len(streams) == 68
    assert set(streams) == {streams[0]}
    assert [each for each in answers if not isinstance(each, bytes)] == [RESPONSE] * 132
    assert events_in(streams[0])[-1]["response"] == RESPONSE


async def test_one_process_leads_anew_when_the_one_that_leads_is_killed(
    gateways: list[Gateway], upstream: FakeUpstream, http, redis_server: RedisServer, fields: dict[str, Any]
):
    """Nothing was sent yet; the callers of both other processes get one new answer, whatever form they want."""
    is_dead = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if len(upstream.requests) == 1:
            await is_dead.wait()
        return await answer_stream(request)

    upstream.answer = answer
    first = asyncio.create_task(as_stream(http, gateways[0].address, fields))
    await upstream.arrived.wait()
    calls = [
        send(http, gateway.address, fields) for gateway in gateways[1:] for send in (as_stream, as_body, by_socket)
    ]
    tasks = [asyncio.create_task(call) for call in calls]
    async with asyncio.timeout(60):
        with redis.Redis(port=redis_server.port) as direct:
            while not direct.keys(f"{PREFIX}w:*"):  # noqa: ASYNC110  across processes
                await asyncio.sleep(0.02)
    gateways[0].process.kill()
    await asyncio.wait([first])
    is_dead.set()

    assert isinstance(first.exception(), aiohttp.ClientError)
    assert await asyncio.gather(*tasks) == [RESPONSE] * 6
    assert len(upstream.requests) == 2


async def test_callers_of_a_stream_that_began_get_an_end_when_the_process_that_leads_is_killed(
    gateways: list[Gateway], upstream: FakeUpstream, http, fields: dict[str, Any]
):
    """Streams end as failed; a call without a stream is answered by one new call."""
    begun = STREAMED[: STREAMED.index(b"event: response.output_text.delta")]

    async def answer(request: web.Request) -> web.StreamResponse:
        if len(upstream.requests) > 1:
            return await answer_stream(request)
        return await streaming(begun, then=lambda _: asyncio.Event().wait())(request)

    upstream.answer = answer
    first = asyncio.create_task(as_stream(http, gateways[0].address, fields))
    await upstream.arrived.wait()
    async with http.post(f"{gateways[1].address}/responses", json=fields | {"stream": True}) as stream:
        received = await stream.content.readuntil(b"\n\n")
        body = asyncio.create_task(as_body(http, gateways[2].address, fields))
        gateways[0].process.kill()
        await asyncio.wait([first])
        received += await stream.read()

    assert events_in(received)[0]["type"] == "response.created"
    assert events_in(received)[-1]["type"] == "response.failed"
    assert await body == RESPONSE
    assert len(upstream.requests) == 2
