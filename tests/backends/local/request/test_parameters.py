"""Parameters of a request: honoured, refused and ignored ones."""

import pytest

from backends.local.request.parameters import GenerationParameters, find_ignored
from proxy.wire.errors import RequestError

DEFAULTS = GenerationParameters(max_output_tokens=1000, temperature=0.0)


def test_a_request_without_parameters_gets_the_defaults():
    """So does one with nulls."""
    nulls = dict.fromkeys(("max_output_tokens", "temperature", "top_p", "background", "text", "tools", "instructions"))

    assert [DEFAULTS.override({}), DEFAULTS.override(nulls)] == [DEFAULTS, DEFAULTS]


def test_parameters_of_the_request_override_the_defaults():
    given = DEFAULTS.override({"max_output_tokens": 16, "temperature": 2, "top_p": 0.5})

    assert GenerationParameters(16, 2.0, 0.5) == given


def test_parameters_beyond_the_protocol_are_honoured():
    """`stop` may be one string or several."""
    given = DEFAULTS.override({"top_k": 7, "repetition_penalty": 1.1, "stop": "END", "truncation": "auto"})

    assert GenerationParameters(1000, 0.0, 1.0, 7, 1.1, None, ("END",), truncate=True) == given
    assert (
        DEFAULTS.override({"stop": ["a", "b"]}).stop_sequences,
        DEFAULTS.override({"stop": None}).stop_sequences,
    ) == (("a", "b"), ())


def test_logprobs_must_be_included():
    """Without the value in `include`, `top_logprobs` has no effect, as with OpenAI."""
    include = {"include": ["message.output_text.logprobs"]}
    bodies = [{}, {"top_logprobs": 3}, include, include | {"top_logprobs": 3}, {"include": ["else"]}]

    assert [DEFAULTS.override(body).top_logprobs for body in bodies] == [None, None, 0, 3, None]


def test_ignored_parameters_are_named():
    """Unknown ones and those that the model does not support, unless their value is neutral."""
    given = {"min_p": 0.1, "seed": 1, "service_tier": "flex", "vendor_thing": {"a": 1}, "text": {"verbosity": "low"}}
    reasoning = {"reasoning": {"effort": "high", "summary": "auto"}}
    nulls = {"model": "m", "input": "", "messages": None, "min_p": 0, "seed": None, "service_tier": "auto", "frequency_penalty": 0.0,
               "logit_bias": {}, "reasoning": {"effort": "none", "summary": None}, "text": {"format": None}}  # fmt: skip

    assert [*list(given)[:4], "text.verbosity"] == list(find_ignored(given, effort_supported=True))
    assert list(find_ignored(reasoning, effort_supported=False)) == ["reasoning.effort", "reasoning.summary"]
    assert list(find_ignored(nulls, effort_supported=False)) == []
    assert list(find_ignored({"reasoning": {"effort": "high"}}, effort_supported=True)) == []
    assert list(find_ignored({"include": ["a.b", "message.output_text.logprobs"]}, effort_supported=True)) == [
        "include.a.b"
    ]
    assert list(find_ignored({"top_logprobs": 3}, effort_supported=True)) == ["top_logprobs"]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"reasoning": {"generate_summary": "auto"}}, ["reasoning.generate_summary"]),
        ({"reasoning": {"effort": "low", "context": "all_turns", "mode": None}}, ["reasoning.context"]),
        ({"stream_options": {"include_obfuscation": True}}, ["stream_options.include_obfuscation"]),
        ({"stream_options": {"include_obfuscation": False}}, []),
        ({"stream_options": {"include_usage": True}}, ["stream_options.include_usage"]),
        ({"stream_options": None, "text": {"format": {"type": "text"}, "verbosity": "medium"}}, []),
        ({"stream_options": [1], "text": {"stop": ["a"]}}, ["text.stop"]),
    ],
)
def test_ignored_fields_of_parameters_are_named(body, names):
    """Of those that are objects: none has no effect in silence."""
    assert list(find_ignored(body, effort_supported=True)) == names


@pytest.mark.parametrize(
    ("body", "param", "code", "message"),
    [
        (
            {"max_output_tokens": 10},
            "max_output_tokens",
            "integer_below_min_value",
            "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got 10 instead.",
        ),
        ({"max_output_tokens": True}, "max_output_tokens", "invalid_type", "but got a boolean instead"),
        ({"max_output_tokens": 20.0}, "max_output_tokens", "invalid_type", "but got a decimal number instead"),
        ({"temperature": -0.1}, "temperature", "decimal_below_min_value", "Expected a value >= 0, but got -0.1"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value", "Expected a value <= 2, but got 2.1"),
        ({"temperature": "1"}, "temperature", "invalid_type", "but got a string instead"),
        ({"temperature": False}, "temperature", "invalid_type", "but got a boolean instead"),
        ({"top_p": 1.1}, "top_p", "decimal_above_max_value", "Expected a value <= 1, but got 1.1"),
        ({"top_p": [1]}, "top_p", "invalid_type", "but got an array instead"),
        ({"background": True}, "background", "unsupported_value", "a local model has no background jobs"),
        ({"background": "no"}, "background", "invalid_type", "expected a boolean, but got a string"),
        (
            {"messages": [{"role": "user", "content": "Hi"}]},
            "messages",
            "unsupported_parameter",
            "Unsupported parameter: 'messages'. In the Responses API, this parameter has moved to 'input'.",
        ),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter", "to 'text.format'"),
        ({"max_tokens": 9, "function_call": None}, "max_tokens", "unsupported_parameter", "to 'max_output_tokens'"),
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
def test_invalid_and_unsupported_parameters_are_refused(body, param, code, message):
    """With the protocol's code where it has one."""
    with pytest.raises(RequestError) as refused:
        DEFAULTS.override(body)

    assert (param, code) == (refused.value.param, refused.value.code)
    assert message in refused.value.message
