"""Reasoning, tool calls and stop sequences of one answer together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.local.speech import (
    CustomCall,
    FunctionCall,
    OutputParser,
    Reasoning,
    ReasoningParser,
    ReasoningTags,
    Text,
    build_parser,
    find_tool_format,
)  # fmt: skip
from backends.local.speech.mistral import MISTRAL, MISTRAL_V11
from backends.local.speech.output_parser import StopSequences
from tests.backends.local.speech.parsing import TOOLS, call, parse, split_everywhere
from tests.examples import NO_DEADLINE

OUTPUT = '<think>\nHm.\n</think>\n\nWait. <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call> Done. STOP not this'


def segments_of(*chunks, tool_format="hermes", reasons=True, stop=("STOP",), truncated=False):
    """Return the contents of the segments, adjacent ones of a kind joined, and whether a stop sequence occurred."""
    reasoning = ReasoningParser(ReasoningTags(), is_open=False) if reasons else None
    answer_parser = build_parser(tool_format and find_tool_format(tool_format, {}), TOOLS)
    parser = OutputParser(answer_parser, reasoning=reasoning, stop_sequences=stop)
    segments = [segment for chunk in chunks for segment in parser.feed(chunk)]
    segments += [] if parser.stopped else parser.close(truncated=truncated)
    joined = []
    for segment in segments:
        if joined and isinstance(segment, CustomCall) and isinstance(joined[-1][1], CustomCall):
            text = joined[-1][1].input + segment.input
            joined[-1] = (CustomCall, CustomCall(segment.name, text, segment.complete))
            continue
        if isinstance(segment, Text):
            assert "".join(chunks)[segment.offset :].startswith(segment.text)
        content = segment.text if isinstance(segment, Text | Reasoning) else segment
        if joined and isinstance(content, str) and joined[-1][0] is type(segment):
            joined[-1] = (type(segment), joined[-1][1] + content)
        else:
            joined.append((type(segment), content))
    return [content for _, content in joined], parser.stopped


def test_an_answer_may_have_segments_of_every_kind():
    """They come in order, with correct offsets, in whatever chunks the output arrives."""
    expected = (["Hm.", "Wait.", call("f"), "Done. "], True)

    assert segments_of(OUTPUT) == expected
    assert [chunks for chunks in split_everywhere(OUTPUT) if segments_of(*chunks) != expected] == []


def test_text_that_only_resembles_a_stop_sequence_is_returned():
    """At the end, and before a call."""
    output = 'ST <tool_call>{"name": "f"}</tool_call>STO'

    assert segments_of(output) == (["ST", call("f"), "STO"], False)
    assert segments_of("S", "TO", "P") == ([], True)


def test_stop_sequences_in_reasoning_and_calls_are_ignored():
    """They apply to text only."""
    output = '<think>STOP</think><tool_call>{"name": "f", "arguments": {"a": "STOP"}}</tool_call>'

    assert segments_of(output) == (["STOP", call("f", '{"a": "STOP"}')], False)


def test_reasoning_that_never_ended_is_reasoning():
    """The answer is empty then."""
    assert segments_of("<think>Hm. <tool_call>", truncated=True) == (["Hm. <tool_call>"], False)
    assert segments_of(" <thi") == ([" <thi"], False)


def test_without_tools_everything_is_text():
    """Tags too, and reasoning when the model has none."""
    assert segments_of(OUTPUT, tool_format=None, stop=()) == (["Hm.", OUTPUT[OUTPUT.index("Wait") :]], False)
    assert segments_of(OUTPUT, tool_format=None, reasons=False, stop=()) == ([OUTPUT], False)
    assert segments_of("", tool_format=None) == ([], False)


@pytest.mark.parametrize(("truncated", "complete"), [(False, True), (True, False)])
def test_verbatim_input_is_everything_that_follows(truncated, complete):
    """Whatever it contains. A call that was cut off is incomplete."""
    output = 'Wait. <tool_call>\n{"name": "patch", "input":\n<tool_call> </think>\n'
    expected = CustomCall("patch", "<tool_call> </think>\n", complete)

    assert segments_of(output, truncated=truncated) == (["Wait.", expected], False)


def test_tool_formats_are_found_by_name():
    """The control tokens select the version of Mistral's."""
    names = ("hermes", "llama", "mistral")

    assert [find_tool_format(name, {}).name for name in names] == ["hermes", "llama", "mistral"]
    assert (find_tool_format("mistral", {}), find_tool_format("mistral", {"[ARGS]": 5})) == (MISTRAL, MISTRAL_V11)
    assert find_tool_format("hermes", {}).convert_call_id("call_1") == "call_1"


