"""Parameters of a request, and refusals of those that a local model cannot honour."""

import pytest

from backends.local.parameters import Parameters
from proxy.wire.errors import RequestError

DEFAULTS = Parameters(max_output_tokens=1000, temperature=0.0)


def test_a_request_that_says_nothing_gets_the_defaults():
    """So does one that says null."""
    nothing = dict.fromkeys(
        ("max_output_tokens", "temperature", "top_p", "background", "text", "tools", "instructions")
    )

    assert [DEFAULTS.asked({}), DEFAULTS.asked(nothing)] == [DEFAULTS, DEFAULTS]


def test_what_the_request_says_is_taken():
    asked = DEFAULTS.asked(
        {"max_output_tokens": 16, "temperature": 2, "top_p": 0.5, "text": {"format": {"type": "text"}}}
    )

    assert Parameters(16, 2.0, 0.5) == asked


def test_no_request_gets_more_tokens_than_configured():
    assert DEFAULTS.asked({"max_output_tokens": 10**30}) == DEFAULTS


@pytest.mark.parametrize(
    ("body", "param", "code", "told"),
    [
        (
            {"max_output_tokens": 10},
            "max_output_tokens",
            "integer_below_min_value",
            "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got 10 instead.",
        ),
        ({"max_output_tokens": True}, "max_output_tokens", "invalid_type", "but got a boolean instead"),
        ({"max_output_tokens": 20.0}, "max_output_tokens", "invalid_type", "but got a decimal instead"),
        ({"temperature": -0.1}, "temperature", "decimal_below_min_value", "Expected a value >= 0, but got -0.1"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value", "Expected a value <= 2, but got 2.1"),
        ({"temperature": "1"}, "temperature", "invalid_type", "but got a string instead"),
        ({"temperature": False}, "temperature", "invalid_type", "but got a boolean instead"),
        ({"top_p": 1.1}, "top_p", "decimal_above_max_value", "Expected a value <= 1, but got 1.1"),
        ({"top_p": [1]}, "top_p", "invalid_type", "but got an array instead"),
        ({"background": True}, "background", "unsupported_value", "a local model answers while the caller waits"),
        ({"background": "no"}, "background", "invalid_type", "expected a boolean, but got a string"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_value", "no stored prompts"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "unsupported_value", "cannot promise JSON"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format", "unsupported_value", "cannot promise JSON"),
        ({"text": {"format": "text"}}, "text.format", "invalid_type", "expected an object, but got a string"),
        ({"text": []}, "text", "invalid_type", "expected an object, but got an array"),
        ({"tools": {}}, "tools", "invalid_type", "expected an array of objects, but got an object"),
        ({"reasoning": "low"}, "reasoning", "invalid_type", "expected an object, but got a string"),
        ({"instructions": ["A"]}, "instructions", "invalid_type", "expected a string, but got an array"),
        ({"metadata": []}, "metadata", "invalid_type", "expected an object, but got an array"),
        ({"parallel_tool_calls": 0}, "parallel_tool_calls", "invalid_type", "expected a boolean, but got an integer"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(body, param, code, told):
    """The code is the protocol's own where it has one."""
    with pytest.raises(RequestError) as refused:
        DEFAULTS.asked(body)

    assert (param, code) == (refused.value.param, refused.value.code)
    assert told in refused.value.message
