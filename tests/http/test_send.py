"""How a reply becomes HTTP: headers, heartbeats, ends, and errors before and after the first byte."""

import asyncio

import pytest
from openai import APIError, APIStatusError, AsyncOpenAI, BadRequestError

from tests.conftest import tables_for
from tests.raw import ask, events, no_tasks_left, post, until, wire  # noqa: F401
from tests.upstream import CANONICAL, FakeUpstream, hang, streaming

STREAM = post(b'{"model":"m","stream":true}')
FRAMES = [frame + b"\n\n" for frame in CANONICAL.split(b"\n\n") if frame]
COMMENT = b": keep-alive\n\n"


@pytest.fixture
def go_on() -> asyncio.Event:
    """Lets an upstream that has stopped in the middle go on."""
    return asyncio.Event()


def stopping_after(begun: bytes, go_on: asyncio.Event, then: bytes):
    async def rest(response) -> None:
        await go_on.wait()
        await response.write(then)

    return streaming(begun, then=rest)


@pytest.fixture
async def restless(start_gate, upstream: FakeUpstream) -> str:
    """A gate that sends a comment after a twentieth of a second of silence."""
    return await start_gate(tables_for(upstream, server={"keep_alive_s": 0.05}))


async def test_a_silent_stream_is_kept_alive_with_comments(restless: str, upstream: FakeUpstream, go_on):
    """A comment is what every reader passes over: no event, no `retry:`, and never inside a frame."""
    begun, then = b"".join(FRAMES[:6]), b"".join(FRAMES[6:])
    upstream.answer = stopping_after(begun, go_on, then)
    async with wire(restless) as connection:
        await connection.send(STREAM)
        lines = [await connection.line()]
        while lines.count(b": keep-alive\n") < 2:
            lines.append(await connection.line())
        go_on.set()
        while b"0\r\n" not in lines:
            lines.append(await connection.line())
    body = b"".join(line for line in lines[lines.index(b"\r\n") + 1 :] if not line.endswith(b"\r\n"))
    before, _, behind = body.partition(COMMENT)

    assert body.replace(COMMENT, b"") == CANONICAL
    assert (before, behind.replace(COMMENT, b"")) == (begun, then)


async def test_the_helper_of_the_sdk_does_not_see_the_comments(restless: str, upstream: FakeUpstream, go_on):
    """A stream with silences in it reads as one without."""
    upstream.answer = stopping_after(FRAMES[0], go_on, b"".join(FRAMES[1:]))
    async with (
        AsyncOpenAI(base_url=f"{restless}/v1", api_key="x", max_retries=0) as client,
        client.responses.stream(model="m", input="Hi") as stream,
    ):
        await asyncio.sleep(0.2)  # for comments to be sent; the test holds without them, too
        go_on.set()
        final = await stream.get_final_response()

    assert final.output_text == "Hello."


async def test_nothing_is_sent_before_the_first_event(restless: str, upstream: FakeUpstream, go_on):
    """Until then an error is still a status: no head, and no comment either."""
    upstream.answer = stopping_after(b"", go_on, b"")
    async with wire(restless) as connection:
        await connection.send(STREAM)
        await upstream.arrived.wait()
        first = asyncio.create_task(connection.line())
        await asyncio.sleep(0.2)  # four heartbeats long
        waiting = not first.done()
        go_on.set()

        assert waiting
        assert await first == b"HTTP/1.1 502 Bad Gateway\r\n"


async def test_a_caller_that_leaves_while_comments_are_sent_ends_the_work(restless: str, upstream: FakeUpstream):
    """A heartbeat into the void is no crash, and keeps nothing open."""
    upstream.answer = streaming(FRAMES[0], then=hang)
    async with wire(restless) as connection:
        await connection.send(STREAM)
        while await connection.line() != b": keep-alive\n":
            pass

    async with asyncio.timeout(2):
        await upstream.disconnected.wait()


async def test_the_head_of_a_stream_keeps_middlemen_from_holding_it_back(gate: str):
    """No length, no packing, no caching, no buffering in nginx."""
    answer = await ask(gate, STREAM.replace(b"\r\n\r\n", b"\r\nAccept-Encoding: gzip, br\r\n\r\n"))
    told = answer.headers

    assert (told["content-type"], told["cache-control"], told["x-accel-buffering"]) == (
        "text/event-stream; charset=utf-8", "no-cache", "no",
    )  # fmt: skip
    assert "content-length" not in told
    assert "content-encoding" not in told
    assert answer.body == CANONICAL


async def test_the_head_of_a_body_says_its_kind_and_length(gate: str):
    """Answers of one caller must not lie in a cache between us and another."""
    answer = await ask(gate, post(accept_encoding="gzip, br"))

    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("application/json", "no-store")
    assert int(answer.headers["content-length"]) == len(answer.body)


