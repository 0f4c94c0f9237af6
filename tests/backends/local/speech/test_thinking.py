"""Thoughts before answers."""

import pytest
from hypothesis import given

from backends.local.speech.thinking import Thinking, Thoughts
from tests.backends.local.speech.reading import cut_everywhere, cuttings
from tests.shapes import PATIENT

WORDS = ["<think>", "</think>", "\n", " ", "Hm", ".", "<thi", "nk>", "</", "think>", "<"]


def thought(*parts: str, begun: bool = False) -> tuple[str, str]:
    """What was thought, and what was answered; the answer stands where it is said to stand."""
    thoughts, said = Thoughts(Thinking(), begun=begun), "".join(parts)
    told, answer = [], ""
    for part in parts:
        thinking, text = thoughts.feed(part)
        told += thinking
        answer += text
        assert not text or thoughts.over
    thinking, text = thoughts.close()
    answer += text
    assert said[thoughts.at : thoughts.at + len(answer)] == answer
    assert all(each.text for each in [*told, *thinking])
    return "".join(each.text for each in [*told, *thinking]), answer


@pytest.mark.parametrize(
    ("said", "begun", "expected"),
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
def test_only_what_an_answer_begins_with_is_a_thought(said, begun, expected):
    """Without the white space around it, however it is cut."""
    assert [parts for parts in cut_everywhere(said) if thought(*parts, begun=begun) != expected] == []
    assert thought(said, begun=begun) == expected


@PATIENT
@given(cuttings(WORDS))
def test_no_cutting_of_any_text_changes_what_is_thought(cutting):
    """Whatever a model says."""
    said, parts = cutting
    for begun in (False, True):
        assert thought(said, begun=begun) == thought(*parts, begun=begun)


def test_thoughts_are_told_as_they_come():
    """Less what may be their end."""
    thoughts = Thoughts(Thinking(), begun=False)
    told = [thoughts.feed(part)[0] for part in ("<think>", "\n", "Let", " me ", "see", "</", "b", "\n</think>")]

    assert [[each.text for each in part] for part in told] == [[], [], ["Let"], [" me"], [" see"], [], ["</b"], []]
    assert (thoughts.inside, thoughts.over) == (False, False)


@pytest.mark.parametrize(
    ("prompt", "begun"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
    ],
)
def test_a_template_may_begin_the_thought(prompt, begun):
    """Or end it at once, to switch it off."""
    assert Thinking().begun_in(prompt) is begun


def test_other_models_have_other_tags():
    """They are what the model's card says."""
    thinking = Thinking("[THINK]", "[/THINK]")
    thoughts = Thoughts(thinking, begun=False)
    told, answer = thoughts.feed("[THINK]a[/THINK]b")

    assert ([each.text for each in told], answer) == (["a"], "b")
    assert thinking.tags == ("[THINK]", "[/THINK]")
