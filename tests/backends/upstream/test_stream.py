"""How much of a stream is parsed at a time, and that others have a turn between."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

import pytest

from backends.upstream.body import AnswerLimits
from backends.upstream.decode import Decoder
from backends.upstream.headers import HeaderFilter
from backends.upstream.scrub import Scrubber
from backends.upstream.stream import STEP_BYTES, STEP_UNITS, Stream
from proxy.context import Context
from proxy.workers import MANY_VALUES, Workers
from tests.examples import make_context
from tests.loop_work import observed_loop

EVENT = b'data: {"type":"response.in_progress","response":{"id":"resp_1"}}\n\n'
DELTA = b'data: {"type":"response.output_text.delta","delta":"abc"}\n\n'
LAST = b'data: {"type":"response.completed","response":{"id":"resp_1"}}\n\n'
STREAMS = {
    "events only": EVENT * 500 + LAST,
    "events among deltas": (DELTA + EVENT) * 300 + LAST,
    "deltas, then events": DELTA * 900 + EVENT * 100 + LAST,
    "a long frame before events": EVENT.replace(b"resp_1", b"r" * 300_000) + EVENT * 200 + LAST,
}


class Received:
    """An answer of which these parts of the body arrive one by one."""

    status, is_complete = 200, False
    content_type = "text/event-stream"
    fields: Mapping[str, str] = {}

    def __init__(self, *parts: bytes) -> None:
        self._parts = deque(parts)

    async def read(self) -> bytes:
        await asyncio.sleep(0)  # a part that has not arrived yet
        return self._parts.popleft() if self._parts else b""

    def offer_chunks(self, taker: Callable[[bytes], bool]) -> None: ...

    def count_events(self) -> None: ...

    def note_event(self) -> None: ...

    def close(self) -> None: ...


def stream_of(*parts: bytes, context: Context | None = None) -> Stream:
    limits = AnswerLimits(100_000_000, Scrubber(), HeaderFilter())
    return Stream(Received(*parts), context or make_context(), limits, Decoder(""), b"")


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [1_000, 50_000, 10_000_000])
async def test_others_have_a_turn_after_some_events(name: str, size: int):
    """One read may bring thousands of events: they come in steps, all of them and in order."""
    frames, turns = STREAMS[name], 0
    stream = stream_of(*(frames[at : at + size] for at in range(0, len(frames), size)))

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    batches = [batch async for batch in stream]
    counting.cancel()
    units = [unit for batch in batches for unit in batch]

    assert max(map(len, batches)) <= STEP_UNITS
    assert turns >= len(units) // STEP_UNITS - 1
    assert b"".join(unit.sse for unit in units) == frames
    assert stream.is_complete


async def test_what_one_read_brings_is_one_batch_if_it_is_little():
    """Each batch is written by itself."""
    frames = EVENT * 2 + DELTA * 500 + LAST

    assert len(frames) < STEP_BYTES
    assert [len(batch) async for batch in stream_of(frames)] == [4]


async def test_an_event_of_many_values_is_parsed_in_a_thread():
    """A delta of as many is not parsed at all."""
    values = b"[%b1]" % (b"1," * 3 * MANY_VALUES)
    frames = EVENT + DELTA.replace(b'"abc"', values) + EVENT.replace(b'"resp_1"', values) + LAST
    workers = Workers()
    with observed_loop(threads=True) as work:
        batches = [batch async for batch in stream_of(frames, context=make_context(workers=workers))]
    workers.close()

    assert b"".join(unit.sse for batch in batches for unit in batch) == frames
    assert "loads" not in work.on_loop
    assert "loads" in work.in_threads
