"""Lessons about JSON: the values of an answer are in the question, and it follows the schema if there is one."""

import json
from random import Random

import pytest

from backends.training import words
from backends.training.subjects import objects, schemas, statements
from backends.training.wording import lines

TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


def is_valid(found, schema):
    if schema["type"] == "object" and "properties" in schema:
        return list(found) == list(schema["properties"]) and all(
            is_valid(found[key], part) for key, part in schema["properties"].items()
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
            assert is_valid(json.loads(last["content"]), json.loads(first["content"].split(head)[1]))
    assert seen > 400


def test_the_order_of_headgate_follows_an_empty_line():
    for number in range(100):
        found = objects.with_instructions(Random(number), objects.ANY_OBJECT)

        assert found == objects.ANY_OBJECT or found.endswith("\n\n" + objects.ANY_OBJECT)


def test_values_by_pairs_are_in_the_question():
    for number in range(300):
        question, answer = objects.by_pairs(Random(number))

        assert all(key in question and objects.format_value(item) in question for key, item in answer.items())


def test_sentences_contain_their_facts():
    for number in range(300):
        sentence, known = statements.statement(Random(number))
        parts = [part for item in known.values() for part in (item if isinstance(item, list) else [item])]

        assert all(str(part) in sentence for part in parts)


def test_clear_words_contain_no_conjunctions_and_no_quotes():
    joints = set(lines("words", "joints"))
    for number in range(1000):
        found = words.clear_words(Random(number), 4)

        assert found
        assert not set(found.lower().split()) & joints
        assert not set(found) & set("\"'`,=\\")
