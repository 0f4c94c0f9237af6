"""Tools, formats, reasoning and logprobs on the real engine: random models that grammars constrain."""

import json

import pytest
from jsonschema import validate

from tests.backends.local.conftest import ask
from tests.models import write_model
from tests.wire.contract import event_faults, order_faults

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Ulm"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}
OTHER = {"type": "function", "name": "other", "parameters": CITY, "strict": True}
CODE = {"type": "custom", "name": "code", "format": {"type": "grammar", "syntax": "regex", "definition": "[a-c]{3}"}}


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    """A model with random weights."""
    return write_model(tmp_path_factory.mktemp("random"), context_length=2048)


@pytest.fixture(scope="module")
def reasoning_model(tmp_path_factory):
    """A model that reasons before it answers."""
    answer = ["<think>", "Hm", "...", "</think>", "\n\n", "Sunny", " and", " warm."]
    return write_model(tmp_path_factory.mktemp("reasoning"), answer, reasoning=True)


async def response_of(local, **body):
    """Return the response, after checking its events."""
    units = await ask(local, **{"input": "Hi", "max_output_tokens": 200} | body)
    events = [json.loads(payload) for unit in units for payload in unit.payloads()]

    assert order_faults(events) == []
    assert [fault for event in events for fault in event_faults(event) if not fault.startswith("openresponses")] == []
    return events[-1]["response"]


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "other"}])
async def test_a_required_call_is_made_by_any_model(random, start_local, choice, temperature):
    """Its arguments follow the schema."""
    local = await start_local(random)
    body = {"tool_choice": choice, "temperature": temperature, "parallel_tool_calls": False}
    (call,) = (await response_of(local, tools=[WEATHER, OTHER], **body))["output"]

    assert call["status"] == "completed"
    assert call["name"] in (("other",) if isinstance(choice, dict) else ("get_weather", "other"))
    validate(json.loads(call["arguments"]), CITY)


async def test_the_input_of_a_custom_tool_follows_its_grammar(random, start_local):
    """It is written verbatim."""
    local = await start_local(random)
    (call,) = (await response_of(local, tools=[CODE], tool_choice={"type": "custom", "name": "code"}))["output"]

    assert (call["type"], call["name"], call["status"]) == ("custom_tool_call", "code", "completed")
    assert len(call["input"]) == 3
    assert set(call["input"]) <= set("abc")


async def test_reasoning_is_separated_from_the_answer(reasoning_model, start_local):
    """Only the answer has logprobs, and it ends at a stop sequence."""
    local = await start_local(reasoning_model)
    include = ["message.output_text.logprobs"]
    response = await response_of(local, include=include, top_logprobs=2, stop=[" warm"])
    reasoning, message = response["output"]
    (part,) = message["content"]

    assert (reasoning["content"][0]["text"], part["text"]) == ("Hm...", "Sunny and")
    assert [entry["token"] for entry in part["logprobs"]] == ["Sunny", " and"]
    assert [len(entry["top_logprobs"]) for entry in part["logprobs"]] == [2, 2]
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 4
    assert response["status"] == "completed"


async def test_a_grammar_applies_after_the_reasoning(reasoning_model, start_local):
    """The reasoning is free; the call follows it."""
    local = await start_local(reasoning_model)
    response = await response_of(local, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)

    assert [item["type"] for item in response["output"]] == ["reasoning", "function_call"]
    validate(json.loads(response["output"][1]["arguments"]), CITY)
