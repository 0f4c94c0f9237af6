"""Messages in WebSocket mode, and the frames that answer them."""

from typing import Any

import orjson
import pytest

from proxy.wire.client_message import (
    ClientMessage,
    call_headers,
    error_message,
    in_lane,
    lines_in_lane,
    parse_message,
    refusal_message,
)
from proxy.wire.errors import RequestError, Unavailable
from proxy.wire.event import Reply
from proxy.wire.side_message import SideMessage


def parse(**message: Any) -> ClientMessage:
    return parse_message(
        orjson.dumps(message), headers={"user-agent": "x"}, query="a=1", max_values=1000, needs_model=True
    )


def refusal(**message: Any) -> tuple[str | None, str | None]:
    found = parse(**message).refusal
    assert isinstance(found, RequestError)
    return found.code, found.param


def test_a_message_is_a_call_without_the_fields_of_its_own():
    message = parse(type="response.create", model="m", input="Hi", stream_id="a.B-1_", stream=False, metadata={})

    assert (message.type, message.stream_id, message.generates, message.refusal) == (
        "response.create", "a.B-1_", True, None,
    )  # fmt: skip
    assert message.call is not None
    assert message.call.body == {"model": "m", "input": "Hi", "stream": True, "metadata": {}}
    assert (message.call.headers, message.call.query) == ({"user-agent": "x"}, "a=1")


def test_a_call_may_want_no_output():
    message = parse(type="response.create", model="m", generate=False, stream_id=None, background=False)

    assert (message.generates, message.stream_id) == (False, None)
    assert message.call is not None
    assert message.call.body == {"model": "m", "stream": True}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "response.create"}, ("missing_required_parameter", "model")),
        ({"type": "response.create", "response": {"model": "m"}}, ("invalid_value", "response")),
        ({"type": "response.create", "model": "m", "background": True}, ("invalid_value", "background")),
        ({"type": "response.create", "model": "m", "stream": 1}, ("invalid_type", "stream")),
        ({"type": "response.create", "model": "m", "generate": "no"}, ("invalid_type", "generate")),
        ({"type": "response.create", "model": "m", "stream_id": ""}, ("invalid_stream_id", "stream_id")),
        ({"type": "response.create", "model": "m", "stream_id": "a" * 257}, ("invalid_stream_id", "stream_id")),
        ({"type": "response.create", "model": "m", "stream_id": "a\n"}, ("invalid_stream_id", "stream_id")),
        ({"type": "response.create", "model": "m", "stream_id": 1}, ("invalid_stream_id", "stream_id")),
        ({"type": "response.cancel"}, ("invalid_value", "type")),
        ({"type": ["response.create"]}, ("invalid_value", "type")),
        ({}, ("invalid_value", "type")),
    ],
)
def test_what_is_not_valid_is_refused(fields: dict[str, Any], expected: tuple[str, str]):
    assert refusal(**fields) == expected


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("responses_websockets=2026-02-06", None),
        ("a=1, responses_websockets=2026-02-06,b", "a=1, b"),
        ("a=1", "a=1"),
        (None, None),
    ],
)
def test_what_a_client_says_of_its_upgrade_is_no_header_of_its_calls(sent: str | None, kept: str | None):
    headers = call_headers(
        {"user-agent": "x", "idempotency-key": "k"} | ({} if sent is None else {"openai-beta": sent})
    )

    assert headers == {"user-agent": "x"} | ({} if kept is None else {"openai-beta": kept})


def test_a_refusal_knows_its_lane():
    """So that it waits for the turns before it."""
    assert parse(type="response.create", stream_id="a").stream_id == "a"


def test_a_steering_message_has_no_call():
    side = SideMessage("response.steer", "resp_1", "x")

    assert parse(type="response.steer", input="x", previous_response_id="resp_1") == ClientMessage(
        "response.steer", side=side
    )


def test_a_steering_message_has_no_call_to_remember():
    """Whatever is known of calls that are repeated."""
    message = parse(type="response.steer", input="x", previous_response_id="resp_1")
    message.remember()

    assert message.call is None


def test_an_error_has_a_status_and_a_code_that_is_a_string():
    plain = orjson.loads(error_message(RequestError("No."), {"X-A": "1", "Content-Type": "x"}))
    busy = orjson.loads(error_message(Unavailable("Busy.", code="server_shutdown"), {}))

    assert plain == {
        "type": "error", "status": 400,
        "error": {
            "message": "No.", "type": "invalid_request_error", "param": None, "code": "invalid_request_error",
            "headers": {"x-a": "1"},
        },
    }  # fmt: skip
    assert (busy["status"], busy["error"]["code"], busy["error"]["headers"]) == (
        503, "server_shutdown", {"retry-after": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error":{"message":"No.","code":"x"}}', "No.", "x"),
        (b'{"error":{"message":"No.","code":429}}', "No.", "429"),
        (b'{"error":{"message":"No.","code":"x","type":null,"param":7}}', "No.", "x"),
        (b'{"error":{"message":null,"code":"x"}}', "The upstream refused this call.", "x"),
        (b'{"error":"No."}', "No.", "upstream_error"),
        (b'{"detail":"No."}', "The upstream refused this call.", "upstream_error"),
        (b"[]", "The upstream refused this call.", "upstream_error"),
        (b"<html>", "The upstream refused this call.", "upstream_error"),
        (None, "The upstream refused this call.", "upstream_error"),
    ],
)
def test_a_refusal_of_an_upstream_has_every_field(body: bytes | None, message: str, code: str):
    found = orjson.loads(refusal_message(Reply(422, {"Retry-After": "1"}, body=body), {"x-request-id": "r"}))

    assert (found["type"], found["status"]) == ("error", 422)
    assert found["error"] == {
        "message": message, "type": "server_error", "param": None, "code": code,
        "headers": {"retry-after": "1", "x-request-id": "r"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "stream_id", "expected"),
    [
        (b'{"a":1}', None, b'{"a":1}'),
        (b'{"a":1} \n', "x", b'{"a":1,"stream_id":"x"}'),
        (b'{"a":"\xc3\xa9"}', None, b'{"a":"\xc3\xa9"}'),
        (b'{"a":"\xff"}', "x", b'{"a":"\xef\xbf\xbd","stream_id":"x"}'),
        (b"{}", "x", b'{"stream_id":"x"}'),
    ],
)
def test_an_event_names_its_lane_in_valid_utf_8(payload: bytes, stream_id: str | None, expected: bytes):
    assert in_lane(payload, stream_id) == expected


@pytest.mark.parametrize(
    "line", [b'{"a":1}', b'{"a":{}}', b'{"a":"}"}', b'{"a":1} ', b"{}", b'{"a":{ }}', b"{ }", b'{"a":[{"b":1}]}']
)
@pytest.mark.parametrize("lane", [None, "a"])
def test_lines_are_put_into_a_lane_as_messages_are(line: bytes, lane: str | None):
    lines = [b'{"x":1}', line, b'{"y":1}']
    for order in (lines, lines[::-1], lines[:2], [line]):
        assert lines_in_lane(b"\n".join(order), lane).split(b"\n") == [in_lane(each, lane) for each in order]
