"""The wording of single subjects."""

from random import Random

import pytest

from backends.training import words
from backends.training.dialogue import rephrase
from backends.training.subjects import functions, repetition, talk, weather


def test_the_repeated_text_is_in_the_request():
    for number in range(300):
        found = repetition.repetition(Random(number)).messages
        asked = "\n".join(message["content"] for message in found[:-1])

        assert found[-1]["content"].split(" ")[0] in asked


def test_many_plain_words_are_made_up():
    rng = Random(7)
    seen = {words.plain_word(rng) for _ in range(4000)}

    assert len(seen) > 1500


def test_a_misspelling_changes_the_length_by_at_most_one():
    for number in range(100):
        assert abs(len(talk.misspell(Random(number), "Good morning!")) - len("Good morning!")) <= 1


@pytest.mark.parametrize("number", range(20))
def test_a_rephrased_request_keeps_its_words(number):
    assert "name the planets" in rephrase(Random(number), "Name the planets.").lower()


def test_functions_are_in_the_form_of_the_responses_protocol():
    found = functions.function("get_weather", "Weather.", {"city": "string"}, {"unit": ["c", "f"]})

    assert found == {
        "type": "function",
        "name": "get_weather",
        "description": "Weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
            "required": ["city"],
        },
    }


def test_reports_of_the_weather_name_the_place_or_repeat_a_sentence():
    for number in range(200):
        found, sentence = weather.report(Random(number), "Oslo")

        assert "Oslo" in sentence or sentence == found or sentence.startswith("I am sorry, the function failed")
