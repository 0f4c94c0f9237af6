"""Function calls in what a model of the Hermes family says."""

import pytest

from backends.local.hermes import FunctionCall, HermesParser

NAMES = frozenset({"f", "g"})


def parsed(*chunks: str) -> list[str | FunctionCall]:
    """What comes out, texts that follow each other as one."""
    parser = HermesParser(NAMES)
    found: list[str | FunctionCall] = []
    for chunk in chunks:
        found += parser.feed(chunk)
    joined: list[str | FunctionCall] = []
    for piece in [*found, *parser.close()]:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def test_a_call_is_found_between_texts():
    """Text before and after a call is given without the white space around the call."""
    said = 'Wait.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n Done.'

    assert ["Wait.", FunctionCall("f", '{"a":1}'), "Done."] == parsed(said)


def test_calls_follow_each_other():
    """Several calls in a row are several calls, and nothing between them."""
    said = '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>\n{"name": "g"}\n</tool_call>\n'

    assert [FunctionCall("f", "{}"), FunctionCall("g", "{}")] == parsed(said)


def test_where_the_text_is_cut_changes_nothing():
    """Cut at every place, and letter by letter, the same comes out."""
    said = 'a < b\n\n<tool <tool_call>{"name": "f", "arguments": {"x": "<"}}</tool_call>  <tool_call>no</tool_call> c\n'
    whole = ["a < b\n\n<tool", FunctionCall("f", '{"x":"<"}'), "<tool_call>no</tool_call> c\n"]

    assert [whole] * (len(said) + 2) == [
        parsed(said),
        *(parsed(said[:cut], said[cut:]) for cut in range(len(said))),
        parsed(*said),
    ]


def test_text_is_given_as_soon_as_it_cannot_be_a_call():
    """Only the end that may begin a tag is held back."""
    parser = HermesParser(NAMES)

    assert [parser.feed(text) for text in ("a ", "<b", " <tool", "s")] == [["a"], [" <b"], [], [" <tools"]]


@pytest.mark.parametrize(
    "inner",
    [
        '{"name": "f", "arguments": {"a": }}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "no JSON"}',
        '{"name": "unknown", "arguments": {}}',
        '{"name": 1, "arguments": {}}',
        '["f"]',
        '{"name": "f", "arguments": ' + '{"a": ' * 300 + "1" + "}" * 301,
        '{"name": "f", "arguments": {"a": "\\ud800"}}',
        "",
    ],
    ids=["broken", "array", "text", "unknown", "number", "no object", "too deep", "surrogate", "empty"],
)
def test_what_is_no_call_is_given_as_text(inner):
    """Between the tags must stand a call of a function that was given; all else is text, tags included."""
    said = f"So: \n<tool_call>\n{inner}\n</tool_call>."

    assert [said] == parsed(said)


def test_arguments_may_be_json_in_a_string():
    """Some models write the arguments as a string that holds the object."""
    assert [FunctionCall("f", '{"a":1}')] == parsed(r'<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>')


def test_a_call_that_lacks_only_its_last_tag_is_one():
    """Models often end right after the object."""
    assert [FunctionCall("f", "{}")] == parsed('<tool_call>\n{"name": "f", "arguments": {}}')


def test_a_call_that_was_cut_off_is_text():
    """Half a call is given as it stands."""
    assert parsed('<tool_call>\n{"name": "f", "argu') == ['<tool_call>\n{"name": "f", "argu']


def test_white_space_is_kept_where_there_is_no_call():
    """Texts end as the model ended them."""
    assert [parsed("Hi.", " \n"), parsed(" "), parsed()] == [["Hi. \n"], [" "], []]
