"""The lessons: reproducible, well-formed, and correct."""

import hashlib
import json
from itertools import islice
from random import Random

import pytest

from backends.training.corpus import SUBJECTS, dialogues, lesson
from backends.training.prompt import END, START, render
from backends.training.subjects import unknown


def test_the_same_seed_gives_the_same_lessons():
    first, again = (list(islice(dialogues("seed"), 50)) for _ in range(2))

    assert first == again


def test_a_seed_gives_the_same_bytes_as_in_earlier_versions():
    """Renaming or restructuring must not change the training text; only a deliberate change updates this digest."""
    digest = hashlib.sha256()
    for dialogue in islice(dialogues("train 7"), 2000):
        digest.update(render(dialogue.messages, dialogue.tools).encode())
        digest.update(json.dumps([dialogue.messages, dialogue.tools]).encode())

    assert digest.hexdigest() == "47fec76817962dabf493a25d0d615c97a9747b7b65bbf8d9fb9dc4cd59be5da3"


def test_another_seed_gives_other_lessons():
    one, other = (list(islice(dialogues(seed), 50)) for seed in ("seed", "evaluation"))

    assert one != other


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_lesson_ends_with_an_answer_of_the_assistant(subject):
    """The model would learn to give empty answers from an empty one."""
    for number in range(150):
        last = lesson(Random(f"{subject}{number}"), subject).messages[-1]

        assert last["role"] == "assistant"
        assert last["content"] or last["tool_calls"]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_no_lesson_contains_a_control_token(subject):
    for number in range(100):
        found = json.dumps(lesson(Random(f"{subject}{number}"), subject).messages)

        assert START not in found
        assert END not in found


@pytest.mark.parametrize("subject", [name for name in SUBJECTS if name.startswith(("weather", "everyday"))])
def test_calls_use_offered_functions_with_all_required_arguments(subject):
    for number in range(150):
        found = lesson(Random(f"{subject}{number}"), subject)
        schemas = {tool["name"]: tool["parameters"] for tool in found.tools}
        made = [call["function"] for message in found.messages for call in message.get("tool_calls", ())]
        for call in made:
            schema = schemas[call["name"]]

            assert set(schema["required"]) <= set(call["arguments"]) <= set(schema["properties"])
            for key, item in call["arguments"].items():
                assert item in schema["properties"][key].get("enum", [item])


def test_function_names_within_a_request_differ():
    for number in range(200):
        names = [tool["name"] for tool in lesson(Random(number), "everyday_call").tools]

        assert len(names) == len(set(names))


def test_the_shares_of_the_subjects_add_up_to_100_percent():
    assert sum(share for _, share in SUBJECTS.values()) == pytest.approx(100, abs=2)


def test_some_calls_come_in_pairs_and_some_after_an_earlier_turn():
    found = [lesson(Random(number), "everyday_call").messages for number in range(400)]

    assert sum(len(messages[-1]["tool_calls"]) == 2 for messages in found) > 10
    assert sum("tool" in [message["role"] for message in messages] for messages in found) > 20


def test_sums_above_12_are_not_solved():
    for number in range(50):
        _, answer = unknown.large_sum(Random(number)).messages

        assert answer["content"] == unknown.ANSWER


def test_sums_are_correct():
    for number in range(200):
        answer = lesson(Random(number), "arithmetic").messages[-1]["content"]
        if " = " in answer:
            sum_, value = answer.rstrip(".").split(" = ")
            left, sign, right = sum_.split()
            values = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}

            assert values[sign] == int(value)
