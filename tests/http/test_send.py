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
    """Lets an upstream that has stopped in the middle continue."""
    return asyncio.Event()


def pausing_after(before_pause: bytes, go_on: asyncio.Event, then: bytes):
    async def rest(response) -> None:
        await go_on.wait()
        await response.write(then)

    return streaming(before_pause, then=rest)


@pytest.fixture
async def impatient(start_gate, upstream: FakeUpstream) -> str:
    """A gateway that sends a comment after 0.05 s of silence."""
    return await start_gate(tables_for(upstream, server={"keep_alive_s": 0.05}))


async def test_a_silent_stream_is_kept_alive_with_comments(impatient: str, upstream: FakeUpstream, go_on):
    """Every reader ignores comments; they are never written inside a frame."""
    before_pause, then = b"".join(FRAMES[:6]), b"".join(FRAMES[6:])
    upstream.answer = pausing_after(before_pause, go_on, then)
    async with wire(impatient) as connection:
        await connection.send(STREAM)
        lines = [await connection.line()]
        while lines.count(b": keep-alive\n") < 2:
            lines.append(await connection.line())
        go_on.set()
        while b"0\r\n" not in lines:
            lines.append(await connection.line())
    body = b"".join(line for line in lines[lines.index(b"\r\n") + 1 :] if not line.endswith(b"\r\n"))
    before, _, after = body.partition(COMMENT)

    assert body.replace(COMMENT, b"") == CANONICAL
    assert (before, after.replace(COMMENT, b"")) == (before_pause, then)


async def test_the_stream_helper_of_the_sdk_ignores_the_comments(impatient: str, upstream: FakeUpstream, go_on):
    """A stream with pauses is read like one without."""
    upstream.answer = pausing_after(FRAMES[0], go_on, b"".join(FRAMES[1:]))
    async with (
        AsyncOpenAI(base_url=f"{impatient}/v1", api_key="x", max_retries=0) as client,
        client.responses.stream(model="m", input="Hi") as stream,
    ):
        await asyncio.sleep(0.2)  # for comments to be sent; the test holds without them, too
        go_on.set()
        final = await stream.get_final_response()

    assert final.output_text == "Hello."


async def test_nothing_is_sent_before_the_first_event(impatient: str, upstream: FakeUpstream, go_on):
    """Until then an error is still a status: neither a head nor a comment is written."""
    upstream.answer = pausing_after(b"", go_on, b"")
    async with wire(impatient) as connection:
        await connection.send(STREAM)
        await upstream.arrived.wait()
        first = asyncio.create_task(connection.line())
        await asyncio.sleep(0.2)  # four heartbeats long
        waiting = not first.done()
        go_on.set()

        assert waiting
        assert await first == b"HTTP/1.1 502 Bad Gateway\r\n"


async def test_a_client_that_disconnects_between_comments_ends_the_work(impatient: str, upstream: FakeUpstream):
    """A comment to a closed connection neither crashes nor keeps the upstream's stream open."""
    upstream.answer = streaming(FRAMES[0], then=hang)
    async with wire(impatient) as connection:
        await connection.send(STREAM)
        while await connection.line() != b": keep-alive\n":
            pass

    async with asyncio.timeout(2):
        await upstream.disconnected.wait()


async def test_the_head_of_a_stream_prevents_buffering(gate: str):
    """No length, compression or caching, and no buffering in nginx."""
    answer = await ask(gate, STREAM.replace(b"\r\n\r\n", b"\r\nAccept-Encoding: gzip, br\r\n\r\n"))
    received = answer.headers

    assert (received["content-type"], received["cache-control"], received["x-accel-buffering"]) == (
        "text/event-stream; charset=utf-8", "no-cache", "no",
    )  # fmt: skip
    assert "content-length" not in received
    assert "content-encoding" not in received
    assert answer.body == CANONICAL


async def test_the_head_of_a_body_has_its_type_and_length(gate: str):
    """And forbids caching: another client must not receive it from a shared cache."""
    answer = await ask(gate, post(accept_encoding="gzip, br"))

    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("application/json", "no-store")
    assert int(answer.headers["content-length"]) == len(answer.body)


