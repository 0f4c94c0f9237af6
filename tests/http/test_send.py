"""How a reply becomes HTTP: headers, heartbeats, ends, and errors before and after the first byte."""

import asyncio
from collections.abc import Sequence

import pytest
from openai import APIError, APIStatusError, BadRequestError

from proxy.http.answer import Answer
from proxy.http.pieces import PIECE_BYTES
from proxy.http.send import CHECKS, Heartbeats
from tests.conftest import tables_for
from tests.raw import ask, events, no_tasks_left, post, until, wire  # noqa: F401
from tests.sdk import connect_sdk
from tests.timeouts import TIMEOUT_S
from tests.upstream import CANONICAL, FakeUpstream, hang, streaming

STREAM = post(b'{"model":"m","stream":true}')
FRAMES = [frame + b"\n\n" for frame in CANONICAL.split(b"\n\n") if frame]
COMMENT = b": keep-alive\n\n"


@pytest.fixture
def proceed() -> asyncio.Event:
    """An event that makes a paused upstream continue."""
    return asyncio.Event()


def pausing_after(before_pause: bytes, proceed: asyncio.Event, then: bytes):
    async def rest(response) -> None:
        await proceed.wait()
        await response.write(then)

    return streaming(before_pause, then=rest)


@pytest.fixture
async def heartbeat_gateway(start_gateway, upstream: FakeUpstream) -> str:
    """A gateway that sends a comment after 0.05 s of silence."""
    return await start_gateway(tables_for(upstream, server={"keep_alive_s": 0.05}))


async def test_a_silent_stream_is_kept_alive_with_comments(heartbeat_gateway: str, upstream: FakeUpstream, proceed):
    """Every SSE parser ignores comments; they are never written inside a frame."""
    before_pause, then = b"".join(FRAMES[:6]), b"".join(FRAMES[6:])
    upstream.answer = pausing_after(before_pause, proceed, then)
    async with wire(heartbeat_gateway) as connection:
        await connection.send(STREAM)
        lines = [await connection.line()]
        while lines.count(b": keep-alive\n") < 2:
            lines.append(await connection.line())
        proceed.set()
        while b"0\r\n" not in lines:
            lines.append(await connection.line())
    body = b"".join(line for line in lines[lines.index(b"\r\n") + 1 :] if not line.endswith(b"\r\n"))
    before, _, after = body.partition(COMMENT)

    assert body.replace(COMMENT, b"") == CANONICAL
    assert (before, after.replace(COMMENT, b"")) == (before_pause, then)


class Stream:
    """A stream that counts the comments in it."""

    def __init__(self) -> None:
        self.sent_bytes = self.silent_checks = self.comments = 0
        self.checked_bytes = -1
        self.is_full = False

    def write_between(self, data: bytes) -> None:
        if not self.is_full:
            self.sent_bytes += len(data)
            self.comments += 1


async def test_only_a_stream_that_was_silent_for_an_interval_gets_a_comment():
    """What is written between two checks starts the interval again, and so does a comment."""
    heartbeats, silent, busy = Heartbeats(60), Stream(), Stream()
    heartbeats.add(silent)
    heartbeats.add(busy)
    comments = []
    for _ in range(2 * CHECKS + 1):
        busy.sent_bytes += 1
        heartbeats._check()
        comments.append(silent.comments)

    assert comments == [0] * CHECKS + [1] * CHECKS + [2]
    assert busy.comments == 0


async def test_a_comment_that_could_not_be_written_is_tried_again_at_the_next_check():
    """A client that reads slowly gets none until it has read; then it has waited for long enough."""
    heartbeats, stream = Heartbeats(60), Stream()
    heartbeats.add(stream)
    stream.is_full = True
    for _ in range(2 * CHECKS):
        heartbeats._check()
    stream.is_full = False
    heartbeats._check()

    assert stream.comments == 1


