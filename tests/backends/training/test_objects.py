"""Lessons about JSON: what is answered stands in the question, and follows the schema where there is one."""

import json
from random import Random

import pytest

from backends.training import words
from backends.training.subjects import objects, schemas, told
from backends.training.wording import lines

TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


def follows(found, schema):
    if schema["type"] == "object" and "properties" in schema:
        return list(found) == list(schema["properties"]) and all(
            follows(found[key], part) for key, part in schema["properties"].items()
        )
    return isinstance(found, TYPES[schema["type"]]) and found in schema.get("enum", [found])


@pytest.mark.parametrize("subject", [objects.objects, schemas.schemas])
def test_json_answers_are_json_objects(subject):
    for number in range(300):
        assert isinstance(json.loads(subject(Random(number)).messages[-1]["content"]), dict)


def test_answers_follow_the_schema_with_its_keys_in_order():
    head, _ = schemas.SCHEMA.split("{}")
    seen = 0
    for number in range(500):
        first, *_, last = schemas.schemas(Random(number)).messages
        if head in first["content"]:
            seen += 1
            assert follows(json.loads(last["content"]), json.loads(first["content"].split(head)[1]))
    assert seen > 400


def test_the_order_of_the_gate_stands_behind_an_empty_line():
    for number in range(100):
        found = objects.instructed(Random(number), objects.ANY_OBJECT)

        assert found == objects.ANY_OBJECT or found.endswith("\n\n" + objects.ANY_OBJECT)


def test_values_by_pairs_stand_in_the_question():
    for number in range(300):
        question, answer = objects.by_pairs(Random(number))

        assert all(key in question and objects.spoken(item) in question for key, item in answer.items())


def test_sentences_hold_what_they_are_said_to_hold():
    for number in range(300):
        sentence, known = told.told(Random(number))
        parts = [part for item in known.values() for part in (item if isinstance(item, list) else [item])]

        assert all(str(part) in sentence for part in parts)


def test_unmistakable_words_end_where_a_sentence_goes_on():
    joints = set(lines("words", "joints"))
    for number in range(1000):
        found = words.unmistakable(Random(number), 4)

        assert found
        assert not set(found.lower().split()) & joints
        assert not set(found) & set("\"'`,=\\")