async def test_a_stream_over_http_1_0_ends_with_the_connection(gate: str):
    """HTTP/1.0 has no chunks."""
    async with wire(gate) as connection:
        await connection.send(STREAM.replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, body = (await connection.rest()).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.0 200 ")
    assert b"chunked" not in head
    assert body == CANONICAL


@pytest.mark.parametrize("given", [b"".join(FRAMES[:-1]), CANONICAL], ids=["without", "with"])
async def test_every_stream_ends_with_one_sentinel(gate: str, upstream: FakeUpstream, given: bytes):
    """With and without `[DONE]` from the upstream."""
    upstream.answer = streaming(given)

    assert (await ask(gate, STREAM)).body == CANONICAL


async def test_frames_are_sent_when_they_arrive(gate: str, upstream: FakeUpstream, go_on):
    """An event is not kept until the next one."""
    upstream.answer = pausing_after(FRAMES[0], go_on, b"".join(FRAMES[1:]))
    async with wire(gate) as connection:
        await connection.send(STREAM)
        while await connection.line() != b"event: response.created\n":
            pass
        go_on.set()

        assert b"response.created" in await connection.line()


async def test_a_crash_in_the_middle_of_a_stream_aborts_the_connection(start_gate, logged):
    """A regular end would make half an answer look complete."""
    backend = {"name": "faulty", "use": "tests.faulty", "frames": FRAMES[0].decode()}
    gate = await start_gate({"backend": [backend], "route": [{"model": "*", "backend": "faulty"}]})
    async with wire(gate) as connection:
        await connection.send(STREAM)
        received = await connection.rest()

    assert not received.endswith(b"0\r\n\r\n")
    assert b"1234" not in received
    assert [line["event"] for line in logged if line["event"] == "request.crashed"] == ["request.crashed"]


async def test_the_sdk_raises_a_violation_as_a_bad_request(gate: str):
    """Also for a stream: until the first event is sent an error is an HTTP status with a body."""
    async with AsyncOpenAI(base_url=f"{gate}/v1", api_key="x", max_retries=2) as client:
        for stream in (False, True):
            with pytest.raises(BadRequestError) as refused:
                await client.responses.create(model="m", input="Hi", metadata=[], stream=stream)  # type: ignore[arg-type]

            assert refused.value.param == "metadata"
            assert refused.value.request_id.startswith("req_")


async def test_a_refusal_is_not_retried_by_the_sdk(gate: str, logged):
    """`x-should-retry: false` prevents it."""
    async with AsyncOpenAI(base_url=f"{gate}/v1", api_key="x", max_retries=2) as client:
        with pytest.raises(APIStatusError):
            await client.responses.create(model="m", input="Hi", max_tool_calls=0)

    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [400]


async def test_a_failed_upstream_is_retried_by_the_sdk(gate: str, upstream: FakeUpstream, logged):
    """A 502 without `x-should-retry` is retried as usual."""
    upstream.answer = streaming(b"")
    async with AsyncOpenAI(base_url=f"{gate}/v1", api_key="x", max_retries=1) as client:
        with pytest.raises(APIError):
            await client.responses.create(model="m", input="Hi", stream=True)

    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [502, 502]


async def test_a_failed_stream_is_logged_with_its_cause(gate: str, upstream: FakeUpstream, logged):
    """The status 200 was already sent; the code says how the stream ended."""
    upstream.answer = streaming(b"".join(FRAMES[:6]))
    answer = await ask(gate, STREAM)
    finished = [line for line in logged if line["event"] == "request.finished"]

    assert events(answer.body)[-2]["type"] == "response.failed"
    assert [(line["status"], line["code"]) for line in finished] == [(200, "upstream_cut")]


async def test_a_client_that_disconnects_after_its_whole_stream_is_logged_with_200(
    gate: str, upstream: FakeUpstream, logged
):
    """The connection of the upstream may end later."""
    upstream.answer = streaming(b"".join(FRAMES[:-1]), then=hang)
    assert (await ask(gate, STREAM)).body == CANONICAL

    await until(lambda: any(line["event"] == "request.finished" for line in logged))
    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [200]


async def test_a_client_that_disconnects_is_logged_with_499(gate: str, upstream: FakeUpstream, logged):
    """The status is only logged; it cannot be sent."""
    upstream.answer = streaming(FRAMES[0], then=hang)
    async with wire(gate) as connection:
        await connection.send(STREAM)
        assert b"200" in await connection.line()

    await until(lambda: any(line["event"] == "request.finished" for line in logged))
    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [499]
