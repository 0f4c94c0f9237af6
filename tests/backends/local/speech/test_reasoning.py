"""Reasoning before answers."""

import pytest
from hypothesis import given

from backends.local.speech.reasoning import ReasoningParser, ReasoningTags
from tests.backends.local.speech.parsing import split_everywhere, splits
from tests.examples import NO_DEADLINE

WORDS = ["<think>", "</think>", "\n", " ", "Hm", ".", "<thi", "nk>", "</", "think>", "<"]


def parse(*chunks: str, is_open: bool = False) -> tuple[str, str]:
    """Return the reasoning and the answer, after checking the offset of the answer."""
    parser, output = ReasoningParser(ReasoningTags(), is_open=is_open), "".join(chunks)
    found, answer = [], ""
    for chunk in chunks:
        reasoning, text = parser.feed(chunk)
        found += reasoning
        answer += text
        assert not text or parser.ended
    reasoning, text = parser.close()
    answer += text
    assert output[parser.offset : parser.offset + len(answer)] == answer
    assert all(each.text for each in [*found, *reasoning])
    return "".join(each.text for each in [*found, *reasoning]), answer


@pytest.mark.parametrize(
    ("output", "is_open", "expected"),
    [
        ("<think>\nLet me see.\n</think>\n\nOslo.\n", False, ("Let me see.", "Oslo.\n")),
        ("\n<think>a\n\nb</think>c", False, ("a\n\nb", "c")),
        ("<think>\n\n</think>\n\nOslo.", False, ("", "Oslo.")),
        ("Let me see.\n</think>\n\nOslo.", True, ("Let me see.", "Oslo.")),
        ("</think>Oslo.", True, ("", "Oslo.")),
        ("Oslo. <think>no</think>", False, ("", "Oslo. <think>no</think>")),
        ("</think>", False, ("", "</think>")),
        ("<think>a</think>b<think>c</think>", False, ("a", "b<think>c</think>")),
        ("<think>It never ends\n", False, ("It never ends", "")),
        ("<think>a</thin", False, ("a</thin", "")),
        ("  Hi ", False, ("", "  Hi ")),
        ("<thin", False, ("", "<thin")),
        (" ", False, ("", " ")),
        ("", True, ("", "")),
        ("<think>a</think> \n", False, ("a", "")),
    ],
)
def test_only_the_beginning_of_an_answer_is_reasoning(output, is_open, expected):
    """It is returned without the white space around it, in whatever chunks the output arrives."""
    assert [chunks for chunks in split_everywhere(output) if parse(*chunks, is_open=is_open) != expected] == []
    assert parse(output, is_open=is_open) == expected


@NO_DEADLINE
@given(splits(WORDS))
def test_chunk_boundaries_do_not_change_the_result_of_any_output(split):
    """Random outputs in random chunks."""
    output, chunks = split
    for is_open in (False, True):
        assert parse(output, is_open=is_open) == parse(*chunks, is_open=is_open)


def test_reasoning_is_returned_as_it_arrives():
    """Only what may belong to the closing tag is held back."""
    parser = ReasoningParser(ReasoningTags(), is_open=False)
    found = [parser.feed(chunk)[0] for chunk in ("<think>", "\n", "Let", " me ", "see", "</", "b", "\n</think>")]

    assert [[each.text for each in part] for part in found] == [[], [], ["Let"], [" me"], [" see"], [], ["</b"], []]
    assert (parser.is_open, parser.ended) == (False, False)


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
    ],
)
def test_a_prompt_may_open_the_reasoning(prompt, is_open):
    """A template that closes it again disables reasoning."""
    assert ReasoningTags().are_open_in(prompt) is is_open


def test_the_tags_can_be_replaced():
    """headgate.json names those of other models."""
    tags = ReasoningTags("[THINK]", "[/THINK]")
    parser = ReasoningParser(tags, is_open=False)
    found, answer = parser.feed("[THINK]a[/THINK]b")

    assert ([each.text for each in found], answer) == (["a"], "b")
    assert tags.both == ("[THINK]", "[/THINK]")