async def test_the_stream_helper_of_the_sdk_ignores_the_comments(
    heartbeat_gateway: str, upstream: FakeUpstream, proceed
):
    """It reads a stream with pauses like one without."""
    upstream.answer = pausing_after(FRAMES[0], proceed, b"".join(FRAMES[1:]))
    async with (
        connect_sdk(heartbeat_gateway, "x") as client,
        client.responses.stream(model="m", input="Hi") as stream,
    ):
        await asyncio.sleep(0.2)  # time for comments to be sent; the test holds without them, too
        proceed.set()
        final = await stream.get_final_response()

    assert final.output_text == "Hello."


async def test_nothing_is_sent_before_the_first_event(gateway: str, upstream: FakeUpstream, proceed):
    """Within `keep_alive_s` an error can still be a status, so neither a head nor a comment is written."""
    upstream.answer = pausing_after(b"", proceed, b"")
    async with wire(gateway) as connection:
        await connection.send(STREAM)
        await upstream.arrived.wait()
        first = asyncio.create_task(connection.line())
        await asyncio.sleep(0.2)  # of the 15 s
        waiting = not first.done()
        proceed.set()

        assert waiting
        assert await first == b"HTTP/1.1 502 Bad Gateway\r\n"


async def test_a_client_that_disconnects_between_comments_ends_the_work(heartbeat_gateway: str, upstream: FakeUpstream):
    """Writing a comment to a closed connection neither crashes nor keeps the upstream's stream open."""
    upstream.answer = streaming(FRAMES[0], then=hang)
    async with wire(heartbeat_gateway) as connection:
        await connection.send(STREAM)
        while await connection.line() != b": keep-alive\n":
            pass

    async with asyncio.timeout(TIMEOUT_S):
        await upstream.disconnected.wait()


async def test_the_head_of_a_stream_prevents_buffering(gateway: str):
    """It has no length, allows no compression or caching, and disables buffering in nginx."""
    answer = await ask(gateway, STREAM.replace(b"\r\n\r\n", b"\r\nAccept-Encoding: gzip, br\r\n\r\n"))
    received = answer.headers

    assert (received["content-type"], received["cache-control"], received["x-accel-buffering"]) == (
        "text/event-stream; charset=utf-8", "no-cache", "no",
    )  # fmt: skip
    assert "content-length" not in received
    assert "content-encoding" not in received
    assert answer.body == CANONICAL


async def test_the_head_of_a_body_has_its_type_and_length(gateway: str):
    """It also forbids caching, so that a shared cache does not serve it to another client."""
    answer = await ask(gateway, post(accept_encoding="gzip, br"))

    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("application/json", "no-store")
    assert int(answer.headers["content-length"]) == len(answer.body)


