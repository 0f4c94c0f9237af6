"""The context of a call: slots, answer headers, and callbacks for its response, its reply and its end."""

import threading
from typing import Any

import pytest

from proxy.context import Context, Slot
from proxy.wire.errors import Unavailable
from proxy.wire.event import FOLLOWED
from proxy.wire.transcript import Transcript
from proxy.workers import LARGE_BYTES, Workers
from tests.examples import ANNA, NotedResponses, make_call, make_context

COUNT = Slot[int]("test.count")


def test_a_slot_has_a_value_once_it_is_set():
    """Another context does not have the value."""
    context = make_context()
    context.set(COUNT, 3)

    assert (context.get(COUNT), make_context().get(COUNT)) == (3, None)


def test_slots_with_equal_names_are_equal():
    """Slots with different names have different values."""
    context = make_context()
    context.set(COUNT, 0)

    assert context.get(Slot[int]("test.count")) == 0
    assert context.get(Slot[int]("test.other")) is None


def test_values_of_one_header_are_joined():
    """They are joined in the order in which they were added."""
    context = make_context()
    for value in ("a", "b", "c"):
        context.add_header("x-headgate-policy", value)
    context.add_header("Age", "3")

    assert context.answer_headers == {"x-headgate-policy": "a, b, c", "Age": "3"}


def test_a_context_is_shown_by_its_id():
    """The headers of the request have keys, and what a traceback shows may be logged."""
    assert repr(Context("req_1", ANNA, {"authorization": "Bearer key"})) == "Context('req_1')"


def test_a_new_context_is_empty():
    """Contexts share no state."""
    context, other = Context("req_1", ANNA), Context("req_2", ANNA)
    context.add_header("Age", "3")
    context.record.model = "m"

    assert (other.answer_headers, other.record.model, other.received) == ({}, None, {})
    assert (other.followed, other.deadline, other.target, other.is_answered) == (FOLLOWED, None, None, False)
    assert other.transcript is not context.transcript


async def test_callbacks_at_the_end_run_in_reverse_order():
    """The last reservation is released first."""
    context, order = make_context(), []
    for name in ("first", "second", "third"):
        context.on_end(lambda name=name: append(order, name))
    async with context.cleanup:
        assert order == []

    assert order == ["third", "second", "first"]


async def test_an_error_of_a_callback_at_the_end_is_logged(logged):
    """The answer is already sent, and the other callbacks still run."""
    context, order = make_context(), []

    async def fail() -> None:
        raise Unavailable("The budget cannot be given back at the moment.", code="budget_unavailable")

    context.on_end(lambda: append(order, "first"))
    context.on_end(fail)
    async with context.cleanup:
        pass

    assert order == ["first"]
    assert logged == [{"event": "cleanup.failed", "log_level": "warning", "code": "budget_unavailable"}]


async def test_an_error_of_the_call_is_raised_after_the_callbacks():
    """The callbacks run even if the call fails."""
    context, order = make_context(), []
    context.on_end(lambda: append(order, "ended"))
    with pytest.raises(ValueError, match="broken"):
        await fail_within(context)

    assert order == ["ended"]


async def fail_within(context: Context) -> None:
    async with context.cleanup:
        raise ValueError("broken")


async def test_the_ids_of_a_response_are_bound_once():
    """A later event may have other ids. A context without a binder binds nothing."""
    context, noted, call = make_context(), NotedResponses(), make_call()
    await context.bind_response(call, {"id": "resp_0"})
    context.binder = noted
    await context.bind_response(call, {"id": "resp_1"})
    await context.bind_response(call, {"id": "resp_1", "status": "completed"})
    await context.bind_response(call, {"id": "resp_2"})
    await context.bind_response(call, {"id": "resp_2", "conversation": "conv_1"})

    assert [response["id"] for response in noted.responses] == ["resp_1", "resp_2", "resp_2"]


@pytest.mark.parametrize("is_bound", [False, True])
async def test_the_output_of_a_complete_reply_is_bound_once(is_bound: bool):
    """Not again if it was bound with the response."""
    context, noted = make_context(), NotedResponses()
    context.binder, context.is_output_bound = noted, is_bound
    await context.complete_reply(make_call())
    await context.complete_reply(make_call())

    assert noted.transcripts == ([] if is_bound else [context.transcript])


async def test_callbacks_of_the_reply_run_once():
    """They receive the transcript of the whole reply."""
    context, found = make_context(), list[Transcript]()
    context.on_reply(lambda _, transcript: append(found, transcript))
    await context.complete_reply(make_call())
    await context.complete_reply(make_call())

    assert found == [context.transcript]


@pytest.mark.parametrize(("size_bytes", "is_in_thread"), [(LARGE_BYTES - 1, False), (LARGE_BYTES, True)])
async def test_work_on_a_large_body_runs_in_a_thread(size_bytes: int, is_in_thread: bool):
    """Small bodies are cheaper on the event loop."""
    workers = Workers()
    try:
        thread = await make_context(workers=workers).run(size_bytes, threading.current_thread)
    finally:
        workers.close()

    assert (thread is not threading.current_thread()) is is_in_thread
    assert await make_context().run(size_bytes, threading.current_thread) is threading.current_thread()


def test_the_time_to_the_first_event_is_recorded():
    """In seconds since the request arrived."""
    context = make_context()
    context.note_first_event()

    assert context.record.first_event_s is not None
    assert 0 <= context.record.first_event_s <= context.trace.elapsed_s() + 0.0001


async def append(found: list[Any], value: Any) -> None:
    found.append(value)


async def test_a_call_that_continues_in_the_background_leaves_its_request():
    """What ends with a call ends later, and what the job adds is not the request's."""
    ended: list[str] = []

    async def end() -> None:
        ended.append("call")

    context = make_context(deadline=1.0)
    record, headers = context.record, context.answer_headers
    record.model, record.path = "m", "/v1/responses"
    async with context.cleanup:
        context.on_end(end)
        context.continue_in_background()
    context.add_header("x-headgate-policy", "a")
    assert ended == []
    await context.cleanup.aclose()

    assert ended == ["call"]
    assert (headers, record.path, context.deadline) == ({}, "/v1/responses", None)
    assert (context.record.model, context.record.path) == ("m", None)
