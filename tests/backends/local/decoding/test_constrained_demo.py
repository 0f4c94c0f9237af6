"""Tests of the demo model under schemas and calls: it was trained for them, with a tokenizer of realistic size."""

import json
from pathlib import Path

import jsonschema
import pytest

from backends.local.decoding.batch import run_batch
from backends.local.grammar import json_object_grammar, json_rule, json_schema_grammar, schema_prompt
from backends.local.host.device import Placement, load_generator
from backends.local.model import read_model
from tests.backends.local.decoding.run_log import RunLog
from tests.backends.local.decoding.test_constrained import ConstrainedModel, RunCounter
from tests.backends.local.tiny_models import TinyModel

DEMO = Path("backends/demo")
LIMIT = 300
PEOPLE = {"Emma": (41, "Boston"), "Tom": (7, "Riga"), "Nora": (23, "Paris"), "Liam": (65, "Oslo")}


def person(extra=None):
    properties = {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}} | (extra or {})
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


HARDER = {
    "kind": {"enum": ["human", "animal"]},
    "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 1, "maxItems": 2},
    "born": {"type": "string", "format": "date"},
    "score": {"type": "number", "minimum": 0, "maximum": 1},
}
FUNCTION = {
    "type": "object",
    "properties": {"location": {"type": "string", "maxLength": 30}},
    "required": ["location"],
    "additionalProperties": False,
}
CALL = f"""start: <tool_call> "\\n" call "\\n" </tool_call>
call: "{{\\"name\\": \\"get_weather\\", \\"arguments\\": " {json_rule(FUNCTION)} "}}"
"""
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "", "parameters": FUNCTION}}


@pytest.fixture(scope="module")
def demo():
    model = read_model(DEMO)
    tiny = TinyModel(DEMO, model.vocabulary)
    constrained = ConstrainedModel(
        tiny, RunCounter(load_generator(DEMO, model.vocabulary, Placement("cpu", workers=1)))
    )
    yield model, constrained
    del constrained.generator.generator


def answer(demo, schema, text, *, tools=(), grammar="", temperature=0.0):
    model, constrained = demo
    system = [] if tools else [{"role": "system", "content": schema_prompt(schema)}]
    prompt = model.prompt([*system, {"role": "user", "content": text}], tools)
    job = constrained.job(grammar or json_schema_grammar(schema), LIMIT, prompt, temperature=temperature)
    constrained.generator.calls = 0
    run_log = constrained.run(job)
    unconstrained = RunLog()
    run_batch(constrained.generator.generator, constrained.vocabulary, [job], (), unconstrained.emit, unconstrained.end)
    return constrained.decode(run_log.ids(job)), run_log.ends[1], constrained.decode(unconstrained.ids(job))


@pytest.mark.parametrize("name", PEOPLE)
def test_an_answer_that_follows_its_schema_is_unchanged(demo, name):
    """The grammar then changes no token and costs no further call."""
    age, city = PEOPLE[name]
    text, ends, unconstrained = answer(demo, person(), f"{name} is {age} years old and lives in {city}.")

    assert json.loads(text).keys() == {"name", "age", "city"}
    assert ends == [("stop", "")]
    if unconstrained == text:
        assert demo[1].generator.calls <= 2


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("name", PEOPLE)
def test_answers_follow_schemas_that_the_model_never_saw(demo, name, temperature):
    """Dates, enums, bounds: the values are always valid."""
    age, city = PEOPLE[name]
    schema = person(HARDER)
    text, ends, _ = answer(demo, schema, f"{name} is {age} years old and lives in {city}.", temperature=temperature)

    if ends == [("stop", "")]:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    else:
        assert ends == [("length", "")]  # a string without a bound may be cut off


@pytest.mark.parametrize("text", ["name is Ann, age is 5", "Return colour and size as JSON: colour is red, size is 12"])
def test_any_json_object_is_an_object(demo, text):
    output, ends, _ = answer(demo, None, text, grammar=json_object_grammar())

    assert output.startswith("{")
    assert ends == [("length", "")] or isinstance(json.loads(output), dict)


@pytest.mark.parametrize("text", ["What is the weather in Oslo?", "Tell me a story.", "Hello!"])
def test_a_forced_call_is_a_call_for_any_input(demo, text):
    output, ends, _ = answer(demo, None, text, tools=[WEATHER], grammar=CALL)
    call = json.loads(output.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))

    assert ends == [("stop", "")]
    assert call["name"] == "get_weather"
    jsonschema.Draft202012Validator(FUNCTION).validate(call["arguments"])
