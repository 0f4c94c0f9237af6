"""A reply in the shape that was asked for."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import orjson
import pytest

from proxy.wire.errors import BackendError
from proxy.wire.event import TRACKED, Event, Reply, body_events, data_of, frame_of
from proxy.wire.convert import shaped
from proxy.wire.sse import SSEParser
from tests.wire.contract import event_faults, order_faults

DATA = Path(__file__).parent.parent / "data"
CANONICAL = (DATA / "canonical.sse").read_bytes()
FINAL = next(data_of(frame) for frame in CANONICAL.split(b"\n\n") if b"event: response.completed" in frame)["response"]
HEADERS = {"Content-Type": "text/event-stream", "x-upstream-request-id": "req_1"}


async def once(*batches: Sequence[Event]) -> AsyncIterator[Sequence[Event]]:
    for batch in batches:
        yield batch


def stream_reply(stream: bytes, size: int = 700) -> Reply:
    """A streamed reply that came in pieces."""
    parser = SSEParser(TRACKED)
    batches = [parser.feed(stream[i : i + size]) for i in range(0, len(stream), size)]
    return Reply(200, HEADERS, once(*batches), streamed=True)


def body_reply(body: bytes, status: int = 200) -> Reply:
    return Reply(status, {"content-type": "application/json"}, once(body_events(body)), streamed=False)


async def read(reply: Reply) -> list[Event]:
    return [event async for batch in reply.batches for event in batch]


@pytest.mark.parametrize("stream", [True, False])
def test_a_reply_in_the_right_shape_is_left_alone(stream: bool):
    """It is the very same reply."""
    reply = Reply(200, HEADERS, once(), streamed=stream)

    assert shaped(reply, stream=stream) is reply


@pytest.mark.parametrize("status", [400, 404, 429, 500])
@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_is_left_alone(status: int, stream: bool):
    """Errors are bodies to every caller, those of streams included."""
    reply = Reply(status, {}, once([Event("", b'{"error":{}}')]), streamed=False)

    assert shaped(reply, stream=stream) is reply


async def test_a_stream_becomes_its_final_response():
    """The body is the response that the last event carries, and it is no event stream any more."""
    reply = shaped(stream_reply(CANONICAL), stream=False)
    events = await read(reply)

    assert [(event.type, orjson.loads(event.frame)) for event in events] == [("response.completed", FINAL)]
    assert events[0].response == FINAL
    assert (reply.status, reply.headers, reply.streamed) == (200, {"x-upstream-request-id": "req_1"}, False)


@pytest.mark.parametrize("name", ["incomplete", "failing", "failed_only"])
async def test_a_stream_that_ended_badly_becomes_a_body_that_says_so(name: str):
    """A response that failed is a response; its status tells."""
    events = await read(shaped(stream_reply((DATA / f"{name}.sse").read_bytes()), stream=False))

    assert events[0].type == f"response.{name.partition('_')[0].replace('failing', 'failed')}"
    assert orjson.loads(events[0].frame)["status"] == events[0].type.removeprefix("response.")


@pytest.mark.parametrize("output", [[], None])
async def test_an_output_that_came_empty_is_filled_from_the_items(output: object):
    """Some servers forget it in the last event; the items came before."""
    frames = CANONICAL.split(b"\n\n")[:-3]
    last = frame_of("response.completed", {"type": "response.completed", "response": FINAL | {"output": output}})
    stream = b"\n\n".join(frames) + b"\n\n" + last
    (body,) = await read(shaped(stream_reply(stream), stream=False))

    assert orjson.loads(body.frame) == FINAL


async def test_a_stream_without_an_end_is_no_body():
    """Half an answer must not look like a whole one."""
    with pytest.raises(BackendError) as caught:
        await read(shaped(stream_reply(CANONICAL[:4000]), stream=False))

    assert (caught.value.status, caught.value.code) == (502, "upstream_cut")


async def test_what_follows_the_end_of_a_stream_is_not_read():
    """The body is given as soon as the response is over, however long the stream stays open."""
    reply = stream_reply(CANONICAL + CANONICAL)

    assert len(await read(shaped(reply, stream=False))) == 1


async def test_a_body_becomes_the_events_it_would_have_come_in():
    """Numbered and ordered as the strictest reader wants, and it is no JSON document any more."""
    reply = shaped(body_reply(orjson.dumps(FINAL)), stream=True)
    told = [event.data for event in await read(reply)]

    assert order_faults(told) == []
    assert [fault for data in told for fault in event_faults(data)] == []
    assert told[-1]["response"] == FINAL
    assert (reply.status, reply.headers, reply.streamed) == (200, {}, True)


async def test_a_body_that_was_turned_twice_is_the_same():
    """Nothing is lost on the way."""
    there_and_back = shaped(shaped(body_reply(orjson.dumps(FINAL)), stream=True), stream=False)

    assert [orjson.loads(event.frame) for event in await read(there_and_back)] == [FINAL]