async def test_a_stream_over_http_1_0_ends_with_its_connection(gate: str):
    """There are no chunks there."""
    async with wire(gate) as connection:
        await connection.send(STREAM.replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, body = (await connection.rest()).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.0 200 ")
    assert b"chunked" not in head
    assert body == CANONICAL


@pytest.mark.parametrize("given", [b"".join(FRAMES[:-1]), CANONICAL], ids=["without", "with"])
async def test_every_stream_ends_with_one_sentinel(gate: str, upstream: FakeUpstream, given: bytes):
    """Whether the upstream sends `[DONE]` or not."""
    upstream.answer = streaming(given)

    assert (await ask(gate, STREAM)).body == CANONICAL


async def test_frames_are_sent_as_they_come(gate: str, upstream: FakeUpstream, go_on):
    """An event is not held back until the next one."""
    upstream.answer = stopping_after(FRAMES[0], go_on, b"".join(FRAMES[1:]))
    async with wire(gate) as connection:
        await connection.send(STREAM)
        while await connection.line() != b"event: response.created\n":
            pass
        go_on.set()

        assert b"response.created" in await connection.line()


async def test_a_crash_in_the_middle_of_a_stream_does_not_look_like_its_end(start_gate, logged):
    """The connection is broken off, so that no reader takes half an answer for a whole one."""
    backend = {"name": "faulty", "use": "tests.faulty", "frames": FRAMES[0].decode()}
    gate = await start_gate({"backend": [backend], "route": [{"model": "*", "backend": "faulty"}]})
    async with wire(gate) as connection:
        await connection.send(STREAM)
        told = await connection.rest()

    assert not told.endswith(b"0\r\n\r\n")
    assert b"1234" not in told
    assert [line["event"] for line in logged if line["event"] == "request.crashed"] == ["request.crashed"]


async def test_the_sdk_sees_a_violation_as_a_bad_request(gate: str):
    """Also when it asked for a stream: an error is a body to every caller until the first event is sent."""
    async with AsyncOpenAI(base_url=f"{gate}/v1", api_key="x", max_retries=2) as client:
        for stream in (False, True):
            with pytest.raises(BadRequestError) as refused:
                await client.responses.create(model="m", input="Hi", metadata=[], stream=stream)  # type: ignore[arg-type]

            assert refused.value.param == "metadata"
            assert refused.value.request_id.startswith("req_")


async def test_a_refusal_is_not_retried_by_the_sdk(gate: str, logged):
    """`x-should-retry: false` holds where a status alone would make it try again."""
    async with AsyncOpenAI(base_url=f"{gate}/v1", api_key="x", max_retries=2) as client:
        with pytest.raises(APIStatusError):
            await client.responses.create(model="m", input="Hi", max_tool_calls=0)

    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [400]


async def test_an_upstream_that_is_away_is_tried_again_by_the_sdk(gate: str, upstream: FakeUpstream, logged):
    """Nothing was answered yet, so the SDK may do what it always does at a 502."""
    upstream.answer = streaming(b"")
    async with AsyncOpenAI(base_url=f"{gate}/v1", api_key="x", max_retries=1) as client:
        with pytest.raises(APIError):
            await client.responses.create(model="m", input="Hi", stream=True)

    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [502, 502]


async def test_a_stream_that_fails_is_logged_with_its_cause(gate: str, upstream: FakeUpstream, logged):
    """The status was 200 already; the code says how it ended."""
    upstream.answer = streaming(b"".join(FRAMES[:6]))
    answer = await ask(gate, STREAM)
    finished = [line for line in logged if line["event"] == "request.finished"]

    assert events(answer.body)[-2]["type"] == "response.failed"
    assert [(line["status"], line["code"]) for line in finished] == [(200, "upstream_cut")]


async def test_a_caller_that_leaves_with_its_whole_stream_is_not_gone(gate: str, upstream: FakeUpstream, logged):
    """The upstream's own end may come later; that is no concern of the caller's."""
    upstream.answer = streaming(b"".join(FRAMES[:-1]), then=hang)
    assert (await ask(gate, STREAM)).body == CANONICAL

    await until(lambda: any(line["event"] == "request.finished" for line in logged))
    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [200]


async def test_a_caller_that_leaves_is_logged_as_gone(gate: str, upstream: FakeUpstream, logged):
    """499 stands in the log; nobody is there to read it."""
    upstream.answer = streaming(FRAMES[0], then=hang)
    async with wire(gate) as connection:
        await connection.send(STREAM)
        assert b"200" in await connection.line()

    await until(lambda: any(line["event"] == "request.finished" for line in logged))
    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [499]
