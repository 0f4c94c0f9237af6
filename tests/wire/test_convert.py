"""A reply in the form that the call asked for."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import orjson
import pytest

from proxy.wire.compose import events_of
from proxy.wire.convert import convert
from proxy.wire.errors import BackendError, Unavailable
from proxy.wire.event import FOLLOWED, Batch, Event, Reply, Run, response_reply
from proxy.wire.passage import Outlet, Passage
from proxy.wire.sse import SSEParser
from proxy.wire.transcript import Transcript
from proxy.workers import FREE_BYTES, BodyMemory, MemoryLease, Workers
from tests.examples import make_context
from tests.wire.contract import event_faults, order_faults
from tests.wire.streams import CANONICAL, RECORDING, data_of, frame

DATA = Path(__file__).parent.parent / "data"
FINAL = data_of(CANONICAL[-1])["response"]
HEADERS = {"Content-Type": "text/event-stream", "x-upstream-request-id": "req_1"}


async def in_turn(*batches: Batch, transcript: Transcript | None = None) -> AsyncIterator[Batch]:
    """Yield batches as the guard does: each is recorded in the transcript first."""
    for batch in batches:
        if transcript is not None:
            transcript.add(batch)
        yield batch


def stream_reply(stream: bytes, transcript: Transcript, size: int = 700) -> Reply:
    """Return a streamed reply that comes in pieces."""
    parser = SSEParser(FOLLOWED)
    batches = [parser.feed(stream[i : i + size]) for i in range(0, len(stream), size)]
    return Reply(200, HEADERS, batches=in_turn(*batches, transcript=transcript))


async def body_of(stream: bytes) -> Reply:
    """Return the body that a stream is converted to."""
    transcript = Transcript()
    return await convert(stream_reply(stream, transcript), transcript, make_context(), stream=False)


async def read(reply: Reply) -> Sequence[Event | Run]:
    assert reply.batches is not None
    return [unit async for batch in reply.batches for unit in batch]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_reply_in_the_right_form_is_returned_unchanged(stream: bool):
    """It is the very same object."""
    reply = Reply(200, HEADERS, batches=in_turn()) if stream else response_reply(FINAL, HEADERS)

    assert await convert(reply, Transcript(), make_context(), stream=stream) is reply


@pytest.mark.parametrize("status", [400, 404, 429, 500])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_is_returned_unchanged(status: int, stream: bool):
    """An error is a body for every caller, also for one that asked for a stream."""
    reply = Reply(status, {}, body=b'{"error":{}}')

    assert await convert(reply, Transcript(), make_context(), stream=stream) is reply


async def test_a_stream_becomes_its_final_response():
    """The body is the response of the terminal event; the content type of the stream is dropped."""
    reply = await body_of(RECORDING)

    assert reply.body is not None
    assert orjson.loads(reply.body) == reply.response == FINAL
    assert (reply.status, reply.headers, reply.batches) == (200, {"x-upstream-request-id": "req_1"}, None)


class Forwarding(Passage):
    """A stream of which the first batch and the last one are read, and all runs between are forwarded."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = [*batches]
        self.taken: list[bool] = []

    async def __anext__(self) -> Batch:
        if not self.batches:
            raise StopAsyncIteration
        return self.batches.pop(0)

    def forward_runs(self, outlet: Outlet) -> None:
        self.taken = [outlet(unit.sse) for batch in self.batches for unit in batch if isinstance(unit, Run)]
        self.batches = [[unit for unit in batch if isinstance(unit, Event)] for batch in self.batches]


async def test_runs_that_are_forwarded_need_not_be_read():
    """The transcript has them already."""
    transcript, parser = Transcript(), SSEParser(FOLLOWED)
    batches = [parser.feed(RECORDING[i : i + 700]) for i in range(0, len(RECORDING), 700)]
    for batch in batches:
        transcript.add(batch)
    forwarding = Forwarding(batches)
    reply = await convert(Reply(200, HEADERS, batches=forwarding), transcript, make_context(), stream=False)

    assert reply.response == FINAL
    assert forwarding.taken
    assert all(forwarding.taken)


@pytest.mark.parametrize(
    ("name", "status"), [("incomplete", "incomplete"), ("failing", "failed"), ("failed_only", "failed")]
)
async def test_a_stream_that_failed_becomes_a_body_with_that_status(name: str, status: str):
    """A failed response is a response."""
    reply = await body_of((DATA / f"{name}.sse").read_bytes())

    assert reply.status == 200
    assert orjson.loads(reply.body or b"")["status"] == status


