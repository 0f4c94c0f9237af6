"""The rules of a list of items: unique ids, calls with their outputs."""

from typing import Any

import pytest

from proxy.wire.errors import RequestError
from proxy.wire.pairing import check_items, without_cut_calls

CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "7"}
CUSTOM = {"type": "custom_tool_call", "call_id": "call_2", "name": "g", "input": "x"}
CUSTOM_OUTPUT = {"type": "custom_tool_call_output", "call_id": "call_2", "output": "y"}
CUT = CALL | {"status": "incomplete", "arguments": '{"a'}


@pytest.mark.parametrize(
    "items",
    [
        [],
        [CALL, OUTPUT, CUSTOM, CUSTOM_OUTPUT],
        [CALL, CUSTOM, CUSTOM_OUTPUT, OUTPUT],
        [CALL, OUTPUT, CALL | {"id": "fc_2"}, OUTPUT],
        [{"type": "computer_call", "call_id": "call_3"}],
        [{"type": "message"}, {"type": "message"}, {"id": 7}, {"id": 7}, {"type": "function_call"}],
    ],
)
def test_a_list_that_keeps_the_rules_passes(items: list[dict[str, Any]]):
    """Items without an id or a call_id break none."""
    check_items(items)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([CALL], "No tool output found for function call call_1."),
        ([CALL, CUSTOM, OUTPUT], "No tool output found for function call call_2."),
        ([OUTPUT], "No tool call found for function call output with call_id call_1."),
        ([OUTPUT, CALL], "No tool call found for function call output with call_id call_1."),
        ([CALL, OUTPUT, OUTPUT], "No tool call found for function call output with call_id call_1."),
        (
            [CALL, OUTPUT, CALL],
            "Duplicate item found with id fc_1. Remove duplicate items from your input and try again.",
        ),
    ],
)
def test_a_list_that_breaks_a_rule_is_refused(items: list[dict[str, Any]], message: str):
    """In the words of OpenAI."""
    with pytest.raises(RequestError) as caught:
        check_items(items)

    assert (caught.value.message, caught.value.status, caught.value.param) == (message, 400, "input")


@pytest.mark.parametrize(
    ("items", "left"), [([CUT], []), ([CUT, OUTPUT], [CUT, OUTPUT]), ([CALL, CUSTOM], [CALL, CUSTOM])]
)
def test_a_call_that_was_cut_off_is_left_out(items: list[dict[str, Any]], left: list[dict[str, Any]]):
    """Unless it has an output all the same."""
    assert without_cut_calls(items) == left
