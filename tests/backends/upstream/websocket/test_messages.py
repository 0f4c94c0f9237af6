"""Messages to and from an upstream in WebSocket mode."""

import json

import orjson
import pytest

from backends.upstream.refusals import MAX_REFUSAL_BYTES, MAX_REFUSAL_VALUES
from backends.upstream.scrub import Scrubber
from backends.upstream.websocket.messages import MessageReader, create_message, refusal_of, split_lane
from proxy.wire.call import Call
from proxy.wire.errors import BackendError
from proxy.wire.event import Event
from proxy.wire.sse import MAX_FRAME_VALUES


def test_a_message_has_the_fields_of_the_call_without_those_of_http():
    call = Call({"model": "m", "input": "Hi", "stream": True, "stream_options": {}, "background": False, "x": 1})

    assert orjson.loads(create_message(call, "a", generates=False)) == {
        "type": "response.create", "model": "m", "input": "Hi", "x": 1, "stream_id": "a", "generate": False,
    }  # fmt: skip
    assert orjson.loads(create_message(call, None, generates=True)) == {
        "type": "response.create", "model": "m", "input": "Hi", "x": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "rest", "lane"),
    [
        (b'{"type": "x"}', b'{"type": "x"}', None),
        (b'{"type": "x", "stream_id": "a"}', b'{"type": "x"}', "a"),
        (b' {"stream_id":"a", "type":"x"} ', b' {"type":"x"} ', "a"),
        (b'{"type": "x", "stream_id" : "a" , "n": 1}', b'{"type": "x", "n": 1}', "a"),
        (b'{"n":1,"stream_id":"a","type":"x"}', b'{"n":1,"type":"x"}', "a"),
        (b'{"type":"x","stream_id":"\\u0061"}', b'{"type":"x"}', "a"),
        (b'{"type":"x","metadata":{"stream_id":"b"},"stream_id":"a"}', b'{"type":"x","metadata":{"stream_id":"b"}}', "a"),
        (b'{"stream_id":"b","type":"x","stream_id":"a"}', b'{"type":"x"}', "a"),
        (b'{"type":"x","metadata":{"stream_id":"a"}}', b'{"type":"x","metadata":{"stream_id":"a"}}', None),
        (b'{"type":"x","metadata":{"a":1,"stream_id":"a"}}', b'{"type":"x","metadata":{"a":1,"stream_id":"a"}}', None),
        (b'{"type":"x","a":"\\"stream_id":"b"}', b'{"type":"x","a":"\\"stream_id":"b"}', None),
        (b'{"type":"x","stream_id":null}', b'{"type":"x","stream_id":null}', None),
        (b'{"type":"x","stream_id":', b'{"type":"x","stream_id":', None),
        (b'["stream_id"]', b'["stream_id"]', None),
    ],
)  # fmt: skip
def test_the_lane_is_taken_out_of_a_message(payload: bytes, rest: bytes, lane: str | None):
    """Only at the top level: the caller's metadata may have such a key too. The rest stays as it is where that can be."""
    assert split_lane(payload) == (rest, lane)


def reader(*followed: str, secret: str | None = None) -> MessageReader:
    return MessageReader(frozenset(followed), Scrubber(secret))


def type_last(event: dict[str, object]) -> bytes:
    return orjson.dumps({name: value for name, value in event.items() if name != "type"} | {"type": event["type"]})


DIALECTS = {
    "compact": orjson.dumps,
    "spaces": lambda event: json.dumps(event).encode(),
    "lines": lambda event: json.dumps(event, indent=1).replace("\n", "\r\n").encode(),
    "type last": type_last,
    "escapes": lambda event: orjson.dumps(event).replace(b"response.", b"r\\u0065sponse."),
}


@pytest.mark.parametrize("write", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("lanes", [(None,), ("a",), ("a", "b")], ids=str)
def test_followed_events_are_found_among_others_in_any_form(write, lanes):
    """What is between them is not parsed; a type inside an object or a text is none."""
    events: list[dict[str, object]] = [
        {"type": "response.created", "response": {"id": "r", "error": {"type": "error"}}},
        {"type": "response.output_text.delta", "delta": '"type":"response.completed"'},
        {"type": "x", "item": {"type": "response.created"}, "delta": "é"},
        {"type": "response.steer.accepted", "steer": {}}, {"type": "y"}, {"type": "z"},
        {"type": "response.completed", "response": {}}, {"type": "late"},
    ]  # fmt: skip
    named = [event | ({"stream_id": lane} if lane else {}) for event in events for lane in lanes]
    units = reader("x").read([write(event) for event in named])

    for lane in lanes:
        of_lane = [unit for name, unit in units if name == lane]
        read = [orjson.loads(payload) for unit in of_lane for payload in unit.payloads()]
        assert read == events
        assert [unit.type for unit in of_lane if isinstance(unit, Event)] == [
            "response.created", "x", "response.steer.accepted", "response.completed"
        ]  # fmt: skip
    if len(lanes) == 1:
        assert len(units) == 7


def test_a_secret_is_removed_from_events_and_from_what_is_between_them():
    payloads = [b'{"type":"%b","a":"sk-secret-1"}' % kind for kind in (b"a", b"error", b"b")]
    units = [unit for _, unit in reader(secret="sk-secret-1").read(payloads)]

    assert [unit.raw for unit in units] == [payload.replace(b"sk-secret-1", b"[redacted]") for payload in payloads]
    assert units[1].data == {"type": "error", "a": "[redacted]"}


@pytest.mark.parametrize(
    "payload",
    [b"[]", b"7", b"", b" ", b'{"a":"\xff"}', b'{"a":[%b]}' % b",".join([b"0"] * (MAX_FRAME_VALUES + 1))],
    ids=["array", "number", "empty", "space", "not UTF-8", "values"],
)
def test_what_is_no_message_is_refused(payload: bytes):
    """Neither is one whose parsing would take long."""
    for payloads in ([payload], [b"{}", payload], [payload, b"{}"]):
        with pytest.raises(BackendError) as refused:
            reader().read(payloads)
        assert refused.value.code == "upstream_invalid_response"


def test_an_error_beyond_the_limits_has_no_words():
    """It is not parsed."""
    assert refusal_of(b'{"status":429,"error":{"message":"%b"}}' % (b"a" * MAX_REFUSAL_BYTES))[0] == 502
    assert refusal_of(b'{"status":429,"error":[%b]}' % b",".join([b"0"] * (MAX_REFUSAL_VALUES + 1)))[0] == 502


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            {"status": 429, "error": {"code": "c", "headers": {"Retry-After": "1", "X": 2}}},
            (429, {"retry-after": "1"}, {"code": "c"}),
        ),
        ({"error": {"type": "invalid_request_error"}}, (400, {}, {"type": "invalid_request_error"})),
        ({"error": "No."}, (502, {}, {"code": None, "message": "No.", "param": None})),
        (
            {"type": "error", "code": "rate_limit_exceeded"},
            (429, {}, {"code": "rate_limit_exceeded", "message": None, "param": None}),
        ),
        ({"error": {"code": 503}}, (503, {}, {"code": 503})),
        ({"status": 200, "error": {"code": "c"}}, (502, {}, {"code": "c"})),
        ({"status": "400", "error": {"code": "c", "headers": []}}, (502, {}, {"code": "c"})),
        ({"code": "c", "message": "m"}, (502, {}, {"code": "c", "message": "m", "param": None})),
    ],
)
def test_an_error_is_a_status_headers_and_fields(message: dict, expected: tuple):
    assert refusal_of(orjson.dumps(message)) == expected
