"""The lessons: reproducible, well-formed, and true to what they promise."""

import json
from itertools import islice
from random import Random

import pytest

from backends.training.corpus import SUBJECTS, dialogues, lesson
from backends.training.prompt import END, START


def test_the_same_seed_gives_the_same_lessons():
    first, again = (list(islice(dialogues("seed"), 50)) for _ in range(2))

    assert first == again


def test_another_seed_gives_other_lessons():
    one, other = (list(islice(dialogues(seed), 50)) for seed in ("seed", "evaluation"))

    assert one != other


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_lesson_ends_with_something_the_assistant_says(subject):
    """An empty answer would teach the model to say nothing."""
    for number in range(150):
        last = lesson(Random(f"{subject}{number}"), subject).messages[-1]

        assert last["role"] == "assistant"
        assert last["content"] or last["tool_calls"]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_no_lesson_holds_a_control_token(subject):
    for number in range(100):
        found = json.dumps(lesson(Random(f"{subject}{number}"), subject).messages)

        assert START not in found
        assert END not in found


@pytest.mark.parametrize("subject", [name for name in SUBJECTS if name.startswith(("weather", "everyday"))])
def test_calls_use_functions_that_are_there_with_all_that_they_require(subject):
    for number in range(150):
        found = lesson(Random(f"{subject}{number}"), subject)
        schemas = {tool["name"]: tool["parameters"] for tool in found.tools}
        made = [call["function"] for message in found.messages for call in message.get("tool_calls", ())]
        for call in made:
            schema = schemas[call["name"]]

            assert set(schema["required"]) <= set(call["arguments"]) <= set(schema["properties"])


def test_function_names_within_a_request_differ():
    for number in range(200):
        names = [tool["name"] for tool in lesson(Random(number), "everyday_call").tools]

        assert len(names) == len(set(names))


def test_the_shares_of_the_subjects_are_percents():
    assert sum(share for _, share in SUBJECTS.values()) == pytest.approx(100, abs=2)


def test_json_answers_are_json_objects():
    for number in range(200):
        answer = lesson(Random(number), "objects").messages[-1]["content"]

        assert isinstance(json.loads(answer), dict)


def test_sums_are_right():
    for number in range(200):
        answer = lesson(Random(number), "arithmetic").messages[-1]["content"]
        if " = " in answer:
            sum_, value = answer.rstrip(".").split(" = ")
            left, sign, right = sum_.split()
            values = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}

            assert values[sign] == int(value)
