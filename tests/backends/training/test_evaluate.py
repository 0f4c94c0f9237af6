"""Scoring: exact to the letter, and whether calls can at least be read."""

import pytest

from backends.training import evaluate
from backends.training.corpus import SUBJECTS
from backends.training.prompt import question_and_answer

GOOD_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>'


@pytest.mark.parametrize("answer", [GOOD_CALL, f"{GOOD_CALL}\n{GOOD_CALL}", '{"a": 1}'])
def test_calls_and_objects_parse(answer):
    assert evaluate.parses(answer)


@pytest.mark.parametrize("answer", ["Hello", "[1]", GOOD_CALL.replace("}}", "}"), "<tool_call>\n</tool_call>"])
def test_anything_else_does_not_parse(answer):
    assert not evaluate.parses(answer)


def test_only_exact_answers_count():
    found = evaluate.score("objects", [("a", '{"b": 1}'), ("c", '{"d": 2}')], ['{"b": 1}', '{"d":2}'])

    assert (found.samples, found.exact, found.valid) == (2, 1, 2)
    assert found.wrong == [("c", '{"d": 2}', '{"d":2}')]


def test_subjects_without_json_have_no_share_of_valid_answers():
    assert evaluate.score("talk", [("a", "b")], ["b"]).valid is None


def test_every_subject_is_scored_on_prompts_that_wait_for_the_assistant():
    def answer(asked):
        prompts = [question_and_answer(each.messages, each.tools)[0] for each in asked]
        assert all(prompt.endswith("<|im_start|>assistant\n") for prompt in prompts)
        return ["no"] * len(asked)

    assert [*SUBJECTS, "tables"] == [score.subject for score in evaluate.scores(answer, 3)]
