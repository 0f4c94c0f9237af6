"""Runs of deltas that arrive one by one are written where they arrive; everything else goes the way of batches."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.upstream.body import AnswerLimits
from backends.upstream.decode import Decoder
from backends.upstream.headers import HeaderFilter
from backends.upstream.scrub import REPLACEMENT, Scrubber
from backends.upstream.stream import Stream
from proxy.http import send
from proxy.rules.guarded_stream import GuardedStream
from proxy.wire.errors import BackendError
from proxy.wire.event import Batch
from proxy.wire.passage import Outlet
from tests.backends.upstream.http1.clients import client_of, request
from tests.bench.answers import DIALECTS, build_frames
from tests.conftest import tables_for
from tests.examples import make_context
from tests.raw import RawUpstream, events, no_tasks_left, post, until, wire  # noqa: F401
from tests.sockets import calling
from tests.timeouts import TIMEOUT_S
from tests.upstream import CANONICAL, FakeUpstream, streaming

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = post(b'{"model":"m","stream":true}')
FRAMES = [frame + b"\n\n" for frame in CANONICAL.split(b"\n\n") if frame]
FIRST_DELTA = next(at for at, frame in enumerate(FRAMES) if b"output_text.delta" in frame)
BEFORE, AFTER = b"".join(FRAMES[:FIRST_DELTA]), b"".join(FRAMES[FIRST_DELTA:])

DELTA_LINE = b"event: response.output_text.delta\n"


def delta(text: str) -> bytes:
    return FRAMES[FIRST_DELTA].replace(b'"delta":"Hel"', f'"delta":"{text}"'.encode())


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Pieces:
    """An upstream whose answer is written piece by piece."""

    def __init__(self) -> None:
        self.writer: asyncio.StreamWriter
        self._ended = asyncio.Event()

    async def play(self, _: object, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        writer.write(HEAD)
        await self._ended.wait()

    def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        self._ended.set()


@asynccontextmanager
async def opened(secret: str = "", **timeouts: float) -> AsyncIterator[tuple[Stream, Pieces]]:
    """Open a stream over a real connection."""
    pieces = Pieces()
    async with RawUpstream(pieces.play) as upstream, client_of(upstream, **timeouts) as client:
        answer = await client.request(*request())
        answer.count_events()
        limits = AnswerLimits(10_000_000, Scrubber(secret), HeaderFilter())
        yield Stream(answer, make_context(), limits, Decoder(""), b""), pieces
        answer.close()


async def read(stream: Stream, units: list[bytes]) -> None:
    """Add what comes as batches."""
    async for batch in stream:
        units.extend(unit.sse for unit in batch)


async def test_a_run_is_taken_where_it_arrives():
    """The task that reads the batches is not woken, until something else comes."""
    taken: list[bytes] = []
    async with opened() as (stream, pieces):
        pieces.writer.write(chunk(BEFORE))
        first = await anext(stream)
        stream.forward_runs(lambda frames: taken.append(frames) is None)
        following = asyncio.ensure_future(anext(stream))
        for count, text in enumerate("abc", 1):
            pieces.writer.write(chunk(delta(text)))
            await until(lambda count=count: len(taken) == count)
            assert not following.done()
        pieces.writer.write(chunk(AFTER))
        batch = await following
        pieces.end()

    assert b"".join(unit.sse for unit in first) == BEFORE
    assert taken == [delta("a"), delta("b"), delta("c")]
    assert b"".join(unit.sse for unit in batch) == AFTER.removesuffix(b"data: [DONE]\n\n")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("seed", range(4))
async def test_each_frame_comes_once_and_in_order(dialect: str, seed: int):
    """Wherever a server cuts its stream, and whatever the outlet takes."""
    chosen = random.Random(seed)
    frames = build_frames(40, dialect)[:-1]
    whole, seen, at = b"".join(frames), list[bytes](), len(frames[0])

    def take(received: bytes) -> bool:
        return chosen.random() < 0.7 and seen.append(received) is None

    async with opened() as (stream, pieces):
        pieces.writer.write(chunk(frames[0]))
        seen.extend(unit.sse for unit in await anext(stream))
        stream.forward_runs(take)
        reading = asyncio.create_task(read(stream, seen))
        while at < len(whole):
            if chosen.random() < 0.5:  # at the end of a frame
                ends = [end for end in range(at + 1, len(whole) + 1) if whole[:end].endswith((b"\n\n", b"\r\n\r\n"))]
                size = ends[chosen.randrange(min(3, len(ends)))] - at
            else:
                size = chosen.randint(1, 600)
            pieces.writer.write(chunk(whole[at : at + size]))
            at += size
            if chosen.random() < 0.7:
                await asyncio.sleep(0.001)  # it arrives by itself
        pieces.end()
        async with asyncio.timeout(TIMEOUT_S):
            await reading

    assert b"".join(seen) == whole


async def test_a_run_with_the_key_of_the_gateway_is_not_passed():
    """It comes as a batch, without the key."""
    taken: list[bytes] = []
    async with opened("sk-secret-of-the-gateway") as (stream, pieces):
        pieces.writer.write(chunk(BEFORE))
        await anext(stream)
        stream.forward_runs(lambda frames: taken.append(frames) is None)
        following = asyncio.ensure_future(anext(stream))
        pieces.writer.write(chunk(delta("sk-secret-of-the-gateway")))
        batch = await following
        pieces.end()

    assert not taken
    assert [unit.sse for unit in batch] == [delta(REPLACEMENT)]


async def test_what_is_taken_begins_the_time_for_the_next_event():
    """A stream that goes on is not silent, and one that falls silent after it fails."""
    taken: list[bytes] = []
    async with opened(first_event_s=0.5, between_events_s=0.5) as (stream, pieces):
        pieces.writer.write(chunk(BEFORE))
        await anext(stream)
        stream.forward_runs(lambda frames: taken.append(frames) is None)
        following = asyncio.ensure_future(anext(stream))
        for count in range(1, 6):
            await asyncio.sleep(0.2)
            pieces.writer.write(chunk(delta("x")))
            await until(lambda count=count: len(taken) == count)
        assert not following.done()
        with pytest.raises(BackendError, match="stopped sending"):
            await following


class Way:
    """Counts which way the frames of streams take through a gateway."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = self.batches = 0
        forward_runs, write_batch = GuardedStream.forward_runs, send._write_batch

        def counting(batches: GuardedStream, outlet: Outlet) -> None:
            def count(frames: bytes) -> bool:
                is_written = outlet(frames)
                self.passed += is_written
                return is_written

            forward_runs(batches, count)

        async def count_batch(answer: Any, batch: Batch) -> bool:
            self.batches += 1
            return await write_batch(answer, batch)

        monkeypatch.setattr(GuardedStream, "forward_runs", counting)
        monkeypatch.setattr(send, "_write_batch", count_batch)


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Way:
    return Way(monkeypatch)


