"""Calls as Llama 3.x writes them."""

import pytest
from hypothesis import given

from backends.local.speech.llama import LLAMA
from backends.local.speech.piece import CustomCall, FunctionCall
from tests.backends.local.speech.reading import NAMES, call, cut_everywhere, cuttings, read
from tests.shapes import PATIENT

WORDS = [
    "<|python_tag|>", "; ", ";", "\n", " ", "Hi", '{"name": "f", "parameters": {"a": "; {"}}', "{}", '{"x": [1]}',
    '{"name": "no", "parameters": {}}', '{"name": "g"', "}", "{", '"', "<|python", "_tag|>", "\\", "name",
    '{"name": "patch", "input":\n', '{"type": "function", "name": "g", "parameters": {}}',
]  # fmt: skip


@pytest.mark.parametrize("before", ["", "\n\n", "<|python_tag|>", " <|python_tag|> \n"])
def test_an_answer_may_be_a_call(before):
    """With or without the tag."""
    assert [call("f", '{"a": 1}')] == read(LLAMA, before + '{"name": "f", "parameters": {"a": 1}}')


def test_calls_follow_each_other():
    """With semicolons, white space or the tag between them."""
    one, two = '{"name": "f", "parameters": {}}', '{"name": "g", "parameters": {}}'

    assert [[call("f"), call("g")]] * 4 == [
        read(LLAMA, one + between + two) for between in ("; ", ";\n", "\n", "<|python_tag|>")
    ]


def test_text_may_come_before_a_tag_and_after_a_call():
    """But an object without a tag within a text is part of the text."""
    object_ = '{"name": "f", "parameters": {}}'

    assert ["Wait.", call("f"), "Done."] == read(LLAMA, f"Wait. <|python_tag|>{object_} Done.")
    assert [f"Like {object_}"] == read(LLAMA, f"Like {object_}")
    assert [call("f"), "; and more"] == read(LLAMA, f"{object_}; and more")


@pytest.mark.parametrize(
    "said",
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
def test_what_is_no_call_is_text(said):
    """An answer in JSON, a program, half an object."""
    assert ([said] if said else []) == read(LLAMA, said)


def test_an_answer_in_json_is_not_held_back():
    """As soon as it cannot be a call."""
    parser = LLAMA.parser(NAMES)

    assert [parser.feed(part) for part in ('{"answer', '": "this is ')] == [[], []]
    assert [text.text for text in parser.feed("what")] == ['{"answer": "this is what']
    assert [text.text for text in parser.feed(" it says")] == [" it says"]


def test_a_call_may_say_that_it_is_of_a_function():
    """Some models of the family add the type of the tool."""
    said = '{"type": "function", "name": "f", "parameters": {"a": 1}}'

    assert [call("f", '{"a":1}')] == read(LLAMA, said)


def test_a_call_that_was_cut_off_is_half_a_call():
    """And text where the model ended by itself."""
    said = '{"name": "f", "parameters": {"a": "b'

    assert read(LLAMA, said, cut=True) == [FunctionCall("f", '{"a": "b', whole=False)]
    assert read(LLAMA, said) == [said]


def test_a_custom_tool_gets_its_text():
    """As JSON; or as it stands, after the tag."""
    said = '{"name": "note", "parameters": {"input": "a"}}'

    assert read(LLAMA, said) == [CustomCall("note", "a")]
    assert read(LLAMA, '<|python_tag|>{"name": "patch", "input":\n}; {') == [CustomCall("patch", "}; {")]


@pytest.mark.parametrize(
    "said",
    [
        '{"name":"f","parameters":{}}; {"name":"g","parameters":{}} <|python_tag|>no',
        'x <|python_tag|>{"name": "g", "parameters": {"a": "',
        '{"a": "what is said here, is it JSON?"} more',
        '\n{"name": "unknown", "parameters": {}}; {}',
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_where_the_text_is_cut_changes_nothing(said, cut):
    """Cut at every place, at every two, and letter by letter, the same comes out."""
    whole = read(LLAMA, said, cut=cut)

    assert [parts for parts in cut_everywhere(said) if read(LLAMA, *parts, cut=cut) != whole] == []


@PATIENT
@given(cuttings(WORDS))
def test_no_cutting_of_any_text_changes_what_is_read(cutting):
    """Whatever a model says, with tags where they do not belong, and however it comes."""
    said, parts = cutting

    assert read(LLAMA, said) == read(LLAMA, *parts)
    assert read(LLAMA, said, cut=True) == read(LLAMA, *parts, cut=True)
