"""Tool calls in the syntax of Mistral's models."""

import pytest

from backends.local.speech.mistral import MISTRAL, MISTRAL_V11
from backends.local.speech.segments import CustomCall, FunctionCall
from tests.backends.local.speech.parsing import call, parse

BOTH = [MISTRAL, MISTRAL_V11]


@pytest.mark.parametrize("tool_format", BOTH)
@pytest.mark.parametrize(
    "output",
    [
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        '[TOOL_CALLS] [ {"name": "f", "arguments": {"a": 1}} , {"name": "g", "arguments": {}}',
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "abc123def"},{"name": "g"}]',
        '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}',
        '[TOOL_CALLS]f{"a": 1}\n[TOOL_CALLS]g{}',
        '[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]abc123deg[ARGS]{}',
    ],
)
def test_both_syntaxes_are_parsed(tool_format, output):
    """Regardless of the tokenizer's version, because some models mix them."""
    calls = parse(tool_format, f"Wait. {output} ")
    arguments = calls[1].arguments.replace(" ", "")

    assert ["Wait.", FunctionCall("f", '{"a":1}'), call("g")] == [calls[0], call("f", arguments), *calls[2:]]


@pytest.mark.parametrize(
    "output",
    [
        "[TOOL_CALLS]",
        "[TOOL_CALLS][",
        "[TOOL_CALLS]f",
        "[TOOL_CALLS]f and g",
        "[TOOL_CALLS]f[ARGS]",
        "[TOOL_CALLS]f[NONE]{}",
        "[TOOL_CALLS]unknown[ARGS]{}",
        "[TOOL_CALLS]f[ARGS][1]",
        '[TOOL_CALLS]f[ARGS]{"a": }',
        '[TOOL_CALLS][{"name": "unknown", "arguments": {}}]',
        "[TOOL_CALLS][1, 2]",
        "[TOOL_CALLS]" + "f" * 200 + "{}",
        '[TOOL_CALLS]note[ARGS]{"text": "a"}',
        "[TOOL",
    ],
)
def test_an_invalid_call_is_text(output):
    """Its tags are kept."""
    assert parse(MISTRAL_V11, f"So: {output}") == [f"So: {output}"]


def test_a_list_continues_with_a_call_or_ends():
    """Anything else in it, and what follows it, is text."""
    good = '{"name": "f", "arguments": {}}'

    assert parse(MISTRAL, f"[TOOL_CALLS][{good}] Done.") == [call("f"), "Done."]
    assert parse(MISTRAL, f"[TOOL_CALLS][{good}, x]") == [call("f"), ", x]"]
    assert parse(MISTRAL, f"[TOOL_CALLS][{good}, {{}}]") == [call("f"), ", {}]"]
    assert parse(MISTRAL, f"[TOOL_CALLS][{good} {good}]") == [call("f"), good + "]"]
    assert parse(MISTRAL, f"[TOOL_CALLS][{good},") == [call("f")]


def test_a_call_that_was_cut_off_is_incomplete():
    """In both syntaxes, once its name is complete."""
    incomplete = [FunctionCall("f", '{"a": "b', complete=False)]

    assert parse(MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"a": "b', truncated=True) == incomplete
    assert parse(MISTRAL_V11, '[TOOL_CALLS]f[ARGS]{"a": "b', truncated=True) == incomplete
    assert parse(MISTRAL_V11, "[TOOL_CALLS]f[AR", truncated=True) == ["[TOOL_CALLS]f[AR"]


def test_a_custom_tool_gets_its_input():
    """In JSON, or verbatim."""
    assert parse(MISTRAL_V11, '[TOOL_CALLS]note[ARGS]{"input": "a"}') == [CustomCall("note", "a")]
    assert parse(MISTRAL_V11, "[TOOL_CALLS]patch[ARGS]{[TOOL_CALLS]") == [CustomCall("patch", "{[TOOL_CALLS]")]
    assert parse(MISTRAL, '[TOOL_CALLS][{"name": "patch", "input":\n*** x]') == [CustomCall("patch", "*** x]")]


def test_call_ids_have_nine_characters():
    """Templates reject others; the same id is always converted to the same one."""
    ids = [
        MISTRAL.convert_call_id("call_" + "0" * 48),
        MISTRAL.convert_call_id("call_1"),
        MISTRAL.convert_call_id("call_1"),
        MISTRAL.convert_call_id("abc123DEF"),
    ]

    assert [len(each) for each in ids] == [9] * 4
    assert all(each.isalnum() for each in ids)
    assert (ids[1], ids[3], len(set(ids))) == (ids[2], "abc123DEF", 3)
