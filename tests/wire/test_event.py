"""Events in their JSON and server-sent forms, runs of frames, and bodies as events."""

import pytest

from proxy.wire.bounds import parsed_size
from proxy.wire.event import (
    FOLLOWED,
    SMALL_BYTES,
    TERMINALS,
    Event,
    MessageRun,
    Reply,
    Run,
    Stop,
    event_type,
    parse_leniently,
    parse_payload,
    response_reply,
    terminal_type,
)
from proxy.wire.sse_frame import LONG_FRAME_BYTES, frame_of, frames_of, payload_of

ENDS = [b"\n", b"\r\n", b"\r"]


def test_data_is_parsed_from_the_frame_received():
    """An event that was received as bytes is parsed at the first access."""
    event = Event("response.completed", b'event: response.completed\ndata: {"type":"response.completed","n":null}\n\n')

    assert event.data == {"type": "response.completed", "n": None}


def test_data_is_parsed_once():
    """The second access returns the same object."""
    event = Event("x", b'data: {"a":[1]}\n\n')

    assert event.data is event.data


def test_data_that_was_given_is_not_parsed():
    """A composed event has its data without a frame, and a parsed one keeps both."""
    data = {"item": {"id": "msg_1"}}

    assert Event("response.output_item.done", data=data).data is data
    assert Event("response.output_item.done", b"data: {}\n\n", data).data is data


@pytest.mark.parametrize(
    "frame", [b"", b": ping\n\n", b"event: x\n\n", b"data: {\n\n", b"data: [1]\n\n", b"data: 1\n\n"]
)
def test_a_frame_without_an_object_is_a_value_error(frame: bytes):
    """Comments, broken JSON and JSON other than an object have no data."""
    with pytest.raises(ValueError, match=r"."):
        _ = Event("x", frame).data


@pytest.mark.parametrize("end", ENDS)
def test_data_can_span_several_lines(end: bytes):
    """Data lines are joined by line feeds, whatever ends them; one space after the colon is not part of them."""
    lines = [b": about", b"event: x", b'data: {"a":', b"data:  1,", b'data:"b":2}', b"id: 7", b"", b""]

    assert Event("x", end.join(lines)).data == {"a": 1, "b": 2}
    assert Event("x", end.join(lines)).json == b'{"a":\n 1,\n"b":2}'


def test_the_lines_of_a_long_frame_may_end_in_any_way():
    """They are found one by one, and only the data is copied."""
    long = b"b" * LONG_FRAME_BYTES

    assert payload_of(b"event: x\rdata: a\rdata:%b\r\n\r\n" % long) == b"a\n" + long


def test_the_payload_of_a_frame_without_data_is_empty():
    """Comments and other fields are not data, even if they contain the word."""
    assert payload_of(b": data: x\nevent: data: y\nretry: 5\ndatapoint: 3\n\n") == b""


def test_a_received_event_keeps_its_bytes():
    """Its JSON is the payload as received, and its frame is unchanged."""
    frame = b'data: { "type" : "x", "n":1.50 }\r\n\r\n'
    event = Event("x", frame)

    assert event.json == b'{ "type" : "x", "n":1.50 }'
    assert list(event.payloads()) == [event.json]
    assert event.sse is frame


def test_a_composed_event_is_an_event_line_a_data_line_and_a_blank_line():
    """Strict readers want both lines and the data on one."""
    event = Event("response.output_text.delta", data={"delta": "a\nb\r\u2028", "n": 1})

    assert event.json == '{"delta":"a\\nb\\r\u2028","n":1}'.encode()
    assert event.sse == 'event: response.output_text.delta\ndata: {"delta":"a\\nb\\r\u2028","n":1}\n\n'.encode()
    assert event.sse is event.sse
    assert parse_payload(payload_of(event.sse)) == event.data
    assert event.json == '{"delta":"a\\nb\\r\u2028","n":1}'.encode()


def test_a_lifecycle_event_carries_its_response():
    """`response` is the object inside."""
    event = Event("response.created", b'data: {"response":{"id":"resp_1"}}\n\n')

    assert event.response == {"id": "resp_1"}


@pytest.mark.parametrize("data", [{}, {"response": None}, {"response": "resp_1"}, {"response": []}])
def test_a_response_that_is_not_an_object_is_empty(data: dict):
    """Code that reads an event's response always reads an object."""
    assert Event("response.completed", data=data).response == {}


def test_an_event_and_a_run_show_their_content():
    """A failing test shows which one it was about."""
    assert repr(Event("x", b"data: {}\n\n")) == "Event('x', b'{}')"
    assert repr(Event("x", data={})) == "Event('x', b'{}')"
    assert repr(Run(b": ping\n\n")) == "Run(b': ping\\n\\n')"


@pytest.mark.parametrize("end", ENDS)
def test_a_run_has_the_payload_of_each_frame(end: bytes):
    """Comments, blank lines and empty data have none."""
    run = Run(b'\n: ping\n\ndata:\n\ndata: {"a":\ndata: 1}\n\n\n\nevent: x\ndata: {"b":2}\n\n'.replace(b"\n", end))

    assert run.type == ""
    assert list(run.payloads()) == [b'{"a":\n1}', b'{"b":2}']