CONSTRAINED = {
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
EACH = [(name, output) for name, outputs in CONSTRAINED.items() for output in outputs]


@pytest.mark.parametrize(("name", "output"), EACH)
@pytest.mark.parametrize("truncated", [False, True])
def test_constrained_calls_equal_unconstrained_ones(name, output, truncated):
    """In whatever chunks the output arrives, and wherever the model is stopped."""
    tool_format = find_tool_format(name, {"[ARGS]": 1} if "[ARGS]" in output else {})
    for end in range(len(output) + 1) if truncated else [len(output)]:
        expected = parse(tool_format, output[:end], truncated=truncated)

        assert [
            chunks
            for chunks in split_everywhere(output[:end])[: end + 1]
            if parse(tool_format, *chunks, truncated=truncated, constrained=True) != expected
        ] == []


@pytest.mark.parametrize(("name", "output"), [each for each in EACH if "note" not in each[1]])
def test_constrained_calls_are_streamed(name, output):
    """Their arguments are returned character by character."""
    tool_format = find_tool_format(name, {"[ARGS]": 1} if "[ARGS]" in output else {})
    parser = build_parser(tool_format, TOOLS, constrained=True)
    streamed = [[each for each in parser.feed(letter) if isinstance(each, FunctionCall)] for letter in output]
    arguments = [call.arguments for call in parse(tool_format, output) if isinstance(call, FunctionCall)]

    assert "".join(part.arguments for parts in streamed for part in parts) == "".join(arguments)
    # Characters that may begin verbatim input are held back.
    assert max(len(part.arguments) for parts in streamed for part in parts) <= 2
    assert sum(part.complete for parts in streamed for part in parts) == len(arguments)


def test_the_input_of_a_custom_tool_in_json_is_not_streamed():
    """The model writes it escaped, so it is returned once it is complete."""
    parser = build_parser(find_tool_format("hermes", {}), TOOLS, constrained=True)
    output = '<tool_call>{"name": "note", "arguments": {"input": "a{"}}'

    assert [segment for letter in output for segment in parser.feed(letter)] == [CustomCall("note", "a{")]


def apply_stop(sequences: tuple[str, ...], chunks: list[str]) -> str:
    """Return the text that stop sequences leave of these chunks."""
    stop, offset, kept = StopSequences(sequences), 0, ""
    for chunk in chunks:
        for text in stop.feed(Text(chunk, offset)):
            assert text.offset == len(kept)
            kept += text.text
        offset += len(chunk)
        if stop.found:
            return kept
    return kept + "".join(text.text for text in stop.release())


@pytest.mark.parametrize(
    ("stop", "output", "expected"),
    [
        (("END",), "Hi. END no", "Hi. "),
        (("END",), "Hi. EN", "Hi. EN"),
        (("b", "abc"), "xabc", "xa"),
        (("abc", "b"), "xabc", "xa"),
        (("abc",), "xababc", "xab"),
        (("\n\n",), "a\nb\n\nc", "a\nb"),
        ((), "abc", "abc"),
    ],
)
def test_a_text_ends_where_a_stop_sequence_begins(stop, output, expected):
    """Character by character, the sequence that is complete first applies."""
    assert apply_stop(stop, list(output)) == expected


@NO_DEADLINE
@given(
    st.lists(st.text("ab", max_size=3), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=2),
)
def test_no_returned_text_contains_a_stop_sequence(chunks, stop):
    """In whatever chunks it arrives; nothing is lost when no sequence occurs."""
    kept = apply_stop(tuple(stop), chunks)

    assert not any(sequence in kept for sequence in stop)
    assert "".join(chunks).startswith(kept)
    assert kept == "".join(chunks) or any(sequence in "".join(chunks) for sequence in stop)


def test_only_the_beginning_of_a_stop_sequence_is_held_back():
    """Other text is returned immediately."""
    stop = StopSequences(["END"])

    assert [text.text for text in stop.feed(Text("a E", 0))] == ["a "]
    assert [text.text for text in stop.feed(Text("x", 3))] == ["Ex"]
    assert stop.release() == []
