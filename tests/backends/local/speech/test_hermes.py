"""Calls as the Hermes family writes them."""

import pytest
from hypothesis import given

from backends.local.speech.hermes import HERMES
from backends.local.speech.piece import CustomCall, FunctionCall
from tests.backends.local.speech.reading import NAMES, call, cut_everywhere, cuttings, read
from tests.patience import patience
from tests.shapes import PATIENT

WORDS = [
    "<tool_call>", "</tool_call>", "\n", " ", "Hi", '{"name": "f", "arguments": {"a": "</tool_call>"}}',
    '{"name": "no", "arguments": {}}', '{"name": "g"', "}", "{", '"', "<tool_", "call>", "\\",
    '{"name": "patch", "input":\n', '{"name": "note", "arguments": {"input": "a\\nb"}}',
]  # fmt: skip


def test_a_call_is_found_between_texts():
    """Text before and after a call is given without the white space around the call."""
    said = 'Wait.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n Done.'

    assert ["Wait.", call("f", '{"a": 1}'), "Done."] == read(HERMES, said)


def test_calls_follow_each_other():
    """Several calls in a row are several calls, and nothing between them."""
    said = '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>\n{"name": "g"}\n</tool_call>\n'

    assert [call("f"), call("g")] == read(HERMES, said)