@pytest.mark.parametrize("output", [[], None])
async def test_an_empty_output_is_filled_from_the_items(output: object):
    """Some servers leave it empty in the terminal event; the items came before."""
    last = frame(type="response.completed", response=FINAL | {"output": output})
    reply = await body_of(b"".join([*CANONICAL[:-1], last]))

    assert orjson.loads(reply.body or b"") == reply.response == FINAL


async def test_a_body_becomes_the_events_that_it_could_have_come_in():
    """Numbered and ordered as the strictest client requires; the content type of the body is dropped."""
    body = response_reply(FINAL, {"content-type": "application/json", "x-upstream-request-id": "req_1"})
    reply = await convert(body, Transcript(), make_context(), stream=True)
    events = [unit.data for unit in await read(reply) if isinstance(unit, Event)]

    assert order_faults(events) == []
    assert [fault for data in events for fault in event_faults(data)] == []
    assert events[-1]["response"] == FINAL
    assert (reply.status, reply.headers, reply.body) == (200, {"x-upstream-request-id": "req_1"}, None)


async def test_a_body_that_is_converted_and_back_is_the_same():
    """No field is lost."""
    transcript = Transcript()
    batches = in_turn(events_of(FINAL), transcript=transcript)
    reply = await convert(Reply(200, {}, batches=batches), transcript, make_context(), stream=False)

    assert orjson.loads(reply.body or b"") == FINAL


async def test_a_reply_without_a_response_object_still_becomes_a_stream():
    """It has one terminal event."""
    events = await read(await convert(Reply(200, {}, body=b"{}"), Transcript(), make_context(), stream=True))

    assert [unit.type for unit in events] == ["response.created", "response.in_progress", "response.completed"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_response_that_is_too_deep_to_convert_is_an_error_of_the_backend(stream: bool):
    """JSON may be parsed deeper than it may be written; a reply in the right form passes as it is."""
    deep: list[object] = []
    for _ in range(300):
        deep = [deep]
    response, transcript = FINAL | {"deep": deep}, Transcript()
    terminal = Event("response.completed", data={"type": "response.completed", "response": response})
    body = Reply(200, {}, body=b"received", response=response)
    reply = body if stream else Reply(200, {}, batches=in_turn([terminal], transcript=transcript))
    with pytest.raises(BackendError) as caught:
        await convert(reply, transcript, make_context(), stream=stream)

    assert (caught.value.status, caught.value.code) == (502, "upstream_invalid_response")
    assert await convert(body, transcript, make_context(), stream=False) is body


async def test_a_large_body_is_converted_in_a_thread_and_its_memory_is_counted():
    """Its events hold each text several times, and composing them would delay other calls."""
    workers, budget = Workers(), BodyMemory(2**30)
    context = make_context(workers=workers, memory=MemoryLease(budget))
    item = {
        "type": "message",
        "id": "m",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "x" * 400_000}],
    }
    body = response_reply({"id": "resp_1", "status": "completed", "output": [item]}, {})
    reply = await convert(body, Transcript(), context, stream=True)
    sizes = [len(unit.sse) for unit in await read(reply)]
    workers.close()

    frames_around_the_texts = 2_000
    assert sum(sizes) <= budget.used_bytes + FREE_BYTES + frames_around_the_texts
    assert max(sizes) > 400_000


async def test_the_events_of_a_very_large_body_come_one_by_one():
    """Each is freed when it was written."""
    workers = Workers()
    context = make_context(workers=workers, memory=MemoryLease(BodyMemory(2**30)))
    response = FINAL | {"instructions": "x" * 1_048_576}
    reply = await convert(response_reply(response, {}), Transcript(), context, stream=True)
    assert reply.batches is not None
    batches = [batch async for batch in reply.batches]
    workers.close()

    assert [len(batch) for batch in batches] == [1] * len(batches)
    assert [event.type for (event,) in batches] == [event.type for event in events_of(response)]


async def test_a_body_without_memory_for_its_events_is_refused():
    """Before any event is composed."""
    context = make_context(memory=MemoryLease(BodyMemory(0)))
    body = response_reply({"id": "resp_1", "status": "completed", "output": ["x" * 100_000]}, {})

    with pytest.raises(Unavailable):
        await convert(body, Transcript(), context, stream=True)
