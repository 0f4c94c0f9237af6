"""Tool calls in the syntax of Llama 3.x."""

import pytest

from backends.local.speech.llama import LLAMA
from backends.local.speech.segments import CustomCall, FunctionCall
from tests.backends.local.speech.parsing import TOOLS, call, parse


@pytest.mark.parametrize("before", ["", "\n\n", "<|python_tag|>", " <|python_tag|> \n"])
def test_a_whole_answer_may_be_a_call(before):
    """The tag is optional at the beginning."""
    assert [call("f", '{"a": 1}')] == parse(LLAMA, before + '{"name": "f", "parameters": {"a": 1}}')


def test_several_calls_are_found_in_a_row():
    """Semicolons, white space or the tag separate them."""
    one, two = '{"name": "f", "parameters": {}}', '{"name": "g", "parameters": {}}'

    assert [[call("f"), call("g")]] * 4 == [
        parse(LLAMA, one + between + two) for between in ("; ", ";\n", "\n", "<|python_tag|>")
    ]


def test_text_may_precede_a_tag_and_follow_a_call():
    """An object without a tag inside a text is part of the text."""
    call_object = '{"name": "f", "parameters": {}}'

    assert ["Wait.", call("f"), "Done."] == parse(LLAMA, f"Wait. <|python_tag|>{call_object} Done.")
    assert [f"Like {call_object}"] == parse(LLAMA, f"Like {call_object}")
    assert [call("f"), "; and more"] == parse(LLAMA, f"{call_object}; and more")


@pytest.mark.parametrize(
    "output",
    [
        '{"name": "f"}',
        '{"name": "Anna", "parameters": {}}',
        '{"name": "f", "parameters": [1]}',
        '{"name": "Anna", "age": 31, "city": "Oslo"}',
        '{"answer": 42}',
        '{"name": "f", "parameters": {"a": }}',
        "{",
        "",
        " ",
        '<|python_tag|>print("Hi")',
        '<|python_tag|>brave_search.call(query="Oslo")',
    ],
)
def test_an_invalid_call_is_text(output):
    """An answer in JSON, a program, an incomplete object."""
    assert ([output] if output else []) == parse(LLAMA, output)


def test_an_answer_in_json_is_streamed():
    """It is held back only until it cannot be a call."""
    parser = LLAMA.parser(TOOLS)

    assert [parser.feed(chunk) for chunk in ('{"answer', '": "this is ')] == [[], []]
    assert [text.text for text in parser.feed("what")] == ['{"answer": "this is what']
    assert [text.text for text in parser.feed(" it says")] == [" it says"]


def test_a_call_may_include_the_tool_type():
    """Some models of the family write it."""
    output = '{"type": "function", "name": "f", "parameters": {"a": 1}}'

    assert [call("f", '{"a":1}')] == parse(LLAMA, output)


def test_a_call_that_was_cut_off_is_incomplete():
    """It is text when the model ended by itself."""
    output = '{"name": "f", "parameters": {"a": "b'

    assert parse(LLAMA, output, truncated=True) == [FunctionCall("f", '{"a": "b', complete=False)]
    assert parse(LLAMA, output) == [output]


def test_a_custom_tool_gets_its_input():
    """In JSON, or verbatim after the tag."""
    output = '{"name": "note", "parameters": {"input": "a"}}'

    assert parse(LLAMA, output) == [CustomCall("note", "a")]
    assert parse(LLAMA, '<|python_tag|>{"name": "patch", "input":\n}; {') == [CustomCall("patch", "}; {")]
