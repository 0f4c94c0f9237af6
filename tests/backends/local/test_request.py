"""Requests as prompts and options."""

import pytest

from backends.local.parameters import Parameters
from backends.local.request import read_request
from proxy.wire.errors import RequestError
from tests.backends.local.conftest import WEATHER

DEFAULTS = Parameters(max_output_tokens=100, temperature=0.5)


def test_a_request_becomes_a_prompt(model):
    """Rendered by the model's template, up to where it is to speak."""
    request = read_request({"input": "Hi", "instructions": "Be kind."}, model, DEFAULTS)
    text = "".join(map(model.tokens.decoder([], shows=model.tokens.controls), request.prompt))

    assert text == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert (request.options.max_tokens, request.options.temperature, request.options.top_p) == (100, 0.5, 1.0)
    assert (frozenset(), False) == (request.functions, request.one_call)


def test_functions_are_part_of_the_prompt(model):
    """Unless tool_choice hides them."""
    body = {"input": "Hi", "tools": [WEATHER], "parallel_tool_calls": False}
    shown, hidden, without = (
        read_request(each, model, DEFAULTS) for each in (body, body | {"tool_choice": "none"}, {"input": "Hi"})
    )

    assert (frozenset({"get_weather"}), True, frozenset()) == (shown.functions, shown.one_call, hidden.functions)
    assert len(shown.prompt) > len(hidden.prompt) == len(without.prompt)


def test_an_answer_may_fill_what_the_prompt_leaves_of_the_context(model):
    """No more, whatever was asked for."""
    request = read_request({"input": "Hi", "max_output_tokens": 10_000}, model, Parameters(10_000, 0.0))

    assert model.context_length == len(request.prompt) + request.options.max_tokens


def test_the_echo_says_what_was_used(model):
    """Where the request said nothing, or null."""
    told = read_request({"input": "Hi", "text": {"format": None, "verbosity": "low"}}, model, DEFAULTS).body
    asked = read_request({"input": "Hi", "temperature": 1, "top_p": 0.9}, model, DEFAULTS).body

    assert (told["temperature"], told["top_p"], told["text"]) == (0.5, 1.0, {"verbosity": "low"})
    assert (asked["temperature"], asked["top_p"]) == (1.0, 0.9)


@pytest.mark.parametrize("body", [{}, {"input": "Hi", "temperature": 3}, {"input": "Hi", "tools": [{"type": "mcp"}]}])
def test_what_cannot_be_done_is_refused(model, body):
    with pytest.raises(RequestError):
        read_request(body, model, DEFAULTS)
