"""Scoring: exact answers, and answers whose JSON can be parsed."""

import pytest

from backends.training import evaluate
from backends.training.corpus import SUBJECTS
from backends.training.prompt import split_last_answer

GOOD_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>'


@pytest.mark.parametrize("answer", [GOOD_CALL, f"{GOOD_CALL}\n{GOOD_CALL}", '{"a": 1}'])
def test_calls_and_objects_are_parsable(answer):
    assert evaluate.is_parsable(answer)


@pytest.mark.parametrize("answer", ["Hello", "[1]", GOOD_CALL.replace("}}", "}"), "<tool_call>\n</tool_call>"])
def test_other_answers_are_not_parsable(answer):
    assert not evaluate.is_parsable(answer)


def test_only_exact_answers_are_counted():
    found = evaluate.score_subject("objects", [("a", '{"b": 1}'), ("c", '{"d": 2}')], ['{"b": 1}', '{"d":2}'])

    assert (found.samples, found.exact, found.valid) == (2, 1, 2)
    assert found.wrong == [("c", '{"d": 2}', '{"d":2}')]


def test_subjects_without_json_have_no_count_of_valid_answers():
    assert evaluate.score_subject("talk", [("a", "b")], ["b"]).valid is None


def test_every_subject_is_scored_on_prompts_that_end_where_the_answer_begins():
    def answer(asked):
        prompts = [split_last_answer(each.messages, each.tools)[0] for each in asked]
        assert all(prompt.endswith("<|im_start|>assistant\n") for prompt in prompts)
        return ["no"] * len(asked)

    assert [*SUBJECTS, "tables"] == [score_subject.subject for score_subject in evaluate.score_all(answer, 3)]
