"""Requests as prompts and options of the engine."""

import pytest

from backends.local.model import read_model
from backends.local.request import read_request
from backends.local.request.parameters import GenerationParameters
from proxy.wire.errors import RequestError
from tests.backends.local.conftest import WEATHER
from tests.models import write_model

DEFAULTS = GenerationParameters(max_output_tokens=100, temperature=0.5)


def test_a_request_becomes_a_prompt(model):
    """Rendered by the model's template, up to the assistant's answer."""
    request = read_request({"input": "Hi", "instructions": "Be kind."}, model, DEFAULTS)
    text = "".join(map(model.tokenizer.build_detokenizer([], visible=model.tokenizer.control_tokens), request.prompt))

    assert text == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert (request.options.max_tokens, request.options.temperature, request.options.top_p) == (100, 0.5, 1.0)
    assert (list(request.tools.tools), request.tools.one_call, request.ignored) == ([], False, ())


def test_tools_are_part_of_the_prompt(model):
    """Unless `tool_choice` is none."""
    body = {"input": "Hi", "tools": [WEATHER], "parallel_tool_calls": False}
    shown, hidden, without = (
        read_request(each, model, DEFAULTS) for each in (body, body | {"tool_choice": "none"}, {"input": "Hi"})
    )

    assert (list(shown.tools.kinds), shown.tools.one_call, list(hidden.tools.kinds)) == (["get_weather"], True, [])
    assert len(shown.prompt) > len(hidden.prompt) == len(without.prompt)


def test_an_answer_may_fill_the_rest_of_the_context(model):
    """No more, whatever the request allows."""
    request = read_request({"input": "Hi", "max_output_tokens": 10_000}, model, GenerationParameters(10_000, 0.0))

    assert model.context_length == len(request.prompt) + request.options.max_tokens


def test_the_echo_contains_the_values_that_were_used(model):
    """In place of absent ones and nulls."""
    defaults = read_request({"input": "Hi", "text": {"format": None, "verbosity": "low"}}, model, DEFAULTS).body
    given = read_request({"input": "Hi", "temperature": 1, "top_p": 0.9}, model, DEFAULTS).body

    assert (defaults["temperature"], defaults["top_p"], defaults["text"]) == (0.5, 1.0, {"verbosity": "low"})
    assert (given["temperature"], given["top_p"]) == (1.0, 0.9)


@pytest.mark.parametrize("body", [{}, {"input": "Hi", "temperature": 3}, {"input": "Hi", "tools": [{"type": "mcp"}]}])
def test_an_unsupported_request_is_refused(model, body):
    with pytest.raises(RequestError):
        read_request(body, model, DEFAULTS)


def text_of(request, model):
    return "".join(map(model.tokenizer.build_detokenizer([], visible=model.tokenizer.control_tokens), request.prompt))


def test_the_format_is_described_at_the_end_of_the_system_message(model):
    """The model is trained to find it there."""
    text_format = {"text": {"format": {"type": "json_object"}}}
    alone = read_request({"input": "Hi"} | text_format, model, DEFAULTS)
    beside = read_request({"input": "Hi", "instructions": "Be kind."} | text_format, model, DEFAULTS)

    assert text_of(alone, model).startswith("<|im_start|>system\nReply with a JSON object.<|im_end|>\n")
    assert text_of(beside, model).startswith("<|im_start|>system\nBe kind.\n\nReply with a JSON object.<|im_end|>\n")
    assert alone.options.grammar == beside.options.grammar != ""


def test_free_text_has_no_grammar(model):
    assert read_request({"input": "Hi"}, model, DEFAULTS).options.grammar == ""


def test_a_required_call_has_a_grammar(model):
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
def test_optional_tools_leave_the_beginning_of_the_answer_free(model, more, free):
    options = read_request({"input": "Hi", "tools": [WEATHER]} | more, model, DEFAULTS).options

    assert (bool(options.grammar), options.allows_free_text) == (True, free)


def test_a_long_conversation_is_truncated_if_allowed(model):
    """So far that the answer has room; otherwise it is refused."""
    turns = [{"role": role, "content": f"{number} " * 40} for number in range(9) for role in ("user", "assistant")]
    given = {"input": [*turns, {"role": "user", "content": "And now?"}], "instructions": "Be kind."}
    request = read_request(given | {"truncation": "auto"}, model, DEFAULTS)

    assert (request.options.max_tokens, "Be kind." in text_of(request, model)) == (100, True)
    assert ("8 8" in text_of(request, model), "0 0" in text_of(request, model)) == (True, False)
    with pytest.raises(RequestError) as refused:
        read_request(given, model, DEFAULTS)
    assert refused.value.code == "context_length_exceeded"


