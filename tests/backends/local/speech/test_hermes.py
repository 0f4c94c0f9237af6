"""Tool calls in the syntax of the Hermes family."""

import pytest

from backends.local.speech.hermes import HERMES
from backends.local.speech.segments import CustomCall, FunctionCall
from tests.backends.local.speech.parsing import TOOLS, call, parse
from tests.timeouts import fail_if_stuck


def test_a_call_is_found_between_texts():
    """The text before and after it is returned without the white space around the call."""
    output = 'Wait.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n Done.'

    assert ["Wait.", call("f", '{"a": 1}'), "Done."] == parse(HERMES, output)


def test_several_calls_are_found_in_a_row():
    """The white space between them is dropped."""
    output = '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>\n{"name": "g"}\n</tool_call>\n'

    assert [call("f"), call("g")] == parse(HERMES, output)


def test_text_is_returned_as_soon_as_it_cannot_be_a_call():
    """Only the end that may begin a tag is held back, and white space that may precede a tag."""
    parser = HERMES.parser({"f": "function"})

    assert [[text.text for text in parser.feed(chunk)] for chunk in ("a ", "<b", " <tool", "s")] == [
        ["a"],
        [" <b"],
        [],
        [" <tools"],
    ]


def test_a_call_is_returned_at_the_end_of_its_object():
    """The closing tag is not awaited."""
    parser = HERMES.parser({"f": "function"})

    assert parser.feed('<tool_call>\n{"name": "f", "arguments": {}') == []
    assert parser.feed("}") == [call("f")]
    assert parser.feed("\n</tool_call>") == []


@pytest.mark.parametrize(
    "content",
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
def test_an_invalid_call_is_returned_as_text(content):
    """Anything but a call of a known tool between the tags is text, tags included."""
    output = f"So: \n<tool_call>\n{content}\n</tool_call>."

    assert [output] == parse(HERMES, output)


def test_a_call_after_an_invalid_one_is_found():
    """A missing brace hides nothing that follows, and a tag in the place of an object opens another call."""
    good = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    broken = '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>'

    assert [broken, call("g"), "."] == parse(HERMES, f"{broken} {good}.")
    assert ["<tool_call>", call("g")] == parse(HERMES, f"<tool_call>{good}")


def test_tags_in_json_strings_do_not_end_a_call():
    """Braces decide where an object ends, not tags."""
    arguments = '{"x": "</tool_call>}\\" <tool_call>"}'

    assert [call("f", arguments)] == parse(HERMES, f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>')


def test_arguments_are_returned_as_they_were_written():
    """Numbers beyond 64 bits, too; they are serialised again only when the object has another key order."""
    big = '{"n": 123456789012345678901234567890,  "a":1}'

    assert [call("f", big)] == parse(HERMES, f'<tool_call>{{"name": "f", "arguments": {big}}}')
    assert [call("f", '{"a":1}')] == parse(HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}')
    assert [call("f", '{"a":1}')] == parse(HERMES, '<tool_call>{"name": "f", "parameters": {"a": 1}, "id": {}}')


def test_arguments_may_be_a_string_of_json():
    """Some models write the arguments as a string that contains the object."""
    output = r'<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>'

    assert [call("f", '{"a": 1}')] == parse(HERMES, output)


def test_a_custom_tool_gets_its_input():
    """The model calls it like a function with one parameter."""
    output = '<tool_call>{"name": "note", "arguments": {"input": "a\\n\\"b\\""}}</tool_call>'

    assert [CustomCall("note", 'a\n"b"')] == parse(HERMES, output)


def test_a_call_may_lack_its_closing_tag():
    """Models often end right after the object, or inside the tag."""
    output = '<tool_call>\n{"name": "f", "arguments": {}}'

    assert [[call("f")]] * 3 == [parse(HERMES, output + end) for end in ("", "\n</tool", " ")]


def test_an_incomplete_call_of_a_model_that_ended_is_text():
    """It is returned unchanged."""
    assert parse(HERMES, '<tool_call>\n{"name": "f", "argu') == ['<tool_call>\n{"name": "f", "argu']


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"name": "f", "arguments": {"a": "b', FunctionCall("f", '{"a": "b', complete=False)),
        ('{"name": "f", "arguments": {', FunctionCall("f", "{", complete=False)),
        ('{"name": "f", "arguments": {"a": 1}', FunctionCall("f", '{"a": 1}')),
        ('{"name": "note", "arguments": {"input": "a\\n\\"b\\', CustomCall("note", 'a\n"b', complete=False)),
        ('{"name": "note", "arguments": {"input": "\\ud83d', CustomCall("note", "", complete=False)),
        ('{"name": "note", "arguments": {"input": "x\\ud83d\\ude00', CustomCall("note", "x\U0001f600", complete=False)),
        ('{"name": "note", "arguments": {"input": "\\ude00 and more', CustomCall("note", "", complete=False)),
        ('{"name": "note", "arguments": {"inp', CustomCall("note", "", complete=False)),
        ('{"name": "note", "arguments": {"input": "a"}', CustomCall("note", "a")),
        ('{"name": "f", "arguments": ', None),
        ('{"name": "other", "arguments": {"a', None),
        ('{"name": "patch", "arguments": {"a', None),
        ('{"na', None),
        ("", None),
    ],
)
def test_a_call_cut_off_by_the_token_limit_is_incomplete(content, expected):
    """Once its name and the beginning of its arguments are known; before that it is text."""
    output = f"Wait. <tool_call>\n{content}"

    assert parse(HERMES, output, truncated=True) == (["Wait.", expected] if expected else [output])


def test_white_space_is_kept_without_a_call():
    """The end of a text is not stripped."""
    assert [parse(HERMES, "Hi.", " \n"), parse(HERMES, " "), parse(HERMES)] == [["Hi. \n"], [" "], []]


@pytest.mark.parametrize(
    "output",
    ["<tool_call>{" * 90_000, "<" * 1_000_000, '<tool_call>{"a": "' + "x" * 1_000_000, '<tool_call>{"' * 80_000],
)
def test_a_megabyte_of_any_output_is_parsed_in_time(output):
    """In short chunks, as models generate it; an invalid call is text."""
    parser = HERMES.parser(TOOLS)
    with fail_if_stuck():
        segments = [text for start in range(0, len(output), 64) for text in parser.feed(output[start : start + 64])]
        segments += parser.close(truncated=True)

    assert "".join(text.text for text in segments) == output