async def test_a_stream_over_http_1_0_ends_with_the_connection(gateway: str):
    """HTTP/1.0 has no chunks."""
    async with wire(gateway) as connection:
        await connection.send(STREAM.replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, body = (await connection.rest()).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.0 200 ")
    assert b"chunked" not in head
    assert body == CANONICAL


@pytest.mark.parametrize("given", [b"".join(FRAMES[:-1]), CANONICAL], ids=["without", "with"])
async def test_every_stream_ends_with_one_sentinel(gateway: str, upstream: FakeUpstream, given: bytes):
    """The upstream may send `[DONE]` or not."""
    upstream.answer = streaming(given)

    assert (await ask(gateway, STREAM)).body == CANONICAL


async def test_frames_are_sent_when_they_arrive(gateway: str, upstream: FakeUpstream, proceed):
    """An event is not held back until the next one arrives."""
    upstream.answer = pausing_after(FRAMES[0], proceed, b"".join(FRAMES[1:]))
    async with wire(gateway) as connection:
        await connection.send(STREAM)
        while await connection.line() != b"event: response.created\n":
            pass
        proceed.set()

        assert b"response.created" in await connection.line()


async def test_a_crash_in_the_middle_of_a_stream_aborts_the_connection(start_gateway, logged):
    """A regular end would make an incomplete answer look complete."""
    backend = {"name": "faulty", "use": "tests.crashing_backend", "frames": FRAMES[0].decode()}
    gateway = await start_gateway({"backend": [backend], "route": [{"model": "*", "backend": "faulty"}]})
    async with wire(gateway) as connection:
        await connection.send(STREAM)
        received = await connection.rest()

    assert not received.endswith(b"0\r\n\r\n")
    assert b"1234" not in received
    assert [line["event"] for line in logged if line["event"] == "request.crashed"] == ["request.crashed"]


async def test_the_sdk_raises_a_violation_as_a_bad_request(gateway: str):
    """This includes streams: before the first event an error is an HTTP status with a body."""
    async with connect_sdk(gateway, "x", max_retries=2) as client:
        for stream in (False, True):
            with pytest.raises(BadRequestError) as refused:
                await client.responses.create(model="m", input="Hi", metadata=[], stream=stream)  # type: ignore[arg-type]

            assert refused.value.param == "metadata"
            assert refused.value.request_id.startswith("req_")


async def test_a_refusal_is_not_retried_by_the_sdk(gateway: str, logged):
    """`x-should-retry: false` prevents it."""
    async with connect_sdk(gateway, "x", max_retries=2) as client:
        with pytest.raises(APIStatusError):
            await client.responses.create(model="m", input="Hi", max_tool_calls=0)

    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [400]


async def test_a_failed_upstream_is_retried_by_the_sdk(gateway: str, upstream: FakeUpstream, logged):
    """A 502 without `x-should-retry` is retried as usual."""
    upstream.answer = streaming(b"")
    async with connect_sdk(gateway, "x", max_retries=1) as client:
        with pytest.raises(APIError):
            await client.responses.create(model="m", input="Hi", stream=True)

    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [502, 502]


async def test_a_failed_stream_is_logged_with_its_cause(gateway: str, upstream: FakeUpstream, logged):
    """The status 200 was already sent; the code is the reason for the end."""
    upstream.answer = streaming(b"".join(FRAMES[:6]))
    answer = await ask(gateway, STREAM)
    finished = [line for line in logged if line["event"] == "request.finished"]

    assert events(answer.body)[-2]["type"] == "response.failed"
    assert [(line["status"], line["code"]) for line in finished] == [(200, "upstream_cut")]


async def test_a_client_that_disconnects_after_its_whole_stream_is_logged_with_200(
    gateway: str, upstream: FakeUpstream, logged
):
    """The upstream's connection may end later."""
    upstream.answer = streaming(b"".join(FRAMES[:-1]), then=hang)
    assert (await ask(gateway, STREAM)).body == CANONICAL

    await until(lambda: any(line["event"] == "request.finished" for line in logged))
    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [200]


async def test_a_client_that_disconnects_is_logged_with_499(gateway: str, upstream: FakeUpstream, logged):
    """The status is only logged, because it can no longer be sent."""
    upstream.answer = streaming(FRAMES[0], then=hang)
    async with wire(gateway) as connection:
        await connection.send(STREAM)
        assert b"200" in await connection.line()

    await until(lambda: any(line["event"] == "request.finished" for line in logged))
    assert [line["status"] for line in logged if line["event"] == "request.finished"] == [499]


async def test_no_comment_is_written_inside_a_large_frame(
    gateway: str, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
):
    """It is written in pieces, and a comment may be due between any two of them."""
    write_chunk, write_frames = Answer.write_chunk, Answer.write_frames

    async def write(answer: Answer, data: bytes) -> None:
        await write_chunk(answer, data)
        answer.write_between(COMMENT)

    async def write_all(answer: Answer, frames: Sequence[bytes], *, is_last: bool = False) -> None:
        if (unsent := write_frames(answer, frames, is_last=is_last)) is not None:
            await unsent
        if not is_last:
            answer.write_between(COMMENT)

    monkeypatch.setattr(Answer, "write_chunk", write)
    monkeypatch.setattr(Answer, "write_frames", write_all)
    large = b"data: " + b"a" * 3 * PIECE_BYTES + b"\n\n"
    upstream.answer = streaming(FRAMES[0], large, *FRAMES[1:])
    body = (await ask(gateway, STREAM)).body

    assert large in body
    assert body.replace(COMMENT, b"") == FRAMES[0] + large + b"".join(FRAMES[1:])
    assert COMMENT in body
