"""Messages to and from an upstream in WebSocket mode."""

import orjson
import pytest

from backends.upstream.refusals import MAX_REFUSAL_BYTES, MAX_REFUSAL_VALUES
from backends.upstream.websocket.messages import (
    SMALL_BYTES,
    create_message,
    event_type,
    read_message,
    refusal_of,
    split_lane,
    sse_frame,
)
from proxy.wire.call import Call
from proxy.wire.errors import BackendError
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
        (b'{"type": "x", "stream_id": "a"}', b'{"type":"x"}', "a"),
        (b'{"type":"x","metadata":{"stream_id":"a"}}', b'{"type":"x","metadata":{"stream_id":"a"}}', None),
        (b'{"type":"x","stream_id":null}', b'{"type":"x","stream_id":null}', None),
        (b'{"type":"x","stream_id":', b'{"type":"x","stream_id":', None),
        (b'["stream_id"]', b'["stream_id"]', None),
    ],
)
def test_the_lane_is_taken_out_of_a_message(payload: bytes, rest: bytes, lane: str | None):
    """Only at the top level: the caller's metadata may have such a key too."""
    assert split_lane(payload) == (rest, lane)


LARGE = b'"' + b"a" * SMALL_BYTES + b'"'


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b'{"type":"response.created","a":1}', "response.created"),
        (b' \n{ "type" : "response.x" }', "response.x"),
        (b'{"a":1,"type":"response.x"}', "response.x"),
        (b'{"type":"response.\\u0078"}', "response.x"),
        (b'{"a":%b,"type":"response.output_text.delta"}' % LARGE, ""),
        (b'{"a":%b,"type":"response.completed"}' % LARGE, "response.completed"),
        (b'{"item":{"type":"error","a":%b},"type":"response.x"}' % LARGE, "response.x"),
        (b'{"type":7}', ""),
        (b'{"type":"a\\nb"}', ""),
        (b"[]", ""),
        (b"nonsense", ""),
    ],
)
def test_the_type_is_found_in_any_form(payload: bytes, kind: str):
    assert event_type(payload) == kind


@pytest.mark.parametrize("payload", [b"[]", b"7", b"", b'{"a":[%b]}' % b",".join([b"0"] * (MAX_FRAME_VALUES + 1))])
def test_what_is_no_message_is_refused(payload: bytes):
    """Neither is one whose parsing would take long."""
    with pytest.raises(BackendError) as refused:
        read_message(payload, bytes)

    assert refused.value.code == "upstream_invalid_response"


def test_an_error_beyond_the_limits_has_no_words():
    """It is not parsed."""
    assert refusal_of(b'{"status":429,"error":{"message":"%b"}}' % (b"a" * MAX_REFUSAL_BYTES))[0] == 502
    assert refusal_of(b'{"status":429,"error":[%b]}' % b",".join([b"0"] * (MAX_REFUSAL_VALUES + 1)))[0] == 502


def test_a_message_is_one_frame():
    """Line ends in its JSON would end the frame."""
    assert sse_frame("a.b", b'{"type":"a.b"}') == b'event: a.b\ndata: {"type":"a.b"}\n\n'
    assert sse_frame("", b'{\r\n"a":\n1}\r') == b'data: {  "a": 1} \n\n'


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            {"status": 429, "error": {"code": "c", "headers": {"Retry-After": "1", "X": 2}}},
            (429, {"retry-after": "1"}, {"code": "c"}),
        ),
        ({"error": {"type": "invalid_request_error"}}, (400, {}, {"type": "invalid_request_error"})),
        ({"status": 200, "error": {"code": "c"}}, (502, {}, {"code": "c"})),
        ({"status": "400", "error": {"code": "c", "headers": []}}, (502, {}, {"code": "c"})),
        ({"code": "c", "message": "m"}, (502, {}, {"code": "c", "message": "m", "param": None})),
    ],
)
def test_an_error_is_a_status_headers_and_fields(message: dict, expected: tuple):
    assert refusal_of(orjson.dumps(message)) == expected