def test_requests_with_one_cache_key_share_a_prefix(model):
    """Under one `prompt_cache_key` of one team; user messages are not part of it."""
    given = {"instructions": "Be kind to all people.", "prompt_cache_key": "a"}
    first, second = (read_request({"input": text} | given, model, DEFAULTS, team="red") for text in ("Hi", "Ho ho"))
    without = read_request({"input": "Hi", "instructions": "Be kind."}, model, DEFAULTS, team="red")
    shared = first.options.prefix_tokens

    assert first.prompt[:shared] == second.prompt[:shared]
    assert (second.options.prefix_tokens, shared > 10, first.options.prefix_key) == (shared, True, "red\0a")
    assert (without.options.prefix_tokens, without.options.prefix_key) == (0, "red\0")


def test_ignored_parameters_and_tools_are_listed(model):
    """Parameters by name, tools by their place and type if the operator allows to ignore them."""
    given = {"input": "Hi", "min_p": 0.1, "reasoning": {"effort": "low"}, "tools": [{"type": "web_search"}]}

    assert read_request(given, model, DEFAULTS, ignore_unknown_tools=True).ignored == (
        "min_p", "reasoning.effort", "tools[0].web_search",
    )  # fmt: skip


@pytest.fixture(scope="module")
def reasoning_model(tmp_path_factory):
    """A model that reasons, with a template that can disable it."""
    folder = write_model(tmp_path_factory.mktemp("reasoning"), ["<think>", "</think>"])
    switch = (
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>{% else %}<think>\n{% endif %}"
    )
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().rstrip("\n") + switch)
    return read_model(folder)


@pytest.mark.parametrize(("effort", "is_open"), [(None, True), ("none", False), ("high", True)])
def test_reasoning_is_disabled_if_the_template_supports_it(reasoning_model, effort, is_open):
    """The parser of the answer learns whether the prompt opens the reasoning."""
    request = read_request({"input": "Hi", "reasoning": {"effort": effort}}, reasoning_model, DEFAULTS)

    assert (request.reasoning_open, request.ignored) == (is_open, ())


def test_an_effort_must_be_a_string(model):
    with pytest.raises(RequestError, match="expected a string"):
        read_request({"input": "Hi", "reasoning": {"effort": 1}}, model, DEFAULTS)


def test_an_unknown_effort_is_refused(model):
    with pytest.raises(RequestError, match="Invalid value: 'bogus'"):
        read_request({"input": "Hi", "reasoning": {"effort": "bogus"}}, model, DEFAULTS)


def test_ignored_values_are_not_echoed(model):
    """This engine does not support the protocol's penalties."""
    request = read_request({"input": "Hi", "frequency_penalty": 1.5}, model, DEFAULTS)

    assert (request.body["frequency_penalty"], request.ignored) == (0.0, ("frequency_penalty",))


def test_json_is_not_cut_at_a_stop_sequence(model):
    """It would become invalid; the ignored parameter is listed."""
    given = {"input": "Hi", "stop": "a"}
    free = read_request(given, model, DEFAULTS)
    json = read_request(given | {"text": {"format": {"type": "json_object"}}}, model, DEFAULTS)

    assert (free.stop_sequences, free.ignored) == (("a",), ())
    assert (json.stop_sequences, json.ignored) == ((), ("stop",))


@pytest.mark.parametrize(
    ("more", "at_once"),
    [
        ({}, False),
        ({"stream": False, "parallel_tool_calls": True}, False),
        ({"stream": True}, True),
        ({"stop": "END"}, True),
        ({"stop": "END", "text": {"format": {"type": "json_object"}}}, False),
        ({"tools": [WEATHER], "parallel_tool_calls": False}, True),
    ],
)
def test_tokens_are_delivered_at_once_where_one_of_them_may_matter(model, more, at_once):
    """To a client that reads a stream, or to the parser that ends the answer."""
    assert read_request({"input": "Hi"} | more, model, DEFAULTS).options.delivers_at_once is at_once
