"""Lessons as requests, and answers as lessons have them."""

import json
from pathlib import Path
from random import Random

from backends.training.corpus import lesson
from backends.training.dialogue import Dialogue, assistant, calls, exchange, result, system, user
from backends.training.evaluate import parses
from backends.training.served import ask_served, message_of, request_of
from backends.training.subjects.schemas import SCHEMA
from tests.logs import kept_apart

DEMO = Path(__file__).parents[3] / "backends" / "demo"
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}


def test_a_conversation_becomes_items():
    """Results belong to the calls before them, in their order."""
    messages = [user("a"), calls(("f", {"b": 1}), ("g", {})), result("c"), result("d"), assistant("e")]
    items = request_of(Dialogue(messages))["input"]

    assert [item.get("type", item.get("role")) for item in items] == [
        "user", "function_call", "function_call", "function_call_output", "function_call_output",
    ]  # fmt: skip
    assert [item["call_id"] for item in items[1:3]] == [item["call_id"] for item in items[3:]]
    assert json.loads(items[1]["arguments"]) == {"b": 1}


def test_what_the_prompt_says_of_json_becomes_a_format():
    """The gate says it again, in the same words."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    told = Dialogue([system("Be kind.\n\n" + SCHEMA.format(json.dumps(schema))), user("b"), assistant("{}")])
    alone = Dialogue([system("Reply with a JSON object."), user("b"), assistant("{}")])

    assert request_of(told)["text"]["format"]["schema"] == schema
    assert request_of(told)["input"][0] == {"role": "system", "content": "Be kind."}
    assert request_of(alone)["text"] == {"format": {"type": "json_object"}}
    assert [item["role"] for item in request_of(alone)["input"]] == ["user"]


def test_an_answer_becomes_what_a_lesson_would_say():
    call = {"type": "function_call", "name": "f", "arguments": '{"a": 1}'}
    text = {"type": "message", "content": [{"text": "Hi"}]}

    assert message_of([text]) == assistant("Hi")
    assert message_of([text, call]) == calls(("f", {"a": 1})) | {"content": "Hi"}


def test_tools_are_handed_over():
    assert request_of(Dialogue([user("a"), assistant("b")], (TOOL,)))["tools"] == [
        {"type": "function", "name": "f", "description": "", "parameters": {"type": "object"}}
    ]


def test_the_demo_model_answers_as_it_is_served():
    """Calls and objects that came to their end can be read; the plainest question is answered right."""
    asked = [lesson(Random(f"served/{number}"), name) for name in ("schemas", "weather_call") for number in range(4)]
    with kept_apart():
        answers = ask_served(DEMO, [*asked, exchange("What is 2 + 2?", "")], 200)

    ended = [answer for answer in answers[:-1] if answer != "(response.incomplete)"]

    assert [parses(answer) for answer in ended] == [True] * len(ended)
    assert len(ended) >= 6
    assert "4" in answers[-1]
