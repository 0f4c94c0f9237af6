"""What is added to the transcript of a reply, and the memory that is reserved for it."""

import pytest

from proxy.context import Context
from proxy.rules.transcribing import add_to_transcript
from proxy.wire.errors import Unavailable
from proxy.wire.event import FOLLOWED, Batch, Event, Run
from proxy.wire.sse import SSEParser
from proxy.workers import FREE_BYTES, BodyMemory, MemoryLease
from tests.examples import make_context
from tests.rules.samples import RESPONSE
from tests.upstream import CANONICAL

UNITS = SSEParser(FOLLOWED).feed(CANONICAL)
LAST = next(unit for unit in UNITS if isinstance(unit, Event) and unit.type == "response.completed")


def add_all(context: Context, *batches: Batch) -> Context:
    for batch in batches:
        add_to_transcript(batch, context)
    return context


def without_output(units: Batch) -> Batch:
    """Return a stream whose last event has no items, as some servers send it."""
    last = Event("response.completed", data={"type": "response.completed", "response": {**RESPONSE, "output": []}})
    last.encode(0)
    return [*units[:-1], last]


@pytest.mark.parametrize("size", [1, 3, len(UNITS)])
def test_the_items_of_the_last_event_replace_those_before_it(size: int):
    """However many batches the stream comes in."""
    batches = [UNITS[start : start + size] for start in range(0, len(UNITS), size)]
    transcript = add_all(make_context(), *batches).transcript

    assert transcript.terminal is LAST
    assert transcript.created is not None
    assert transcript.response == RESPONSE
    assert transcript.items == RESPONSE["output"]
    assert transcript.cut_open_items() == []
    assert transcript.response_bytes == LAST.received_bytes


def test_only_the_first_and_the_last_event_of_a_whole_stream_take_memory():
    """No frame is kept, and no item twice."""
    context = add_all(make_context(), UNITS)
    events = [unit for unit in UNITS if isinstance(unit, Event)]

    assert context.memory.needed_bytes == context.transcript.kept_bytes
    assert context.transcript.kept_bytes == events[0].count_parsed() + events[-1].count_parsed()


def test_the_memory_of_open_items_is_returned_with_the_last_event():
    """The frames of an item are kept for the case that the stream breaks off."""
    context, opened = make_context(), [unit.type for unit in UNITS].index("response.output_item.added") + 1
    add_all(context, UNITS[:opened])
    before = context.memory.needed_bytes
    add_all(context, [Run(b": %b\n\n" % (b"x" * 100_000))], UNITS[-1:])

    assert context.memory.needed_bytes == context.transcript.kept_bytes
    assert 0 < context.transcript.kept_bytes - before <= LAST.count_parsed()


def test_items_are_kept_where_the_last_event_has_none():
    """The response is put together from them."""
    transcript = add_all(make_context(), without_output(UNITS)).transcript

    assert transcript.lacks_output
    assert transcript.response == RESPONSE
    assert transcript.items == RESPONSE["output"]


def test_all_frames_are_kept_on_request():
    """The cache stores them."""
    context = make_context()
    context.transcript.keep_frames(1_000_000)
    frames = add_all(context, UNITS).transcript.frames()

    assert frames == b"".join([unit.sse for unit in UNITS])


def test_items_are_kept_where_there_is_no_memory_for_the_last_event():
    """The stream ends as failed then, with the items that came."""
    context = make_context(memory=MemoryLease(BodyMemory(0)))
    add_all(context, UNITS[:-1])
    items = [*context.transcript.items]
    context.memory.grow(FREE_BYTES - context.memory.needed_bytes)

    with pytest.raises(Unavailable):
        add_all(context, UNITS[-1:])
    assert context.transcript.terminal is None
    assert context.transcript.items == items == RESPONSE["output"]


def test_an_error_before_the_last_event_is_recorded():
    """It says why a response failed."""
    error = Event("error", b'data: {"type":"error","code":"x"}\n\n', {"type": "error", "code": "x"})
    transcript = add_all(make_context(), [*UNITS[:-1], error, UNITS[-1]]).transcript

    assert transcript.error is error
