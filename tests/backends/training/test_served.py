"""Lessons become requests, and answers become messages in the form of lessons."""

import json
from pathlib import Path
from random import Random

from backends.training.corpus import lesson
from backends.training.dialogue import Dialogue, assistant, assistant_calls, exchange, system, tool_result, user
from backends.training.evaluate import is_parsable
from backends.training.served import answer_all, build_message, build_request
from backends.training.subjects.schemas import SCHEMA
from tests.logs import isolated_logs

DEMO = Path(__file__).parents[3] / "backends" / "demo"
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}


def test_a_conversation_becomes_items():
    """Results get the ids of the calls before them, in order."""
    messages = [
        user("a"),
        assistant_calls(("f", {"b": 1}), ("g", {})),
        tool_result("c"),
        tool_result("d"),
        assistant("e"),
    ]
    items = build_request(Dialogue(messages))["input"]

    assert [item.get("type", item.get("role")) for item in items] == [
        "user", "function_call", "function_call", "function_call_output", "function_call_output",
    ]  # fmt: skip
    assert [item["call_id"] for item in items[1:3]] == [item["call_id"] for item in items[3:]]
    assert json.loads(items[1]["arguments"]) == {"b": 1}


def test_instructions_about_json_become_a_text_format():
    """Headgate adds the same words to the prompt again."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    by_schema = Dialogue([system("Be kind.\n\n" + SCHEMA.format(json.dumps(schema))), user("b"), assistant("{}")])
    any_object = Dialogue([system("Reply with a JSON object."), user("b"), assistant("{}")])

    assert build_request(by_schema)["text"]["format"]["schema"] == schema
    assert build_request(by_schema)["input"][0] == {"role": "system", "content": "Be kind."}
    assert build_request(any_object)["text"] == {"format": {"type": "json_object"}}
    assert [item["role"] for item in build_request(any_object)["input"]] == ["user"]


def test_the_items_of_an_answer_become_one_message():
    call = {"type": "function_call", "name": "f", "arguments": '{"a": 1}'}
    text = {"type": "message", "content": [{"text": "Hi"}]}

    assert build_message([text]) == assistant("Hi")
    assert build_message([text, call]) == assistant_calls(("f", {"a": 1})) | {"content": "Hi"}


def test_tools_are_part_of_the_request():
    assert build_request(Dialogue([user("a"), assistant("b")], (TOOL,)))["tools"] == [
        {"type": "function", "name": "f", "description": "", "parameters": {"type": "object"}}
    ]


def test_the_served_demo_model_gives_parsable_answers():
    """Completed calls and objects are valid JSON, and a simple question gets the correct answer."""
    asked = [lesson(Random(f"served/{number}"), name) for name in ("schemas", "weather_call") for number in range(4)]
    with isolated_logs():
        answers = answer_all(DEMO, [*asked, exchange("What is 2 + 2?", "")], 200)

    completed = [answer for answer in answers[:-1] if answer != "(response.incomplete)"]

    assert [is_parsable(answer) for answer in completed] == [True] * len(completed)
    assert len(completed) >= 6
    assert "4" in answers[-1]