@pytest.mark.parametrize(
    "said",
    [
        'a < b\n\n<tool <tool_call>{"name": "f", "arguments": {"x": "<"}}</tool_call>  <tool_call>no</tool_call> c\n',
        '<tool_call>{"name":"f","arguments":{}}</tool_call>\n<tool_call>{"name":"g"',
        'x <tool_call>\n{"name": "patch", "input":\n*** </tool_call>',
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_where_the_text_is_cut_changes_nothing(said, cut):
    """Cut at every place, at every two, and letter by letter, the same comes out."""
    whole = read(HERMES, said, cut=cut)

    assert [parts for parts in cut_everywhere(said) if read(HERMES, *parts, cut=cut) != whole] == []


@PATIENT
@given(cuttings(WORDS))
def test_no_cutting_of_any_text_changes_what_is_read(cutting):
    """Whatever a model says, with tags where they do not belong, and however it comes."""
    said, parts = cutting

    assert read(HERMES, said) == read(HERMES, *parts)
    assert read(HERMES, said, cut=True) == read(HERMES, *parts, cut=True)


def test_text_is_given_as_soon_as_it_cannot_be_a_call():
    """Only the end that may begin a tag is held back, and white space that may stand before one."""
    parser = HERMES.parser({"f": "function"})

    assert [[text.text for text in parser.feed(part)] for part in ("a ", "<b", " <tool", "s")] == [
        ["a"],
        [" <b"],
        [],
        [" <tools"],
    ]


def test_a_call_is_given_as_soon_as_its_object_is_whole():
    """Its last tag says nothing more."""
    parser = HERMES.parser({"f": "function"})

    assert parser.feed('<tool_call>\n{"name": "f", "arguments": {}') == []
    assert parser.feed("}") == [call("f")]
    assert parser.feed("\n</tool_call>") == []


@pytest.mark.parametrize(
    "inner",
    [
        '{"name": "f", "arguments": {"a": }}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "no JSON"}',
        '{"name": "unknown", "arguments": {}}',
        '{"name": "unknown", "arguments": "{}"}',
        '{"name": 1, "arguments": {}}',
        '{"name": 1, "arguments": "{}"}',
        '["f"]',
        '{"name": "f", "arguments": ' + '{"a": ' * 1100 + "1" + "}" * 1101,
        '{"name": "f", "arguments": {"a": "\\ud800"}}',
        '{"name": "f", "arguments": {"a": "raw\nline"}}',
        '{"name": "note", "arguments": {"input": 1}}',
        '{"name": "note", "arguments": {"input": "a", "b": 1}}',
        '{"name": "patch", "arguments": {"input": 5}}',
        "",
    ],
)
def test_what_is_no_call_is_given_as_text(inner):
    """Between the tags must stand a call of a function that was given; all else is text, tags included."""
    said = f"So: \n<tool_call>\n{inner}\n</tool_call>."

    assert [said] == read(HERMES, said)


def test_a_call_after_one_that_is_none_is_still_found():
    """A brace too few swallows nothing, and a tag in the place of an object begins anew."""
    good = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    broken = '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>'

    assert [broken, call("g"), "."] == read(HERMES, f"{broken} {good}.")
    assert ["<tool_call>", call("g")] == read(HERMES, f"<tool_call>{good}")


def test_tags_in_strings_are_part_of_the_string():
    """The end of an object is where its braces say, not where a tag is."""
    arguments = '{"x": "</tool_call>}\\" <tool_call>"}'

    assert [call("f", arguments)] == read(HERMES, f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>')


def test_arguments_are_given_as_they_were_written():
    """Numbers beyond 64 bits, too; only in an object of another order are they written anew."""
    big = '{"n": 123456789012345678901234567890,  "a":1}'

    assert [call("f", big)] == read(HERMES, f'<tool_call>{{"name": "f", "arguments": {big}}}')
    assert [call("f", '{"a":1}')] == read(HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}')
    assert [call("f", '{"a":1}')] == read(HERMES, '<tool_call>{"name": "f", "parameters": {"a": 1}, "id": {}}')


def test_arguments_may_be_json_in_a_string():
    """Some models write the arguments as a string that holds the object."""
    said = r'<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>'

    assert [call("f", '{"a": 1}')] == read(HERMES, said)


def test_a_custom_tool_gets_its_text():
    """To the model it is a function with one parameter."""
    said = '<tool_call>{"name": "note", "arguments": {"input": "a\\n\\"b\\""}}</tool_call>'

    assert [CustomCall("note", 'a\n"b"')] == read(HERMES, said)


def test_a_call_that_lacks_only_its_last_tag_is_one():
    """Models often end right after the object, or within the tag."""
    said = '<tool_call>\n{"name": "f", "arguments": {}}'

    assert [[call("f")]] * 3 == [read(HERMES, said + end) for end in ("", "\n</tool", " ")]


def test_half_a_call_of_a_model_that_ended_is_text():
    """It is given as it stands."""
    assert read(HERMES, '<tool_call>\n{"name": "f", "argu') == ['<tool_call>\n{"name": "f", "argu']


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ('{"name": "f", "arguments": {"a": "b', FunctionCall("f", '{"a": "b', whole=False)),
        ('{"name": "f", "arguments": {', FunctionCall("f", "{", whole=False)),
        ('{"name": "f", "arguments": {"a": 1}', FunctionCall("f", '{"a": 1}')),
        ('{"name": "note", "arguments": {"input": "a\\n\\"b\\', CustomCall("note", 'a\n"b', whole=False)),
        ('{"name": "note", "arguments": {"input": "\\ud83d', CustomCall("note", "", whole=False)),
        ('{"name": "note", "arguments": {"input": "x\\ud83d\\ude00', CustomCall("note", "x\U0001f600", whole=False)),
        ('{"name": "note", "arguments": {"input": "\\ude00 and more', CustomCall("note", "", whole=False)),
        ('{"name": "note", "arguments": {"inp', CustomCall("note", "", whole=False)),
        ('{"name": "note", "arguments": {"input": "a"}', CustomCall("note", "a")),
        ('{"name": "f", "arguments": ', None),
        ('{"name": "other", "arguments": {"a', None),
        ('{"name": "patch", "arguments": {"a', None),
        ('{"na', None),
        ("", None),
    ],
)
def test_half_a_call_of_a_model_that_was_stopped_is_half_a_call(inner, expected):
    """As soon as its name and the beginning of its arguments are known."""
    said = f"Wait. <tool_call>\n{inner}"

    assert read(HERMES, said, cut=True) == (["Wait.", expected] if expected else [said])


def test_white_space_is_kept_where_there_is_no_call():
    """Texts end as the model ended them."""
    assert [read(HERMES, "Hi.", " \n"), read(HERMES, " "), read(HERMES)] == [["Hi. \n"], [" "], []]


@pytest.mark.parametrize(
    "said",
    ["<tool_call>{" * 90_000, "<" * 1_000_000, '<tool_call>{"a": "' + "x" * 1_000_000, '<tool_call>{"' * 80_000],
)
def test_a_megabyte_of_anything_is_read_in_time(said):
    """In parts of some letters, as models write it; what is no call is text."""
    parser = HERMES.parser(NAMES)
    with patience():
        pieces = [text for start in range(0, len(said), 64) for text in parser.feed(said[start : start + 64])]
        pieces += parser.close(cut=True)

    assert "".join(text.text for text in pieces) == said