def step_by_step(texts: Iterable[str], end: bytes = AFTER) -> tuple[Callable[..., Any], asyncio.Queue[None]]:
    """Return an answer that writes a delta, and in the end the rest, whenever the queue has something; and the queue."""
    steps: asyncio.Queue[None] = asyncio.Queue()

    async def rest(response: Any) -> None:
        for text in texts:
            await steps.get()
            await response.write(delta(text))
        await steps.get()
        await response.write(end)

    return streaming(BEFORE, then=rest), steps


async def receive(gateway: str, steps: asyncio.Queue[None], count: int) -> bytes:
    """Return the body of a stream; each delta is received before the next one is made."""
    received = b""
    async with wire(gateway) as connection:
        await connection.send(STREAM)
        made = 0
        while b"\r\n0\r\n\r\n" not in received:
            received += await connection.some()
            is_due = b"content_part.added" in received and received.count(DELTA_LINE) == made
            if is_due and made <= count:
                steps.put_nowait(None)
                made += 1
    return received.partition(b"\r\n\r\n")[2]


def text_of(body: bytes) -> bytes:
    """Return the frames of a body in chunks."""
    frames = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        frames, body = frames + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return frames


async def test_deltas_take_the_shortcut_through_a_gateway(gateway: str, upstream: FakeUpstream, way: Way):
    """The client receives the bytes of the upstream."""
    upstream.answer, steps = step_by_step("abcdef")
    frames = text_of(await receive(gateway, steps, 6))

    assert frames == BEFORE + b"".join(map(delta, "abcdef")) + AFTER
    assert way.passed == 6
    assert way.batches == 2


