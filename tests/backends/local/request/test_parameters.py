"""Parameters of a request, and refusals of those that a local model cannot honour."""

import pytest

from backends.local.request.parameters import Parameters, ignored
from proxy.wire.errors import RequestError

DEFAULTS = Parameters(max_output_tokens=1000, temperature=0.0)


def test_a_request_that_says_nothing_gets_the_defaults():
    """So does one that says null."""
    nothing = dict.fromkeys(
        ("max_output_tokens", "temperature", "top_p", "background", "text", "tools", "instructions")
    )

    assert [DEFAULTS.asked({}), DEFAULTS.asked(nothing)] == [DEFAULTS, DEFAULTS]


def test_what_the_request_says_is_taken():
    asked = DEFAULTS.asked({"max_output_tokens": 16, "temperature": 2, "top_p": 0.5})

    assert Parameters(16, 2.0, 0.5) == asked


def test_what_local_engines_have_beyond_the_protocol_is_honoured():
    """One stop or several; a null among them says nothing."""
    asked = DEFAULTS.asked({"top_k": 7, "repetition_penalty": 1.1, "stop": "END", "truncation": "auto"})

    assert Parameters(1000, 0.0, 1.0, 7, 1.1, None, ("END",), truncates=True) == asked
    assert (DEFAULTS.asked({"stop": ["a", "b"]}).stops, DEFAULTS.asked({"stop": None}).stops) == (("a", "b"), ())


def test_logprobs_are_made_for_those_who_include_them():
    """Without the word in `include` their number says nothing, as with OpenAI."""
    include = {"include": ["message.output_text.logprobs"]}
    bodies = [{}, {"top_logprobs": 3}, include, include | {"top_logprobs": 3}, {"include": ["else"]}]

    assert [DEFAULTS.asked(body).top_logprobs for body in bodies] == [None, None, 0, 3, None]


def test_what_is_left_out_is_named():
    """Whatever nobody here reads, and what this model has not; never what asks for nothing."""
    asked = {"min_p": 0.1, "seed": 1, "service_tier": "flex", "vendor_thing": {"a": 1}, "text": {"verbosity": "low"}}
    thinking = {"reasoning": {"effort": "high", "summary": "auto"}}
    nothing = {"model": "m", "input": "", "min_p": 0, "seed": None, "service_tier": "auto", "frequency_penalty": 0.0,
               "logit_bias": {}, "reasoning": {"effort": "none", "summary": None}, "text": {"format": None}}  # fmt: skip

    assert [*list(asked)[:4], "text.verbosity"] == list(ignored(asked, reasons=True))
    assert list(ignored(thinking, reasons=False)) == ["reasoning.effort", "reasoning.summary"]
    assert list(ignored(nothing, reasons=False)) == []
    assert list(ignored({"reasoning": {"effort": "high"}}, reasons=True)) == []
    assert list(ignored({"include": ["a.b", "message.output_text.logprobs"]}, reasons=True)) == ["include.a.b"]
    assert list(ignored({"top_logprobs": 3}, reasons=True)) == ["top_logprobs"]


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
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type", "expected a string, but got an integer"),
        ({"prompt_cache_key": [None]}, "prompt_cache_key", "invalid_type", "expected a string, but got an array"),
        ({"safety_identifier": 0}, "safety_identifier", "invalid_type", "expected a string, but got an integer"),
        ({"max_tool_calls": {}}, "max_tool_calls", "invalid_type", "expected an integer, but got an object"),
        ({"frequency_penalty": "x"}, "frequency_penalty", "invalid_type", "expected a decimal, but got a string"),
        ({"presence_penalty": 3}, "presence_penalty", "decimal_above_max_value", "<= 2, but got 3"),
        ({"truncation": ""}, "truncation", "invalid_value", "Invalid value: ''"),
        ({"top_k": -1}, "top_k", "integer_below_min_value", "Expected a value >= 0, but got -1"),
        ({"top_k": 1.5}, "top_k", "invalid_type", "expected an integer, but got a decimal"),
        ({"repetition_penalty": 0}, "repetition_penalty", "decimal_below_min_value", ">= 0.01, but got 0"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value", "integer above maximum value"),
        ({"include": "all"}, "include", "invalid_type", "expected an array of strings, but got a string"),
        ({"include": [1]}, "include[0]", "invalid_type", "expected a string, but got an integer"),
        ({"stop": 1}, "stop", "invalid_type", "expected an array of strings, but got an integer"),
        ({"stop": ["a", None]}, "stop[1]", "invalid_type", "expected a string, but got null"),
        ({"stop": ""}, "stop", "invalid_value", "each has at least 1 character"),
        ({"stop": ["a"] * 17}, "stop", "array_above_max_length", "at most 16 strings, but got 17"),
        ({"truncation": "middle"}, "truncation", "invalid_value", "Invalid value: 'middle'"),
        ({"truncation": True}, "truncation", "invalid_type", "expected a string, but got a boolean"),
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
