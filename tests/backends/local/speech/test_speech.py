"""Thoughts, calls and stop strings of one answer together."""

import pytest

from backends.local.speech import (
    CustomCall,
    FunctionCall,
    Speech,
    Text,
    Thinking,
    Thought,
    Thoughts,
    format_named,
    reader_of,
)  # fmt: skip
from backends.local.speech.mistral import MISTRAL, MISTRAL_V11
from tests.backends.local.speech.reading import NAMES, call, cut_everywhere, read

SAID = '<think>\nHm.\n</think>\n\nWait. <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call> Done. STOP not this'


def heard(*parts, form="hermes", thinks=True, stops=("STOP",), cut=False):
    """What comes out, neighbours of a kind in one."""
    thoughts = Thoughts(Thinking(), begun=False) if thinks else None
    speech = Speech(reader_of(form and format_named(form, {}), NAMES), thoughts=thoughts, stops=stops)
    pieces = [piece for part in parts for piece in speech.feed(part)]
    pieces += [] if speech.stopped else speech.close(cut=cut)
    told = []
    for piece in pieces:
        if told and isinstance(piece, CustomCall) and isinstance(told[-1][1], CustomCall):
            told[-1] = (CustomCall, CustomCall(piece.name, told[-1][1].input + piece.input, piece.whole))
            continue
        if isinstance(piece, Text):
            assert "".join(parts)[piece.at :].startswith(piece.text)
        text = piece.text if isinstance(piece, Text | Thought) else piece
        if told and isinstance(text, str) and told[-1][0] is type(piece):
            told[-1] = (type(piece), told[-1][1] + text)
        else:
            told.append((type(piece), text))
    return [text for _, text in told], speech.stopped


def test_all_of_it_in_one_answer():
    """In order, each where it stands, however it is cut."""
    expected = (["Hm.", "Wait.", call("f"), "Done. "], True)

    assert heard(SAID) == expected
    assert [parts for parts in cut_everywhere(SAID) if heard(*parts) != expected] == []


def test_what_may_be_a_stop_string_is_given_when_it_is_none():
    """At the end, and before a call."""
    said = 'ST <tool_call>{"name": "f"}</tool_call>STO'

    assert heard(said) == (["ST", call("f"), "STO"], False)
    assert heard("S", "TO", "P") == ([], True)


def test_stop_strings_in_thoughts_and_calls_are_no_stops():
    """They end texts."""
    said = '<think>STOP</think><tool_call>{"name": "f", "arguments": {"a": "STOP"}}</tool_call>'

    assert heard(said) == (["STOP", call("f", '{"a": "STOP"}')], False)


def test_a_thought_that_never_ended_is_one():
    """And no answer."""
    assert heard("<think>Hm. <tool_call>", cut=True) == (["Hm. <tool_call>"], False)
    assert heard(" <thi") == ([" <thi"], False)


def test_without_tools_all_is_text():
    """Tags too, and thoughts where the model does not think."""
    assert heard(SAID, form=None, stops=()) == (["Hm.", SAID[SAID.index("Wait") :]], False)
    assert heard(SAID, form=None, thinks=False, stops=()) == ([SAID], False)
    assert heard("", form=None) == ([], False)


@pytest.mark.parametrize(("cut", "whole"), [(False, True), (True, False)])
def test_the_text_of_a_raw_call_is_all_that_follows(cut, whole):
    """Whatever it holds. One that was cut off is half of one."""
    said = 'Wait. <tool_call>\n{"name": "patch", "input":\n<tool_call> </think>\n'

    assert heard(said, cut=cut) == (["Wait.", CustomCall("patch", "<tool_call> </think>\n", whole)], False)


def test_formats_have_names():
    """Models of Mistral are told apart by their tokens."""
    assert [format_named(name, {}).name for name in ("hermes", "llama", "mistral")] == ["hermes", "llama", "mistral"]
    assert (format_named("mistral", {}), format_named("mistral", {"[ARGS]": 5})) == (MISTRAL, MISTRAL_V11)
    assert format_named("hermes", {}).id_of("call_1") == "call_1"


SURE = {
    "hermes": [
        'Hi. <tool_call>\n{"name": "f", "arguments": {"a": "}</tool_call>"}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {}}',
        '<tool_call>\n{"name": "note", "arguments": {"input": "a{"}}\n</tool_call>',
    ],
    "llama": ['{"name": "f", "parameters": {"a": "; {"}}; {"name": "g", "parameters": {}}'],
    "mistral": [
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": "]"}}, {"name": "g", "arguments": {"b": [1]}}]',
        'Hi.[TOOL_CALLS]f[ARGS]{"a": {"b": 1}}[TOOL_CALLS]g[ARGS]{}',
    ],
}
EACH = [(name, said) for name, all_said in SURE.items() for said in all_said]


@pytest.mark.parametrize(("name", "said"), EACH)
@pytest.mark.parametrize("cut", [False, True])
def test_calls_that_are_sure_are_the_same_calls(name, said, cut):
    """However they are cut, and wherever the model is stopped."""
    form = format_named(name, {"[ARGS]": 1} if "[ARGS]" in said else {})
    for end in range(len(said) + 1) if cut else [len(said)]:
        whole = read(form, said[:end], cut=cut)

        assert [
            parts for parts in cut_everywhere(said[:end])[: end + 1] if read(form, *parts, cut=cut, sure=True) != whole
        ] == []


@pytest.mark.parametrize(("name", "said"), [each for each in EACH if "note" not in each[1]])
def test_calls_that_are_sure_are_told_as_they_come(name, said):
    """Their arguments letter by letter."""
    form = format_named(name, {"[ARGS]": 1} if "[ARGS]" in said else {})
    reader = reader_of(form, NAMES, sure=True)
    told = [[piece for piece in reader.feed(letter) if isinstance(piece, FunctionCall)] for letter in said]
    arguments = [call.arguments for call in read(form, said) if isinstance(call, FunctionCall)]

    assert "".join(piece.arguments for pieces in told for piece in pieces) == "".join(arguments)
    assert max(len(piece.arguments) for pieces in told for piece in pieces) <= 2  # what may begin a raw call waits
    assert sum(piece.whole for pieces in told for piece in pieces) == len(arguments)


def test_the_text_of_a_custom_tool_in_json_is_told_when_it_is_whole():
    """It is not what the model writes letter by letter."""
    reader = reader_of(format_named("hermes", {}), NAMES, sure=True)
    said = '<tool_call>{"name": "note", "arguments": {"input": "a{"}}'

    assert [piece for letter in said for piece in reader.feed(letter)] == [CustomCall("note", "a{")]
