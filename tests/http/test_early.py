"""Streams whose first event is late: the head is written early, and what fails then ends the stream."""

import asyncio

import orjson
import pytest
from aiohttp import web
from openai import APIError, AsyncOpenAI

from tests.conftest import tables_for
from tests.raw import RawConnection, events, no_tasks_left, post, until, wire  # noqa: F401
from tests.timeouts import TIMEOUT_S
from tests.upstream import CANONICAL, FakeUpstream

STREAM = post(b'{"model":"m","stream":true}')
COMMENT = b": keep-alive\n\n"


@pytest.fixture
def proceed() -> asyncio.Event:
    """An event that makes the upstream answer."""
    return asyncio.Event()


@pytest.fixture
async def gateway(start_gateway, upstream: FakeUpstream) -> str:
    """A gateway that writes a comment after 0.05 s of silence, and tries nothing again."""
    tables = tables_for(upstream, server={"keep_alive_s": 0.05})
    return await start_gateway(tables | {"route": [each | {"attempts": 1} for each in tables["route"]]})


def answering(proceed: asyncio.Event, status: int, body: bytes, content_type: str, *, head_first: bool = False):
    """Return an answer that begins when `proceed` is set: as a whole, or its body only."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Type": content_type, "openai-version": "1"})
        if head_first:
            await response.prepare(request)
        await proceed.wait()
        if not head_first:
            await response.prepare(request)
        await response.write(body)
        return response

    return answer


async def after_comments(connection: RawConnection, proceed: asyncio.Event) -> tuple[bytes, bytes]:
    """Return the head and the body of an answer whose upstream is silent until two comments have come."""
    lines = [await connection.line()]
    while lines.count(b": keep-alive\n") < 2:
        lines.append(await connection.line())
    proceed.set()
    while lines[-1] != b"0\r\n":
        lines.append(await connection.line())
    at = lines.index(b"\r\n") + 1
    return b"".join(lines[:at]), b"".join(line for line in lines[at:] if not line.endswith(b"\r\n"))


@pytest.mark.parametrize("head_first", [False, True])
async def test_the_head_is_written_before_the_first_event(gateway, upstream, proceed, head_first: bool):
    """With a comment, and more of them; then the stream follows as it is."""
    upstream.answer = answering(proceed, 200, CANONICAL, "text/event-stream", head_first=head_first)
    async with wire(gateway) as connection:
        await connection.send(STREAM)
        head, body = await after_comments(connection, proceed)

    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n")
    assert (b"x-request-id: req_" in head, b"openai-version" in head) == (True, False)
    assert body.startswith(COMMENT)
    assert body.replace(COMMENT, b"") == CANONICAL


REFUSAL = orjson.dumps({"error": {"message": "slow down", "type": "requests", "param": None, "code": "too_fast"}})


@pytest.mark.parametrize(
    ("late", "code"),
    [((429, REFUSAL), "too_fast"), ((400, REFUSAL), "too_fast"), ((200, b"<html>"), "upstream_invalid_response")],
)
async def test_a_late_error_ends_the_stream(gateway, upstream, proceed, logged, late: tuple[int, bytes], code: str):
    """As a response that was created and has failed: the status cannot change any more."""
    status, body = late
    upstream.answer = answering(proceed, status, body, "application/json")
    async with wire(gateway) as connection:
        await connection.send(STREAM)
        _, received = await after_comments(connection, proceed)
    created, error, failed, done = events(received)

    assert (created["type"], created["response"]["status"], created["response"]["model"]) == (
        "response.created", "in_progress", "m",
    )  # fmt: skip
    assert (error["type"], error["code"], error["error"]["code"]) == ("error", code, code)
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["id"] == created["response"]["id"]
    assert [event["sequence_number"] for event in (created, error, failed)] == [0, 1, 2]
    assert done == "[DONE]"
    (line,) = [line for line in logged if line["event"] == "request.finished"]
    assert (line["status"], line["code"]) == (200, code)


async def test_the_sdk_raises_a_late_error(gateway: str, upstream: FakeUpstream, proceed):
    """With the upstream's own message."""
    upstream.answer = answering(proceed, 429, REFUSAL, "application/json")
    asyncio.get_running_loop().call_later(0.3, proceed.set)
    async with AsyncOpenAI(base_url=f"{gateway}/v1", api_key="x", max_retries=0, timeout=TIMEOUT_S) as client:
        with pytest.raises(APIError, match="slow down"):
            async for _ in await client.responses.create(model="m", input="Hi", stream=True):
                pass


async def test_an_error_in_time_has_its_status(gateway: str, upstream: FakeUpstream, proceed):
    """Nothing was written before."""
    proceed.set()
    upstream.answer = answering(proceed, 429, REFUSAL, "application/json")
    async with wire(gateway) as connection:
        await connection.send(STREAM)
        answer = await connection.answer()

    assert (answer.status, answer.body) == (429, REFUSAL)


async def test_a_call_without_a_stream_waits_for_its_status(gateway: str, upstream: FakeUpstream, proceed):
    """There is nothing legal to write before it."""
    upstream.answer = answering(proceed, 503, REFUSAL, "application/json")
    async with wire(gateway) as connection:
        await connection.send(post())
        await asyncio.wait_for(upstream.arrived.wait(), TIMEOUT_S)
        asyncio.get_running_loop().call_later(0.2, proceed.set)
        answer = await connection.answer()

    assert answer.status == 503


async def test_a_client_that_leaves_early_ends_the_call(gateway: str, upstream: FakeUpstream, proceed):
    """As at any other time."""
    upstream.answer = answering(proceed, 200, CANONICAL, "text/event-stream")
    async with wire(gateway) as connection:
        await connection.send(STREAM)
        while await connection.line() != b": keep-alive\n":
            pass
    await asyncio.wait_for(upstream.disconnected.wait(), TIMEOUT_S)