async def test_a_stream_that_breaks_off_ends_with_what_was_passed(gateway: str, upstream: FakeUpstream, way: Way):
    """The item that is closed has the text of all deltas."""
    upstream.answer, steps = step_by_step("abc", b"")
    frames = text_of(await receive(gateway, steps, 3))
    last = events(frames)[-2]

    assert way.passed == 3
    assert last["type"] == "response.failed"
    assert last["response"]["output"][-1]["content"][0]["text"] == "abc"


async def test_a_stream_that_is_kept_is_kept_whole(start_gateway, upstream: FakeUpstream, way: Way):
    """The cache needs every frame, so these are batches; the hit has them all."""
    gateway = await start_gateway(tables_for(upstream, cache={"use": "memory", "when": "always"}))
    upstream.answer, steps = step_by_step("abc")
    first = text_of(await receive(gateway, steps, 3))
    upstream.answer = streaming(b"")
    again = text_of(await receive(gateway, steps, 0))

    assert way.passed == 0
    assert again == first == BEFORE + b"".join(map(delta, "abc")) + AFTER


async def test_runs_wait_while_there_is_no_memory(gateway: str, upstream: FakeUpstream, way: Way, monkeypatch):
    """The guard sees them then, and ends the stream as it ends one of batches."""
    monkeypatch.setattr("proxy.wire.transcript.MAX_KEPT_BYTES", 20_000)
    upstream.answer, steps = step_by_step(["x" * 1_000] * 40)
    last = events(text_of(await receive(gateway, steps, 40)))[-2]

    assert 0 < way.passed < 20
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")


async def test_deltas_take_the_shortcut_to_a_websocket(gateway: str, upstream: FakeUpstream, way: Way):
    """Each is a message of its own."""
    upstream.answer, steps = step_by_step("abc")
    async with calling(gateway) as caller:
        await caller.create()
        received = [await caller.read()]
        while received[-1]["type"] != "response.content_part.added":
            received.append(await caller.read())
        for _ in "abc":
            steps.put_nowait(None)
            received.append(await caller.read())
        steps.put_nowait(None)
        received += await caller.turn()

    assert received == events(BEFORE + b"".join(map(delta, "abc")) + AFTER)[:-1]
    assert way.passed == 3


async def test_a_websocket_that_does_not_read_gets_every_delta_later(gateway: str, upstream: FakeUpstream):
    """It is written in order, whether forwarded or in a batch."""
    texts = [f"{number:08}{'x' * 16_000}" for number in range(2_000)]

    async def rest(response: Any) -> None:
        for text in texts:
            await response.write(delta(text))
        await response.write(AFTER)

    upstream.answer = streaming(BEFORE, then=rest)
    async with calling(gateway) as caller:
        await caller.create()
        await asyncio.sleep(0.5)  # it does not read meanwhile
        received = await caller.turn()
    sent = [event["delta"] for event in received if event["type"] == "response.output_text.delta"]

    assert sent[: len(texts)] == texts
    assert received[-1]["type"] == "response.completed"


async def test_a_client_that_does_not_read_gets_every_delta_later(gateway: str, upstream: FakeUpstream, way: Way):
    """While its connection is full the upstream waits, and nothing is lost or written twice."""
    many = [delta(f"{number:08}{'x' * 16_000}") for number in range(2_000)]
    is_written = asyncio.Event()

    async def rest(response: Any) -> None:
        for frame in many:
            await response.write(frame)
        is_written.set()
        await response.write(AFTER)

    upstream.answer = streaming(BEFORE, then=rest)
    async with wire(gateway) as connection:
        await connection.send(STREAM)
        await asyncio.sleep(0.5)  # it does not read meanwhile
        assert not is_written.is_set()
        received = bytearray()
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += await connection.some()

    assert text_of(bytes(received).partition(b"\r\n\r\n")[2]) == BEFORE + b"".join(many) + AFTER
