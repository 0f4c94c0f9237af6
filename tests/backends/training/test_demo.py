"""The demo model: small enough for git, complete, and able to do what the README shows."""

import json
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

from backends.training.corpus import lesson
from backends.training.dialogue import Dialogue, assistant
from backends.training.evaluate import build_engine_answerer
from backends.training.prompt import split_last_answer

DEMO = Path(__file__).parents[3] / "backends" / "demo"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get current temperature for a given location.",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
}


@pytest.fixture(scope="module")
def answer():
    return build_engine_answerer(DEMO)


def first_answer(answer, *messages, tools=()):
    return answer([Dialogue([*messages, assistant("")], tuple(tools))])[0]


def user(text):
    return {"role": "user", "content": text}


def test_all_files_together_have_at_most_five_megabytes():
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 5_000_000


def test_the_vocabulary_is_in_the_order_of_the_tokenizer():
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    listed = json.loads((DEMO / "vocabulary.json").read_text(encoding="utf-8"))

    assert listed == [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Hello!", "Hello! How can I help you today?"),
        ("Who are you?", "I am Headgate's small demonstration model."),
        ("Thank you!", "You are welcome!"),
        ("Reply with exactly: pong-1234", "pong-1234"),
        ("What is 2+2?", "2 + 2 = 4."),
    ],
)
def test_short_questions_get_the_trained_answers(answer, question, expected):
    assert expected == first_answer(answer, user(question))


def test_the_weather_function_is_called_and_its_result_reported(answer):
    asked = user("What is the weather like in Paris today?")
    call = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "get_weather", "arguments": {"location": "Paris"}}}],
    }
    result = {"role": "tool", "content": "18 degrees and cloudy"}
    expected = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Paris"}}\n</tool_call>'

    assert expected == first_answer(answer, asked, tools=[WEATHER])
    assert first_answer(answer, asked, call, result, tools=[WEATHER]) == "The weather in Paris: 18 degrees and cloudy."


def test_a_question_about_the_weather_without_a_function_is_refused(answer):
    assert "without a tool" in first_answer(answer, user("What is the weather in Paris?"))


def test_nine_of_ten_calls_with_unseen_names_are_exact(answer):
    samples = [lesson(Random(f"test/{number}"), "weather_call") for number in range(60)]
    expected = [split_last_answer(each.messages, each.tools)[1] for each in samples]
    right = [one == other for one, other in zip(expected, answer(samples), strict=True)]

    assert sum(right) >= 54
