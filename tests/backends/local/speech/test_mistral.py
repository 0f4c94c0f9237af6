"""Calls as Mistral's models write them."""

import pytest
from hypothesis import given

from backends.local.speech.mistral import MISTRAL, MISTRAL_V11
from backends.local.speech.piece import CustomCall, FunctionCall
from tests.backends.local.speech.reading import call, cut_everywhere, cuttings, read
from tests.shapes import PATIENT

WORDS = [
    "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[", "]", ", ", ",", "\n", " ", "Hi", "f", "g", "note", "patch", "abc123def",
    '{"name": "f", "arguments": {"a": "]"}}', '{"a": 1}', '{"input": "x"}', '{"name": "no", "arguments": {}}', "{", '"',
    "[TOOL", "_CALLS]", '[{"name": "patch", "input":\n',
]  # fmt: skip
BOTH = [MISTRAL, MISTRAL_V11]


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize(
    "said",
    [
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        '[TOOL_CALLS] [ {"name": "f", "arguments": {"a": 1}} , {"name": "g", "arguments": {}}',
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "abc123def"},{"name": "g"}]',
        '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}',
        '[TOOL_CALLS]f{"a": 1}\n[TOOL_CALLS]g{}',
        '[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]abc123deg[ARGS]{}',
    ],
)
def test_calls_are_read_in_both_ways(form, said):
    """Whichever the model's tokenizer is made for; some mix them."""
    calls = read(form, f"Wait. {said} ")
    arguments = calls[1].arguments.replace(" ", "")

    assert ["Wait.", FunctionCall("f", '{"a":1}'), call("g")] == [calls[0], call("f", arguments), *calls[2:]]


@pytest.mark.parametrize(
    "said",
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
def test_what_is_no_call_is_text(said):
    """Tags included."""
    assert read(MISTRAL_V11, f"So: {said}") == [f"So: {said}"]


def test_a_list_goes_on_after_a_call_or_is_over():
    """What is no call in it, and what follows it, is text."""
    good = '{"name": "f", "arguments": {}}'

    assert read(MISTRAL, f"[TOOL_CALLS][{good}] Done.") == [call("f"), "Done."]
    assert read(MISTRAL, f"[TOOL_CALLS][{good}, x]") == [call("f"), ", x]"]
    assert read(MISTRAL, f"[TOOL_CALLS][{good}, {{}}]") == [call("f"), ", {}]"]
    assert read(MISTRAL, f"[TOOL_CALLS][{good} {good}]") == [call("f"), good + "]"]
    assert read(MISTRAL, f"[TOOL_CALLS][{good},") == [call("f")]


def test_a_call_that_was_cut_off_is_half_a_call():
    """In either way, once its name is sure."""
    half = [FunctionCall("f", '{"a": "b', whole=False)]

    assert read(MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"a": "b', cut=True) == half
    assert read(MISTRAL_V11, '[TOOL_CALLS]f[ARGS]{"a": "b', cut=True) == half
    assert read(MISTRAL_V11, "[TOOL_CALLS]f[AR", cut=True) == ["[TOOL_CALLS]f[AR"]


def test_a_custom_tool_gets_its_text():
    """As JSON; or as it stands."""
    assert read(MISTRAL_V11, '[TOOL_CALLS]note[ARGS]{"input": "a"}') == [CustomCall("note", "a")]
    assert read(MISTRAL_V11, "[TOOL_CALLS]patch[ARGS]{[TOOL_CALLS]") == [CustomCall("patch", "{[TOOL_CALLS]")]
    assert read(MISTRAL, '[TOOL_CALLS][{"name": "patch", "input":\n*** x]') == [CustomCall("patch", "*** x]")]


def test_ids_have_nine_letters():
    """Templates refuse others; the same id becomes the same one each time."""
    ids = [
        MISTRAL.id_of("call_" + "0" * 48),
        MISTRAL.id_of("call_1"),
        MISTRAL.id_of("call_1"),
        MISTRAL.id_of("abc123DEF"),
    ]

    assert [len(each) for each in ids] == [9] * 4
    assert all(each.isalnum() for each in ids)
    assert (ids[1], ids[3], len(set(ids))) == (ids[2], "abc123DEF", 3)


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize(
    "said",
    [
        'x [TOOL_CALLS]f[ARGS]{}[TOOL_CALLS] g {"a": "[ARGS]"} [TOOL',
        '[TOOL_CALLS] [{"name":"f"} , {"name":"g"} ] .',
        "[TOOL_CALLS]f[CALL_ID]abc[ARGS]{[TOOL_CALLS]",
        '[TOOL_CALLS][{"name":"f","arguments":{"a":"',
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_where_the_text_is_cut_changes_nothing(form, said, cut):
    """Cut at every place, at every two, and letter by letter, the same comes out."""
    whole = read(form, said, cut=cut)

    assert [parts for parts in cut_everywhere(said) if read(form, *parts, cut=cut) != whole] == []


@PATIENT
@given(cuttings(WORDS))
def test_no_cutting_of_any_text_changes_what_is_read(cutting):
    """Whatever a model says, with tags where they do not belong, and however it comes."""
    said, parts = cutting
    for form in BOTH:
        assert read(form, said) == read(form, *parts)
        assert read(form, said, cut=True) == read(form, *parts, cut=True)
