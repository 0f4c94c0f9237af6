"""Requests as prompts and options."""

import pytest

from backends.local.model import read_model
from backends.local.request import read_request
from backends.local.request.parameters import Parameters
from proxy.wire.errors import RequestError
from tests.backends.local.conftest import WEATHER
from tests.models import write_model

DEFAULTS = Parameters(max_output_tokens=100, temperature=0.5)


def test_a_request_becomes_a_prompt(model):
    """Rendered by the model's template, up to where it is to speak."""
    request = read_request({"input": "Hi", "instructions": "Be kind."}, model, DEFAULTS)
    text = "".join(map(model.tokens.decoder([], shows=model.tokens.controls), request.prompt))

    assert text == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert (request.options.max_tokens, request.options.temperature, request.options.top_p) == (100, 0.5, 1.0)
    assert (list(request.tools.given), request.tools.one_call, request.ignored) == ([], False, ())


def test_functions_are_part_of_the_prompt(model):
    """Unless tool_choice hides them."""
    body = {"input": "Hi", "tools": [WEATHER], "parallel_tool_calls": False}
    shown, hidden, without = (
        read_request(each, model, DEFAULTS) for each in (body, body | {"tool_choice": "none"}, {"input": "Hi"})
    )

    assert (list(shown.tools.kinds), shown.tools.one_call, list(hidden.tools.kinds)) == (["get_weather"], True, [])
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


def text_of(request, model):
    return "".join(map(model.tokens.decoder([], shows=model.tokens.controls), request.prompt))


def test_a_model_is_told_of_the_schema_that_holds_it(model):
    """At the end of what the system says, where it was trained to find it."""
    form = {"text": {"format": {"type": "json_object"}}}
    alone = read_request({"input": "Hi"} | form, model, DEFAULTS)
    beside = read_request({"input": "Hi", "instructions": "Be kind."} | form, model, DEFAULTS)

    assert text_of(alone, model).startswith("<|im_start|>system\nReply with a JSON object.<|im_end|>\n")
    assert text_of(beside, model).startswith("<|im_start|>system\nBe kind.\n\nReply with a JSON object.<|im_end|>\n")
    assert alone.options.grammar == beside.options.grammar != ""


def test_free_text_has_no_grammar(model):
    assert read_request({"input": "Hi"}, model, DEFAULTS).options.grammar == ""


def test_a_call_that_must_be_made_has_one(model):
    tools = {"tools": [WEATHER], "tool_choice": "required"}

    assert "get_weather" in read_request({"input": "Hi"} | tools, model, DEFAULTS).options.grammar


@pytest.mark.parametrize(
    ("more", "free"),
    [
        ({}, True), ({"parallel_tool_calls": False}, True), ({"tool_choice": "required"}, False),
        ({"tool_choice": {"type": "function", "name": "get_weather"}}, False),
        ({"text": {"format": {"type": "json_object"}}}, False),
    ],
)  # fmt: skip
def test_tools_that_may_be_called_leave_it_to_the_model_how_to_begin(model, more, free):
    options = read_request({"input": "Hi", "tools": [WEATHER]} | more, model, DEFAULTS).options

    assert (bool(options.grammar), options.free) == (True, free)


def test_a_long_conversation_loses_its_oldest_turns_when_it_may(model):
    """So much that the answer has room; else it is refused."""
    turns = [{"role": role, "content": f"{number} " * 40} for number in range(9) for role in ("user", "assistant")]
    asked = {"input": [*turns, {"role": "user", "content": "And now?"}], "instructions": "Be kind."}
    request = read_request(asked | {"truncation": "auto"}, model, DEFAULTS)

    assert (request.options.max_tokens, "Be kind." in text_of(request, model)) == (100, True)
    assert ("8 8" in text_of(request, model), "0 0" in text_of(request, model)) == (True, False)
    with pytest.raises(RequestError) as refused:
        read_request(asked, model, DEFAULTS)
    assert refused.value.code == "context_length_exceeded"


def test_a_prefix_is_shared_by_those_who_say_so(model):
    """Under one prompt_cache_key of one team; what the user says is not part of it."""
    asked = {"instructions": "Be kind to all people.", "prompt_cache_key": "a"}
    first, second = (read_request({"input": said} | asked, model, DEFAULTS, team="red") for said in ("Hi", "Ho ho"))
    without = read_request({"input": "Hi", "instructions": "Be kind."}, model, DEFAULTS, team="red")
    shared = first.options.prefix

    assert first.prompt[:shared] == second.prompt[:shared]
    assert (second.options.prefix, shared > 10, first.options.prefix_key) == (shared, True, "red\0a")
    assert (without.options.prefix, without.options.prefix_key) == (0, "red\0")


def test_what_is_left_out_is_told(model):
    """Fields by their name, tools by their place and type where the operator lets them pass."""
    asked = {"input": "Hi", "min_p": 0.1, "reasoning": {"effort": "low"}, "tools": [{"type": "web_search"}]}

    assert read_request(asked, model, DEFAULTS, ignore_unknown_tools=True).ignored == (
        "min_p", "reasoning.effort", "tools[0].web_search",
    )  # fmt: skip


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    """A model that thinks, with a template that can switch it off."""
    folder = write_model(tmp_path_factory.mktemp("thinking"), ["<think>", "</think>"])
    switch = (
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>{% else %}<think>\n{% endif %}"
    )
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().rstrip("\n") + switch)
    return read_model(folder)


@pytest.mark.parametrize(("effort", "begun"), [(None, True), ("none", False), ("high", True)])
def test_thinking_is_switched_off_where_the_template_can(thinking, effort, begun):
    """And the reader of the answer knows whether it begins within a thought."""
    request = read_request({"input": "Hi", "reasoning": {"effort": effort}}, thinking, DEFAULTS)

    assert (request.thought_begun, request.ignored) == (begun, ())


def test_an_effort_is_a_word(model):
    with pytest.raises(RequestError, match="expected a string"):
        read_request({"input": "Hi", "reasoning": {"effort": 1}}, model, DEFAULTS)


def test_an_effort_is_one_of_the_known_ones(model):
    with pytest.raises(RequestError, match="Invalid value: 'bogus'"):
        read_request({"input": "Hi", "reasoning": {"effort": "bogus"}}, model, DEFAULTS)


def test_what_is_not_done_is_not_echoed_as_if_it_were(model):
    """Penalties of the protocol are none of this engine's."""
    request = read_request({"input": "Hi", "frequency_penalty": 1.5}, model, DEFAULTS)

    assert (request.body["frequency_penalty"], request.ignored) == (0.0, ("frequency_penalty",))


def test_json_is_not_cut_by_a_stop(model):
    """It would not be the JSON that was promised; that the stop is left out is told."""
    asked = {"input": "Hi", "stop": "a"}
    free = read_request(asked, model, DEFAULTS)
    held = read_request(asked | {"text": {"format": {"type": "json_object"}}}, model, DEFAULTS)

    assert (free.stops, free.ignored) == (("a",), ())
    assert (held.stops, held.ignored) == ((), ("stop",))