@pytest.mark.parametrize("end", ENDS)
def test_frames_are_separated_by_blank_lines(end: bytes):
    """A last frame does not need one."""
    slice_ = b"\n\nid: 1\ndata: a\n\n\ndata: b\n\ndata: c".replace(b"\n", end)

    assert list(frames_of(slice_)) == [b"id: 1\ndata: a", b"data: b", b"data: c"]
    assert list(frames_of(b"")) == []


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
    """A status without a terminal event of its own is carried by `response.completed`."""
    assert terminal_type(status) == kind


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'"x"', b'{"a":NaN}'])
def test_a_body_that_is_not_an_object_is_a_value_error(body: bytes):
    """Only an object can pass as a response."""
    with pytest.raises(ValueError, match=r"."):
        parse_payload(body)


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (b'{"a":NaN,"b":[Infinity,-Infinity]}', {"a": None, "b": [None, None]}),
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        (rb'{"a":"\ud800"}', {"a": "?"}),
        (b'{"a":"tab\there"}', {"a": "tab\there"}),
        (b'{"a":1}', {"a": 1}),
    ],
)
def test_json_that_clients_read_is_read_although_it_is_not_valid(payload: bytes, data: object):
    """Python's, JavaScript's and Go's readers each accept some of it."""
    assert parse_leniently(payload) == data


@pytest.mark.parametrize(
    "payload", [b'{"a":NaN,"b":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":NaN', b"NaN", b"[DONE]", b"[NaN]"]
)
def test_what_no_client_reads_as_an_object_is_a_value_error(payload: bytes):
    """Too deep for every reader, cut off, or no object."""
    with pytest.raises(ValueError, match=r"."):
        parse_leniently(payload)


def test_every_terminal_event_is_followed():
    """The gateway must know when a stream ends; the sentinel is not an event."""
    assert TERMINALS < FOLLOWED
    assert "[DONE]" not in FOLLOWED


def test_replies_with_equal_fields_are_equal():
    """A reply is its status, headers, body and batches."""
    batches = iter(())

    assert Reply(200, {}, batches=batches) == Reply(200, {}, batches=batches)
    assert Reply(200, {}, b"{}") != Reply(200, {}, b"[]")


def test_a_reply_of_a_response_is_a_body():
    """It has no batches, and the object for those who need it parsed."""
    reply = response_reply({"id": "resp_1"}, {"x-a": "1"})

    assert reply == Reply(200, {"x-a": "1"}, b'{"id":"resp_1"}', None, {"id": "resp_1"})


def test_a_stop_has_a_reason_and_a_message():
    """The reason is for programs, the message for people."""
    stop = Stop("budget", "The budget is used up.")

    assert (stop.reason, stop.message, str(stop)) == ("budget", "The budget is used up.", "The budget is used up.")


def test_an_event_that_came_as_a_message_becomes_a_frame_when_that_is_needed():
    """Only one of the two forms is kept."""
    event = Event("a.b", payload=b'{"type": "a.b"}')

    assert (event.raw, event.received_bytes, event.data) == (event.json, 15, {"type": "a.b"})
    assert event.sse == event.raw == b'event: a.b\ndata: {"type": "a.b"}\n\n'
    assert [*event.payloads()] == [b'{"type": "a.b"}']
    assert repr(event) == """Event('a.b', b'{"type": "a.b"}')"""


def test_a_run_of_messages_has_both_forms():
    run = MessageRun(b'{"type":"a"}\n{"n":1}')

    assert ([*run.payloads()], run.received_bytes, run.type) == ([b'{"type":"a"}', b'{"n":1}'], 20, "")
    assert run.sse is run.sse
    assert run.sse == b'event: a\ndata: {"type":"a"}\n\ndata: {"n":1}\n\n'
    assert repr(run) == "MessageRun(" + repr(run.raw) + ")"


def test_a_message_is_one_frame():
    """Line ends in its JSON would end the frame."""
    assert frame_of("a.b", b'{"type":"a.b"}') == b'event: a.b\ndata: {"type":"a.b"}\n\n'
    assert frame_of("", b'{\r\n"a":\n1}\r') == b'data: {  "a": 1} \n\n'


LARGE = b'"' + b"a" * SMALL_BYTES + b'"'


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b'{"type":"response.created","a":1}', "response.created"),
        (b' \n{ "type" : "response.x" }', "response.x"),
        (b'{"a":1,"type":"response.x"}', "response.x"),
        (b'{"type":"response.\\u0078"}', "response.x"),
        (b'{"type":"response.x","a":%b}' % LARGE, "response.x"),
        (b'{"a":%b,"type":"response.x"}' % LARGE, ""),
        (b'{"type":7}', ""),
        (b'{"type":"a\\nb"}', ""),
        (b"[]", ""),
        (b"nonsense", ""),
    ],
)
def test_the_type_is_found_in_any_form(payload: bytes, kind: str):
    """Of a large message only where it is the first key."""
    assert event_type(payload) == kind


@pytest.mark.parametrize("count", [0, 1, 100, 2_000, 40_000])
def test_what_an_event_is_parsed_to_is_counted_as_any_text(count: int):
    """Short and long events alike; one that was composed counts from its encoding on."""
    event = Event("response.created", data={"type": "response.created", "values": [0] * count})
    before = event.count_parsed()
    frame = event.encode(0)

    assert (before, event.count_parsed()) == (0, parsed_size(frame, 10**6)[1] - len(frame))
    assert event.parsed_bytes == event.count_parsed()
