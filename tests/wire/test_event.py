"""Events, their frames, and bodies as events."""

import orjson
import pytest

from proxy.wire.event import (
    DONE,
    TERMINALS,
    TRACKED,
    Event,
    Once,
    Reply,
    Stop,
    body_events,
    data_of,
    frame_of,
    payload_of,
    terminal_type,
)


def test_data_is_what_the_frame_says():
    """An event that came as bytes is parsed when somebody looks."""
    event = Event("response.completed", b'event: response.completed\ndata: {"type":"response.completed","n":null}\n\n')

    assert event.data == {"type": "response.completed", "n": None}


def test_data_is_parsed_once():
    """Whoever looks second sees the same object."""
    event = Event("x", b'data: {"a":[1]}\n\n')

    assert event.data is event.data


def test_data_that_was_given_is_not_read_from_the_frame():
    """An event without a frame has data all the same: policies see it, callers do not."""
    event = Event("response.output_item.done", b"", {"item": {"id": "msg_1"}})

    assert event.data == {"item": {"id": "msg_1"}}


@pytest.mark.parametrize(
    "frame", [b"", b": ping\n\n", b"event: x\n\n", b"data: {\n\n", b"data: [1]\n\n", b"data: 1\n\n"]
)
def test_a_frame_without_an_object_is_a_value_error(frame: bytes):
    """Comments, broken JSON and JSON that is no object have no data."""
    with pytest.raises(ValueError, match=r"."):
        _ = Event("x", frame).data


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_data_may_stand_on_several_lines(end: bytes):
    """Data lines are joined by line feeds, whatever ends them; one space after the colon is no part of them."""
    lines = [b": about", b"event: x", b'data: {"a":', b"data:  1,", b'data:"b":2}', b"id: 7", b"", b""]

    assert data_of(end.join(lines)) == {"a": 1, "b": 2}


def test_the_payload_of_a_frame_without_data_is_empty():
    """Comments and other fields are no data, even when the word stands in them."""
    assert payload_of(b": data: x\nevent: data: y\nretry: 5\ndatapoint: 3\n\n") == b""


def test_a_lifecycle_event_carries_its_response():
    """`response` is the object inside."""
    event = Event("response.created", b'data: {"response":{"id":"resp_1"}}\n\n')

    assert event.response == {"id": "resp_1"}


@pytest.mark.parametrize("data", [{}, {"response": None}, {"response": "resp_1"}, {"response": []}])
def test_a_response_of_an_odd_shape_is_none_at_all(data: dict):
    """Whoever reads an event's response reads an object."""
    assert Event("response.completed", b"", data).response == {}


def test_an_event_shows_its_type_and_frame():
    """A failing test says which event it was about."""
    assert repr(Event("x", b"data: {}\n\n")) == "Event('x', b'data: {}\\n\\n')"


def test_a_frame_is_an_event_line_a_data_line_and_a_blank_one():
    """Strict readers want both lines and the data on one."""
    frame = frame_of("response.output_text.delta", {"delta": "a\nb\r\u2028", "n": 1})

    assert frame == 'event: response.output_text.delta\ndata: {"delta":"a\\nb\\r\u2028","n":1}\n\n'.encode()
    assert data_of(frame) == {"delta": "a\nb\r\u2028", "n": 1}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("completed", "response.completed"),
        ("incomplete", "response.incomplete"),
        ("failed", "response.failed"),
        ("cancelled", "response.completed"),
        ("created", "response.completed"),
        (None, "response.completed"),
        (["completed"], "response.completed"),
    ],
)
def test_a_status_names_the_terminal_event(status: object, kind: str):
    """A status that no terminal event is named after is carried by the common one."""
    assert terminal_type(status) == kind


def test_a_body_becomes_its_items_and_itself():
    """Policies see one event per item, and the caller gets the body byte for byte."""
    body = b'{ "status":"incomplete", "output":[{"id":"rs_1"}, {"id":"msg_1"}], "new":1.50 }'
    events = body_events(body)

    assert [(event.type, event.frame) for event in events] == [
        ("response.created", b""),
        ("response.output_item.done", b""),
        ("response.output_item.done", b""),
        ("response.incomplete", body),
    ]
    assert [event.data["item"]["id"] for event in events[1:3]] == ["rs_1", "msg_1"]
    assert [event.data["output_index"] for event in events[1:3]] == [0, 1]
    assert events[0].response == events[3].response == orjson.loads(body)


@pytest.mark.parametrize("output", [None, {}, "none", 3])
def test_a_body_whose_output_is_no_list_has_no_items(output: object):
    """It is handed on all the same."""
    body = orjson.dumps({"status": "completed", "output": output})

    assert [event.frame for event in body_events(body)] == [b"", body]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'"x"', b'{"a":NaN}'])
def test_a_body_that_is_no_object_is_a_value_error(body: bytes):
    """What is no response must not pass as one."""
    with pytest.raises(ValueError, match=r"."):
        body_events(body)


def test_every_terminal_event_is_tracked():
    """Headgate itself must know when a stream is over; the sentinel is no event."""
    assert TERMINALS < TRACKED
    assert DONE not in TRACKED


def test_a_reply_is_told_by_its_fields():
    """Two replies of the same parts are the same."""
    batches = iter(())

    assert Reply(200, {}, batches, streamed=True) == Reply(200, {}, batches, streamed=True)


async def test_what_came_whole_is_given_once():
    """As one batch."""
    batches = Once([Event("", b": hi\n\n")])

    assert [batch async for batch in batches] == [batches.batch]
    assert [batch async for batch in batches] == []


def test_a_stop_says_why():
    """The reason is for machines, the message for people."""
    stop = Stop("budget", "The budget is used up.")

    assert (stop.reason, stop.message, str(stop)) == ("budget", "The budget is used up.", "The budget is used up.")
