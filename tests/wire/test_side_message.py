"""Steering and injected input as messages."""

from typing import Any

import orjson
import pytest

from proxy.wire.side_message import SideMessage

USER = {"role": "user", "content": "x"}


def of(**body: Any) -> SideMessage:
    return SideMessage.of(body)


@pytest.mark.parametrize(
    ("given", "items"),
    [
        ("x", [{"type": "message", **USER}]),
        ([USER], [USER]),
        ([{**USER, "type": "message", "content": [{"type": "input_file", "file_id": "f"}]}], ...),
        ("", None),
        ([], None),
        ([1], None),
        ([{**USER, "role": "developer"}], None),
        ([{**USER, "type": "reasoning"}], None),
        ([{**USER, "content": [{"type": "output_text"}]}], None),
        ([{**USER, "content": ["x"]}], None),
        ([{**USER, "content": None}], None),
        ({"role": "user"}, None),
    ],
)
def test_steering_has_messages_of_the_user(given: Any, items: Any):
    message = of(type="response.steer", previous_response_id="r", input=given)

    assert message.items == (given if items is ... else items)


def test_any_item_is_injected_but_no_text():
    item = {"type": "function_call_output", "call_id": "c", "output": "x"}

    assert of(type="response.inject", response_id="r", input=[item]).items == [item]
    assert of(type="response.inject", response_id="r", input="x").items is None


def test_a_message_is_encoded_with_the_items_that_have_passed():
    """Without fields that it does not have."""
    message = of(type="response.steer", previous_response_id="r", input="x", stream_id="a", model="m")

    assert orjson.loads(message.encode([USER], 0)) == {
        "type": "response.steer", "previous_response_id": "r", "input": [USER],
    }  # fmt: skip
    assert message.call({"a": "b"}, "q", 0).body == {"items": [{"type": "message", **USER}]}
    assert message.call({"a": "b"}, "q", 0).operation == "items"


def test_a_failure_gives_the_input_back():
    steer = of(type="response.steer", previous_response_id="r", input="x").failed("c", "m", 0)
    inject = of(type="response.inject", response_id="r", input=[USER]).failed("c", "m", 0)

    assert orjson.loads(steer) == {
        "type": "response.steer.failed", "sequence_number": 0, "steer": {"previous_response_id": "r", "input": "x"},
        "error": {"code": "c", "message": "m", "type": "invalid_request_error"},
    }  # fmt: skip
    assert orjson.loads(inject) == {
        "type": "response.inject.failed", "sequence_number": 0, "response_id": "r", "input": [USER],
        "error": {"code": "c", "message": "m"},
    }  # fmt: skip
