"""The memory of all bodies together is bounded, and released however a request ends."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tests.conftest import tables_for
from tests.raw import ask, no_tasks_left, post, serves, until, wire  # noqa: F401
from tests.upstream import CANONICAL, FakeUpstream, canonical, hang, streaming

BUDGET = 700_000
LARGEST = post(b'{"model":"m","input":"%b"}' % (b"a" * 200_000))  # only one such call fits into the budget


@pytest.fixture
async def low_memory_gateway(start_gateway, upstream: FakeUpstream) -> str:
    """A gateway whose memory budget holds one large call."""
    server = {"memory_bytes": BUDGET, "body_timeout_s": 0.2}
    return await start_gateway(tables_for(upstream, server=server, cache=None))


async def answers_in_turn(gateway: str, count: int) -> list[int]:
    return [(await ask(gateway, LARGEST)).status for _ in range(count)]


async def test_a_call_beyond_the_memory_budget_is_refused_and_small_ones_are_served(
    low_memory_gateway: str, upstream: FakeUpstream
):
    """It gets a 503 `memory_exhausted` with Retry-After; after the first call has ended, the next one fits."""
    proceed = asyncio.Event()

    async def wait(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        if len(await request.read()) > 10_000:
            await proceed.wait()
        return await canonical(request)

    upstream.answer = wait
    first = asyncio.create_task(ask(low_memory_gateway, LARGEST))
    await upstream.arrived.wait()
    refused = await ask(low_memory_gateway, LARGEST)
    small = await ask(low_memory_gateway, post())
    proceed.set()

    assert (refused.status, refused.error["code"]) == (503, "memory_exhausted")
    assert refused.headers["retry-after"] == "1"
    assert small.status == 200
    assert (await first).status == 200
    assert await answers_in_turn(low_memory_gateway, 2) == [200, 200]


async def test_values_count_towards_the_memory_budget(low_memory_gateway: str, upstream: FakeUpstream):
    """A body of 24 KB with 8,000 arrays takes more memory than its bytes."""
    answer = await ask(low_memory_gateway, post(b'{"model":"m","input":[%b0]}' % (b"[]," * 8000)))

    assert (answer.status, answer.error["code"]) == (503, "memory_exhausted")
    assert upstream.requests == []


@pytest.mark.parametrize("character", ["\U0001f600".encode(), rb"\ud83d\ude00"])
async def test_wide_characters_count_towards_the_memory_budget(
    low_memory_gateway: str, upstream: FakeUpstream, character: bytes
):
    """One of them makes each character of its string take four bytes in memory."""
    text = b"a" * 200_000
    narrow, wide = (post(b'{"model":"m","input":"%b"}' % (text + end)) for end in (b"", character))

    assert (await ask(low_memory_gateway, narrow)).status == 200
    assert (await ask(low_memory_gateway, wide)).error["code"] == "memory_exhausted"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(("end", "status"), [(b"", 200), ("\U0001f600".encode(), 503)])
async def test_wide_characters_of_a_relayed_answer_count(
    start_gateway, upstream: FakeUpstream, end: bytes, status: int
):
    """What is read of an answer takes as much memory as what is read of a request."""
    body = b'{"id":"file-1","object":"file","purpose":"%b"}' % (b"a" * 200_000 + end)

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        return aiohttp.web.Response(body=body, content_type="application/json")

    upstream.answer = answer
    relay = [{"path": "/v1/files/*", "backend": "fake"}]
    gateway = await start_gateway(tables_for(upstream, server={"memory_bytes": BUDGET}, relay=relay, cache=None))
    answered = await ask(gateway, b"GET /v1/files/file-1 HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert answered.status == status
    assert status == 200 or answered.error["code"] == "memory_exhausted"


async def test_decompressed_bytes_count_towards_the_memory_budget(low_memory_gateway: str, upstream: FakeUpstream):
    """The compressed size would be far smaller."""
    body = b'{"model":"m","input":"%b"}' % (b"a" * 900_000)
    answer = await ask(low_memory_gateway, post(gzip.compress(body), content_encoding="gzip"))

    assert (answer.status, answer.error["code"]) == (503, "memory_exhausted")
    assert await answers_in_turn(low_memory_gateway, 2) == [200, 200]


async def test_half_sent_bodies_count_towards_the_memory_budget(low_memory_gateway: str, logged):
    """Each received byte counts, also in a body that never ends."""
    body = b'{"model":"m","input":"%b"}' % (b"a" * 500_000)
    async with wire(low_memory_gateway) as first:
        await first.send(post(body, expect="100-continue").removesuffix(body))
        assert await first.line() == b"HTTP/1.1 100 Continue\r\n"
        await first.send(body[:-1])
        refused = await ask(low_memory_gateway, post(body))

        assert (refused.status, refused.error["code"]) == (503, "memory_exhausted")
    await until(
        lambda: 499 in [line.get("status") for line in logged] or 408 in [line.get("status") for line in logged]
    )
    assert await answers_in_turn(low_memory_gateway, 2) == [200, 200]


async def test_an_answer_that_is_not_read_counts_towards_the_memory_budget(
    low_memory_gateway: str, upstream: FakeUpstream, logged
):
    """It stays in memory until the client has read it or disconnects."""
    large = b'{"id":"resp_1","output":[],"text":"%b"}' % (b"a" * 20_000_000)

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        return aiohttp.web.Response(body=large, content_type="application/json")

    upstream.answer = answer
    refused = await ask(low_memory_gateway, post())

    assert (refused.status, refused.error["code"]) == (503, "memory_exhausted")
    upstream.answer = None
    assert await answers_in_turn(low_memory_gateway, 2) == [200, 200]


async def disconnect_in_body(gateway: str, upstream: FakeUpstream) -> None:
    async with wire(gateway) as connection:
        await connection.send(LARGEST[:150_000])


async def disconnect_while_waiting(gateway: str, upstream: FakeUpstream) -> None:
    upstream.answer = hang
    upstream.arrived.clear()
    async with wire(gateway) as connection:
        await connection.send(LARGEST)
        await upstream.arrived.wait()


async def disconnect_in_stream(gateway: str, upstream: FakeUpstream) -> None:
    upstream.answer = streaming(CANONICAL[:2000], then=hang)
    async with wire(gateway) as connection:
        await connection.send(LARGE_STREAM)
        assert b"200" in await connection.line()


def sending(data: bytes, status: int, answer: Any = None) -> Callable[[str, FakeUpstream], Awaitable[None]]:
    async def send(gateway: str, upstream: FakeUpstream) -> None:
        upstream.answer = answer
        assert (await ask(gateway, data)).status == status

    return send


async def break_off(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    request.transport.abort()
    return aiohttp.web.Response()


async def refuse(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    return aiohttp.web.json_response({"error": {"message": "No."}}, status=429)


LARGE_INPUT = b'"input":"%b"' % (b"a" * 200_000)
LARGE_STREAM = post(b'{"model":"m","stream":true,%b}' % LARGE_INPUT)
ENDS = {
    "answered": sending(LARGEST, 200),
    "streamed": sending(LARGE_STREAM, 200),
    "invalid JSON": sending(post(b'{"model":"m",%b]' % LARGE_INPUT), 400),
    "a broken encoding": sending(post(b"a" * 200_000, content_encoding="gzip"), 400),
    "refused by a policy": sending(post(b'{"model":"m","metadata":[],%b}' % LARGE_INPUT), 400),
    "refused by the upstream": sending(LARGEST, 429, refuse),
    "the upstream breaks off": sending(LARGEST, 502, break_off),
    "the stream breaks off": sending(LARGE_STREAM, 200, streaming(CANONICAL[:2000])),
    "the client disconnects in the body": disconnect_in_body,
    "the client disconnects while it waits": disconnect_while_waiting,
    "the client disconnects in the stream": disconnect_in_stream,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_memory_is_released_however_a_request_ends(low_memory_gateway: str, upstream: FakeUpstream, logged, end):
    """After three such requests in sequence a call that needs most of the budget still fits."""
    for number in range(3):
        await end(low_memory_gateway, upstream)
        await until(lambda: [line["event"] for line in logged].count("request.finished") == number + 1)  # noqa: B023
    upstream.answer = None

    assert await answers_in_turn(low_memory_gateway, 2) == [200, 200]
    assert await serves(low_memory_gateway)
